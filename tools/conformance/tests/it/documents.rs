//! Identifiers, bundles, chains and tokens: every recorded document through its front door.
//!
//! `conformance/documents/floor.tsv` holds, per file, the number of cases and the most that may be open.

use std::path::Path;

use finial_conformance::{Documents, Product};

fn check(name: &str) {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance");
    let folder = recorded.join("documents");

    let documents = Documents::load(&folder, &recorded.join("api/api.fds"));
    let outcome = documents.play(&Product::under_test(), name);

    outcome.hold(&folder, name);
}

#[test]
fn documents_id() {
    check("id");
}

#[test]
fn documents_bundle() {
    check("bundle");
}

#[test]
fn documents_chain() {
    check("chain");
}

#[test]
fn documents_jwt() {
    check("jwt");
}
