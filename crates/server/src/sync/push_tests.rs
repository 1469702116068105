//! Pushes against polling: whatever happens, an agent that is told holds what one that asks is given.

use std::collections::{BTreeMap, BTreeSet};

use graph::{AgentRecord, Change, ChangeBatch};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use proto::finial::sync::WatchResponse;
use proto::finial::sync::watch_response::What;
use proto::spire::server::entry::SyncAuthorizedEntriesResponse;
use proto::spire::types;
use spiffe::{Bundle, Entry, Selector, UnixSecs};

use super::*;

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> SpiffeId {
    trust_domain().id_with_path(path).unwrap()
}

fn entry(name: &str, parent: &str, path: &str, values: &[&str], revision_number: i64) -> Entry {
    let selectors: Arc<[Selector]> = values.iter().map(|value| Selector::new("t", value)).collect();
    Entry {
        id: EntryId::new(name),
        spiffe_id: id(path),
        parent_id: id(parent),
        selector_set: selectors.iter().cloned().collect(),
        selectors,
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Arc::from([]),
        admin: false,
        downstream: false,
        expires_at: UnixSecs(0),
        dns_names: Arc::from([]),
        revision_number,
        store_svid: false,
        hint: String::new(),
        created_at: UnixSecs(1),
        additional_attributes: None,
    }
}

pub(crate) fn entry_set(row_id: i64, parent: &str, path: &str, value: &str) -> Change {
    Change::EntrySet { row_id, entry: Arc::new(entry(&format!("e{row_id}"), parent, path, &[value], 0)) }
}

pub(crate) fn record_set(path: &str, values: &[&str]) -> Change {
    Change::AgentSet(Arc::new(AgentRecord {
        id: id(path),
        attestation_type: "join_token".to_owned(),
        serial: "1".to_owned(),
        expires_at: UnixSecs(2_000_000_000),
        new_serial: String::new(),
        new_expires_at: UnixSecs(0),
        can_reattest: false,
        agent_version: String::new(),
        selectors: values.iter().map(|value| Selector::new("t", value)).collect(),
    }))
}

/// An agent: what it holds, and what of a push it has so far.
#[derive(Clone, Default)]
struct Holder {
    entries: BTreeMap<String, types::Entry>,
    bundles: BTreeMap<String, types::Bundle>,
    token: Bytes,
}

impl Holder {
    /// Takes a whole push. Gives how many entries came whole.
    fn take(&mut self, mut push: Push) -> usize {
        let (mut next, mut is_new, mut whole) = (self.clone(), true, 0);
        let mut revisions = Vec::new();
        loop {
            let message = match push.next() {
                Next::Send(message) => WatchResponse::decode(message.to_bytes()).unwrap(),
                Next::Wait => {
                    let knows = |revision: &&proto::spire::server::entry::EntryRevision| {
                        self.entries
                            .get(&revision.id)
                            .is_some_and(|held| held.revision_number == revision.revision_number)
                    };
                    let (known, wanted): (Vec<_>, Vec<_>) = revisions.iter().partition(knows);
                    for revision in known {
                        next.entries.insert(revision.id.clone(), self.entries[&revision.id].clone());
                    }
                    let ids: Vec<String> = wanted.into_iter().map(|revision| revision.id.clone()).collect();
                    for page in ids.chunks(300) {
                        push.want(page, true).unwrap();
                    }
                    push.want(&[], false).unwrap();
                    push.want(&[], false).unwrap_err();
                    continue;
                }
                Next::Over(token) => {
                    assert_eq!(next.token, token);
                    *self = next;
                    return whole;
                }
            };
            match message.what {
                Some(What::Full(full)) => {
                    if std::mem::take(&mut is_new) {
                        next.entries.clear();
                    }
                    assert!(full.entries.len() <= PAGE_SIZE && full.entry_revisions.len() <= PAGE_SIZE);
                    whole += full.entries.len();
                    revisions.extend(full.entry_revisions);
                    next.entries.extend(full.entries.into_iter().map(|entry| (entry.id.clone(), entry)));
                }
                Some(What::Delta(delta)) => {
                    assert!(delta.entries.len() + delta.removed.len() <= PAGE_SIZE);
                    whole += delta.entries.len();
                    delta.removed.iter().for_each(|id| _ = next.entries.remove(id).unwrap());
                    next.entries.extend(delta.entries.into_iter().map(|entry| (entry.id.clone(), entry)));
                }
                Some(What::Bundles(bundles)) => {
                    if bundles.all {
                        next.bundles.clear();
                    }
                    bundles.removed.iter().for_each(|name| _ = next.bundles.remove(name));
                    let named = |bundle: types::Bundle| (bundle.trust_domain.clone(), bundle);
                    next.bundles.extend(bundles.bundles.into_iter().map(named));
                }
                None => {}
            }
            if !message.token.is_empty() {
                next.token = message.token;
            }
        }
    }
}

