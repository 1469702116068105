//! Sync: what the server lets the agent serve.
//!
//! A server of Finial's pushes it (`watch`); any other is asked again and again. One sync asks for the
//! entries, the own bundle and the bundles of the trust domains that entries federate with. It is applied
//! whole or not at all, as a push is.

mod entries;
mod incoming;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use client::{DialError, ServerClients};
use futures::{StreamExt, TryStreamExt, stream};
use proto::spire::server::agent::PostStatusRequest;
use proto::spire::server::bundle::{GetBundleRequest, GetFederatedBundleRequest};
use proto::spire::types;
use runtime::backoff::{Backoff, Random};
use runtime::chain;
use runtime::clock::{Clock, within};
use runtime::health::Check;
use runtime::reconcile::Poke;
use runtime::snapshot::Snapshot;
use spiffe::{Bundle, Entry, TrustDomain, UnixSecs};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{error, trace, warn};

use crate::attest::certificates;
use crate::connection::Connection;
use crate::meters::Meters;
use crate::own_svid::Denials;
use crate::state::{AgentState, Change, Inbox, Stopped};
use crate::stored::{AgentData, Store};
use crate::words;
use watch::{Ended, Link};

/// How long one sync may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How many bundles are asked for at a time.
const BUNDLES_AT_ONCE: usize = 10;
/// The longest wait, whatever the interval.
const LONGEST: Duration = Duration::from_secs(8 * 60);
/// The longest wait in intervals.
const LONGEST_MULTIPLE: u32 = 48;
/// The longest wait after a sync that brought nothing to serve.
const IDLE: Duration = Duration::from_secs(5);
/// The first wait of an agent that has not synced yet.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// How far apart agents at most change to another connection.
const CHANGE: Duration = Duration::from_millis(100);
/// How far apart agents at most come back after their streams broke, the first time and later.
const RECONNECT: Duration = Duration::from_secs(5);
const LONGEST_RECONNECT: Duration = Duration::from_secs(60);
/// What the health check calls a failing sync.
const TROUBLE: &str = "sync_err";

/// The task.
pub(crate) struct Sync {
    pub(crate) connection: Connection,
    pub(crate) inbox: Inbox,
    pub(crate) state: Snapshot<AgentState>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) denials: Denials,
    pub(crate) store: Store,
    pub(crate) health: Check,
    /// `experimental.sync_interval`
    pub(crate) interval: Duration,
    pub(crate) protocol: Protocol,
    /// What the server is told about this program.
    pub(crate) version: &'static str,
    pub(crate) meters: Arc<Meters>,
    /// Poked when somebody cannot wait for the next sync.
    pub(crate) asked: Poke,
    /// Shows whether the server pushes changes.
    pub(crate) is_pushed: Arc<AtomicBool>,
}

/// How entries are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Page by page, only what changed.
    Pages,
    /// All at once.
    Whole,
}

/// What one sync brought.
struct Outcome {
    entries: Vec<Arc<Entry>>,
    own: Option<Bundle>,
    federated: Vec<Bundle>,
}

/// Why a sync failed.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{doing}: {}", words::refusal(.status))]
    Call { doing: &'static str, status: Box<Status> },
    #[error("the server did not answer in time")]
    Timeout,
}

impl SyncError {
    fn call(doing: &'static str) -> impl Fn(Status) -> Self {
        move |status| Self::Call { doing, status: Box::new(status) }
    }

    fn code(&self) -> Code {
        match self {
            Self::Dial(_) => Code::Unavailable,
            Self::Call { status, .. } => status.code(),
            Self::Timeout => Code::DeadlineExceeded,
        }
    }
}

impl Sync {
    /// Syncs until the token is cancelled.
    ///
    /// # Errors
    /// The state is not kept any more.
    pub(crate) async fn run(self, token: CancellationToken) -> Result<(), Stopped> {
        tokio::select! {
            biased;
            () = token.cancelled() => Ok(()),
            ended = self.forever() => ended.or_else(|stopped| stopped.unless_told_to(&token)),
        }
    }

