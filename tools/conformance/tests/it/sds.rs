//! Envoy's secret discovery, asked for by hand.
//!
//! `conformance/wire-exchanges/floor.tsv` holds how many recorded exchanges there are.

use std::path::{Path, PathBuf};

use finial_conformance::{Discovery, Envoys, Foreign, Product};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

fn discovery() -> Discovery {
    Discovery::load(&recorded())
}

#[test]
fn sds_recorded_requests_are_answered_alike() {
    let outcome = discovery().recorded(&Product::under_test()).unwrap();

    outcome.hold(&recorded().join("wire-exchanges"), "secrets");
}

#[test]
fn sds_renewals_reach_an_open_stream() {
    discovery().renewals(&Product::under_test()).unwrap();
}

#[test]
fn sds_streams_follow_what_is_asked_for() {
    discovery().conversation(&Product::under_test()).unwrap();
}

#[test]
fn sds_fetches_wait_for_what_is_being_signed() {
    // SPIRE answers with what is there at that moment.
    if std::env::var_os("SPIRE_BIN").is_none() {
        discovery().fresh(&Product::under_test()).unwrap();
    }
}

#[test]
fn sds_names_and_forms_are_those_of_configuration_and_proxy() {
    discovery().forms(&Product::under_test()).unwrap();
}

#[test]
fn sds_calls_are_limited() {
    discovery().limits(&Product::under_test()).unwrap();
}

#[test]
fn sds_switched_off_is_unknown() {
    discovery().switched_off(&Product::under_test()).unwrap();
}

#[test]
fn sds_envoys_speak_to_whom_they_should_across_rotations() {
    let Some(envoy) = Foreign::envoy("Envoy") else { return };

    let seen = Envoys::load(&recorded()).play(&Product::under_test(), &envoy).unwrap();

    println!(
        "Envoy: {} connections across {} certificates, none failed",
        seen.connections, seen.certificates
    );
    assert!(seen.connections > 0 && seen.certificates >= 6, "{seen:?}");
}
