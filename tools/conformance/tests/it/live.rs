//! What a workload sees while the world changes around it, and what survives a kill.

use std::path::{Path, PathBuf};

use finial_conformance::{Kills, Live, PlaneConfig, Product, forced, query_file};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

#[test]
fn live_rotation_is_seen_by_an_open_stream() {
    Live::load(&recorded()).rotation(&Product::under_test()).unwrap();
}

#[test]
fn live_changes_of_entries_are_seen_by_an_open_stream() {
    Live::load(&recorded()).entries(&Product::under_test()).unwrap();
}

#[test]
fn live_changes_are_pushed() {
    if std::env::var_os("SPIRE_BIN").is_some() {
        println!("SPIRE's servers do not push");
        return;
    }
    Live::load(&recorded()).pushes(&Product::under_test()).unwrap();
}

#[test]
fn live_bundles_and_refused_wit_svids() {
    Live::load(&recorded()).bundles(&Product::under_test()).unwrap();
}

#[test]
fn live_new_authorities_fail_no_validation() {
    Live::load(&recorded()).authorities(&Product::under_test()).unwrap();
}

#[test]
fn live_restarts_lose_nothing() {
    Live::load(&recorded()).restarts(&Product::under_test()).unwrap();
}

#[test]
fn k04_live_kills_lose_no_acknowledged_write() {
    // `cargo xtask soak` asks for more.
    let rounds = std::env::var("FINIAL_KILL_ROUNDS").map_or(30, |rounds| rounds.parse().unwrap());

    let config = PlaneConfig::default();
    let acknowledged =
        Kills::load(&recorded()).play(&Product::under_test(), &config, &query_file, rounds).unwrap();

    println!("kills: {rounds} rounds, {acknowledged} acknowledged writes, none lost");
    assert!(acknowledged > 0, "nobody wrote anything");
}

#[test]
fn live_forced_rotation_fails_no_validation() {
    // `cargo xtask soak` asks for more.
    let asked = |name, usual| std::env::var(name).map_or(usual, |count| count.parse().unwrap());
    let (rounds, workloads) = (asked("FINIAL_FORCED_ROUNDS", 2), asked("FINIAL_FORCED_WORKLOADS", 20));

    let seen = forced(&Product::under_test(), rounds, workloads).unwrap();

    println!("forced rotation: {} rounds, {} validations, none failed", seen.rounds, seen.validations);
    assert!(seen.validations > 0, "nobody looked");
}
