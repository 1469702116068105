//! Turns of the feed on a real database that somebody else writes to.

use std::collections::BTreeSet;
use std::sync::Arc;

use finial_store::Store;
use finial_store::feed::{Federating, Feed, Followed, Hints, Limits};
use rusqlite::{Connection, params};
use spiffe::{EntryId, TrustDomain};

use crate::support::{NOW, entry, id, open};

/// A store, and another program at the same file.
struct Shared {
    _dir: tempfile::TempDir,
    store: Store,
    other: Connection,
    feed: Feed,
}

impl Shared {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("data.sqlite3");
        let store = open(&file);
        store.create_entry(entry("/web", &["unix:uid:1"])).await.unwrap();
        let other = Connection::open(file).unwrap();
        let feed = store.follow(Feed::new(Limits::DEFAULT), nobody(), false).await.unwrap().feed;
        Self { _dir: dir, store, other, feed }
    }

    async fn turn(&mut self, federating: Federating) -> Followed {
        let followed = self.store.follow(self.feed.clone(), federating, true).await.unwrap();
        self.feed = followed.feed.clone();
        followed
    }

    fn event(&self, entry_id: &str) {
        let sql = "INSERT INTO registered_entries_events (entry_id) VALUES (?1)";
        self.other.execute(sql, [entry_id]).unwrap();
    }

    fn bundle(&self, name: &str, at: &str) {
        let data = [10, u8::try_from(name.len() + 9).unwrap()];
        let data = [&data[..], b"spiffe://", name.as_bytes()].concat();
        let sql = "INSERT INTO bundles (trust_domain, updated_at, data) VALUES (?1, ?2, ?3)";
        self.other.execute(sql, params![format!("spiffe://{name}"), at, data]).unwrap();
    }
}

fn nobody() -> Federating {
    Arc::new(|_| BTreeSet::new())
}

#[tokio::test]
async fn what_another_program_changes_is_read_once() {
    let mut shared = Shared::new().await;
    let stored = shared.store.load_entries().await.unwrap().remove(0);
    let web = stored.entry.id.clone();

    let sql = "UPDATE registered_entries SET hint = 'new', revision_number = 7 WHERE entry_id = ?1";
    shared.other.execute(sql, [web.as_str()]).unwrap();
    shared.event(web.as_str());
    shared.event("gone");
    let sql = "INSERT INTO attested_node_entries (spiffe_id, serial_number) VALUES (?1, '12')";
    shared.other.execute(sql, [id("/spire/agent/x").as_str()]).unwrap();
    let sql = "INSERT INTO attested_node_entries_events (spiffe_id) VALUES (?1), ('no id')";
    shared.other.execute(sql, [id("/spire/agent/x").as_str()]).unwrap();
    let followed = shared.turn(nobody()).await;

    assert_eq!(followed.hints.entries, BTreeSet::from([web, EntryId::new("gone")]));
    assert_eq!(followed.rows.entries.len(), 1);
    assert_eq!(followed.rows.entries[0].entry.hint, "new");
    assert_eq!(followed.hints.agents, BTreeSet::from([id("/spire/agent/x")]));
    assert_eq!(followed.rows.agents[0].serial, "12");
    let print = followed.fingerprint.unwrap();
    assert_eq!((print.entries, print.last_row, print.revisions, print.agents), (1, stored.row_id, 7, 1));
    assert!(shared.turn(nobody()).await.hints.is_empty());
}

#[tokio::test]
async fn a_late_event_between_known_ones_is_found() {
    let shared = Shared::new().await;
    let insert = |id: i64, entry: &str| {
        let sql = "INSERT INTO registered_entries_events (id, entry_id) VALUES (?1, ?2)";
        shared.other.execute(sql, params![id, entry]).unwrap();
    };

    insert(10, "a");
    insert(30, "c");
    let first = shared.store.follow(shared.feed.clone(), nobody(), false).await.unwrap();
    insert(20, "b");
    let second = shared.store.follow(first.feed, nobody(), false).await.unwrap();

    let named = |hints: &Hints| hints.entries.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(named(&first.hints), ["a", "c"]);
    assert_eq!(named(&second.hints), ["b"]);
}

#[tokio::test]
async fn a_bundle_that_vanishes_hints_the_entries_that_federate_with_it() {
    let mut shared = Shared::new().await;
    shared.bundle("far.test", &NOW.to_string());
    let far = TrustDomain::parse("far.test").unwrap();
    let appeared = shared.turn(nobody()).await;

    shared.other.execute("DELETE FROM bundles", []).unwrap();
    let federating: Federating = Arc::new(|gone| {
        assert_eq!(gone.as_str(), "far.test");
        BTreeSet::from([EntryId::new("federates")])
    });
    let vanished = shared.turn(federating).await;

    assert!(matches!(&appeared.rows.bundles[..], [(name, Some(_))] if *name == far));
    assert_eq!(vanished.rows.bundles, [(far, None)]);
    assert_eq!(vanished.hints.entries, BTreeSet::from([EntryId::new("federates")]));
    assert!(vanished.rows.entries.is_empty());
}

#[tokio::test]
async fn more_events_than_one_answer_holds_are_read_in_one_turn() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data.sqlite3");
    let store = open(&file);
    let limits = Limits { rows: 10, ..Limits::DEFAULT };
    let feed = store.follow(Feed::new(limits), nobody(), false).await.unwrap().feed;
    let other = Connection::open(file).unwrap();

    for number in 0..95 {
        let sql = "INSERT INTO registered_entries_events (entry_id) VALUES (?1)";
        other.execute(sql, [format!("e{}", number % 40)]).unwrap();
    }
    let followed = store.follow(feed, nobody(), false).await.unwrap();

    assert_eq!(followed.hints.entries.len(), 40);
}
