//! From a listener to answered calls, and the end of it.

use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower_service::Service;

use super::accept::Refusals;
use super::calls::{Calls, Handler, Running, Spawner};
use super::doors::Doors;
use super::gathered::Gathered;
use super::half_open::{HalfOpen, Owner, Place};
use super::io::{Greeted, Io};
use super::resets::Resets;
use super::shares::{Share, Shares, network_of};
use super::unix::Opened;
use super::unread::Unread;
use super::{Listener, Peer, tls, unix};
use crate::BoxError;
use crate::authority::Filtered;
use crate::backoff::Random;
use crate::tasks::Group;
use crate::turns::Turns;

/// What a listener and its connections are held to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait for the system to hand them over.
    pub connections: usize,
    /// Connections of one user of a Unix socket at once; more are closed.
    pub per_user: usize,
    /// Connections without client certificate of one network address at once, those that are not open
    /// yet among them; more are closed. Of IPv6, a network of 64 bits counts as one address. Proxies
    /// that say whom they speak for are not counted, their clients are.
    pub per_address: usize,
    /// Whether users of a Unix socket take turns: a step of one's connections and calls, then one of the
    /// next's. For what has a thread to itself; it would keep others idle.
    pub users_take_turns: bool,
    /// Connections that are not open yet at once. For a new one the oldest of the address that has
    /// most is closed, if it has more than its share; on a Unix socket, of the user that has most. Else
    /// a new one waits, two seconds at most, and the system holds those that come after it.
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
    /// Calls that the client of one connection may take back in a second; with one more it is cut off.
    pub resets: u32,
    /// Silence after which a client is asked whether it is there, and how long it may take to say so.
    pub keepalive: Option<(Duration, Duration)>,
    /// How long a client may leave an answer unread; then its connection is cut off.
    pub unread: Duration,
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
            per_address: 256,
            users_take_turns: false,
            half_open: 1024,
            opening: Duration::from_secs(10),
            anonymous_idle: Duration::from_secs(30),
            age: Some(Duration::from_secs(180)),
            calls: 250,
            headers: 16 << 10,
            resets: 200,
            keepalive: Some((Duration::from_secs(2 * 3600), Duration::from_secs(20))),
            unread: Duration::from_secs(60),
            drain: Duration::from_secs(10),
        }
    }

    /// Of a Unix socket.
    #[must_use]
    pub const fn local() -> Self {
        Self { per_user: 1024, age: None, calls: 100, keepalive: None, ..Self::tcp() }
    }

    /// Of a Unix socket for those who act for others, with a stream open for each of them.
    #[must_use]
    pub const fn delegates() -> Self {
        Self { calls: 4096, ..Self::local() }
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
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    compiled_here(listener.into(), limits, Handler::new(service), stop).await;
}

/// What carries calls, of HTTP/2 most of all, in this crate: a future that its user awaits as it is would
/// be compiled with the user, once for each of them and not for speed.
fn compiled_here(
    listener: Listener,
    limits: Limits,
    handler: Handler,
    stop: CancellationToken,
) -> BoxFuture<'static, ()> {
    Box::pin(hold(listener, limits, handler, stop))
}

