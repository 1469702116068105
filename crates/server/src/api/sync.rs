//! `finial.sync.v1.Sync`: tells agents what they are authorised for, and at once what changes of it.
//!
//! The stream of an agent sleeps until a change concerns it (`sync::Hub`), the agent says something, or
//! it is time for a sign of life. Each time the caller is judged again, so that a ban, another SVID and
//! the end of the one it showed end the stream. At most one push is not acknowledged: what changes
//! meanwhile is part of the next. A stream ends with its connection's age; the agent comes again with
//! the token of what it holds, and as long as that is what there is, nothing is sent.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::finial::sync::watch_request::What;
use proto::finial::sync::{WatchRequest, watch_request};
use proto::raw::{Encoded, Replies};
use runtime::{clock, listen};
use spiffe::SpiffeId;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::authz;
use crate::caller::Caller;
use crate::context::Context;
use crate::sync::{Next, Now, Place, Push, Told, heartbeat};

/// After so long a silence the server shows that it is there.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How long an agent may leave a push unanswered.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long an agent waits for the database at most.
const READING: Duration = Duration::from_secs(1);

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sync(Arc<Context>);

/// One stream.
struct Watch {
    context: Arc<Context>,
    caller: Caller,
    agent: SpiffeId,
    connection: listen::Peer,
    place: Place,
    asked: Streaming<WatchRequest>,
    /// `None` before the agent said Hello.
    told: Option<Told>,
    push: Option<Push>,
    /// The token of the push that was not acknowledged.
    unanswered: Option<Bytes>,
    /// Since when the agent is to say something.
    waits_since: Option<Instant>,
    /// Whether it is to be looked whether there is anything to tell.
    is_woken: bool,
    /// Whether the agent waits for a word even if there is nothing to tell.
    is_asked: bool,
    /// Whether it is time for a sign of life.
    is_silent: bool,
    timer: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// What happened to a stream.
enum Event {
    Asked(Result<Option<WatchRequest>, Status>),
    Woken,
    Silent,
    Left,
    Replaced,
}

impl Sync {
    /// The service over this server.
    pub(super) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }

