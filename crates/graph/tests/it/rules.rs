//! Rules that deserve a name of their own.

use std::sync::Arc;

use graph::{AgentRecord, Change, ChangeBatch, EntryGraph, Token};
use spiffe::entry::AdditionalAttributes;
use spiffe::{Entry, EntryId, TrustDomain, UnixSecs};

use crate::draft::{agent, entry, id, selectors, trust_domain};

fn set(row_id: i64, entry: Entry) -> Change {
    Change::EntrySet { row_id, entry: Arc::new(entry) }
}

fn graph(changes: Vec<Change>) -> EntryGraph {
    EntryGraph::new(trust_domain()).apply(&changes.into()).0
}

fn ids(graph: &EntryGraph, path: &str) -> Vec<String> {
    graph.view(&id(path)).entries().map(|entry| entry.id.to_string()).collect()
}

#[test]
fn an_agent_sees_what_is_below_it_and_below_its_aliases() {
    let graph = graph(vec![
        Change::AgentSet(Arc::new(agent("/spire/agent/a", &["cluster", "zone"]))),
        Change::AgentSet(Arc::new(agent("/spire/agent/b", &["cluster"]))),
        set(1, entry("own", "/spire/agent/a", "/web", &["uid"])),
        set(2, entry("alias", "/spire/server", "/pool", &["zone", "cluster"])),
        set(3, entry("pooled", "/pool", "/db", &["uid"])),
        set(4, entry("nested", "/db", "/db/sidecar", &["uid"])),
        set(5, entry("without selectors", "/spire/server", "/all", &[])),
        set(6, entry("of all", "/all", "/x", &["uid"])),
    ]);

    assert_eq!(ids(&graph, "/spire/agent/a"), ["own", "pooled", "nested"]);
    assert_eq!(ids(&graph, "/spire/agent/b"), [""; 0]);
    assert_eq!(ids(&graph, "/spire/agent/unknown"), [""; 0]);
    assert_eq!(graph.counts().aliases, 1);
}

#[test]
fn entries_that_name_a_foreign_trust_domain_are_listed_but_not_authorised() {
    let graph = graph(vec![
        set(1, entry("foreign parent", "spiffe://other.org/spire/agent/a", "/web", &["uid"])),
        set(2, entry("foreign id", "/spire/agent/a", "spiffe://other.org/web", &["uid"])),
        set(3, entry("own", "/spire/agent/a", "/web", &["uid"])),
    ]);

    assert_eq!(ids(&graph, "/spire/agent/a"), ["own"]);
    assert_eq!(ids(&graph, "spiffe://other.org/spire/agent/a"), [""; 0]);
    assert_eq!(graph.counts().entries, 3);
    assert!(graph.pick(&id("/spire/agent/a"), &[EntryId::new("foreign id")]).is_empty());
}

#[test]
fn what_is_below_an_identity_comes_behind_the_entry_that_gives_it() {
    let graph = graph(vec![
        set(1, entry("deeper", "/deep", "/deepest", &["uid"])),
        set(2, entry("first", "/spire/agent/a", "/first", &["uid"])),
        set(3, entry("gives deep", "/spire/agent/a", "/deep", &["uid"])),
        set(4, entry("gives it too", "/spire/agent/a", "/deep", &["other"])),
        set(5, entry("deepest", "/deepest", "/x", &["uid"])),
        set(6, entry("deep again", "/deep", "/y", &["uid"])),
        set(7, entry("last", "/spire/agent/a", "/last", &["uid"])),
        set(8, entry("below first", "/first", "/z", &["uid"])),
    ]);

    assert_eq!(
        ids(&graph, "/spire/agent/a"),
        ["first", "below first", "gives deep", "deeper", "deepest", "deep again", "gives it too", "last"]
    );
}

