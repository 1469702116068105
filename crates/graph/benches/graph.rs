//! What the graph costs at a million entries: loading, a batch of changes, a view, its replies.

#![expect(clippy::unwrap_used, reason = "a benchmark may fail loudly")]

extern crate finial_graph as graph;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use graph::{AgentRecord, Change, ChangeBatch, EntryGraph, View};
use proto::convert::field::put_entry;
use proto::raw::Encoded;
use spiffe::{Entry, EntryId, Selector, SelectorSet, SpiffeId, Texts, TrustDomain, UnixSecs};

const ENTRIES: i64 = 1_000_000;
/// Entries below each agent.
const OWN: i64 = 200;
/// Entries below each pool; an agent is in one pool.
const POOLED: i64 = 300;
/// Agents of a pool.
const POOL_AGENTS: i64 = 10;
/// Entries below the one agent that has many.
const MANY: i64 = 10_000;

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> SpiffeId {
    trust_domain().id_with_path(path).unwrap()
}

fn agent_path(number: i64) -> String {
    format!("/spire/agent/join_token/8e7ba3b6-2f3a-4c4e-9d7a-{number:012x}")
}

fn entry(
    texts: &mut Texts,
    row: i64,
    parent: &str,
    spiffe_id: &str,
    selectors: &[(&str, String); 2],
    revision: i64,
) -> Arc<Entry> {
    let selectors: Arc<[Selector]> =
        selectors.iter().map(|(kind, value)| texts.selector(kind, value)).collect();
    Arc::new(Entry {
        id: entry_id(row),
        spiffe_id: id(spiffe_id),
        parent_id: texts.id(&format!("spiffe://example.org{parent}")).unwrap(),
        selector_set: SelectorSet::of(&selectors),
        selectors,
        x509_svid_ttl: 3600,
        jwt_svid_ttl: 300,
        federates_with: Arc::default(),
        admin: false,
        downstream: false,
        expires_at: UnixSecs(0),
        dns_names: Arc::default(),
        revision_number: revision,
        store_svid: false,
        hint: String::new(),
        created_at: UnixSecs(1_700_000_000 + row),
        additional_attributes: None,
    })
}