    /// `Watch`.
    pub(super) async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let caller = Caller::of(&request)?;
        let agent = caller.id()?.clone();
        let connection = request.extensions().get::<listen::Peer>().cloned();
        let connection = connection.ok_or_else(|| Status::internal("caller missing from request"))?;
        let watch = Watch {
            // Before anything is looked at, so that no change is missed.
            place: self.0.hub.enter(&agent),
            waits_since: Some(self.0.clock.instant()),
            timer: self.0.clock.sleep(HEARTBEAT),
            context: Arc::clone(&self.0),
            caller,
            agent,
            connection,
            asked: request.into_inner(),
            told: None,
            push: None,
            unanswered: None,
            is_woken: false,
            is_asked: false,
            is_silent: false,
        };
        let replies = futures::stream::try_unfold(watch, async |mut watch| {
            let reply = watch.next().await?;
            Ok(reply.map(|reply| (reply, watch)))
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

impl Watch {
    async fn next(&mut self) -> Result<Option<Encoded>, Status> {
        loop {
            match self.push.as_mut().map(Push::next) {
                Some(Next::Send(message)) => return Ok(Some(self.sent(message))),
                Some(Next::Over(token)) => {
                    self.push = None;
                    self.unanswered = Some(token);
                    self.waits_since = Some(self.context.clock.instant());
                    self.context.meters.pushes.increment();
                }
                Some(Next::Wait) if self.waits_since.is_none() => {
                    self.waits_since = Some(self.context.clock.instant());
                }
                Some(Next::Wait) | None => {}
            }
            if self.is_woken {
                self.is_woken = false;
                self.admit().await?;
                self.look();
                if self.push.as_ref().is_some_and(Push::is_ready) {
                    continue;
                }
                if std::mem::take(&mut self.is_silent) {
                    return Ok(Some(self.sent(heartbeat())));
                }
            }
            match self.event().await {
                Event::Asked(Ok(Some(request))) => {
                    if matches!(request.what, Some(What::Hello(_) | What::Check(_))) {
                        self.catch_up().await;
                    }
                    self.heed(request)?;
                }
                Event::Woken => self.is_woken = true,
                Event::Silent => {
                    self.check_patience()?;
                    (self.is_woken, self.is_silent) = (true, true);
                }
                // It comes again, on another connection.
                Event::Left | Event::Asked(Ok(None)) => return Ok(None),
                Event::Asked(Err(status)) if status.code() == Code::Cancelled => return Ok(None),
                Event::Asked(Err(status)) => return Err(status),
                Event::Replaced => return Err(Status::aborted("the agent watches on other streams")),
            }
        }
    }

    /// The next thing that happens. All of these are cancel-safe.
    async fn event(&mut self) -> Event {
        tokio::select! {
            biased;
            () = self.connection.leaving().cancelled() => Event::Left,
            () = self.place.replaced() => Event::Replaced,
            asked = self.asked.message() => Event::Asked(asked),
            () = self.place.woken() => Event::Woken,
            () = &mut self.timer => Event::Silent,
        }
    }

    /// Reads what other servers committed meanwhile: an agent that comes from one of them, or misses an
    /// entry that was made there, is not told that there is none. Without the database it is told what
    /// is in memory.
    async fn catch_up(&mut self) {
        let read = clock::within(&*self.context.clock, READING, self.context.fresh.wait()).await;
        if let Some(Err(why)) = read {
            tracing::debug!(subsystem_name = "api", error = %why, "Agent is told what is in memory");
        }
    }

    /// Heeds what the agent says.
    fn heed(&mut self, request: WatchRequest) -> Result<(), Status> {
        match (request.what, &self.told) {
            (Some(What::Hello(hello)), None) => {
                self.told = Some(Told::resumed(&hello.token, &self.now()));
                self.waits_since = None;
                (self.is_woken, self.is_asked) = (true, true);
            }
            (Some(What::Hello(_)), Some(_)) => return Err(Status::invalid_argument("a second hello")),
            (_, None) => return Err(Status::invalid_argument("the first request must be a hello")),
            (Some(What::Check(watch_request::Check {})), Some(_)) => {
                (self.is_woken, self.is_asked) = (true, true);
            }
            (Some(What::Ack(ack)), Some(_)) => {
                if self.unanswered.as_ref() == Some(&ack.token) {
                    (self.unanswered, self.waits_since) = (None, None);
                    // There may be more by now.
                    self.is_woken = true;
                }
            }
            (Some(What::Want(want)), Some(_)) => {
                let push =
                    self.push.as_mut().ok_or_else(|| Status::invalid_argument("nothing to be wanted"))?;
                push.want(&want.ids, want.more).map_err(Status::invalid_argument)?;
                self.waits_since = None;
            }
            // Of a later version: to be passed over.
            (None, Some(_)) => {}
        }
        Ok(())
    }

    /// Judges the caller again.
    async fn admit(&mut self) -> Result<(), Status> {
        let judged = authz::authorise(&self.context, self.caller.open, &self.caller.peer).await;
        judged.map(drop).map_err(|denied| {
            tracing::info!(
                subsystem_name = "api",
                caller_id = %self.agent,
                error = %denied,
                "Agent is not told of changes any more"
            );
            denied.status(self.caller.rule.method)
        })
    }

    /// Begins a push if there is something to tell and the agent is ready for it.
    fn look(&mut self) {
        if self.push.is_some() || self.unanswered.is_some() {
            return;
        }
        let now = self.now();
        if let Some(told) = &mut self.told {
            self.push = told.push(now, self.is_asked);
            self.is_asked &= self.push.is_none();
        }
    }

    fn now(&self) -> Now {
        Now::of(&self.context.graph.load(), &self.context.bundles.load(), &self.agent)
    }

    /// An agent that does not answer is not waited for.
    fn check_patience(&self) -> Result<(), Status> {
        let now = self.context.clock.instant();
        if self.waits_since.is_some_and(|since| now.duration_since(since) > PATIENCE) {
            return Err(Status::deadline_exceeded("the agent did not answer in time"));
        }
        Ok(())
    }

    /// The silence begins anew, and ends with the SVID that the agent showed.
    fn sent(&mut self, message: Encoded) -> Encoded {
        let left = self.caller.peer.certificate().map_or(HEARTBEAT, |certificate| {
            let left = certificate.not_after.plus(1).since(self.context.now());
            Duration::from_secs(u64::try_from(left).unwrap_or(0))
        });
        self.timer = self.context.clock.sleep(HEARTBEAT.min(left.max(Duration::from_secs(1))));
        self.is_silent = false;
        message
    }
}
