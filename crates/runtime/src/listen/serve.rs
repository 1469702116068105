//! From a listener to answered calls, and the end of it.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower_service::Service;

use super::accept::Refusals;
use super::calls::{Calls, Running, Spawner};
use super::half_open::{HalfOpen, Place};
use super::io::{Greeted, Io};
use super::{Listener, Peer, tls, unix};
use crate::BoxError;
use crate::authority::Filtered;
use crate::backoff::Random;
use crate::tasks::Group;

/// What a listener and its connections are held to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait for the system to hand them over.
    pub connections: usize,
    /// Connections of one user of a Unix socket at once; more are closed.
    pub per_user: usize,
    /// Connections that are not open yet at once; the oldest is closed for a new one.
    pub half_open: usize,
    /// From connecting to HTTP/2's preface, the TLS handshake included.
    pub opening: Duration,
    /// A connection without client certificate that makes no call for so long, or twice that, is
    /// closed.
    pub anonymous_idle: Duration,
    /// After about that time, a tenth more or less, a connection takes no more calls and closes once
    /// those that run have ended, so that clients spread over servers and show their certificates
    /// again.
    pub age: Option<Duration>,
    /// Calls at once on one connection.
    pub calls: u32,
    /// Bytes of the headers of one call.
    pub headers: u32,
    /// Silence after which a client is asked whether it is there, and how long it may take to say so.
    pub keepalive: Option<(Duration, Duration)>,
    /// How long calls may take to end once the listener is stopped.
    pub drain: Duration,
}

impl Limits {
    /// Of a server's port. Connection age, keep-alive and time to drain are SPIRE's.
    #[must_use]
    pub const fn tcp() -> Self {
        Self {
            connections: 16_384,
            per_user: usize::MAX,
            half_open: 1024,
            opening: Duration::from_secs(10),
            anonymous_idle: Duration::from_secs(30),
            age: Some(Duration::from_secs(180)),
            calls: 250,
            headers: 16 << 10,
            keepalive: Some((Duration::from_secs(2 * 3600), Duration::from_secs(20))),
            drain: Duration::from_secs(10),
        }
    }

    /// Of a Unix socket.
    #[must_use]
    pub const fn local() -> Self {
        Self { per_user: 1024, age: None, calls: 100, keepalive: None, ..Self::tcp() }
    }
}

/// Answers the calls that come in on `listener` with `service`, such as tonic's `Routes`, until `stop`
/// is cancelled. Then the listener is closed, clients are told to go elsewhere, the calls that run get
/// [`Limits::drain`] to end, and what is left is cut off.
///
/// Dropped instead, it leaves connections behind that end when `stop` is cancelled.
pub async fn serve<S, B>(
    listener: impl Into<Listener> + Send,
    limits: Limits,
    service: S,
    stop: CancellationToken,
) where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let listener = listener.into();
    let floor = Floor::new(limits, stop);
    let mut refusals = Refusals::default();
    while let Some(room) = floor.room().await {
        let accepted = tokio::select! {
            biased;
            () = floor.stop.cancelled() => break,
            accepted = accept(&listener) => accepted,
        };
        match accepted {
            Ok(arrival) => {
                refusals.over();
                let place = floor.half_open.enter();
                let (floor, service) = (floor.clone(), service.clone());
                floor.group.clone().spawn("connection", async move {
                    let opened = floor.open(arrival, place).await;
                    if let Some((io, peer, _share)) = opened {
                        floor.converse(io, peer, service).await;
                    }
                    drop(room);
                });
            }
            Err(error) => refusals.wait(&error).await,
        }
    }
    drop(listener);
    floor.drain().await;
}

enum Arrival {
    Tls(tls::Arrival),
    Unix(unix::Arrival),
}

async fn accept(listener: &Listener) -> io::Result<Arrival> {
    match listener {
        Listener::Tls(listener) => listener.accept().await.map(Arrival::Tls),
        Listener::Unix(listener) => listener.accept().await.map(Arrival::Unix),
    }
}

/// What the connections of one listener have in common.
#[derive(Clone)]
struct Floor {
    limits: Limits,
    group: Group,
    rooms: Arc<Semaphore>,
    half_open: HalfOpen,
    users: Users,
    /// Take no more calls.
    stop: CancellationToken,
    /// Close at once.
    cut: CancellationToken,
}