#[test]
fn a13_cycles_end() {
    let graph = graph(vec![
        set(1, entry("start", "/spire/agent/a", "/x", &["uid"])),
        set(2, entry("there", "/x", "/y", &["uid"])),
        set(3, entry("back", "/y", "/x", &["uid"])),
        set(4, entry("self", "/y", "/y", &["uid"])),
    ]);

    assert_eq!(ids(&graph, "/spire/agent/a"), ["start", "there", "back", "self"]);
}

#[test]
fn a13_a_chain_of_a_hundred_thousand_parents_is_walked_to_its_end() {
    let link = |number: i64| {
        let parent = if number == 0 { "/spire/agent/a".to_owned() } else { format!("/{}", number - 1) };
        set(number + 1, entry(&format!("e{number}"), &parent, &format!("/{number}"), &["uid"]))
    };
    let graph = graph((0..100_000).map(link).collect());

    assert_eq!(ids(&graph, "/spire/agent/a").len(), 100_000);
}

#[test]
fn an_older_row_does_not_replace_a_newer_one() {
    let revised = |revision_number, hint: &str| Entry {
        revision_number,
        hint: hint.to_owned(),
        ..entry("e", "/spire/agent/a", "/web", &["uid"])
    };
    let held = graph(vec![set(7, revised(3, "new"))]);
    let hint = |graph: &EntryGraph| graph.entry(&EntryId::new("e")).unwrap().hint.clone();

    let (stale, affected) = held.apply(&vec![set(7, revised(2, "old"))].into());
    assert_eq!(hint(&stale), "new");
    assert!(affected.is_empty());

    // The same id in a lower row was deleted and made again since.
    let (stale, _) = held.apply(&vec![set(6, revised(9, "former life"))].into());
    assert_eq!(hint(&stale), "new");

    // A change that raises no revision counts: deleting a federated bundle is one.
    let (same_revision, affected) = held.apply(&vec![set(7, revised(3, "newer"))].into());
    assert_eq!(hint(&same_revision), "newer");
    assert!(affected.contains(&id("/spire/agent/a")));
}

#[test]
fn what_changes_nothing_concerns_nobody() {
    let held = graph(vec![
        set(1, entry("e", "/spire/agent/a", "/web", &["uid"])),
        Change::AgentSet(Arc::new(agent("/spire/agent/a", &["x"]))),
    ]);

    let (_, affected) = held.apply(&ChangeBatch::from(vec![
        set(1, entry("e", "/spire/agent/a", "/web", &["uid"])),
        Change::AgentSet(Arc::new(agent("/spire/agent/a", &["x"]))),
        Change::EntryDeleted { row_id: 9 },
        Change::EntryGone(EntryId::new("nobody")),
        Change::AgentDeleted(id("/spire/agent/b")),
    ]));

    assert!(affected.is_empty());
}

#[test]
fn only_the_agents_that_see_a_change_are_concerned() {
    let held = graph(vec![
        Change::AgentSet(Arc::new(agent("/spire/agent/a", &["zone:1", "cluster"]))),
        Change::AgentSet(Arc::new(agent("/spire/agent/b", &["zone:2", "cluster"]))),
        Change::AgentSet(Arc::new(agent("/spire/agent/c", &["cluster"]))),
        set(1, entry("alias 1", "/spire/server", "/zone/1", &["zone:1"])),
        set(2, entry("alias 2", "/spire/server", "/zone/2", &["zone:2", "cluster"])),
        set(3, entry("below c", "/spire/agent/c", "/zone/2", &["uid"])),
    ]);
    let concerned = |changes: Vec<Change>| {
        let (_, affected) = held.apply(&changes.into());
        let mut paths: Vec<String> = affected.agents().map(|id| id.path().to_owned()).collect();
        paths.sort();
        paths
    };

    assert_eq!(concerned(vec![set(9, entry("new", "/zone/1", "/web", &["uid"]))]), ["/spire/agent/a"]);
    assert_eq!(
        concerned(vec![set(9, entry("new", "/zone/2", "/web", &["uid"]))]),
        ["/spire/agent/b", "/spire/agent/c"]
    );
    assert_eq!(concerned(vec![Change::EntryDeleted { row_id: 1 }]), ["/spire/agent/a"]);
    assert_eq!(concerned(vec![set(9, entry("new", "/nowhere", "/web", &["uid"]))]), [""; 0]);
    let renewed = AgentRecord { serial: "2".to_owned(), ..agent("/spire/agent/c", &["cluster"]) };
    assert_eq!(concerned(vec![Change::AgentSet(Arc::new(renewed.clone()))]), [""; 0]);
    let (_, affected) = held.apply(&vec![Change::AgentSet(Arc::new(renewed))].into());
    assert!(affected.records().eq([&id("/spire/agent/c")]));
}

