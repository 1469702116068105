//! One reading of a database that others write to, beside the task that owns the snapshots.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use graph::{Change as GraphChange, ChangeBatch, EntryGraph};
use runtime::blocking::Blocking;
use runtime::snapshot::Snapshot;
use spiffe::{Bundle, EntryId};
use store::feed::{Federating, Feed, Followed, Hints, Next};
use store::{Agent, Change, StoreError, StoredEntry};

use super::BundleSet;
use super::fresh::Drawn;
use super::keeper::record;
use crate::measured::Datastore;

/// What a turn is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Who is answered by it.
    pub(super) drawn: Drawn,
    /// When it began.
    pub(super) at: Instant,
    /// The same by the time of day.
    pub(super) now: SystemTime,
    /// Read everything.
    pub(super) reload: bool,
    /// Look whether rows changed that nobody wrote an event for.
    pub(super) fingerprint: bool,
}

/// A turn at its end.
pub(super) struct Turned {
    pub(super) asked: Asked,
    /// What it read, or what went wrong and whether everything was to be read.
    pub(super) outcome: Result<Done, (StoreError, bool)>,
}

/// What a turn read.
pub(super) struct Done {
    /// What others changed.
    pub(super) followed: Option<Followed>,
    /// Everything.
    pub(super) reloaded: Option<Reloaded>,
}

/// Everything, compared with the graph.
pub(super) struct Reloaded {
    pub(super) difference: ChangeBatch,
    pub(super) bundles: Vec<Arc<Bundle>>,
}

/// Everything as it is stored.
pub(super) struct Loaded {
    pub(super) entries: Vec<StoredEntry>,
    pub(super) agents: Vec<Arc<Agent>>,
    pub(super) bundles: Vec<Arc<Bundle>>,
}

/// Reads what others changed, if `feed` says how far that was read, and everything if it must be.
pub(super) async fn turn(
    store: Datastore,
    feed: Option<Feed>,
    graph: Snapshot<EntryGraph>,
    asked: Asked,
) -> Turned {
    let must = feed.as_ref().is_some_and(|feed| feed.next(asked.now) == Next::Reload);
    let reload = asked.reload || must;
    let outcome = read(store, feed, graph, asked, reload).await;
    Turned { asked, outcome: outcome.map_err(|error| (error, reload)) }
}

async fn read(
    store: Datastore,
    feed: Option<Feed>,
    graph: Snapshot<EntryGraph>,
    asked: Asked,
    reload: bool,
) -> Result<Done, StoreError> {
    let mut followed = None;
    if let Some(mut feed) = feed {
        if reload {
            feed.reload(asked.now);
        }
        followed = Some(store.follow(feed, federating(graph.clone()), asked.fingerprint).await?);
    }
    let mut reloaded = None;
    if reload {
        let Loaded { entries, agents, bundles } = load(&store).await?;
        let compare = move || {
            let entries = entries.into_iter().map(|stored| (stored.row_id, stored.entry));
            graph.load().difference(entries, agents.iter().map(|agent| record(agent)))
        };
        let compared = Blocking::new(1).run(compare).await;
        let difference = compared.map_err(|error| StoreError::Internal(error.to_string()))?;
        reloaded = Some(Reloaded { difference, bundles });
    }
    Ok(Done { followed, reloaded })
}

/// Reads everything.
pub(super) async fn load(store: &Datastore) -> Result<Loaded, StoreError> {
    Ok(Loaded {
        entries: store.load_entries().await?,
        agents: store.load_agents().await?,
        bundles: store.list_bundles(None).await?.bundles,
    })
}

/// Names the entries that federate with a trust domain, as far as the graph knows them.
pub(super) fn federating(graph: Snapshot<EntryGraph>) -> Federating {
    Arc::new(move |trust_domain| {
        let graph = graph.load();
        graph.entries_federating(trust_domain).map(|(_, entry)| entry.id.clone()).collect::<BTreeSet<_>>()
    })
}

/// What others made of entries and agents, but for the rows that this server wrote meanwhile.
pub(super) fn entries_and_agents(followed: &Followed, written: &Hints) -> ChangeBatch {
    let mut batch = ChangeBatch::default();
    let entries: HashMap<&EntryId, &StoredEntry> =
        followed.rows.entries.iter().map(|stored| (&stored.entry.id, stored)).collect();
    for id in followed.hints.entries.difference(&written.entries) {
        batch.push(match entries.get(id) {
            Some(stored) => GraphChange::EntrySet { row_id: stored.row_id, entry: Arc::clone(&stored.entry) },
            None => GraphChange::EntryGone(id.clone()),
        });
    }
    let agents: HashMap<_, _> = followed.rows.agents.iter().map(|agent| (&agent.id, agent)).collect();
    for id in followed.hints.agents.difference(&written.agents) {
        batch.push(match agents.get(id) {
            Some(agent) => GraphChange::AgentSet(record(agent)),
            None => GraphChange::AgentDeleted(id.clone()),
        });
    }
    batch
}

/// The bundles after what others made of them; `None` if they stay as they are.
pub(super) fn bundles(followed: &Followed, written: &Hints, held: &BundleSet) -> Option<BundleSet> {
    let mut next: Option<BundleSet> = None;
    for (trust_domain, read) in &followed.rows.bundles {
        let set = next.as_ref().unwrap_or(held);
        let known = set.get(trust_domain).map(|known| &known.bundle);
        if written.bundles.contains(trust_domain) || known == read.as_ref() {
            continue;
        }
        let change = match read {
            Some(bundle) => Change::BundleSet(Arc::clone(bundle)),
            None => Change::BundleDeleted(trust_domain.clone()),
        };
        next = set.after(&change).or(next);
    }
    next
}

/// What a reload must put right: not what this server changed while everything was read.
pub(super) fn repairs(difference: ChangeBatch, graph: &EntryGraph, written: &Hints) -> ChangeBatch {
    let is_written = |change: &GraphChange| match change {
        GraphChange::EntrySet { entry, .. } => written.entries.contains(&entry.id),
        GraphChange::EntryGone(id) => written.entries.contains(id),
        GraphChange::AgentSet(agent) => written.agents.contains(&agent.id),
        GraphChange::AgentDeleted(id) => written.agents.contains(id),
        GraphChange::EntryDeleted { row_id } => {
            // A row that went meanwhile was deleted by this server, and stays so.
            let held = graph.entries_from(*row_id).next().filter(|(row, _)| row == row_id);
            held.is_none_or(|(_, entry)| written.entries.contains(&entry.id))
        }
    };
    if written.is_empty() {
        return difference;
    }
    difference.iter().filter(|change| !is_written(change)).cloned().collect()
}