async fn hold(mut listener: Listener, limits: Limits, handler: Handler, stop: CancellationToken) {
    let floor = Floor::new(limits, stop);
    let mut refusals = Refusals::default();
    while let Some(room) = floor.room().await {
        let accepted = tokio::select! {
            biased;
            () = floor.stop.cancelled() => break,
            accepted = accept(&mut listener) => accepted,
        };
        match accepted {
            Ok(arrival) => {
                refusals.over();
                let user = arrival.user();
                let share = match user.map(|user| floor.share_of_user(user)) {
                    Some(None) => continue,
                    Some(share) => share,
                    None => None,
                };
                // Who was let in is served, if there is a place, however short before the end.
                let place = tokio::select! {
                    biased;
                    place = floor.place(&arrival) => place,
                    () = floor.stop.cancelled() => break,
                };
                let (floor, handler) = (floor.clone(), handler.clone());
                let spawner = floor.spawner(user);
                match &arrival {
                    Arrival::Tls(tls) => {
                        let (doors, address) = (floor.doors.clone(), network_of(tls.remote().ip()));
                        let opening = async move {
                            let Some((io, peer, share)) = floor.open(arrival, place).await else { return };
                            let starter = spawner.clone();
                            starter.spawn("connection", async move {
                                floor.converse(io, peer, handler, spawner).await;
                                drop((share, room));
                            });
                        };
                        doors.spawn(address, opening);
                    }
                    Arrival::Unix(_) => {
                        let starter = spawner.clone();
                        starter.spawn("connection", async move {
                            if let Some((io, peer, _)) = floor.open(arrival, place).await {
                                floor.converse(io, peer, handler, spawner).await;
                            }
                            drop((share, room));
                        });
                    }
                }
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

async fn accept(listener: &mut Listener) -> io::Result<Arrival> {
    match listener {
        Listener::Tls(listener) => listener.accept().await.map(Arrival::Tls),
        Listener::Unix(listener) => listener.accept().await.map(Arrival::Unix),
    }
}

impl Arrival {
    /// The user of this machine who connected.
    fn user(&self) -> Option<u32> {
        match self {
            Self::Tls(_) => None,
            Self::Unix(arrival) => arrival.user(),
        }
    }
}

/// What the connections of one listener have in common.
#[derive(Clone)]
struct Floor {
    limits: Limits,
    group: Group,
    /// On a Unix socket.
    turns: Option<Turns<u32>>,
    /// On a network.
    doors: Doors,
    rooms: Arc<Semaphore>,
    half_open: HalfOpen,
    users: Shares<u32>,
    addresses: Shares<IpAddr>,
    /// Take no more calls.
    stop: CancellationToken,
    /// Close at once.
    cut: CancellationToken,
}

impl Floor {
    fn new(limits: Limits, stop: CancellationToken) -> Self {
        let cut = CancellationToken::new();
        let group = Group::new(cut.clone());
        Self {
            limits,
            turns: limits.users_take_turns.then(|| Turns::new(group.clone(), AT_ONCE)),
            doors: Doors::new(&group),
            group,
            rooms: Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS))),
            half_open: HalfOpen::new(limits.half_open),
            users: Shares::default(),
            addresses: Shares::default(),
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

    /// What starts the tasks of a connection by this user.
    fn spawner(&self, user: Option<u32>) -> Spawner {
        match (&self.turns, user) {
            (Some(turns), Some(user)) => Spawner::InTurn(turns.clone(), user),
            _ => Spawner::Free(self.group.clone()),
        }
    }

    /// A place for a connection that is not open yet.
    async fn place(&self, arrival: &Arrival) -> Place {
        match arrival {
            Arrival::Tls(arrival) => {
                let owner =
                    (!arrival.is_proxied()).then(|| Owner::Address(network_of(arrival.remote().ip())));
                self.half_open.enter(owner).await
            }
            // Who connects here greets at once: nobody waits for a line to move.
            Arrival::Unix(arrival) => self.half_open.enter_at_once(arrival.user().map(Owner::User)),
        }
    }

    /// Brings a connection to where HTTP/2 begins.
    async fn open(&self, arrival: Arrival, place: Place) -> Option<(Io, Peer, Option<Share<IpAddr>>)> {
        let opening = async {
            match arrival {
                Arrival::Tls(arrival) => {
                    let remote = arrival.remote();
                    let refused = |error: &io::Error| {
                        tracing::debug!(%remote, error = crate::chain(error), "Connection refused");
                    };
                    let mut share = match arrival.is_proxied() {
                        true => None,
                        false => Some(self.share_of_address(remote.ip())?),
                    };
                    let (stream, peer) = arrival.shake_hands().await.inspect_err(refused).ok()?;
                    if !peer.is_anonymous() {
                        share = None;
                    } else if share.is_none() {
                        share = Some(self.share_of_address(peer.address()?.ip())?);
                    }
                    let stream = Greeted::by_client(stream).await.inspect_err(refused).ok()?;
                    Some((Io::Tls(Gathered::new(stream)), peer, share))
                }
                Arrival::Unix(arrival) => {
                    let (stream, peer) = arrival.identify().await.inspect_err(refused).ok()?;
                    let io = match stream {
                        Opened::Plain(stream) => {
                            Greeted::by_client(stream).await.map(|stream| Io::Unix(Filtered::new(stream)))
                        }
                        Opened::Tls(stream) => {
                            Greeted::by_client(stream).await.map(|stream| Io::UnixTls(Filtered::new(stream)))
                        }
                    };
                    Some((io.inspect_err(refused).ok()?, peer, None))
                }
            }
        };
        // A client that is quick about it is served before the end, rather than hung up on.
        let stopped = async {
            self.stop.cancelled().await;
            tokio::time::sleep(LAST_OPENING).await;
        };
        tokio::select! {
            biased;
            () = stopped => None,
            () = place.lost() => None,
            opened = timeout(self.limits.opening, opening) => opened.ok()?,
        }
    }

    fn share_of_address(&self, address: IpAddr) -> Option<Share<IpAddr>> {
        let share = self.addresses.enter(network_of(address), self.limits.per_address);
        if share.is_none() {
            tracing::debug!(%address, "Connection refused: the address has too many without certificate");
        }
        share
    }

    fn share_of_user(&self, user: u32) -> Option<Share<u32>> {
        let share = self.users.enter(user, self.limits.per_user);
        if share.is_none() {
            tracing::debug!(user, "Connection refused: the user has too many");
        }
        share
    }

    /// Serves an open connection to its end.
    async fn converse(&self, io: Io, peer: Peer, handler: Handler, spawner: Spawner) {
        let retired = peer.retired().clone();
        let running = peer.is_anonymous().then(Running::default);
        let unread = Unread::default();
        let resets = Resets::new(self.limits.resets);
        let calls = Calls::new(handler, peer, running.clone(), unread.clone(), resets.clone());
        let outlet = io.outlet();
        let io = TokioIo::new(spawner.paced(io));
        let mut connection = pin!(self.http(spawner).serve_connection(io, calls));
        let mut leave = pin!(self.reason_to_leave(&retired, running));
        let mut stuck = pin!(self.stuck(&unread));
        let mut is_leaving = false;
        loop {
            tokio::select! {
                biased;
                () = self.cut.cancelled() => break,
                () = &mut stuck => {
                    tracing::debug!("Connection cut off: the client does not read its answers");
                    break;
                }
                () = resets.too_many() => {
                    tracing::debug!("Connection cut off: the client takes back too many calls");
                    break;
                }
                ended = poll_fn(|context| {
                    let ended = connection.as_mut().poll(context).map_err(BoxError::from);
                    match outlet.as_ref().map(|outlet| outlet.poll_send(context)) {
                        Some(Poll::Ready(Err(error))) if ended.is_pending() => Poll::Ready(Err(error.into())),
                        _ => ended,
                    }
                }) => {
                    if let Err(error) = ended {
                        tracing::debug!(error = crate::chain(&*error), "Connection failed");
                    }
                    break;
                }
                () = &mut leave, if !is_leaving => {
                    is_leaving = true;
                    // Calls that would go on for ever end by themselves.
                    retired.cancel();
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

    /// Ends when a client has left an answer unread for too long.
    async fn stuck(&self, unread: &Unread) {
        while !unread.is_stuck_for(self.limits.unread) {
            tokio::time::sleep(self.limits.unread / 4).await;
        }
    }

    fn http(&self, spawner: Spawner) -> http2::Builder<Spawner> {
        let mut http = http2::Builder::new(spawner);
        http.timer(TokioTimer::new())
            // As other servers of gRPC: nobody reads it, and it is another each second.
            .auto_date_header(false)
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

fn refused(error: &(impl std::error::Error + 'static)) {
    tracing::debug!(error = crate::chain(error), "Connection refused");
}

/// Steps of users before the thread is handed back: what a call does goes on at once, and who accepts has a
/// turn.
const AT_ONCE: usize = 4;

const AGE_JITTER: f64 = 0.1;

/// How long a client may take to shake hands and to greet once the listener has stopped.
const LAST_OPENING: Duration = Duration::from_millis(500);

/// How long connections that are cut off may take to be gone.
const CUT_GRACE: Duration = Duration::from_secs(1);