/// A server's snapshots and one agent.
struct World {
    graph: EntryGraph,
    bundles: BundleSet,
    told: Told,
    agent: SpiffeId,
    holder: Holder,
}

impl World {
    fn new() -> Self {
        let bundles = BundleSet::new([Arc::new(Bundle::empty(trust_domain()))]);
        Self {
            graph: EntryGraph::new(trust_domain()),
            bundles,
            told: Told::default(),
            agent: id("/spire/agent/a"),
            holder: Holder::default(),
        }
    }

    fn now(&self) -> Now {
        Now::of(&self.graph, &self.bundles, &self.agent)
    }

    /// Tells the agent; whether there was anything to tell.
    fn tell(&mut self, is_asked: bool) -> Option<usize> {
        let now = self.now();
        let push = self.told.push(now, is_asked)?;
        Some(self.holder.take(push))
    }

    fn reconnect(&mut self) {
        self.told = Told::resumed(&self.holder.token, &self.now());
    }

    /// What an agent that polls gets: entries, and the bundles it then asks for.
    fn check(&self) {
        let view = self.graph.view(&self.agent);
        let polled: BTreeMap<String, types::Entry> = view
            .entry_pages()
            .flat_map(|page| SyncAuthorizedEntriesResponse::decode(page.to_bytes()).unwrap().entries)
            .map(|entry| (entry.id.clone(), entry))
            .collect();
        assert_eq!(self.holder.entries, polled);
        let mut names: BTreeSet<&str> =
            polled.values().flat_map(|entry| entry.federates_with.iter().map(String::as_str)).collect();
        names.insert("example.org");
        let bundles: BTreeMap<String, types::Bundle> = names
            .into_iter()
            .filter_map(|name| {
                let known = self.bundles.get(&TrustDomain::parse(name).unwrap())?;
                Some((name.to_owned(), types::Bundle::from(&*known.bundle)))
            })
            .collect();
        assert_eq!(self.holder.bundles, bundles);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Change(Vec<Change>),
    Bundle(&'static str, Option<u64>),
    Tell,
    Ask,
    Reconnect,
}

const PARENTS: [&str; 6] =
    ["/spire/agent/a", "/spire/agent/b", "/pool/x", "/pool/y", "/deep", "/spire/server"];
const GIVEN: [&str; 5] = ["/pool/x", "/pool/y", "/deep", "/leaf", "/spire/agent/a"];
const SELECTORS: [&str; 3] = ["s0", "s1", "s2"];
const DOMAINS: [&str; 3] = ["example.org", "one.org", "two.org"];

fn change() -> impl Strategy<Value = Change> {
    let some = || proptest::sample::subsequence(SELECTORS.to_vec(), 1..=2);
    let set = (
        0..20_i64,
        proptest::sample::select(&PARENTS[..]),
        proptest::sample::select(&GIVEN[..]),
        some(),
        0..5_i64,
        proptest::sample::subsequence(DOMAINS.to_vec(), 0..=2),
    )
        .prop_map(|(row_id, parent, path, values, revision, federated)| {
            let federates_with = federated.iter().map(|name| TrustDomain::parse(name).unwrap()).collect();
            let entry = entry(&format!("e{row_id}"), parent, path, &values, revision);
            Change::EntrySet { row_id, entry: Arc::new(Entry { federates_with, ..entry }) }
        });
    prop_oneof![
        6 => set,
        2 => (0..20_i64).prop_map(|row_id| Change::EntryDeleted { row_id }),
        2 => (proptest::sample::select(&PARENTS[..2]), some())
            .prop_map(|(path, values)| record_set(path, &values)),
        1 => Just(Change::AgentDeleted(id("/spire/agent/a"))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => vec(change(), 1..4).prop_map(Step::Change),
        2 => (proptest::sample::select(&DOMAINS[..]), proptest::option::weighted(0.7, 0..3_u64))
            .prop_map(|(name, sequence)| Step::Bundle(name, sequence)),
        4 => Just(Step::Tell),
        1 => Just(Step::Ask),
        1 => Just(Step::Reconnect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn who_is_told_holds_what_who_asks_is_given(steps in vec(step(), 1..60)) {
        let mut world = World::new();
        world.tell(true).unwrap();
        for step in steps {
            match step {
                Step::Change(changes) => {
                    let before = world.graph.view(&world.agent).token();
                    let (next, affected) = world.graph.apply(&ChangeBatch::from(changes));
                    world.graph = next;
                    let after = world.graph.view(&world.agent).token();
                    prop_assert!(before == after || affected.contains(&world.agent), "it must be woken");
                }
                Step::Bundle(name, sequence) => {
                    let name = TrustDomain::parse(name).unwrap();
                    let change = match sequence {
                        Some(sequence_number) => {
                            let bundle = Bundle { sequence_number, ..Bundle::empty(name) };
                            store::Change::BundleSet(Arc::new(bundle))
                        }
                        None => store::Change::BundleDeleted(name),
                    };
                    world.bundles = world.bundles.after(&change).unwrap();
                }
                Step::Tell => {
                    world.tell(false);
                    world.check();
                    prop_assert_eq!(world.tell(false), None, "nothing changed: nothing is told");
                }
                Step::Ask => {
                    prop_assert!(world.tell(true).is_some());
                    world.check();
                }
                Step::Reconnect => {
                    let is_current = world.now().token() == world.holder.token;
                    world.reconnect();
                    let whole = world.tell(true);
                    prop_assert!(whole.is_some());
                    prop_assert!(!is_current || whole == Some(0), "who has everything is told nothing");
                    world.check();
                }
            }
        }
        world.tell(false);
        world.check();
    }
}

#[test]
fn many_entries_are_told_by_revisions_and_only_what_is_new_comes_whole() {
    let mut world = World::new();
    let set = |row: i64, revision| Change::EntrySet {
        row_id: row,
        entry: Arc::new(entry(&format!("e{row:04}"), "/spire/agent/a", "/leaf", &["s0"], revision)),
    };
    world.graph = world.graph.apply(&(0..1700).map(|row| set(row, 0)).collect()).0;
    assert_eq!(world.tell(true), Some(1700));
    world.check();

    world.graph = world.graph.apply(&(0..3).map(|row| set(row, 1)).collect()).0;
    assert_eq!(world.tell(false), Some(3), "a change is told by itself");
    world.check();

    // A token of another moment: all again, but only what differs comes whole.
    world.graph = world.graph.apply(&(0..2).map(|row| set(row, 2)).collect()).0;
    world.reconnect();
    assert_eq!(world.tell(true), Some(2));
    world.check();

    // More at once than a message holds.
    let gone = (0..1200).map(|row_id| Change::EntryDeleted { row_id });
    world.graph = world.graph.apply(&gone.chain((1200..1700).map(|row| set(row, 7))).collect()).0;
    assert_eq!(world.tell(false), Some(500));
    world.check();
}

#[test]
fn nobody_wants_more_than_there_is() {
    let mut world = World::new();
    let changes = (0..600).map(|row| entry_set(row, "/spire/agent/a", "/leaf", "s0"));
    world.graph = world.graph.apply(&changes.collect()).0;
    let now = world.now();
    let mut push = world.told.push(now, true).unwrap();
    push.want(&vec!["e1".to_owned(); 601], true).unwrap_err();
}