impl Floor {
    fn new(limits: Limits, stop: CancellationToken) -> Self {
        let cut = CancellationToken::new();
        Self {
            limits,
            group: Group::new(cut.clone()),
            rooms: Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS))),
            half_open: HalfOpen::new(limits.half_open),
            users: Users::default(),
            stop,
            cut,
        }
    }

    /// Room for one more connection, or nothing once it is to stop.
    async fn room(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            room = Arc::clone(&self.rooms).acquire_owned() => room.ok(),
        }
    }

    /// Brings a connection to where HTTP/2 begins.
    async fn open(&self, arrival: Arrival, place: Place) -> Option<(Io, Peer, Option<Share>)> {
        let opening = async {
            match arrival {
                Arrival::Tls(arrival) => {
                    let remote = arrival.remote();
                    let refused = |error: &io::Error| {
                        tracing::debug!(%remote, error = crate::chain(error), "Connection refused");
                    };
                    let (stream, peer) = arrival.shake_hands().await.inspect_err(refused).ok()?;
                    let stream = Greeted::by_client(stream).await.inspect_err(refused).ok()?;
                    Some((Io::Tls(stream), peer, None))
                }
                Arrival::Unix(arrival) => {
                    let (stream, peer) = arrival.identify().inspect_err(refused).ok()?;
                    let share = match peer.caller() {
                        Some(caller) => Some(self.users.enter(caller.uid, self.limits.per_user)?),
                        None => None,
                    };
                    let stream = Greeted::by_client(stream).await.inspect_err(refused).ok()?;
                    Some((Io::Unix(Filtered::new(stream)), peer, share))
                }
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            () = place.lost() => None,
            opened = timeout(self.limits.opening, opening) => opened.ok()?,
        }
    }

    /// Serves an open connection to its end.
    async fn converse<S, B>(&self, io: Io, peer: Peer, service: S)
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let retired = peer.retired().clone();
        let running = peer.is_anonymous().then(Running::default);
        let calls = Calls::new(service, peer, running.clone());
        let mut connection = pin!(self.http().serve_connection(TokioIo::new(io), calls));
        let mut leave = pin!(self.reason_to_leave(&retired, running));
        let mut is_leaving = false;
        loop {
            tokio::select! {
                biased;
                () = self.cut.cancelled() => break,
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(error = crate::chain(&error), "Connection failed");
                    }
                    break;
                }
                () = &mut leave, if !is_leaving => {
                    is_leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }

    /// Ends when a connection is to take no more calls.
    async fn reason_to_leave(&self, retired: &CancellationToken, running: Option<Running>) {
        let aged = async {
            match self.limits.age {
                Some(age) => tokio::time::sleep(Random::new().spread(age, AGE_JITTER)).await,
                None => std::future::pending().await,
            }
        };
        let idle = async {
            let Some(running) = running else { return std::future::pending().await };
            let mut before = None;
            loop {
                tokio::time::sleep(self.limits.anonymous_idle).await;
                let now = running.idle_since();
                if now.is_some() && (now == before || now == Some(0)) {
                    return;
                }
                before = now;
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = retired.cancelled() => {}
            () = aged => {}
            () = idle => {}
        }
    }

    fn http(&self) -> http2::Builder<Spawner> {
        let mut http = http2::Builder::new(Spawner(self.group.clone()));
        http.timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.calls)
            .max_header_list_size(self.limits.headers);
        if let Some((interval, patience)) = self.limits.keepalive {
            http.keep_alive_interval(interval).keep_alive_timeout(patience);
        }
        http
    }

    async fn drain(self) {
        if timeout(self.limits.drain, self.group.ended()).await.is_err() {
            tracing::warn!(connections = self.group.len(), "Connections are cut off");
            self.cut.cancel();
            // Calls are dropped with their connection; one that blocks its thread is not waited for.
            timeout(CUT_GRACE, self.group.ended()).await.ok();
        }
    }
}

/// How many connections each user has.
#[derive(Clone, Debug, Default)]
struct Users(Arc<Mutex<HashMap<u32, usize>>>);

/// One connection of a user.
#[derive(Debug)]
struct Share {
    users: Users,
    user: u32,
}

impl Users {
    fn enter(&self, user: u32, limit: usize) -> Option<Share> {
        self.locked(|users| {
            let connections = users.entry(user).or_default();
            if *connections >= limit {
                tracing::debug!(user, "Connection refused: the user has too many");
                return None;
            }
            *connections += 1;
            Some(Share { users: self.clone(), user })
        })
    }

    fn locked<T>(&self, act: impl FnOnce(&mut HashMap<u32, usize>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.users.locked(|users| {
            if let Some(connections) = users.get_mut(&self.user) {
                *connections -= 1;
                if *connections == 0 {
                    users.remove(&self.user);
                }
            }
        });
    }
}

fn refused(error: &(impl std::error::Error + 'static)) {
    tracing::debug!(error = crate::chain(error), "Connection refused");
}

const AGE_JITTER: f64 = 0.1;

/// How long connections that are cut off may take to be gone.
const CUT_GRACE: Duration = Duration::from_secs(1);
