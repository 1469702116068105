//! The task that owns the snapshots.
//!
//! The store hands over every committed change in commit order. What has queued up is applied as one
//! batch, published, and then those are answered who wait for it: read-your-writes on this server. What
//! other servers change is learnt of through the store's feed, whose hints only say which rows to read
//! again. Once in a long while everything is read anew and compared; what differs is repaired, and
//! counted, as it should not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use graph::{AgentRecord, Change as GraphChange, ChangeBatch, EntryGraph};
use runtime::clock::Clock;
use runtime::snapshot::{Publisher, Snapshot};
use spiffe::{EntryId, SpiffeId, TrustDomain};
use store::{Agent, Change, Changes, Feed, Hint, Store, StoreError};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Applied, BundleSet};

/// How many writes may be committed before they are applied; beyond that writers wait.
pub(crate) const QUEUE: usize = 1024;

/// The owner of the snapshots.
pub(crate) struct Keeper {
    store: Store,
    clock: Arc<dyn Clock>,
    changes: mpsc::Receiver<Changes>,
    feed: Feed,
    graph: Publisher<EntryGraph>,
    bundles: Publisher<BundleSet>,
    applied: watch::Sender<u64>,
    /// What this server changed or deleted since the feed was last read: rows read before that are not
    /// the truth any more, and their own events follow.
    written: Written,
    poll_every: Duration,
    reload_every: Duration,
}

/// Rows that were written here lately.
#[derive(Default)]
struct Written {
    entries: HashSet<EntryId>,
    agents: HashSet<SpiffeId>,
}

impl Keeper {
    /// Loads everything. `changes` is what the store was opened with; `bundles` may have readers
    /// already.
    ///
    /// # Errors
    /// If the datastore cannot be read.
    pub(crate) async fn load(
        store: Store,
        changes: mpsc::Receiver<Changes>,
        bundles: Publisher<BundleSet>,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
        config: &config::ServerExperimental,
    ) -> Result<Self, StoreError> {
        // The feed starts before the rows are read, so that nothing falls between.
        let feed = Feed::start(&store).await?;
        let entries = store.load_entries().await?;
        let agents = store.load_agents().await?;
        let stored = store.list_bundles(None).await?.bundles;
        bundles.publish(Arc::new(BundleSet::new(stored)));
        let entries = entries.into_iter().map(|stored| (stored.row_id, stored.entry));
        let graph = EntryGraph::load(trust_domain, entries, agents.iter().map(|agent| record(agent)));
        let (applied, _) = watch::channel(0);
        Ok(Self {
            store,
            clock,
            changes,
            feed,
            graph: Publisher::new(graph),
            bundles,
            applied,
            written: Written::default(),
            poll_every: config.cache_reload_interval,
            reload_every: config.full_cache_reload_interval,
        })
    }

    /// The graph, for its readers.
    pub(crate) fn graph(&self) -> Snapshot<EntryGraph> {
        self.graph.snapshot()
    }

    /// The bundles, for their readers.
    pub(crate) fn bundles(&self) -> Snapshot<BundleSet> {
        self.bundles.snapshot()
    }

    /// How far the snapshots are, for those who write.
    pub(crate) fn applied(&self) -> Applied {
        Applied(self.applied.subscribe())
    }

    /// Applies what has queued up, while nobody runs the keeper yet.
    pub(crate) fn catch_up(&mut self) {
        let mut queued = Vec::new();
        while let Ok(changes) = self.changes.try_recv() {
            queued.push(changes);
        }
        self.absorb(&queued);
    }

