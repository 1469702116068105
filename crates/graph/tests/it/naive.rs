//! Random batches on the graph and on a model that scans everything: they must agree on every view,
//! pick, token, delta, list, and on whom a batch concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use graph::{AgentRecord, Change, ChangeBatch, EntryGraph, View};
use proptest::collection::vec;
use proptest::prelude::*;
use spiffe::{Entry, EntryId, SpiffeId, TrustDomain};

use crate::draft;

/// All entries and agents in plain maps.
#[derive(Clone, Default)]
struct Model {
    entries: BTreeMap<i64, Arc<Entry>>,
    agents: BTreeMap<SpiffeId, Arc<AgentRecord>>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::EntrySet { row_id, entry } => {
                let same_id = self.entries.iter().find(|(_, held)| held.id == entry.id).map(|(row, _)| *row);
                if same_id.is_some_and(|held| held > *row_id) {
                    return;
                }
                if let Some(held) = same_id.filter(|held| held < row_id) {
                    self.entries.remove(&held);
                }
                let held = self.entries.get(row_id);
                if held.is_none_or(|held| held.revision_number <= entry.revision_number) {
                    self.entries.insert(*row_id, Arc::clone(entry));
                }
            }
            Change::EntryDeleted { row_id } => _ = self.entries.remove(row_id),
            Change::EntryGone(id) => self.entries.retain(|_, held| held.id != *id),
            Change::AgentSet(record) => {
                self.agents.insert(record.id.clone(), Arc::clone(record));
            }
            Change::AgentDeleted(id) => _ = self.agents.remove(id),
        }
    }

    fn view(&self, agent: &SpiffeId) -> BTreeMap<EntryId, Arc<Entry>> {
        let ours = draft::trust_domain();
        let mut seen = BTreeMap::new();
        if !agent.is_member_of(&ours) {
            return seen;
        }
        let member =
            |entry: &Entry| entry.parent_id.is_member_of(&ours) && entry.spiffe_id.is_member_of(&ours);
        let is_alias = |entry: &Entry| entry.parent_id.path() == "/spire/server";
        let mut starts = BTreeSet::from([agent.clone()]);
        if let Some(record) = self.agents.get(agent) {
            for entry in self.entries.values().filter(|entry| member(entry) && is_alias(entry)) {
                let matches = entry.selectors.iter().all(|wanted| record.selectors.contains(wanted));
                if matches && !entry.selectors.is_empty() {
                    starts.insert(entry.spiffe_id.clone());
                }
            }
        }
        loop {
            let before = (starts.len(), seen.len());
            for entry in self.entries.values().filter(|entry| member(entry) && !is_alias(entry)) {
                if starts.contains(&entry.parent_id) {
                    seen.insert(entry.id.clone(), Arc::clone(entry));
                    starts.insert(entry.spiffe_id.clone());
                }
            }
            if before == (starts.len(), seen.len()) {
                return seen;
            }
        }
    }
}

const AGENTS: [&str; 4] = ["/spire/agent/a", "/spire/agent/b", "/spire/agent/c", "/odd"];
const NODES: [&str; 8] = [
    "/spire/agent/a",
    "/spire/agent/b",
    "/spire/agent/c",
    "/odd",
    "/pool/x",
    "/pool/y",
    "/deep",
    "spiffe://foreign.org/pool/x",
];
const GIVEN: [&str; 7] =
    ["/pool/x", "/pool/y", "/deep", "/leaf", "/odd", "/spire/agent/b", "spiffe://foreign.org/deep"];
const SELECTORS: [&str; 4] = ["s0", "s1", "s2", "s3"];
const FEDERATED: [&str; 2] = ["one.org", "two.org"];

fn some_selectors() -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(SELECTORS.to_vec(), 0..=3)
}

fn entry() -> impl Strategy<Value = Entry> {
    (
        0..24_u8,
        prop_oneof![
            6 => proptest::sample::select(&NODES[..]),
            2 => Just("/spire/server"),
            1 => Just("spiffe://foreign.org/spire/server"),
        ],
        proptest::sample::select(&GIVEN[..]),
        some_selectors(),
        0..4_i64,
        proptest::sample::subsequence(FEDERATED.to_vec(), 0..=2),
        any::<bool>(),
    )
        .prop_map(|(name, parent, spiffe_id, selectors, revision_number, federates_with, admin)| Entry {
            revision_number,
            federates_with: federates_with.iter().map(|name| TrustDomain::parse(name).unwrap()).collect(),
            admin,
            ..draft::entry(&format!("e{name}"), parent, spiffe_id, &selectors)
        })
}

