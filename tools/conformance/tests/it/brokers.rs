//! The SPIFFE Broker API.

use std::path::Path;

use finial_conformance::{Brokers, Product};

fn brokers() -> Brokers {
    Brokers::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance"))
}

#[test]
fn l05_brokers_are_held_to_their_scopes() {
    brokers().scopes(&Product::under_test()).unwrap();
}

#[test]
fn brokers_are_sent_what_their_workload_would_be_sent() {
    brokers().subscriptions(&Product::under_test()).unwrap();
}

#[test]
fn l01_admin_and_broker_sockets_are_closed_to_others_and_off_unless_configured() {
    brokers().sockets(&Product::under_test()).unwrap();
}

#[test]
fn brokers_calls_are_measured() {
    brokers().metrics(&Product::under_test()).unwrap();
}