    /// Keeps the snapshots until the token is cancelled or the store is closed.
    ///
    /// # Errors
    /// None: a feed that cannot be read is tried again.
    pub(crate) async fn run(mut self, token: CancellationToken) -> Result<(), StoreError> {
        let mut queued = Vec::with_capacity(QUEUE);
        let mut next_poll = self.clock.sleep(self.poll_every);
        let mut next_reload = self.clock.sleep(self.reload_every);
        loop {
            tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                count = self.changes.recv_many(&mut queued, QUEUE) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.absorb(&queued);
                    queued.clear();
                }
                () = &mut next_reload => {
                    if let Err(error) = self.reload().await {
                        tracing::error!(%error, "Could not reload entries and agents");
                    }
                    next_reload = self.clock.sleep(self.reload_every);
                }
                () = &mut next_poll => {
                    if let Err(error) = self.follow().await {
                        tracing::error!(%error, "Could not read what other servers changed");
                    }
                    next_poll = self.clock.sleep(self.poll_every);
                }
            }
        }
    }

    /// Applies changes of this server and publishes the outcome.
    fn absorb(&mut self, queued: &[Changes]) {
        let Some(last) = queued.last() else { return };
        let mut batch = ChangeBatch::default();
        let held = self.bundles.load();
        let mut bundles = None;
        for change in queued.iter().flat_map(|changes| changes.list.iter()) {
            self.written.note(change);
            if let Some(next) = bundles.as_ref().unwrap_or(&held).after(change) {
                bundles = Some(Arc::new(next));
            }
            batch.extend(for_graph(change));
        }
        self.publish(&batch);
        if let Some(bundles) = bundles {
            self.bundles.publish(bundles);
        }
        self.applied.send_replace(last.sequence);
    }

    fn publish(&self, batch: &ChangeBatch) {
        if batch.is_empty() {
            return;
        }
        let (next, affected) = self.graph.load().apply(batch);
        if !affected.is_empty() {
            tracing::trace!(changes = batch.len(), agents = affected.agents().count(), "Entries changed");
        }
        self.graph.publish(Arc::new(next));
    }

    /// Reads the rows that other servers touched.
    async fn follow(&mut self) -> Result<(), StoreError> {
        self.written = Written::default();
        let hints = self.feed.poll(&self.store).await?;
        let (mut entries, mut agents) = (Vec::new(), Vec::new());
        for hint in hints {
            match hint {
                Hint::Entry(id) => entries.push(id),
                Hint::Agent(id) => agents.push(id),
            }
        }
        let mut batch = ChangeBatch::default();
        if !entries.is_empty() {
            let stored = self.store.fetch_entries(entries.clone()).await?;
            let found: HashMap<_, _> =
                stored.into_iter().map(|stored| (stored.entry.id.clone(), stored)).collect();
            for id in entries {
                if self.is_written_meanwhile(|written| written.entries.contains(&id)) {
                    continue;
                }
                batch.push(match found.get(&id) {
                    Some(stored) => {
                        GraphChange::EntrySet { row_id: stored.row_id, entry: Arc::clone(&stored.entry) }
                    }
                    None => GraphChange::EntryGone(id),
                });
            }
        }
        for id in agents {
            let agent = self.store.fetch_agent(id.clone()).await?;
            if self.is_written_meanwhile(|written| written.agents.contains(&id)) {
                continue;
            }
            batch.push(match agent {
                Some(agent) => GraphChange::AgentSet(record(&agent)),
                None => GraphChange::AgentDeleted(id),
            });
        }
        self.publish(&batch);
        Ok(())
    }

    /// Whether this server wrote a row since the feed was read: then its own change holds.
    fn is_written_meanwhile(&mut self, is_written: impl Fn(&Written) -> bool) -> bool {
        self.catch_up();
        is_written(&self.written)
    }

    /// Reads everything again and repairs what differs. What is committed meanwhile stays in the queue,
    /// so the rows are never older than the snapshots.
    async fn reload(&mut self) -> Result<(), StoreError> {
        self.catch_up();
        let entries = self.store.load_entries().await?;
        let agents = self.store.load_agents().await?;
        let bundles = self.store.list_bundles(None).await?.bundles;
        let entries = entries.into_iter().map(|stored| (stored.row_id, stored.entry));
        let records: Vec<_> = agents.iter().map(|agent| record(agent)).collect();
        let repairs = self.graph.load().difference(entries, records);
        // With writes on their way the difference may be theirs.
        if !repairs.is_empty() && self.changes.is_empty() {
            tracing::warn!(
                repairs = repairs.len(),
                "Entries or agents in memory differed from the datastore"
            );
        }
        self.publish(&repairs);
        let held = self.bundles.load();
        self.bundles.publish(Arc::new(BundleSet::new(bundles).sharing(&held)));
        Ok(())
    }
}

impl Written {
    fn note(&mut self, change: &Change) {
        match change {
            Change::EntrySet { entry, .. } => {
                self.entries.insert(entry.id.clone());
            }
            Change::EntryDeleted { id, .. } => {
                self.entries.insert(id.clone());
            }
            Change::AgentSet(agent) => {
                self.agents.insert(agent.id.clone());
            }
            Change::AgentDeleted(id) => {
                self.agents.insert(id.clone());
            }
            Change::BundleSet(_)
            | Change::BundleDeleted(_)
            | Change::FederationSet(_)
            | Change::FederationDeleted(_) => {}
        }
    }
}

/// A change of the store as the graph knows it.
fn for_graph(change: &Change) -> Option<GraphChange> {
    Some(match change {
        Change::EntrySet { row_id, entry } => {
            GraphChange::EntrySet { row_id: *row_id, entry: Arc::clone(entry) }
        }
        Change::EntryDeleted { row_id, .. } => GraphChange::EntryDeleted { row_id: *row_id },
        Change::AgentSet(agent) => GraphChange::AgentSet(record(agent)),
        Change::AgentDeleted(id) => GraphChange::AgentDeleted(id.clone()),
        Change::BundleSet(_)
        | Change::BundleDeleted(_)
        | Change::FederationSet(_)
        | Change::FederationDeleted(_) => return None,
    })
}

/// A row as the graph holds it.
fn record(agent: &Agent) -> Arc<AgentRecord> {
    Arc::new(AgentRecord {
        id: agent.id.clone(),
        attestation_type: agent.attestation_type.clone(),
        serial: agent.serial.clone(),
        expires_at: agent.expires_at,
        new_serial: agent.new_serial.clone(),
        new_expires_at: agent.new_expires_at,
        can_reattest: agent.can_reattest,
        agent_version: agent.agent_version.clone(),
        selectors: Arc::clone(&agent.selectors),
    })
}
