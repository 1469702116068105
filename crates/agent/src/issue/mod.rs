//! Issuing: X.509-SVIDs for the entries, renewed in time.
//!
//! One loop plans, signs a batch and shows what came of it, until there is nothing to do; then it
//! sleeps until the next renewal, or until the state changes or a workload waits. A failed call halves
//! the batch, so that a request too large for the server gets through in the end; a single entry that
//! fails waits and holds up no other.

mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::try_join_all;
use proto::spire::server::svid::batch_new_x509svid_response::Result as Answer;
use proto::spire::server::svid::{BatchNewX509svidRequest, NewX509svidParams};
use proto::spire::types;
use runtime::backoff::Backoff;
use runtime::blocking::{Blocking, Interrupted};
use runtime::chain;
use runtime::clock::{Clock, within};
use runtime::reconcile::Poke;
use runtime::snapshot::Snapshot;
use spiffe::key::{KeyError, KeyKind, PrivateKey};
use spiffe::x509::{Attribute, CsrTemplate, Name, SvidError};
use spiffe::{EntryId, SpiffeId, UnixSecs};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{debug, error, info, warn};

use crate::connection::Connection;
use crate::meters::Meters;
use crate::own_svid::Denials;
use crate::rotation::RotationRule;
use crate::state::{AgentState, Change, Held, Inbox, Issuers, RefusedSvid, Stopped, X509Svid};
use crate::subscribe::Subscriptions;
use crate::words;
use plan::{Circumstances, Waiting, is_ahead, plan};

/// The most signatures the server gives at once.
const LARGEST_BATCH: usize = 500;
/// The same where making keys takes long: those who wait are served while the others' are made.
const LARGEST_SLOW_BATCH: usize = 32;
/// How long a batch may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The first wait after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest wait after a failure.
const LONGEST_RETRY: Duration = Duration::from_secs(4 * 60);
/// How many SVIDs of tainted authorities are replaced at a time, and how long after that the next are:
/// every agent of the trust domain does the same at the same time.
const TAINTED_AT_ONCE: usize = 100;
const TAINTED_PAUSE: Duration = Duration::from_secs(5);
/// Keys are made and requests signed on the spot, but others get their turn after so many.
const KEYS_PER_TURN: usize = 16;

/// The task.
pub(crate) struct Issuing {
    pub(crate) connection: Connection,
    pub(crate) inbox: Inbox,
    pub(crate) state: Snapshot<AgentState>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) denials: Denials,
    pub(crate) subscriptions: Subscriptions,
    /// Poked when a workload waits.
    pub(crate) wanted: Poke,
    /// `workload_x509_svid_key_type`
    pub(crate) key_kind: KeyKind,
    /// `x509_svid_cache_max_size`
    pub(crate) most: usize,
    pub(crate) rule: RotationRule,
    pub(crate) issuers: Issuers,
    pub(crate) meters: Arc<Meters>,
}

/// Why a whole batch failed.
#[derive(Debug, thiserror::Error)]
enum BatchError {
    #[error("cannot make keys")]
    Keys(#[from] KeyError),
    #[error("cannot make keys")]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Dial(#[from] client::DialError),
    #[error("failed to batch new X509 SVID(s): {}", words::refusal(.0))]
    Call(Box<Status>),
    #[error("failed to batch new X509 SVID(s): the server did not answer in time")]
    Timeout,
}

impl BatchError {
    fn code(&self) -> Code {
        match self {
            Self::Keys(_) | Self::Interrupted(_) => Code::Unknown,
            Self::Dial(_) => Code::Unavailable,
            Self::Call(status) => status.code(),
            Self::Timeout => Code::DeadlineExceeded,
        }
    }
}

/// What went wrong before, and when to go on.
struct Memory {
    batch: usize,
    backoff: Backoff,
    entries: HashMap<EntryId, (Waiting, Backoff)>,
    tainted_from: SystemTime,
    /// Nothing is signed before.
    paused_until: SystemTime,
}

/// A request for a signature, and the key it is for.
struct Request {
    held: Arc<Held>,
    key: PrivateKey,
    csr: Bytes,
}

impl Issuing {
    /// Issues until the token is cancelled.
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