fn record() -> impl Strategy<Value = AgentRecord> {
    (proptest::sample::select(&AGENTS[..]), some_selectors(), 0..3_u8).prop_map(
        |(path, selectors, serial)| AgentRecord {
            serial: serial.to_string(),
            ..draft::agent(path, &selectors)
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (0..32_i64, entry())
            .prop_map(|(row_id, entry)| Change::EntrySet { row_id, entry: Arc::new(entry) }),
        2 => (0..32_i64).prop_map(|row_id| Change::EntryDeleted { row_id }),
        1 => (0..24_u8).prop_map(|name| Change::EntryGone(EntryId::new(&format!("e{name}")))),
        2 => record().prop_map(|record| Change::AgentSet(Arc::new(record))),
        1 => proptest::sample::select(&AGENTS[..]).prop_map(|path| Change::AgentDeleted(draft::id(path))),
    ]
}

/// All that might ask: agents, an agent nobody knows, one of elsewhere, an inner node.
fn askers() -> Vec<SpiffeId> {
    let others = ["/spire/agent/unknown", "/pool/x", "/spire/server", "spiffe://foreign.org/spire/agent/a"];
    AGENTS.iter().chain(&others).map(|path| draft::id(path)).collect()
}

fn contents(view: &View) -> BTreeMap<EntryId, Arc<Entry>> {
    view.entries().map(|entry| (entry.id.clone(), Arc::clone(entry))).collect()
}

/// Everything a graph answers, held against the model.
fn check(graph: &EntryGraph, model: &Model) {
    assert!(
        graph.entries_from(i64::MIN).map(|(row, entry)| (row, Arc::clone(entry))).eq(model.entries.clone())
    );
    assert_eq!(graph.counts().entries, model.entries.len());
    assert_eq!(graph.counts().agents, model.agents.len());
    let print = graph.fingerprint();
    assert_eq!(print.revisions, model.entries.values().map(|entry| entry.revision_number).sum::<i64>());
    assert_eq!(print.last_row, model.entries.last_key_value().map_or(0, |(row, _)| *row));
    for (row, entry) in &model.entries {
        assert_eq!(graph.entry(&entry.id), Some(entry));
        assert_eq!(graph.row_of(&entry.id), Some(*row));
    }
    let rows = |wanted: &dyn Fn(&Entry) -> bool| -> Vec<i64> {
        model.entries.iter().filter(|(_, entry)| wanted(entry)).map(|(row, _)| *row).collect()
    };
    for path in NODES.iter().chain(&GIVEN).chain(&["/spire/server"]) {
        let id = draft::id(path);
        let below: Vec<i64> = graph.entries_below(&id).map(|(row, _)| row).collect();
        assert_eq!(below, rows(&|entry| entry.parent_id == id));
        let giving: Vec<i64> = graph.entries_of(&id).map(|entry| graph.row_of(&entry.id).unwrap()).collect();
        assert_eq!(giving, rows(&|entry| entry.spiffe_id == id));
    }
    for name in FEDERATED {
        let other = TrustDomain::parse(name).unwrap();
        let federating: Vec<i64> = graph.entries_federating(&other).map(|(row, _)| row).collect();
        assert_eq!(federating, rows(&|entry| entry.federates_with.contains(&other)));
        let affected = graph.affected_by_bundle(&other);
        for agent in askers().into_iter().take(AGENTS.len()) {
            let concerned = model.view(&agent).values().any(|entry| entry.federates_with.contains(&other));
            let known = agent.path() != "/odd" || model.agents.contains_key(&agent);
            assert!(!concerned || !known || affected.contains(&agent), "{agent} federates with {other}");
        }
    }
    for id in AGENTS.map(draft::id) {
        assert_eq!(graph.agent(&id), model.agents.get(&id));
    }
    let everything: Vec<EntryId> = (0..24).map(|name| EntryId::new(&format!("e{name}"))).collect();
    for agent in askers() {
        let view = graph.view(&agent);
        let expected = model.view(&agent);
        assert_eq!(contents(&view), expected, "view of {agent}");
        assert_eq!(view.len(), expected.len(), "no entry twice for {agent}");
        assert_eq!(view.entries().count(), expected.len());
        let federated: BTreeSet<&TrustDomain> =
            expected.values().flat_map(|entry| entry.federates_with.iter()).collect();
        assert_eq!(view.federated(), federated, "what {agent} federates with");
        let picked: Vec<EntryId> =
            graph.pick(&agent, &everything).iter().map(|entry| entry.id.clone()).collect();
        let authorised: Vec<EntryId> =
            everything.iter().filter(|id| expected.contains_key(*id)).cloned().collect();
        assert_eq!(picked, authorised, "pick of {agent}");
    }
}

/// The delta turns the older contents into the newer, and names nothing else.
fn check_delta(newer: &View, older: &View) {
    let (before, after) = (contents(older), contents(newer));
    let delta = newer.delta_since(&older.footprint());
    let set: BTreeMap<EntryId, Arc<Entry>> =
        delta.set.iter().map(|entry| (entry.id.clone(), Arc::clone(entry))).collect();
    let expected: BTreeMap<EntryId, Arc<Entry>> = after
        .iter()
        .filter(|(id, entry)| before.get(*id) != Some(*entry))
        .map(|(id, entry)| (id.clone(), Arc::clone(entry)))
        .collect();
    assert_eq!(set, expected);
    assert_eq!(set.len(), delta.set.len());
    let gone: Vec<EntryId> = before.keys().filter(|id| !after.contains_key(*id)).cloned().collect();
    assert_eq!(delta.removed, gone);
    assert_eq!(newer.token() == older.token(), delta.is_empty(), "tokens name contents");
}

fn fresh(model: &Model) -> EntryGraph {
    let entries = model.entries.iter().map(|(row, entry)| (*row, Arc::clone(entry)));
    EntryGraph::load(draft::trust_domain(), entries, model.agents.values().cloned())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a01_it_agrees_with_a_scan(start in vec(change(), 0..60), batches in vec(vec(change(), 0..10), 1..12)) {
        let mut model = Model::default();
        start.iter().for_each(|change| model.apply(change));
        let mut graph = fresh(&model);
        check(&graph, &model);

        let mut versions = Vec::new();
        for batch in batches {
            let mut next = model.clone();
            batch.iter().for_each(|change| next.apply(change));
            let (changed, affected) = graph.apply(&ChangeBatch::from(batch));
            check(&changed, &next);
            for agent in askers().into_iter().take(AGENTS.len()) {
                let (newer, older) = (changed.view(&agent), graph.view(&agent));
                check_delta(&newer, &older);
                let known = agent.path() != "/odd"
                    || model.agents.contains_key(&agent)
                    || next.agents.contains_key(&agent);
                if model.view(&agent) != next.view(&agent) && known {
                    prop_assert!(affected.contains(&agent), "{} is affected", agent);
                }
                let record_changed = model.agents.get(&agent) != next.agents.get(&agent);
                prop_assert!(!record_changed || affected.records().any(|id| *id == agent));
            }
            versions.push((std::mem::replace(&mut graph, changed), std::mem::replace(&mut model, next)));
        }

        // Old versions still answer as they did, and any two can be compared.
        for (old, then) in &versions {
            check(old, then);
            for agent in askers() {
                check_delta(&graph.view(&agent), &old.view(&agent));
                check_delta(&old.view(&agent), &graph.view(&agent));
            }
        }
        // Whatever way it came about, the same rows are the same graph.
        let rebuilt = fresh(&model);
        check(&rebuilt, &model);
        for agent in askers() {
            prop_assert_eq!(rebuilt.view(&agent).token(), graph.view(&agent).token());
            check_delta(&rebuilt.view(&agent), &graph.view(&agent));
        }
        let entries = || model.entries.iter().map(|(row, entry)| (*row, Arc::clone(entry)));
        prop_assert!(graph.difference(entries(), model.agents.values().cloned()).is_empty());
        // A reload repairs any other version.
        for (old, _) in &versions {
            let repair = old.difference(entries(), model.agents.values().cloned());
            check(&old.apply(&repair).0, &model);
        }
    }

    #[test]
    fn large_buckets_agree_with_a_scan(
        start in 0..400_i64,
        batches in vec(vec((0..500_i64, proptest::option::weighted(0.5, 0..3_i64)), 1..120), 1..8),
    ) {
        // One parent, so that pages split and join.
        let draft = |row: i64, revision_number| {
            let entry = draft::entry(&format!("e{row}"), "/spire/agent/a", "/leaf", &["s0"]);
            Change::EntrySet { row_id: row, entry: Arc::new(Entry { revision_number, ..entry }) }
        };
        let agent = draft::id("/spire/agent/a");
        let mut model = Model::default();
        (0..start).for_each(|row| model.apply(&draft(row * 2, 0)));
        let mut graph = fresh(&model);
        for batch in batches {
            let batch: Vec<Change> = batch
                .into_iter()
                .map(|(row_id, set)| set.map_or(Change::EntryDeleted { row_id }, |to| draft(row_id, to)))
                .collect();
            batch.iter().for_each(|change| model.apply(change));
            let (changed, _) = graph.apply(&ChangeBatch::from(batch));
            let view = changed.view(&agent);
            check_delta(&view, &graph.view(&agent));
            prop_assert!(view.entries().eq(model.entries.values()), "in order of rows");
            prop_assert_eq!(view.token(), fresh(&model).view(&agent).token());
            graph = changed;
        }
    }
}
