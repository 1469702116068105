//! The reports of [`Health`] over plain HTTP, as SPIRE gives them.
//!
//! Any method is answered, 200 where all is well and 500 where not, always with the report as JSON.
//! The socket is open to whoever reaches it, so it says nothing else, holds few connections, and
//! waits for no slow client.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Health, Report};
use crate::listen::{ListenError, Refusals};
use crate::tasks::Group;

/// A bound port for the reports.
#[derive(Debug)]
pub struct HealthListener {
    socket: TcpListener,
    address: SocketAddr,
    paths: Arc<HealthPaths>,
    header_timeout: Duration,
}

/// Where each report is. As with Go's router a path that ends with a slash stands for all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPaths {
    /// Whether the program lives, usually `/live`.
    pub live: String,
    /// Whether it is ready, usually `/ready`.
    pub ready: String,
}

impl HealthListener {
    /// Binds `host`, a name or an address, at `port`.
    ///
    /// # Errors
    /// The name is unknown, or what the system says: mostly that the port is in use.
    pub async fn bind(host: &str, port: u16, paths: HealthPaths) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Host { host: host.to_owned(), port, source };
        // An address of IPv6 may be written as in a URL.
        let name = host.trim_matches(['[', ']']);
        let found: Vec<SocketAddr> = tokio::net::lookup_host((name, port)).await.map_err(failed)?.collect();
        // Where a name has addresses of both kinds, Go binds that of IPv4.
        let address = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
        let address = *address.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, paths: Arc::new(paths), header_timeout: HEADER_TIMEOUT })
    }

    /// Where it listens, with the port that was chosen.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long a client may take to send its request, or to send another one.
    #[must_use]
    pub const fn with_header_timeout(mut self, timeout: Duration) -> Self {
        self.header_timeout = timeout;
        self
    }

    /// Answers until `stop` is cancelled; then connections are closed, as they carry nothing that
    /// would be missed.
    pub async fn serve(self, health: Health, stop: CancellationToken) {
        let group = Group::new(stop.clone());
        let rooms = Arc::new(Semaphore::new(CONNECTIONS));
        let mut refusals = Refusals::default();
        loop {
            // More than so many wait for the system to hand them over.
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = async {
                    let room = Arc::clone(&rooms).acquire_owned().await;
                    self.socket.accept().await.map(|(socket, _)| (socket, room))
                } => accepted,
            };
            match accepted {
                Ok((socket, room)) => {
                    refusals.over();
                    let answering =
                        answer(socket, health.clone(), Arc::clone(&self.paths), self.header_timeout);
                    let stop = stop.clone();
                    group.spawn("health check", async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = answering => {}
                        }
                        drop(room);
                    });
                }
                Err(error) => refusals.wait(&error).await,
            }
        }
        group.ended().await;
    }
}

async fn answer(socket: TcpStream, health: Health, paths: Arc<HealthPaths>, header_timeout: Duration) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.uri().path(), &health, &paths);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(BUFFER);
    let connection = pin!(http.serve_connection(TokioIo::new(socket), service));
    if let Err(error) = connection.await {
        tracing::debug!(error = crate::chain(&error), "Health check connection failed");
    }
}

fn respond(path: &str, health: &Health, paths: &HealthPaths) -> Response<Full<Bytes>> {
    if covers(&paths.live, path) {
        return told(health.live());
    }
    if covers(&paths.ready, path) {
        return told(health.ready());
    }
    let mut response = Response::new(Full::new(Bytes::from_static(b"404 page not found\n")));
    *response.status_mut() = StatusCode::NOT_FOUND;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn told(report: Report) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(report.json.into()));
    if !report.is_good {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn covers(pattern: &str, path: &str) -> bool {
    path == pattern || (pattern.ends_with('/') && path.starts_with(pattern))
}

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

const CONNECTIONS: usize = 128;

/// The least that hyper takes; a request needs a few hundred bytes.
const BUFFER: usize = 8 << 10;
