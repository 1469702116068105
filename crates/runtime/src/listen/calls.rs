//! The calls of one connection: each is told its peer, ends at its deadline, and panics alone.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

use super::Peer;
use super::headers::{self, Asked};
use super::paced::Paced;
use super::resets::{Begun, Resets};
use super::unread::{Unread, Watched};
use crate::BoxError;
use crate::tasks::Group;
use crate::turns::Turns;

/// What answers calls, whatever it is made of: so what carries them is compiled once. Cheap to clone.
#[derive(Clone)]
pub(super) struct Handler(Arc<dyn Fn(Request<Body>) -> Answering + Send + Sync>);

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

/// What answers the calls of one connection.
#[derive(Clone)]
pub(super) struct Calls {
    handler: Handler,
    peer: Peer,
    /// Counted only where somebody wants to know whether the connection is idle.
    running: Option<Running>,
    unread: Unread,
    resets: Resets,
}

/// How many calls are running, and were begun, on one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Running(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    running: AtomicUsize,
    begun: AtomicUsize,
}

/// One call that is running.
struct Call(Arc<Counts>);

/// Starts a connection, and what hyper wants to run beside it.
#[derive(Clone)]
pub(super) enum Spawner {
    /// Of nobody in particular.
    Free(Group),
    /// Of a user who has turns.
    InTurn(Turns<u32>, u32),
}

impl Handler {
    pub(super) fn new<S, B>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Arc::new(move |request| {
            let mut service = service.clone();
            Box::pin(async move {
                poll_fn(|context| service.poll_ready(context)).await.map_err(Into::into)?;
                service.call(request).await.map(|answer| answer.map(Body::new)).map_err(Into::into)
            })
        }))
    }
}

impl Calls {
    pub(super) const fn new(
        handler: Handler,
        peer: Peer,
        running: Option<Running>,
        unread: Unread,
        resets: Resets,
    ) -> Self {
        Self { handler, peer, running, unread, resets }
    }
}

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let call = self.running.as_ref().map(Running::begin);
        let mut begun = self.resets.begin();
        let asked = match Asked::of(&request) {
            Ok(asked) => asked,
            Err(refusal) => {
                begun.end();
                return Box::pin(std::future::ready(Ok(*refusal)));
            }
        };
        let until = asked.patience.and_then(|patience| Instant::now().checked_add(patience));
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.peer.clone());
        let handler = self.handler.clone();
        let method = headers::method(request.uri()).to_owned();
        let unread = self.unread.clone();

        let answer = AssertUnwindSafe(async move { (handler.0)(request).await }).catch_unwind();
        Box::pin(async move {
            let answer = match until {
                None => answer.await,
                Some(until) => match tokio::time::timeout_at(until, answer).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        begun.end();
                        return Ok(asked.answered(too_late().into_http()));
                    }
                },
            };
            let answer = match answer {
                Ok(Ok(response)) => {
                    let watched = |body: Body| {
                        // Nobody asks for the parts of an answer that has none.
                        if http_body::Body::is_end_stream(&body) {
                            begun.end();
                        }
                        let body = unread.watch(body);
                        Body::new(Answer { body, begun, until, alarm: None, _call: call })
                    };
                    return Ok(asked.answered(response.map(watched)));
                }
                Ok(Err(error)) => Ok(Status::from_error(error).into_http()),
                Err(panic) => Err(panic),
            };
            begun.end();
            Ok(asked.answered(match answer {
                Ok(answer) => answer,
                Err(panic) => {
                    let error = crate::tasks::text_of(panic.as_ref());
                    tracing::error!(method, error, "Call panicked");
                    Status::internal("internal error").into_http()
                }
            }))
        })
    }
}

impl Running {
    /// How many calls were begun if none is running, so that two equal answers mean that the
    /// connection has been idle in between.
    pub(super) fn idle_since(&self) -> Option<usize> {
        (self.0.running.load(Ordering::Acquire) == 0).then(|| self.0.begun.load(Ordering::Acquire))
    }

    fn begin(&self) -> Call {
        self.0.begun.fetch_add(1, Ordering::AcqRel);
        self.0.running.fetch_add(1, Ordering::AcqRel);
        Call(Arc::clone(&self.0))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Spawner {
    /// A connection whose tasks it starts.
    pub(super) fn paced<I>(&self, stream: I) -> Paced<I> {
        match self {
            Self::Free(_) => Paced::new(stream, None),
            Self::InTurn(turns, _) => Paced::new(stream, Some(turns.clone())),
        }
    }

    pub(super) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        match self {
            Self::Free(group) => group.spawn(name, task),
            Self::InTurn(turns, user) => turns.spawn(*user, name, task),
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, call: F) {
        match self {
            Self::Free(group) => group.spawn_unboxed("call", call),
            Self::InTurn(turns, user) => turns.spawn(*user, "call", call),
        }
    }
}

/// An answer that is being sent.
struct Answer {
    body: Watched,
    begun: Begun,
    /// When the client gives up, and what wakes the answer then.
    until: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
    _call: Option<Call>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // Who has been answered may leave: of streams, many want but the first message.
        if frame.is_ready() {
            self.begun.end();
            return frame;
        }
        let Some(until) = self.until else { return Poll::Pending };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(alarm.as_mut().poll(context));
        self.body.end();
        self.begun.end();
        let mut trailers = HeaderMap::with_capacity(2);
        too_late().add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// The end of a call that took longer than its client waits.
fn too_late() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}
