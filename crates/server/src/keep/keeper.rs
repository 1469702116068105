//! The task that owns the snapshots.
//!
//! The store hands over every committed change in commit order. What has queued up is applied as one
//! batch, published, and then those are answered who wait for it: read-your-writes on this server. What
//! other servers change is read in turns (`turn`), beside which this server's own changes go on being
//! applied; where both touch a row, `written` says which holds. Once in a long while, and when a turn
//! finds a reason, everything is read anew and compared; what differs is repaired, and counted, as it
//! should not.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use graph::{AgentRecord, Change as GraphChange, ChangeBatch, EntryGraph};
use runtime::BoxError;
use runtime::clock::Clock;
use runtime::health::Check;
use runtime::metrics::{Code, Running};
use runtime::snapshot::{Publisher, Snapshot};
use spiffe::TrustDomain;
use store::feed::{Feed, Hints, Limits};
use store::{Agent, Change, Changes, News, StoreError};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::fresh::{Fresh, Readings};
use super::pace::Pace;
use super::replica::{self, Begun};
use super::turn::{self, Asked, Done, Loaded, Turned};
use super::watchdog::Watchdog;
use super::written::{self, Lately};
use super::{Applied, BundleSet};
use crate::api;
use crate::measured::Datastore;
use crate::meters::Meters;
use crate::sync::Hub;

/// How many groups of writes may be committed before they are applied; beyond that writers wait.
pub(crate) const QUEUE: usize = 64;

/// After so many changes, which take some 30 microseconds, other threads have a turn: where a server has one
/// processor, calls do not wait for entries that are created by the thousand.
const STEP: usize = 8;

/// How often a shared database is read at least: bundles of other servers count by the second.
const TURN: Duration = Duration::from_secs(1);

type Turning = Pin<Box<dyn Future<Output = Turned> + Send>>;

/// The owner of the snapshots.
pub(crate) struct Keeper {
    store: Datastore,
    clock: Arc<dyn Clock>,
    changes: mpsc::Receiver<Vec<Changes>>,
    /// What others write; `None` where nobody else does.
    feed: Option<Feed>,
    graph: Publisher<EntryGraph>,
    bundles: Publisher<BundleSet>,
    applied: watch::Sender<u64>,
    readings: Readings,
    /// Where the database says that others wrote.
    news: News,
    pace: Pace,
    /// Whether a turn is under way, and what this server wrote meanwhile.
    is_turning: bool,
    written: Hints,
    lately: Lately,
    /// Rows to be read in the next turn.
    again: Hints,
    /// Whether everything is to be read in the next turn.
    reload: bool,
    watchdog: Watchdog,
    check: Check,
    /// How many turns have failed in a row.
    failures: u32,
    turn_every: Duration,
    reload_every: Duration,
    meters: Arc<Meters>,
    /// The agents that wait for changes.
    hub: Hub,
    /// The turn that is under way.
    measured: Option<Running>,
}

/// What the keeper has of the server around it.
pub(crate) struct Around {
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
    /// Shows whether other servers' changes can be read.
    pub(crate) check: Check,
    /// What is measured.
    pub(crate) meters: Arc<Meters>,
    /// The agents that wait for changes.
    pub(crate) hub: Hub,
}

