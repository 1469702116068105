//! Agents, their serials and their join tokens.

use std::sync::Arc;

use finial_store::{
    Agent, AgentCondition, AgentFilter, AgentUpdate, Attestation, Attested, Change, EntryFilter, JoinToken,
    NewEntry, Reattest, Store, StoreError,
};
use spiffe::{SpiffeId, UnixSecs};

use crate::support::{entry, id, on_each_database, open, selector};

const LATER: UnixSecs = UnixSecs(2_000_000_000);

fn agent(path: &str, serial: &str) -> Agent {
    Agent {
        id: id(path),
        attestation_type: "x509pop".to_owned(),
        serial: serial.to_owned(),
        expires_at: LATER,
        new_serial: String::new(),
        new_expires_at: UnixSecs(0),
        can_reattest: true,
        agent_version: String::new(),
        selectors: Arc::from([selector("x509pop:subject:cn:a")]),
    }
}

fn alias(agent: &SpiffeId) -> NewEntry {
    NewEntry::new(id("/alias"), agent.clone(), vec![selector(&format!("spiffe_id:{agent}"))])
}

async fn attest(store: &Store, agent: Agent, reattest: Reattest) -> Attested {
    let attestation = Attestation { agent, reattest, join_token: None };
    store.attest_agent(attestation).await.unwrap().value
}

async fn serials(store: &Store, path: &str) -> (String, String) {
    let agent = store.fetch_agent(id(path)).await.unwrap().unwrap();
    (agent.serial.clone(), agent.new_serial.clone())
}

