//! Finial beside SPIRE: `cargo xtask oracle --spire DIR` runs these. Without `SPIRE_BIN` there is nothing
//! to compare with and they say so.

use std::path::{Path, PathBuf};

use finial_conformance::{Crossing, Domains, Live, Outage, PlaneConfig, Profile, Server, packed_calls};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

fn with_both(check: impl FnOnce(&Crossing) -> Result<(), String>) {
    match Crossing::of_both(&recorded()) {
        Some(crossing) => check(&crossing).unwrap(),
        None => println!("SPIRE_BIN is not set: SPIRE is not here to be compared with"),
    }
}

#[test]
fn oracle_spire_agent_sees_changes_of_entries_on_finial() {
    with_both(|both| Live::load(&recorded()).entries(&both.spire_agent()));
}

#[test]
fn oracle_spire_agent_rotates_on_finial() {
    with_both(|both| Live::load(&recorded()).rotation(&both.spire_agent()));
}

#[test]
fn oracle_spire_agent_outlives_restarts_on_finial() {
    with_both(|both| Live::load(&recorded()).restarts(&both.spire_agent()));
}

#[test]
fn oracle_spire_agent_follows_new_authorities_of_finial() {
    with_both(|both| Live::load(&recorded()).authorities(&both.spire_agent()));
}

#[test]
fn oracle_finial_agent_sees_changes_of_entries_on_spire() {
    with_both(|both| Live::load(&recorded()).entries(&both.finial_agent()));
}

#[test]
fn oracle_finial_agent_rotates_on_spire() {
    with_both(|both| Live::load(&recorded()).rotation(&both.finial_agent()));
}

#[test]
fn oracle_finial_agent_outlives_restarts_on_spire() {
    with_both(|both| Live::load(&recorded()).restarts(&both.finial_agent()));
}

#[test]
fn oracle_finial_agent_follows_new_authorities_of_spire() {
    with_both(|both| Live::load(&recorded()).authorities(&both.finial_agent()));
}

#[test]
fn oracle_federation_with_spire_by_spiffe_ids() {
    with_both(|both| Domains::federate(both.finial(), both.spire(), &recorded(), Profile::Spiffe)?.follow());
}

#[test]
fn oracle_federation_with_spire_by_web_certificates() {
    with_both(|both| Domains::federate(both.finial(), both.spire(), &recorded(), Profile::Web)?.follow());
}

#[test]
fn oracle_federation_of_spire_with_finial_by_spiffe_ids() {
    with_both(|both| Domains::federate(both.spire(), both.finial(), &recorded(), Profile::Spiffe)?.follow());
}

#[test]
fn oracle_federation_of_spire_with_finial_by_web_certificates() {
    with_both(|both| Domains::federate(both.spire(), both.finial(), &recorded(), Profile::Web)?.follow());
}

#[test]
fn oracle_database_goes_to_spire_and_back() {
    with_both(Crossing::database);
}

#[test]
fn oracle_requests_that_are_no_calls_are_refused_alike() {
    with_both(Crossing::refusals);
}

#[test]
fn oracle_agent_folder_goes_to_spire_and_back_on_finial() {
    with_both(|both| both.agent_folder(Server::Finial));
}

#[test]
fn oracle_agent_folder_goes_to_spire_and_back_on_spire() {
    with_both(|both| both.agent_folder(Server::Spire));
}

#[test]
fn oracle_finial_agent_serves_while_spires_server_is_away() {
    with_both(|both| {
        let mut outage = Outage::start(&both.finial_agent(), &PlaneConfig::default());
        let _id = outage.create_entry("/web", "unix:uid:{uid}");
        let before = outage.await_ids(&["spiffe://example.org/web"]);
        outage.await_vault();
        outage.stop_server();
        outage.end_agent("KILL");

        let (took, after) = outage.time_start();

        println!("outage: SPIRE's server is away, keys after {took:?}");
        if after == before { Ok(()) } else { Err(format!("{after:?} instead of {before:?}")) }
    });
}

#[test]
fn oracle_packed_messages_are_taken_where_spire_takes_them() {
    with_both(|both| {
        let [finial, spire] = both.products().map(|product| packed_calls(product, &recorded()));
        assert_eq!(finial?, spire?);
        Ok(())
    });
}
