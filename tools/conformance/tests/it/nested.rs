//! Servers below servers, three levels of one trust domain.

use std::path::{Path, PathBuf};

use finial_conformance::{Nested, Product};

#[test]
fn nested_levels_verify_each_others_svids_and_tokens() {
    let product = Product::under_test();

    Nested::start(&[&product, &product, &product]).unwrap().verify_each_other().unwrap();
}

#[test]
fn nested_root_is_replaced_without_a_failed_validation() {
    let product = Product::under_test();

    Nested::start(&[&product, &product, &product]).unwrap().replace_root().unwrap();
}

#[test]
fn nested_key_that_was_revoked_below_does_not_come_back_from_above() {
    let product = Product::under_test();

    Nested::start(&[&product, &product]).unwrap().revoke_key_below().unwrap();
}

/// Finial and SPIRE above and below each other; without `SPIRE_BIN` there is nothing to mix.
fn mixed(check: impl FnOnce(&Product, &Product)) {
    match std::env::var_os("SPIRE_BIN").map(PathBuf::from) {
        Some(dir) => check(&Product::finial(), &Product::spire(Path::new(&dir))),
        None => println!("SPIRE_BIN is not set: SPIRE is not here to be above or below"),
    }
}

#[test]
fn oracle_nested_finial_below_spire() {
    mixed(|finial, spire| {
        let nested = Nested::start(&[spire, finial]).unwrap();
        nested.verify_each_other().unwrap();
        nested.replace_root().unwrap();
    });
}

#[test]
fn oracle_nested_spire_below_finial() {
    mixed(|finial, spire| {
        let nested = Nested::start(&[finial, spire]).unwrap();
        nested.verify_each_other().unwrap();
        nested.replace_root().unwrap();
    });
}

#[test]
fn oracle_nested_finial_between_spire() {
    mixed(|finial, spire| {
        let nested = Nested::start(&[spire, finial, spire]).unwrap();
        nested.verify_each_other().unwrap();
        nested.replace_root().unwrap();
    });
}
