//! The server's API: every recorded call, played on a server process.
//!
//! `conformance/api/floor.tsv` holds, per file, the number of cases and the most that may be open.

use std::path::Path;

use finial_conformance::{ApiGroup, Product};

fn check(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/api");

    let outcome = ApiGroup::load(&folder, name).play(&Product::under_test());

    outcome.hold(&folder, name);
}

#[test]
fn api_agent() {
    check("agent");
}

#[test]
fn api_authority() {
    check("authority");
}

#[test]
fn api_authz() {
    check("authz");
}

#[test]
fn api_authz_expired() {
    check("authz-expired");
}

#[test]
fn api_bundle() {
    check("bundle");
}

#[test]
fn api_entry() {
    check("entry");
}

#[test]
fn api_entrylist() {
    check("entrylist");
}

#[test]
fn api_federation() {
    check("federation");
}

#[test]
fn api_issue() {
    check("issue");
}

#[test]
fn api_mint() {
    check("mint");
}

#[test]
fn api_ownbundle() {
    check("ownbundle");
}

#[test]
fn api_server() {
    check("server");
}

#[test]
fn api_sync() {
    check("sync");
}

#[test]
fn api_wire() {
    check("wire");
}
