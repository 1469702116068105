//! Recorded bytes of real agents, sent again.
//!
//! `conformance/wire-exchanges/floor.tsv` holds, per part, the number of cases and the most that may be
//! open.

use std::path::{Path, PathBuf};

use finial_conformance::{Exchanges, Outcome, Product};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

#[test]
fn exchanges_first_minute() {
    let outcome = Exchanges::load(&recorded()).first_minute(&Product::under_test());

    outcome.hold(&recorded().join("wire-exchanges"), "first-minute");
}

#[test]
fn exchanges_pages() {
    let mut outcome = Outcome::default();

    outcome.add("sync", Exchanges::load(&recorded()).pages(&Product::under_test()));

    outcome.hold(&recorded().join("wire-exchanges"), "pages");
}

#[test]
fn exchanges_refusals() {
    let outcome = Exchanges::load(&recorded()).refusals(&Product::under_test());

    outcome.hold(&recorded().join("wire-exchanges"), "refusals");
}
