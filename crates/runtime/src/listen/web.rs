//! Small documents over HTTPS, for whoever asks: HTTP/1.1 and HTTP/2, TLS 1.2 or newer.
//!
//! Clients are nobody here: none is asked for a certificate, so no session is kept either. What is
//! answered is a function of method and path; bodies of requests are not read. The port is open to the
//! world, so a connection has little time and there is room for so many: for a new one the oldest has to
//! go, and slow clients hold up nobody.

use std::convert::Infallible;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{ConfigBuilder, ServerConfig, WantsVerifier};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::calls::Spawner;
use super::half_open::HalfOpen;
use super::io::Io;
use super::tls::bind;
use super::{ListenError, Refusals};
use crate::BoxError;
use crate::http::Wire;
use crate::tasks::Group;

/// A bound port for documents.
pub struct WebListener {
    socket: TcpListener,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    limits: WebLimits,
}

/// What the port and its connections are held to.
#[derive(Clone, Copy, Debug)]
pub struct WebLimits {
    /// Connections at once.
    pub connections: usize,
    /// From connecting to the end of the first request's headers, and from there to those of the next.
    pub waiting: Duration,
    /// The whole life of a connection.
    pub life: Duration,
}

impl Default for WebLimits {
    /// 512 connections, 10 s for headers as SPIRE has it, a minute in all.
    fn default() -> Self {
        Self { connections: 512, waiting: Duration::from_secs(10), life: Duration::from_secs(60) }
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebReply {
    /// The status.
    pub status: StatusCode,
    /// What the document is.
    pub content_type: &'static str,
    /// The document.
    pub body: Bytes,
}

impl WebReply {
    /// A document in JSON.
    #[must_use]
    pub const fn json(body: Bytes) -> Self {
        Self { status: StatusCode::OK, content_type: "application/json", body }
    }

    /// A refusal with a line of text, as Go's programs give it.
    #[must_use]
    pub fn refused(status: StatusCode, text: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: format!("{text}\n").into() }
    }
}

/// What answers: it gets the method and the path without the query.
pub type WebAnswer = Arc<dyn Fn(&Method, &str) -> WebReply + Send + Sync>;

impl WebListener {
    /// Binds `address`, presenting what `certificate` holds at each handshake; `tls` has the protocol
    /// versions and key exchanges. Where all addresses of a host without IPv6 are asked for, it is those
    /// of IPv4. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// What the system says: mostly that the port is in use.
    pub fn bind(
        address: SocketAddr,
        tls: ConfigBuilder<ServerConfig, WantsVerifier>,
        certificate: Arc<dyn ResolvesServerCert>,
    ) -> Result<Self, BoxError> {
        let config = Arc::new(config(tls, certificate));
        let all_of_ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
        let socket = bind(address).or_else(|error| {
            if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && address.ip().is_unspecified() {
                return bind(all_of_ipv4);
            }
            Err(error)
        });
        let socket = socket.map_err(|source| ListenError::Address { address, source })?;
        let address = socket.local_addr().map_err(|source| ListenError::Address { address, source })?;
        Ok(Self { socket, address, config, limits: WebLimits::default() })
    }

    /// Held to other limits.
    #[must_use]
    pub const fn with_limits(mut self, limits: WebLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Where it listens, with the port that was chosen.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` is cancelled; then connections are closed, as clients ask again anyway.
    pub fn serve(self, answer: WebAnswer, stop: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.hold(answer, stop))
    }

    async fn hold(self, answer: WebAnswer, stop: CancellationToken) {
        let group = Group::new(stop.clone());
        let places = HalfOpen::new(self.limits.connections);
        let mut refusals = Refusals::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((socket, remote)) => {
                    refusals.over();
                    let (place, stop) = (places.enter_at_once(None), stop.clone());
                    let (config, answer) = (Arc::clone(&self.config), Arc::clone(&answer));
                    let (limits, spawner) = (self.limits, Spawner::Free(group.clone()));
                    group.spawn("web connection", async move {
                        let conversation = converse(socket, config, answer, limits, spawner);
                        tokio::select! {
                            biased;
                            () = stop.cancelled() => {}
                            () = place.lost() => {}
                            ended = timeout(limits.life, conversation) => if let Ok(Err(error)) = ended {
                                let error = crate::chain(error.as_ref());
                                tracing::debug!(%remote, error, "Web connection failed");
                            },
                        }
                    });
                }
                Err(error) => refusals.wait(&error).await,
            }
        }
        group.ended().await;
    }
}

impl fmt::Debug for WebListener {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("WebListener").field("address", &self.address).finish_non_exhaustive()
    }
}

fn config(
    tls: ConfigBuilder<ServerConfig, WantsVerifier>,
    certificate: Arc<dyn ResolvesServerCert>,
) -> ServerConfig {
    let mut config = tls.with_no_client_auth().with_cert_resolver(certificate);
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

async fn converse(
    socket: TcpStream,
    config: Arc<ServerConfig>,
    answer: WebAnswer,
    limits: WebLimits,
    spawner: Spawner,
) -> Result<(), BoxError> {
    let stream = Box::new(timeout(limits.waiting, TlsAcceptor::from(config).accept(socket)).await??);
    let speaks_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
    let service = service_fn(move |request: Request<Incoming>| {
        let reply = answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response(reply)) }
    });
    if speaks_http2 {
        let io = spawner.paced(Io::Web(stream));
        let mut http = http2::Builder::new(spawner);
        http.timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADERS)
            .keep_alive_interval(limits.waiting)
            .keep_alive_timeout(limits.waiting);
        pin!(http.serve_connection(TokioIo::new(io), service)).await?;
    } else {
        let stream: Box<dyn Wire> = stream;
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(limits.waiting).max_buf_size(BUFFER);
        pin!(http.serve_connection(TokioIo::new(stream), service)).await?;
    }
    Ok(())
}

fn response(reply: WebReply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(reply.body));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

const HTTP2: &[u8] = b"h2";

/// Requests at once on one connection of HTTP/2.
const STREAMS: u32 = 16;

/// Bytes of the headers of one request.
const HEADERS: u32 = 16 << 10;

/// The least that hyper takes; a request needs a few hundred bytes.
const BUFFER: usize = 8 << 10;
