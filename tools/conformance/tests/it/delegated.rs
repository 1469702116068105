//! The Delegated Identity API.

use std::path::Path;

use finial_conformance::{Delegates, Product};

fn delegates() -> Delegates {
    Delegates::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance"))
}

#[test]
fn delegated_refusals_are_those_of_spire() {
    delegates().refusals(&Product::under_test()).unwrap();
}

#[test]
fn delegated_subscriptions_follow_entries_and_end_with_the_delegates() {
    delegates().subscriptions(&Product::under_test()).unwrap();
}

#[test]
fn delegated_processes_are_attested() {
    delegates().processes(&Product::under_test()).unwrap();
}