    async fn forever(mut self) -> Result<(), Stopped> {
        let mut changed = self.state.changed();
        let mut memory = Memory {
            batch: self.largest_batch(),
            backoff: Backoff::new(FIRST_RETRY).with_cap(LONGEST_RETRY),
            entries: HashMap::new(),
            tainted_from: SystemTime::UNIX_EPOCH,
            paused_until: SystemTime::UNIX_EPOCH,
        };
        loop {
            changed.mark_unchanged();
            let state = self.state.load();
            let now = self.clock.now();
            memory.entries.retain(|id, _| state.entries.get(id).is_some());
            let in_use: HashSet<EntryId> = self.subscriptions.in_use();
            let waiting = memory.entries.iter().map(|(id, (waiting, _))| (id.clone(), *waiting)).collect();
            let plan = plan(
                &state,
                &Circumstances {
                    now,
                    in_use: &in_use,
                    waiting: &waiting,
                    batch: memory.batch,
                    most: self.most,
                    tainted: (memory.tainted_from, TAINTED_AT_ONCE),
                },
            );
            drop(state);
            if !plan.evict.is_empty() {
                debug!(count = plan.evict.len(), "Dropping X509-SVIDs that nobody uses or that expired");
                let at = UnixSecs::from(now);
                self.inbox.apply(Change::Evicted { ids: plan.evict, at }).await?;
            }
            if plan.tainted > 0 && !is_ahead(memory.paused_until, now) {
                self.meters.process_tainted_x509.start().done(Code::Ok);
                self.meters.tainted_x509.observe(plan.tainted as f64);
                memory.tainted_from = now + TAINTED_PAUSE;
            }
            let mut next = plan.next;
            if !plan.sign.is_empty() {
                if !is_ahead(memory.paused_until, now) {
                    match self.sign(plan.sign, &mut memory).await {
                        Ok(issued) => self.inbox.apply(Change::Issued(issued)).await?,
                        Err(wait) => memory.paused_until = self.clock.now() + wait,
                    }
                    continue;
                }
                let paused_until = memory.paused_until;
                next = Some(next.map_or(paused_until, |next| next.min(paused_until)));
            }
            let wake = async {
                match next {
                    Some(next) => self.clock.sleep(next.duration_since(now).unwrap_or_default()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wake => {}
                () = self.wanted.poked() => {}
                change = changed.changed() => change.map_err(|_| Stopped)?,
            }
        }
    }

    /// Shows why the SVIDs of a batch are replaced.
    fn show(&self, batch: &[Arc<Held>]) {
        let outdated = |held: &&Arc<Held>| {
            held.svid.as_ref().is_some_and(|svid| svid.revision != held.entry.revision_number)
        };
        let replaced = batch.iter().filter(|held| held.svid.is_some()).count();
        let outdated = batch.iter().filter(outdated).count();
        if outdated > 0 {
            self.meters.outdated.observe(outdated as f64);
        }
        if replaced > outdated {
            self.meters.expiring.observe((replaced - outdated) as f64);
        }
    }

    /// Has a batch signed: what came of each entry, or how long to wait before the next try.
    async fn sign(
        &mut self,
        batch: Vec<Arc<Held>>,
        memory: &mut Memory,
    ) -> Result<Vec<(EntryId, Option<X509Svid>)>, Duration> {
        let size = batch.len();
        let lone = batch.first().filter(|_| size == 1).map(Arc::clone);
        self.show(&batch);
        match self.meters.fetch_svids.measure(self.call(batch), BatchError::code).await {
            Ok((requests, answers)) => {
                memory.batch = (memory.batch * 2).min(self.largest_batch());
                memory.backoff.reset();
                Ok(self.judge(requests, answers, memory))
            }
            Err(error) => {
                error!(error = chain(&error), count = size, "Failed to sign X509-SVIDs");
                memory.batch = (size / 2).max(1);
                let wait = memory.backoff.next();
                if let Some(held) = lone {
                    // It may be this entry that the server stumbles over.
                    memory.hold_back(&held, self.clock.now());
                }
                Err(wait)
            }
        }
    }

    async fn call(&self, batch: Vec<Arc<Held>>) -> Result<(Vec<Request>, Vec<Answer>), BatchError> {
        for held in &batch {
            let entry = &held.entry;
            match &held.svid {
                None => info!(entry_id = %entry.id, spiffe_id = %entry.spiffe_id, "Creating X509-SVID"),
                Some(svid) => info!(
                    entry_id = %entry.id,
                    spiffe_id = %entry.spiffe_id,
                    expires_at = words::instant(svid.expires_at),
                    "Renewing X509-SVID"
                ),
            }
        }
        let requests = self.requests(batch).await?;
        let params = requests
            .iter()
            .map(|request| NewX509svidParams {
                entry_id: request.held.entry.id.as_str().to_owned(),
                csr: request.csr.clone(),
            })
            .collect();
        let lease = self.connection.lease()?;
        let mut svid = lease.clients.svid();
        let calling = svid.batch_new_x509svid(BatchNewX509svidRequest { params });
        match within(&*self.clock, TIMEOUT, calling).await {
            Some(Ok(answer)) => Ok((requests, answer.into_inner().results)),
            Some(Err(status)) => {
                let verdict = self.connection.judge(&lease, &status);
                self.denials.tell(verdict, lease.generation);
                Err(BatchError::Call(Box::new(status)))
            }
            None => {
                self.connection.failed(&lease);
                Err(BatchError::Timeout)
            }
        }
    }

    async fn requests(&self, batch: Vec<Arc<Held>>) -> Result<Vec<Request>, BatchError> {
        let kind = self.key_kind;
        if self.makes_keys_slowly() {
            let blocking = Blocking::per_processor();
            let making = batch.into_iter().map(|held| {
                let (id, blocking) = (held.entry.spiffe_id.clone(), blocking.clone());
                async move {
                    let (key, csr) = blocking.run(move || request(id, kind)).await??;
                    Ok(Request { held, key, csr: csr.into() })
                }
            });
            return try_join_all(making).await;
        }
        let mut requests = Vec::with_capacity(batch.len());
        for (index, held) in batch.into_iter().enumerate() {
            if index % KEYS_PER_TURN == KEYS_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            let (key, csr) = request(held.entry.spiffe_id.clone(), kind)?;
            requests.push(Request { held, key, csr: csr.into() });
        }
        Ok(requests)
    }

    const fn makes_keys_slowly(&self) -> bool {
        matches!(self.key_kind, KeyKind::Rsa2048 | KeyKind::Rsa4096)
    }

    const fn largest_batch(&self) -> usize {
        if self.makes_keys_slowly() { LARGEST_SLOW_BATCH } else { LARGEST_BATCH }
    }

    /// Judges each answer. An entry without a usable one waits.
    fn judge(
        &mut self,
        requests: Vec<Request>,
        answers: Vec<Answer>,
        memory: &mut Memory,
    ) -> Vec<(EntryId, Option<X509Svid>)> {
        let anchors = Arc::clone(&self.state.load().bundles.anchors);
        let now = self.clock.now();
        let mut answers = answers.into_iter();
        let mut outcome = Vec::with_capacity(requests.len());
        for Request { held, key, .. } in requests {
            let entry = &held.entry;
            let accepted = answers.next().map_or(Err(Refusal::Missing), signed).and_then(|svid| {
                X509Svid::accept(
                    &svid.cert_chain,
                    &key,
                    entry,
                    &anchors,
                    now,
                    &mut self.rule,
                    &mut self.issuers,
                )
                .map_err(Refusal::Unusable)
            });
            let svid = match accepted {
                Ok(svid) => {
                    memory.entries.remove(&entry.id);
                    if self.rule.falls_short(svid.not_before, svid.expires_at) {
                        warn!(
                            spiffe_id = %svid.id,
                            entry_id = %entry.id,
                            "X509 SVID lifetime isn't long enough to guarantee the availability_target, \
                             falling back to the default rotation strategy"
                        );
                    }
                    Some(svid)
                }
                Err(refusal) => {
                    warn!(
                        error = chain(&refusal),
                        entry_id = %entry.id,
                        spiffe_id = %entry.spiffe_id,
                        "Failed to mint X509 SVID"
                    );
                    memory.hold_back(&held, now);
                    if !refusal.is_final() {
                        continue;
                    }
                    None
                }
            };
            outcome.push((entry.id.clone(), svid));
        }
        outcome
    }
}

impl Memory {
    /// The entry is not tried again for a while, longer each time.
    fn hold_back(&mut self, held: &Held, now: SystemTime) {
        let revision = held.entry.revision_number;
        let fresh = || (Waiting { revision, until: now }, Backoff::new(FIRST_RETRY).with_cap(LONGEST_RETRY));
        let (waiting, backoff) = self.entries.entry(held.entry.id.clone()).or_insert_with(fresh);
        if waiting.revision != revision {
            waiting.revision = revision;
            backoff.reset();
        }
        waiting.until = now + backoff.next();
    }
}

/// Why an entry got no SVID.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the server did not answer for it")]
    Missing,
    #[error("status {code}: {message}")]
    Status { code: i32, message: String },
    #[error("the server signed something else")]
    Unusable(#[source] RefusedSvid),
}

impl Refusal {
    /// Whether asking again is of no use while the entry is as it is. Otherwise workloads should wait.
    fn is_final(&self) -> bool {
        match self {
            Self::Missing => false,
            Self::Status { code, .. } => {
                matches!(
                    Code::from_i32(*code),
                    Code::NotFound | Code::PermissionDenied | Code::InvalidArgument
                )
            }
            // The bundle may be older than the authority that signed.
            Self::Unusable(refused) => !matches!(refused, RefusedSvid::Invalid(SvidError::Path(_))),
        }
    }
}

fn signed(answer: Answer) -> Result<types::X509svid, Refusal> {
    let status = answer.status.unwrap_or_default();
    if status.code != i32::from(Code::Ok) {
        return Err(Refusal::Status { code: status.code, message: status.message });
    }
    answer.svid.ok_or(Refusal::Missing)
}

fn request(id: SpiffeId, kind: KeyKind) -> Result<(PrivateKey, Vec<u8>), KeyError> {
    let key = PrivateKey::generate(kind)?;
    let subject = Name::new(&[(Attribute::Country, "US"), (Attribute::Organization, "SPIRE")]);
    let csr = CsrTemplate { subject, id: Some(id), dns_names: Vec::new() }.sign(&key)?;
    Ok((key, csr))
}