on_each_database! {
    async fn a_first_use_attestation_never_replaces_an_agent(home: &Home) {
        let store = home.open();

        let first = attest(&store, agent("/a", "1"), Reattest::Refused).await;
        let second = attest(&store, agent("/a", "2"), Reattest::Refused).await;
        let third = attest(&store, agent("/a", "3"), Reattest::Allowed).await;

        assert!(matches!(first, Attested::Done(_)));
        assert_eq!(second, Attested::Exists);
        assert!(matches!(third, Attested::Done(agent) if agent.serial == "3"));
        assert_eq!(store.agent_events_since(0).await.unwrap().len(), 4);
    }

    async fn attested_selectors_are_kept_once_and_in_order(home: &Home) {
        let store = home.open();
        let selectors = ["b:1", "a:2", "b:1", "a:1"].map(selector);
        let selectors: Arc<[spiffe::Selector]> = selectors.into();

        attest(&store, Agent { selectors, ..agent("/a", "1") }, Reattest::Allowed).await;

        let stored = store.agent_selectors(id("/a")).await.unwrap();
        assert_eq!(stored, ["a:1", "a:2", "b:1"].map(selector));
    }

    async fn nothing_undoes_a_ban_but_deletion(home: &Home) {
        let store = home.open();
        attest(&store, agent("/a", "1"), Reattest::Allowed).await;
        let renewal = AgentUpdate {
            new_serial: Some("2".to_owned()),
            new_expires_at: Some(LATER),
            ..AgentUpdate::default()
        };
        let not_banned = AgentCondition::NotBanned;
        store.update_agent(id("/a"), renewal.clone(), not_banned.clone()).await.unwrap();

        let banned = store.ban_agent(id("/a")).await.unwrap();
        let promoted = store.promote_agent(id("/a"), "2".to_owned()).await.unwrap();
        let renewed = store.update_agent(id("/a"), renewal, not_banned).await.unwrap();
        let again = attest(&store, agent("/a", "3"), Reattest::Allowed).await;

        assert!(matches!(&banned.changes.unwrap().list[..], [Change::AgentSet(agent)] if agent.is_banned()));
        assert_eq!((promoted.value, renewed.value), (None, None));
        assert!(promoted.changes.is_none());
        assert_eq!(again, Attested::Banned);
        assert_eq!(serials(&store, "/a").await, (String::new(), String::new()));

        store.delete_agent(id("/a")).await.unwrap();
        assert!(matches!(attest(&store, agent("/a", "4"), Reattest::Refused).await, Attested::Done(_)));
    }

    async fn a_renewed_serial_is_promoted_once(home: &Home) {
        let store = home.open();
        let renewed = Agent { new_serial: "2".to_owned(), new_expires_at: LATER, ..agent("/a", "1") };
        store.create_agent(renewed).await.unwrap();

        let wrong = store.promote_agent(id("/a"), "9".to_owned()).await.unwrap();
        let right = store.promote_agent(id("/a"), "2".to_owned()).await.unwrap();
        let late = store.promote_agent(id("/a"), "2".to_owned()).await.unwrap();
        let nobody = store.promote_agent(id("/nobody"), "2".to_owned()).await;

        assert_eq!((wrong.value, late.value), (None, None));
        assert_eq!(right.value.unwrap().serial, "2");
        assert_eq!(serials(&store, "/a").await, ("2".to_owned(), String::new()));
        assert!(matches!(nobody, Err(StoreError::NotFound(_))));
    }

    async fn a_token_and_its_alias_come_together_or_not_at_all(home: &Home) {
        let store = home.open();
        let token = |text: &str| JoinToken { token: text.to_owned(), expires_at: LATER };
        let agent = id("/spire/agent/join_token/t");

        let made = store.create_join_token(token("t"), Some(alias(&agent))).await.unwrap();
        let twice = store.create_join_token(token("t"), Some(entry("/x", &["a:b"]))).await.unwrap_err();
        let bad = NewEntry {
            federates_with: vec![spiffe::TrustDomain::parse("nobody.test").unwrap()],
            ..entry("/y", &["a:b"])
        };
        let refused = store.create_join_token(token("u"), Some(bad)).await.unwrap_err();

        assert!(made.value.is_some_and(|created| !created.existing));
        home.assert_taken(&twice, "join_tokens.token", "uix_join_tokens_token");
        assert_eq!(refused.to_string(), "unable to find federated bundle \"spiffe://nobody.test\"");
        assert!(store.fetch_join_token("u".to_owned()).await.unwrap().is_none());
        assert_eq!(store.count_entries(EntryFilter::default()).await.unwrap(), 1);
        let debug = format!("{:?}", token("secret"));
        assert!(!debug.contains("secret"), "{debug}");
    }

    async fn deleting_a_join_token_agent_takes_only_its_alias(home: &Home) {
        let store = home.open();
        let path = "/spire/agent/join_token/t";
        let joined = Agent { attestation_type: "join_token".to_owned(), ..agent(path, "1") };
        store.create_agent(joined).await.unwrap();
        let own = store.create_entry(alias(&id(path))).await.unwrap().value.stored;
        let workload = NewEntry { parent_id: id(path), ..entry("/w", &["unix:uid:1"]) };
        store.create_entry(workload).await.unwrap();

        let deleted = store.delete_agent(id(path)).await.unwrap();

        let changes = deleted.changes.unwrap();
        assert!(matches!(
            &changes.list[..],
            [Change::EntryDeleted { row_id, .. }, Change::AgentDeleted(_)] if *row_id == own.row_id
        ));
        let left = store.load_entries().await.unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].entry.spiffe_id, id("/w"));
        assert!(store.agent_selectors(id(path)).await.unwrap().is_empty());
    }

    async fn pruning_spares_the_banned_and_those_that_cannot_return(home: &Home) {
        let store = home.open();
        let old = |path: &str| Agent { expires_at: UnixSecs(1000), ..agent(path, "1") };
        store.create_agent(old("/gone")).await.unwrap();
        store.create_agent(agent("/valid", "1")).await.unwrap();
        store.create_agent(Agent { can_reattest: false, ..old("/once") }).await.unwrap();
        store.create_agent(Agent { serial: String::new(), ..old("/banned") }).await.unwrap();

        let first = store.prune_agents(UnixSecs(2000), false, 0).await.unwrap();
        let second = store.prune_agents(UnixSecs(2000), true, 0).await.unwrap();

        assert_eq!(first.value, [id("/gone")]);
        assert_eq!(second.value, [id("/once")]);
        let left = store.load_agents().await.unwrap();
        assert_eq!(left.iter().map(|agent| agent.id.path()).collect::<Vec<_>>(), ["/valid", "/banned"]);
    }
}

#[tokio::test]
async fn expiries_are_compared_as_instants_whatever_their_zone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("d");
    let store = open(&file);
    for path in ["/east", "/west"] {
        store.create_agent(agent(path, "1")).await.unwrap();
    }
    drop(store);
    let raw = rusqlite::Connection::open(&file).unwrap();
    // As texts these two compare the other way round.
    let set = "UPDATE attested_node_entries SET expires_at = ?1 WHERE spiffe_id LIKE ?2";
    raw.execute(set, ["2030-01-01 05:00:00.5+09:00", "%/east"]).unwrap();
    raw.execute(set, ["2030-01-01 02:00:00-05:00", "%/west"]).unwrap();
    drop(raw);

    let store = open(&file);
    let noon = UnixSecs(1_893_456_000);
    let before = AgentFilter { expires_before: Some(noon), ..AgentFilter::default() };
    let after = AgentFilter { valid_at: Some(noon), ..AgentFilter::default() };
    let names = async |filter| -> Vec<String> {
        let page = store.list_agents(filter, None).await.unwrap();
        page.agents.iter().map(|agent| agent.id.path().to_owned()).collect()
    };

    assert_eq!(names(before).await, ["/east"]);
    assert_eq!(names(after).await, ["/west"]);
    let pruned = store.prune_agents(noon, true, 0).await.unwrap();
    assert_eq!(pruned.value, [id("/east")]);
}
