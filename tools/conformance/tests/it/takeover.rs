//! What SPIRE left behind, taken over in place.
//!
//! `conformance/datastore/floor.tsv` holds, per part, the number of cases and the most that may be open.

use std::path::{Path, PathBuf};

use finial_conformance::{Outcome, Product, Takeover};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

fn check_questions(version: &str, name: &str) {
    let outcome = Takeover::load(&recorded()).questions(&Product::under_test(), version);

    outcome.hold(&recorded().join("datastore"), name);
}

fn check_one(name: &str, judge: impl FnOnce(&Takeover, &Product) -> Result<(), String>) {
    let mut outcome = Outcome::default();

    outcome.add(name, judge(&Takeover::load(&recorded()), &Product::under_test()));

    outcome.hold(&recorded().join("datastore"), name);
}

#[test]
fn takeover_database() {
    check_questions("", "questions");
}

#[test]
fn takeover_database_v24() {
    check_questions("v24", "questions-v24");
}

#[test]
fn takeover_database_v23() {
    check_questions("v23", "questions-v23");
}

#[test]
fn takeover_database_v22_is_refused() {
    check_one("v22", Takeover::too_old);
}

#[test]
fn takeover_agent_join_token() {
    check_one("agent-join_token", |takeover, product| takeover.resumes(product, "join_token"));
}

#[test]
fn takeover_agent_x509pop() {
    check_one("agent-x509pop", |takeover, product| takeover.resumes(product, "x509pop-node-1"));
}

#[test]
fn takeover_agent_banned() {
    check_one("agent-banned", Takeover::refuses_banned);
}