    async fn forever(self) -> Result<(), Stopped> {
        self.post_status().await;
        let mut backoff = Backoff::new(self.interval).with_cap(LONGEST.min(self.interval * LONGEST_MULTIPLE));
        let mut first = Backoff::new(FIRST_RETRY.min(self.interval));
        let mut broken = Backoff::new(RECONNECT.min(self.interval)).with_cap(LONGEST_RECONNECT);
        let (mut link, mut random) = (Link::default(), Random::new());
        loop {
            let failure = match self.watch_if_possible(&mut link).await? {
                Some(Ended::Left) => {
                    backoff.reset();
                    self.clock.sleep(CHANGE.mul_f64(random.unit())).await;
                    continue;
                }
                Some(Ended::Failed(error)) => Some(error),
                Some(Ended::Refused) | None => {
                    link.forget();
                    match self.meters.fetch_entries.measure(self.once(), SyncError::code).await {
                        Ok(outcome) => {
                            self.health.cleared(TROUBLE);
                            self.apply(outcome).await?;
                            None
                        }
                        Err(error) => Some(error),
                    }
                }
            };
            if std::mem::take(&mut link.was_told) {
                broken.reset();
            }
            let Some(error) = failure else {
                backoff.reset();
                if link.has_pushed {
                    // It answers again, and so it will push again.
                    continue;
                }
                let wait = backoff.next();
                let wait = if self.state.load().entries.svid_count() == 0 { wait.min(IDLE) } else { wait };
                tokio::select! {
                    () = self.clock.sleep(wait) => {}
                    () = self.asked.poked() => {}
                }
                continue;
            };
            let text = chain(&error);
            error!(error = text, "Synchronize failed");
            self.health.degraded(TROUBLE, text);
            let wait = if self.state.load().synced_at.is_none() {
                first.next()
            } else if link.has_pushed {
                // All streams of a server break at once; its agents must not come back at once.
                broken.next().mul_f64(random.unit())
            } else {
                backoff.next()
            };
            if self.connection.moves_on() {
                continue;
            }
            tokio::select! {
                () = self.clock.sleep(wait) => {}
                () = self.another_svid() => {}
            }
        }
    }