fn entry_id(row: i64) -> EntryId {
    // scattered, as UUIDs are
    let scattered = (row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    EntryId::new(&format!("{:08x}-{:04x}-4000-8000-{row:012x}", scattered >> 32, scattered & 0xffff))
}

/// The entry of a row: alias entries of pools first, then those of agents and pools in turn.
fn row(texts: &mut Texts, row: i64, revision: i64) -> Arc<Entry> {
    let pools = pools();
    let identity = |kind: &str| format!("/ns/{kind}-{}/sa/service-{row}", row % 97);
    let of_workload = [("k8s", format!("ns:team-{}", row % 97)), ("k8s", format!("sa:service-{row}"))];
    if row < pools {
        let selectors = [("k8s_psat", "cluster:blue".to_owned()), ("k8s_psat", format!("agent_pool:{row}"))];
        entry(texts, row, "/spire/server", &format!("/pool/{row}"), &selectors, revision)
    } else if row < pools + MANY {
        entry(texts, row, "/spire/agent/many", &identity("many"), &of_workload, revision)
    } else if row % 5 < 2 {
        let owner = row / 5 / (OWN / 2);
        entry(texts, row, &agent_path(owner), &identity("own"), &of_workload, revision)
    } else {
        let pool = row / 5 / (POOLED / 3);
        entry(texts, row, &format!("/pool/{pool}"), &identity("pool"), &of_workload, revision)
    }
}

const fn pools() -> i64 {
    ENTRIES / 5 / (POOLED / 3) + 1
}

fn rows() -> Vec<(i64, Arc<Entry>)> {
    let mut texts = Texts::default();
    (0..ENTRIES).map(|number| (number, row(&mut texts, number, 0))).collect()
}

fn agents() -> Vec<Arc<AgentRecord>> {
    let record = |path: &str, pool: i64| {
        Arc::new(AgentRecord {
            id: id(path),
            attestation_type: "k8s_psat".to_owned(),
            serial: "123456789012345678901234567890".to_owned(),
            expires_at: UnixSecs(2_000_000_000),
            new_serial: String::new(),
            new_expires_at: UnixSecs(0),
            can_reattest: true,
            agent_version: "1.15.3".to_owned(),
            selectors: [
                Selector::new("k8s_psat", "cluster:blue"),
                Selector::new("k8s_psat", &format!("agent_pool:{pool}")),
                Selector::new("k8s_psat", &format!("agent_node_name:{path}")),
            ]
            .into(),
        })
    };
    let many = record("/spire/agent/many", -1);
    (0..5000).map(|number| record(&agent_path(number), number / POOL_AGENTS)).chain([many]).collect()
}

/// A hundred updates all over the graph.
fn changes() -> ChangeBatch {
    let first = pools() + MANY;
    (0..100)
        .map(|number| first + (number * 7_919_777) % (ENTRIES - first))
        .map(|row_id| Change::EntrySet { row_id, entry: row(&mut Texts::default(), row_id, 1) })
        .collect()
}

/// A hundred entries created and as many deleted.
fn turnover() -> ChangeBatch {
    let first = pools() + MANY;
    (0..100)
        .flat_map(|number| {
            let gone = first + (number * 6_700_417) % (ENTRIES - first);
            let row_id = ENTRIES + number;
            [
                Change::EntryDeleted { row_id: gone },
                Change::EntrySet { row_id, entry: row(&mut Texts::default(), row_id, 0) },
            ]
        })
        .collect()
}

fn total(messages: impl IntoIterator<Item = Encoded>) -> usize {
    messages.into_iter().map(|message| message.len()).sum()
}

fn all(criterion: &mut Criterion) {
    let (rows, agents) = (rows(), agents());
    let graph = EntryGraph::load(trust_domain(), rows.iter().cloned(), agents.iter().cloned());
    let agent = id(&agent_path(500));
    let view = graph.view(&agent);
    let many = graph.view(&id("/spire/agent/many"));
    assert_eq!((view.len(), many.len()), (500, 10_000));

    let mut group = criterion.benchmark_group("a million entries");
    group.sample_size(10);
    group.bench_function("load", |bencher| {
        bencher.iter(|| EntryGraph::load(trust_domain(), rows.iter().cloned(), agents.iter().cloned()));
    });
    group.bench_function("nothing repaired by a reload", |bencher| {
        bencher.iter(|| graph.difference(rows.iter().cloned(), agents.iter().cloned()));
    });
    let (changes, turnover) = (changes(), turnover());
    let pool_agents = usize::try_from(POOL_AGENTS).unwrap();
    for (name, parent, concerned) in
        [("one agent", agent_path(7), 1), ("an alias of ten", "/pool/7".to_owned(), pool_agents)]
    {
        let selectors = [("k8s", "ns:new".to_owned()), ("k8s", "sa:new".to_owned())];
        let entry = entry(&mut Texts::default(), ENTRIES, &parent, "/ns/new/sa/new", &selectors, 0);
        let batch: ChangeBatch = vec![Change::EntrySet { row_id: ENTRIES, entry }].into();
        assert_eq!(graph.apply(&batch).1.agents().count(), concerned);
        group.bench_function(format!("created below {name}, and whom it concerns"), |bencher| {
            bencher.iter(|| graph.apply(&batch).1.agents().count());
        });
    }
    group.bench_function("100 updates", |bencher| bencher.iter(|| graph.apply(&changes)));
    group.bench_function("100 created, 100 deleted", |bencher| bencher.iter(|| graph.apply(&turnover)));
    group.bench_function("1,000 listed", |bencher| {
        bencher.iter(|| {
            let mut bytes = Vec::with_capacity(256_000);
            let page = graph.entries_from(ENTRIES / 2).take(1000);
            page.for_each(|(_, entry)| put_entry(1, entry, None, &mut bytes));
            bytes.len()
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("an agent of 500 entries");
    group.bench_function("view", |bencher| bencher.iter(|| graph.view(black_box(&agent))));
    group.bench_function("token", |bencher| bencher.iter(|| black_box(&view).token()));
    group.bench_function("whole entries", |bencher| bencher.iter(|| total(view.entry_pages())));
    group.bench_function("walked", |bencher| bencher.iter(|| View::entries(&view).count()));
    let ids: Vec<EntryId> = view.entries().step_by(10).map(|entry| entry.id.clone()).collect();
    group.bench_function("50 picked", |bencher| bencher.iter(|| graph.pick(&agent, &ids)));
    let (first, path) = (view.entries().next().unwrap(), agent_path(500));
    let row_id = graph.row_of(&first.id).unwrap();
    let change = Change::EntrySet { row_id, entry: row(&mut Texts::default(), row_id, 1) };
    let (next, _) = graph.apply(&vec![change].into());
    let next = next.view(&id(&path));
    assert_eq!(next.delta(&view).set.len(), 1);
    group.bench_function("delta of one", |bencher| bencher.iter(|| next.delta(&view)));
    group.finish();

    let mut group = criterion.benchmark_group("an agent of 10,000 entries");
    group.bench_function("revisions", |bencher| bencher.iter(|| total(many.revision_pages())));
    let ids: Vec<EntryId> = many.entries().map(|entry| entry.id.clone()).collect();
    group.bench_function("all requested", |bencher| {
        bencher.iter(|| total(many.requested_pages(ids.clone())));
    });
    group.finish();
}

criterion_group!(benches, all);
criterion_main!(benches);