#[test]
fn every_field_of_an_entry_is_in_the_token() {
    let token = |entry: Entry| -> Token { graph(vec![set(1, entry)]).view(&id("/spire/agent/a")).token() };
    let plain = || entry("e", "/spire/agent/a", "/web", &["uid"]);
    let changed = [
        Entry { id: EntryId::new("f"), ..plain() },
        Entry { spiffe_id: id("/other"), ..plain() },
        Entry { selectors: selectors(&["gid"]), ..plain() },
        Entry { selectors: selectors(&["uid", "gid"]), ..plain() },
        Entry { x509_svid_ttl: 1, ..plain() },
        Entry { jwt_svid_ttl: 1, ..plain() },
        Entry { federates_with: [TrustDomain::parse("other.org").unwrap()].into(), ..plain() },
        Entry { admin: true, ..plain() },
        Entry { downstream: true, ..plain() },
        Entry { expires_at: UnixSecs(1), ..plain() },
        Entry { dns_names: ["a".to_owned()].into(), ..plain() },
        Entry { revision_number: 1, ..plain() },
        Entry { store_svid: true, ..plain() },
        Entry { hint: "a".to_owned(), ..plain() },
        Entry { created_at: UnixSecs(1), ..plain() },
        Entry { additional_attributes: Some(AdditionalAttributes::default()), ..plain() },
    ];

    let mut tokens: Vec<[u8; 16]> =
        changed.into_iter().chain([plain()]).map(|entry| token(entry).to_bytes()).collect();
    tokens.sort_unstable();
    let count = tokens.len();
    tokens.dedup();
    assert_eq!(tokens.len(), count);
    assert_eq!(count, 17);
    assert_eq!(Token::from_bytes(tokens[3]).to_bytes(), tokens[3]);
}

#[test]
fn the_order_of_federated_trust_domains_is_not_in_the_token() {
    let token = |names: [&str; 2]| {
        let federates_with = names.iter().map(|name| TrustDomain::parse(name).unwrap()).collect();
        let entry = Entry { federates_with, ..entry("e", "/spire/agent/a", "/web", &["uid"]) };
        graph(vec![set(1, entry)]).view(&id("/spire/agent/a")).token()
    };

    assert_eq!(token(["one.org", "two.org"]), token(["two.org", "one.org"]));
}

#[test]
fn a_load_takes_each_row_and_each_id_once() {
    let rows = vec![
        (3, Arc::new(entry("twice", "/spire/agent/a", "/late", &["uid"]))),
        (1, Arc::new(entry("twice", "/spire/agent/a", "/early", &["uid"]))),
        (2, Arc::new(entry("row", "/spire/agent/a", "/first", &["uid"]))),
        (2, Arc::new(entry("row", "/spire/agent/a", "/last", &["uid"]))),
    ];

    let graph = EntryGraph::load(trust_domain(), rows, []);

    let given: Vec<&str> = graph.entries_from(0).map(|(_, entry)| entry.spiffe_id.path()).collect();
    assert_eq!(given, ["/last", "/late"]);
}