    /// Ends when the agent has another SVID than now: what was refused may be allowed.
    async fn another_svid(&self) {
        let mut changed = self.state.changed();
        let agent = Arc::clone(&self.state.load().agent);
        while Arc::ptr_eq(&agent, &self.state.load().agent) {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Follows the pushes of the server until they end; `None` if it is to be asked instead.
    async fn watch_if_possible(&self, link: &mut Link) -> Result<Option<Ended>, Stopped> {
        let lease = match self.connection.lease() {
            Ok(lease) if self.protocol == Protocol::Pages && link.is_open(&lease) => lease,
            // What keeps it from dialling is told by the call that comes next.
            Ok(_) | Err(_) => return Ok(None),
        };
        self.watch(lease, link).await.map(Some)
    }

    async fn post_status(&self) {
        let posted = async {
            let lease = self.connection.lease()?;
            let request =
                PostStatusRequest { current_bundle_serial: 0, agent_version: self.version.to_owned() };
            let mut agent = lease.clients.agent();
            match within(&*self.clock, TIMEOUT, agent.post_status(request)).await {
                Some(Ok(_)) => Ok(()),
                Some(Err(status)) => {
                    self.connection.reset(&lease);
                    Err(SyncError::call("failed to post agent status")(status))
                }
                None => {
                    self.connection.failed(&lease);
                    Err(SyncError::Timeout)
                }
            }
        };
        // The server may be of a make that does not want to know.
        if let Err(error) = posted.await {
            error!(error = chain(&error), agent_version = self.version, "Failed to post agent status");
        }
    }

    async fn once(&self) -> Result<Outcome, SyncError> {
        let lease = self.connection.lease()?;
        let outcome = within(&*self.clock, TIMEOUT, self.ask(&lease.clients)).await;
        let outcome = outcome.unwrap_or(Err(SyncError::Timeout));
        match &outcome {
            Ok(_) => self.connection.answered(&lease),
            Err(SyncError::Call { status, .. }) => {
                let verdict = self.connection.judge(&lease, status);
                self.denials.tell(verdict, lease.generation);
            }
            Err(SyncError::Dial(_) | SyncError::Timeout) => self.connection.failed(&lease),
        }
        outcome
    }

    async fn ask(&self, clients: &ServerClients) -> Result<Outcome, SyncError> {
        let state = self.state.load();
        let (known, agent) = (Arc::clone(&state.entries), Arc::clone(&state.agent));
        let trust_domain = state.bundles.own.trust_domain.clone();
        drop(state);
        let entries = match self.protocol {
            Protocol::Pages => entries::sync(clients, &known, &agent.id).await,
            Protocol::Whole => entries::get(clients, &known, &agent.id).await,
        };
        let entries = entries.map_err(SyncError::call("failed to fetch authorized entries"))?;

        let request = GetBundleRequest { output_mask: None };
        let own = clients.bundle().get_bundle(request).await;
        let own = own.map_err(SyncError::call("failed to fetch bundle"))?.into_inner();
        let own = read_own(&own, &trust_domain);

        let foreign: BTreeSet<TrustDomain> =
            entries.iter().flat_map(|entry| entry.federates_with.iter().cloned()).collect();
        let federated = stream::iter(foreign.into_iter().filter(|name| *name != trust_domain))
            .map(|name| foreign_bundle(clients, name))
            .buffered(BUNDLES_AT_ONCE)
            .try_filter_map(|bundle| async move { Ok(bundle) })
            .try_collect()
            .await?;
        Ok(Outcome { entries, own, federated })
    }

    /// Stores the own bundle if it is another, then shows everybody what is new.
    async fn apply(&self, outcome: Outcome) -> Result<(), Stopped> {
        let Outcome { entries, own, federated } = outcome;
        trace!(entries = entries.len(), bundles = federated.len() + 1, "Synchronized");
        self.show(&entries, federated.len() + 1);
        let known = Arc::clone(&self.state.load().bundles.own);
        let is_news = own.as_ref().is_some_and(|own| own.x509_authorities != known.x509_authorities);
        let is_trying = self.store.data().trying_since.is_some();
        if is_news || is_trying {
            let bundle = certificates(own.as_ref().unwrap_or(&known));
            let store = move |data: &mut AgentData| {
                data.bundle = bundle;
                data.settle();
            };
            if let Err(error) = self.store.update(store).await {
                error!(error = chain(&error), "Could not store bundle");
            }
        }
        let at = UnixSecs::from(self.clock.now());
        self.inbox.apply(Change::Synced { entries, own, federated, at }).await
    }
}

impl Sync {
    /// Shows what a sync brought, beside what was known.
    fn show(&self, entries: &[Arc<Entry>], bundles: usize) {
        let (gauges, known) = (&self.meters.sync, Arc::clone(&self.state.load().entries));
        let before = |entry: &Arc<Entry>| known.get(&entry.id).map(|held| held.entry.revision_number);
        let missing = entries.iter().filter(|entry| before(entry).is_none()).count();
        let is_stale =
            |entry: &&Arc<Entry>| before(entry).is_some_and(|known| known != entry.revision_number);
        gauges.bundles.set_count(bundles);
        gauges.entries.set_count(entries.len());
        gauges.missing.set_count(missing);
        gauges.stale.set_count(entries.iter().filter(is_stale).count());
        gauges.dropped.set_count((known.len() + missing).saturating_sub(entries.len()));
    }
}

/// The bundle of another trust domain; `None` if the server has none, or it is none.
async fn foreign_bundle(clients: &ServerClients, name: TrustDomain) -> Result<Option<Bundle>, SyncError> {
    let request = GetFederatedBundleRequest { trust_domain: name.as_str().to_owned(), output_mask: None };
    match clients.bundle().get_federated_bundle(request).await {
        Ok(answer) => Ok(read(&answer.into_inner(), &name)),
        Err(status) if status.code() == Code::NotFound => {
            warn!(federated_bundle = %name.id(), "Federated bundle not found");
            Ok(None)
        }
        Err(status) => Err(SyncError::call("failed to fetch federated bundle")(status)),
    }
}

/// The bundle of the own trust domain.
fn read_own(wire: &types::Bundle, trust_domain: &TrustDomain) -> Option<Bundle> {
    read(wire, trust_domain).filter(|bundle| {
        // Nobody can be verified with no authority at all: what was known before is better.
        let is_some = !bundle.x509_authorities.is_empty();
        if !is_some {
            warn!("Ignoring a bundle of the own trust domain without authorities");
        }
        is_some
    })
}

/// The bundle of `trust_domain`, and of no other.
fn read(wire: &types::Bundle, trust_domain: &TrustDomain) -> Option<Bundle> {
    let refused = |reason: String| {
        warn!(
            error = reason,
            trust_domain_id = %trust_domain.id(),
            "Received malformed bundle from SPIRE server; are the server and agent versions compatible?"
        );
    };
    match Bundle::try_from(wire) {
        Ok(bundle) if bundle.trust_domain == *trust_domain => Some(bundle),
        Ok(bundle) => {
            refused(format!("it is of {}", bundle.trust_domain.id()));
            None
        }
        Err(error) => {
            refused(error.to_string());
            None
        }
    }
}
