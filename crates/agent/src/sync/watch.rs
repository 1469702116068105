//! Pushed changes (`finial.sync.v1`): the server says what the agent holds, and at once what changes.
//!
//! The agent names what it has by the token of the last push, so a new stream costs nothing where that
//! is still so. It asks for a word at each interval at which it would otherwise poll: a change that was
//! not pushed, for whatever reason, is found no later than that, and a server that is gone is noticed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use proto::finial::sync::watch_request::{Ack, Check, Hello, Want, What};
use proto::finial::sync::{WatchRequest, WatchResponse};
use runtime::clock::within;
use runtime::metrics::Running;
use spiffe::UnixSecs;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tracing::{debug, info};

use super::incoming::{Incoming, Step};
use super::{Outcome, Sync, SyncError, TIMEOUT, TROUBLE};
use crate::connection::{Lease, Verdict, verdict};
use crate::state::{Change, Stopped};

/// A server that says nothing for so long is gone: it shows every 30 s that it is there.
const SILENCE: Duration = Duration::from_secs(75);
/// How long a stream may take to end.
const CLOSING: Duration = Duration::from_secs(1);
/// How many ids go into one request.
const IDS_AT_ONCE: usize = 500;

/// What the agent knows about watching its server.
#[derive(Default)]
pub(super) struct Link {
    /// Names what the agent holds, to a server that pushes; empty if it came by another way.
    token: Bytes,
    /// The connection over which the server said that it does not push.
    refused: Option<u64>,
    /// The last stream told nothing before it failed: asking comes first.
    is_doubtful: bool,
    /// The server pushed before, and did not say since that it does not.
    pub(super) has_pushed: bool,
    /// Something was pushed since this was looked at.
    pub(super) was_told: bool,
    /// The last stream ended in good order: the next is not worth a line in the log.
    has_left: bool,
}

/// Why a stream ended.
pub(super) enum Ended {
    /// The server does not push, or not to this agent.
    Refused,
    /// The connection was old, or the agent has a new SVID: on with the next one.
    Left,
    /// Something is wrong.
    Failed(SyncError),
}

/// An open stream.
struct Stream<'a> {
    sync: &'a Sync,
    link: &'a mut Link,
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    incoming: Incoming,
    /// Measures what was asked for; nothing is outstanding without.
    outstanding: Option<Running>,
    patience: Pin<Box<dyn Future<Output = ()> + Send>>,
    next_check: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Link {
    /// Whether to watch over this connection.
    pub(super) fn is_open(&mut self, lease: &Lease) -> bool {
        self.refused != Some(lease.dialled) && !std::mem::take(&mut self.is_doubtful)
    }

    /// What the agent holds came by another way than a push.
    pub(super) fn forget(&mut self) {
        self.token.clear();
    }
}

impl Sync {
    /// Follows what the server pushes for as long as it does.
    ///
    /// # Errors
    /// The state is not kept any more.
    pub(super) async fn watch(&self, lease: Lease, link: &mut Link) -> Result<Ended, Stopped> {
        let ended = self.watched(&lease, link).await?;
        self.is_pushed.store(false, Ordering::Relaxed);
        match &ended {
            Ended::Refused => {
                link.refused = Some(lease.dialled);
                link.has_pushed = false;
            }
            Ended::Left => {
                link.has_left = true;
                self.connection.reset(&lease);
            }
            Ended::Failed(SyncError::Call { status, .. }) => {
                let verdict = self.connection.judge(&lease, status);
                self.denials.tell(verdict, lease.generation);
            }
            Ended::Failed(SyncError::Dial(_) | SyncError::Timeout) => self.connection.failed(&lease),
        }
        Ok(ended)
    }

    async fn watched(&self, lease: &Lease, link: &mut Link) -> Result<Ended, Stopped> {
        let (requests, receiver) = mpsc::channel(1);
        let outstanding = self.meters.fetch_entries.start();
        let hello = Hello { token: link.token.clone() };
        // There is room for one.
        requests.try_send(request(What::Hello(hello))).ok();
        let mut client = lease.clients.sync();
        let calling = client.watch(ReceiverStream::new(receiver));
        let answers = match within(&*self.clock, TIMEOUT, calling).await {
            Some(Ok(answers)) => {
                self.connection.answered(lease);
                answers.into_inner()
            }
            Some(Err(status)) if is_refusal(&status) => {
                debug!(code = ?status.code(), "The server does not push changes: asking for them");
                outstanding.discard();
                return Ok(Ended::Refused);
            }
            Some(Err(status)) => {
                outstanding.done(status.code());
                link.is_doubtful = true;
                return Ok(Ended::Failed(failed(status)));
            }
            None => {
                outstanding.done(Code::DeadlineExceeded);
                link.is_doubtful = true;
                return Ok(Ended::Failed(SyncError::Timeout));
            }
        };
        link.is_doubtful = true;
        let mut stream = Stream {
            sync: self,
            link,
            requests,
            answers,
            incoming: Incoming::default(),
            outstanding: Some(outstanding),
            patience: self.clock.sleep(TIMEOUT),
            next_check: self.clock.sleep(self.interval),
        };
        let ended = stream.follow(lease).await;
        if matches!(ended, Ok(Ended::Left)) {
            stream.close().await;
        }
        if let (Some(outstanding), Ok(Ended::Failed(error))) = (stream.outstanding.take(), &ended) {
            outstanding.done(error.code());
        }
        ended
    }
}