impl Keeper {
    /// Loads everything, from the replica what it has if there is one. `changes` is what the store was opened with; `bundles` may have readers
    /// already.
    ///
    /// # Errors
    /// If the datastore cannot be read.
    pub(crate) async fn load(
        store: Datastore,
        replica: Option<Datastore>,
        changes: mpsc::Receiver<Vec<Changes>>,
        bundles: Publisher<BundleSet>,
        trust_domain: TrustDomain,
        around: Around,
        config: &config::ServerExperimental,
    ) -> Result<Self, StoreError> {
        let Around { clock, check, meters, hub } = around;
        let limits = Limits {
            event_timeout: config.event_timeout,
            events_kept: config.prune_events_older_than,
            ..Limits::DEFAULT
        };
        let reload = meters.cache_reload.start();
        let mut begun = None;
        if let Some(replica) = replica.filter(|_| store.is_shared()) {
            begun = match replica::begin(&store, &replica, Feed::new(limits), trust_domain.clone()).await {
                Ok(begun) => begun,
                Err(error) => {
                    tracing::warn!(%error, "The replica cannot be read; reading the primary database");
                    None
                }
            };
        }
        let (feed, graph) = match begun {
            Some(Begun { feed, graph, bundles: stored }) => {
                bundles.publish(Arc::new(stored));
                (Some(feed), graph)
            }
            None => {
                // The feed begins before the rows are read, so that nothing falls between.
                let mut feed = None;
                if store.is_shared() {
                    let nobody = turn::federating(Snapshot::fixed(EntryGraph::new(trust_domain.clone())));
                    feed = Some(store.follow(Feed::new(limits), nobody, false).await?.feed);
                }
                let Loaded { entries, agents, bundles: stored } = turn::load(&store).await?;
                bundles.publish(Arc::new(BundleSet::new(stored)));
                let entries = entries.into_iter().map(|stored| (stored.row_id, stored.entry));
                (feed, EntryGraph::load(trust_domain, entries, agents.iter().map(|agent| record(agent))))
            }
        };
        reload.done(Code::Ok);
        meters.cache.show(&graph.counts());
        let (applied, _) = watch::channel(0);
        let watchdog = Watchdog::new(clock.instant());
        check.started();
        Ok(Self {
            news: store.news(),
            pace: Pace::default(),
            store,
            clock,
            changes,
            feed,
            graph: Publisher::new(graph),
            bundles,
            applied,
            readings: Readings::new(),
            is_turning: false,
            written: Hints::default(),
            lately: Lately::default(),
            again: Hints::default(),
            reload: false,
            watchdog,
            check,
            failures: 0,
            turn_every: TURN.min(config.cache_reload_interval),
            reload_every: config.full_cache_reload_interval,
            meters,
            hub,
            measured: None,
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

    /// How far the snapshots are, for those who must know what other servers wrote.
    pub(crate) fn fresh(&self) -> Fresh {
        if self.feed.is_some() { self.readings.fresh(&self.clock) } else { Fresh::alone() }
    }

    /// Applies what has queued up.
    pub(crate) async fn catch_up(&mut self) {
        let mut queued = Vec::new();
        while let Ok(changes) = self.changes.try_recv() {
            queued.extend(changes);
        }
        self.absorb(&queued).await;
    }

    /// Keeps the snapshots until the token is cancelled or the store is closed; on a thread of its own, which
    /// gives way to those that answer calls.
    ///
    /// # Errors
    /// None: a database that cannot be read is tried again.
    pub(crate) async fn run(mut self, token: CancellationToken) -> Result<(), BoxError> {
        if let Err(error) = runtime::process::give_way_to_other_threads() {
            tracing::debug!(%error, "Changes are applied with the priority of all other threads");
        }
        let mut queued = Vec::new();
        let mut turning: Option<Turning> = None;
        let mut next_turn = self.clock.sleep(self.turn_every);
        let mut next_reload = self.clock.sleep(self.reload_every);
        loop {
            let is_idle = turning.is_none();
            let is_shared = self.feed.is_some();
            // A reload that failed is tried again, whoever else writes.
            let is_due = is_shared || self.reload;
            tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                count = self.changes.recv_many(&mut queued, QUEUE) => {
                    if count == 0 {
                        return Ok(());
                    }
                    let changes: Vec<_> = queued.drain(..).flatten().collect();
                    self.absorb(&changes).await;
                }
                turned = end_of(&mut turning) => {
                    turning = None;
                    self.finish(turned).await;
                    next_turn = self.clock.sleep(self.turn_every);
                }
                () = &mut next_reload, if is_idle => {
                    self.reload = true;
                    turning = Some(self.begin());
                    next_reload = self.clock.sleep(self.reload_every);
                }
                () = self.readings.asked(), if is_idle && is_shared => turning = Some(self.begin()),
                () = self.news.heard(), if is_idle && is_shared && self.pace.listens() => {
                    next_turn = self.clock.sleep(self.pace.told(self.clock.instant()));
                }
                () = &mut next_turn, if is_idle && is_due => turning = Some(self.begin()),
            }
        }
    }

    /// Applies changes of this server and publishes the outcome.
    async fn absorb(&mut self, queued: &[Changes]) {
        let Some(last) = queued.last() else { return };
        let mut batch = ChangeBatch::default();
        let held = self.bundles.load();
        let mut bundles = None;
        let mut rows = Hints::default();
        for change in queued.iter().flat_map(|changes| changes.list.iter()) {
            written::note(&mut rows, change);
            if let Some(next) = bundles.as_ref().unwrap_or(&held).after(change) {
                bundles = Some(Arc::new(next));
            }
            batch.extend(for_graph(change));
        }
        if self.feed.is_some() || self.is_turning {
            self.again.extend(self.lately.of(rows.clone()));
            self.written.extend(rows);
        }
        self.publish(&batch).await;
        if let Some(bundles) = bundles {
            self.publish_bundles(&bundles);
        }
        self.applied.send_replace(last.sequence);
    }

    async fn publish(&self, batch: &ChangeBatch) {
        if batch.is_empty() {
            return;
        }
        let mut edit = self.graph.load().edit();
        for (number, change) in batch.into_iter().enumerate() {
            if number % STEP == STEP - 1 {
                std::thread::yield_now();
            }
            edit.change(change);
        }
        let (next, affected) = edit.finish();
        if !affected.is_empty() {
            tracing::trace!(changes = batch.len(), agents = affected.agents().count(), "Entries changed");
        }
        self.meters.cache.show(&next.counts());
        self.graph.publish(Arc::new(next));
        self.hub.wake(&affected);
    }

    fn publish_bundles(&self, next: &Arc<BundleSet>) {
        let before = self.bundles.load();
        self.bundles.publish(Arc::clone(next));
        let graph = self.graph.load();
        for name in next.differing(&before) {
            if name == graph.trust_domain() {
                self.hub.wake_all();
            } else {
                self.hub.wake(&graph.affected_by_bundle(name));
            }
        }
    }

    /// Begins a turn. What this server writes from here on is newer than what the turn reads.
    fn begin(&mut self) -> Turning {
        self.is_turning = true;
        self.news.seen();
        self.pace.begun();
        self.measured = Some(self.meters.cache_reload.start());
        self.written = Hints::default();
        let now = self.clock.now();
        if let Some(feed) = &mut self.feed {
            feed.hint(now, std::mem::take(&mut self.again));
        }
        let asked = Asked {
            drawn: self.readings.drawn(),
            at: self.clock.instant(),
            now,
            reload: self.reload,
            fingerprint: self.watchdog.is_due(self.clock.instant()),
        };
        Box::pin(turn::turn(self.store.clone(), self.feed.clone(), self.graph.snapshot(), asked))
    }

    /// Applies what a turn read, where it still holds.
    async fn finish(&mut self, turned: Turned) {
        self.catch_up().await;
        self.is_turning = false;
        let Turned { asked, outcome } = turned;
        self.pace.ended(asked.at, self.clock.instant());
        if let Some(measured) = self.measured.take() {
            measured.done(outcome.as_ref().map_or_else(|(error, _)| api::code_of(error), |_| Code::Ok));
        }
        match outcome {
            Ok(done) => {
                self.apply(done, &asked).await;
                self.readings.done(asked.drawn, asked.at);
                if std::mem::take(&mut self.failures) > 0 {
                    self.check.cleared("feed_err");
                    tracing::info!("The datastore can be read again");
                }
            }
            Err((error, reload)) => {
                self.reload |= reload;
                self.readings.failed(asked.drawn, &error);
                if self.failures == 0 {
                    self.check.degraded("feed_err", error.to_string());
                    tracing::error!(%error, "Could not read what other servers changed");
                }
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    async fn apply(&mut self, done: Done, asked: &Asked) {
        let Done { followed, reloaded } = done;
        if let Some(followed) = followed {
            let batch = turn::entries_and_agents(&followed, &self.written);
            self.publish(&batch).await;
            if let Some(bundles) = turn::bundles(&followed, &self.written, &self.bundles.load()) {
                self.publish_bundles(&Arc::new(bundles));
            }
            self.lately.add(&followed.hints, asked.at);
            self.feed = Some(followed.feed);
            if let Some(fingerprint) = followed.fingerprint
                && self.written.is_empty()
                && reloaded.is_none()
            {
                let held = self.graph.load().fingerprint();
                self.reload |= self.watchdog.compare(fingerprint, held, asked.at);
            }
        }
        if let Some(reloaded) = reloaded {
            self.reload = false;
            self.watchdog.reset();
            let repairs = turn::repairs(reloaded.difference, &self.graph.load(), &self.written);
            if !repairs.is_empty() {
                let repairs = repairs.len();
                tracing::warn!(repairs, "Entries or agents in memory differed from the datastore");
            }
            self.publish(&repairs).await;
            let held = self.bundles.load();
            let mut bundles = BundleSet::new(reloaded.bundles);
            for trust_domain in &self.written.bundles {
                bundles.take_over(trust_domain, &held);
            }
            self.publish_bundles(&Arc::new(bundles.sharing(&held)));
        }
    }
}

/// The end of a turn, if there is one.
async fn end_of(turning: &mut Option<Turning>) -> Turned {
    match turning {
        Some(turning) => turning.await,
        None => pending().await,
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
pub(super) fn record(agent: &Agent) -> Arc<AgentRecord> {
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