impl Stream<'_> {
    async fn follow(&mut self, lease: &Lease) -> Result<Ended, Stopped> {
        let mut changed = self.sync.state.changed();
        loop {
            tokio::select! {
                biased;
                message = self.answers.message() => match message {
                    Ok(Some(message)) => {
                        if let Err(status) = self.take(message).await? {
                            return Ok(Ended::Failed(failed(status)));
                        }
                    }
                    Ok(None) => return Ok(Ended::Left),
                    Err(status) if is_refusal(&status) => return Ok(Ended::Refused),
                    Err(status) => return Ok(Ended::Failed(failed(status))),
                },
                change = changed.changed() => {
                    change.map_err(|_| Stopped)?;
                    if self.sync.connection.generation() != lease.generation {
                        return Ok(Ended::Left);
                    }
                }
                () = &mut self.patience => return Ok(Ended::Failed(SyncError::Timeout)),
                () = self.sync.asked.poked() => self.check(),
                () = &mut self.next_check => {
                    self.next_check = self.sync.clock.sleep(self.sync.interval);
                    self.check();
                }
            }
        }
    }

    /// Ends the stream in good order, so that it does not look broken to the server.
    async fn close(&mut self) {
        let (requests, _) = mpsc::channel(1);
        self.requests = requests;
        // What is told now will be told again.
        let ended = async { while let Ok(Some(_)) = self.answers.message().await {} };
        let clock = Arc::clone(&self.sync.clock);
        within(&*clock, CLOSING, ended).await;
    }

    /// Asks for a word, unless one is to come anyway.
    fn check(&mut self) {
        if self.outstanding.is_some() {
            return;
        }
        // If there is no room the server does not read, and patience will end.
        if self.requests.try_send(request(What::Check(Check {}))).is_ok() {
            self.outstanding = Some(self.sync.meters.fetch_entries.start());
        }
        self.patience = self.sync.clock.sleep(TIMEOUT);
    }

    /// Takes a message, and answers it.
    async fn take(&mut self, message: WatchResponse) -> Result<Result<(), Status>, Stopped> {
        let state = self.sync.state.load();
        let step = match self.incoming.take(message, &state) {
            Ok(step) => step,
            Err(status) => return Ok(Err(status)),
        };
        drop(state);
        let answered = match step {
            Step::More => Ok(()),
            Step::Want(ids) => self.want(ids).await,
            Step::Over { outcome, token } => {
                self.apply(outcome).await?;
                self.link.token = token.clone();
                self.send(What::Ack(Ack { token })).await
            }
        };
        let patience = if self.outstanding.is_some() { TIMEOUT } else { SILENCE };
        self.patience = self.sync.clock.sleep(patience);
        Ok(answered)
    }

    async fn apply(&mut self, outcome: Option<Outcome>) -> Result<(), Stopped> {
        let sync = self.sync;
        let running = self.outstanding.take().unwrap_or_else(|| sync.meters.fetch_entries.start());
        self.link.was_told = true;
        if self.link.is_doubtful {
            self.link.is_doubtful = false;
            self.link.has_pushed = true;
            sync.is_pushed.store(true, Ordering::Relaxed);
            if !std::mem::take(&mut self.link.has_left) {
                info!("The server pushes changes");
            }
        }
        sync.health.cleared(TROUBLE);
        match outcome {
            Some(outcome) => sync.apply(outcome).await?,
            // As it was; but the first word after trouble is to be written down.
            None if sync.store.data().trying_since.is_some() => {
                let state = sync.state.load();
                let entries = state.entries.iter().map(|held| Arc::clone(&held.entry)).collect();
                let federated = state.bundles.federated.values().map(|bundle| (**bundle).clone()).collect();
                drop(state);
                sync.apply(Outcome { entries, own: None, federated }).await?;
            }
            None => sync.inbox.apply(Change::Confirmed { at: UnixSecs::from(sync.clock.now()) }).await?,
        }
        running.done(Code::Ok);
        self.next_check = sync.clock.sleep(sync.interval);
        Ok(())
    }

    async fn want(&mut self, ids: Vec<String>) -> Result<(), Status> {
        for page in ids.chunks(IDS_AT_ONCE) {
            self.send(What::Want(Want { ids: page.to_vec(), more: true })).await?;
        }
        self.send(What::Want(Want { ids: Vec::new(), more: false })).await
    }

    async fn send(&mut self, what: What) -> Result<(), Status> {
        let sent = within(&*self.sync.clock, TIMEOUT, self.requests.send(request(what))).await;
        match sent {
            Some(Ok(())) => Ok(()),
            // The answers say why.
            Some(Err(_)) => Err(Status::unavailable("the server ended the stream")),
            None => Err(Status::deadline_exceeded("the server does not read what the agent says")),
        }
    }
}

/// Whether the server has no such service, or a policy that does not let this agent use it.
fn is_refusal(status: &Status) -> bool {
    let is_unexplained = || verdict(status) == Verdict::Transient;
    status.code() == Code::Unimplemented || (status.code() == Code::PermissionDenied && is_unexplained())
}

fn failed(status: Status) -> SyncError {
    SyncError::call("failed to watch authorized entries")(status)
}

const fn request(what: What) -> WatchRequest {
    WatchRequest { what: Some(what) }
}
