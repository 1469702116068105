//! Small pages over HTTP/1.1, for those who look after the program: health, metrics, profiles.
//!
//! Such a socket is open to whoever reaches it, so it holds few connections, waits for no slow client
//! and reads no bodies.

mod tls;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Request, Response, StatusCode, request};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub use tls::{Certificate, Clients, TlsError, tls};

use crate::http::Wire;
use crate::listen::{ListenError, Refusals, TlsSource};
use crate::tasks::Group;

/// A page, whole.
pub type Page = Response<Full<Bytes>>;

/// A bound port for pages.
#[derive(Debug)]
pub struct PageListener {
    socket: TcpListener,
    address: SocketAddr,
    header_timeout: Duration,
}

impl PageListener {
    /// Binds `host`, a name or an address, at `port`.
    ///
    /// # Errors
    /// The name is unknown, or what the system says: mostly that the port is in use.
    pub async fn bind(host: &str, port: u16) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Host { host: host.to_owned(), port, source };
        // An address of IPv6 may be written as in a URL.
        let name = host.trim_matches(['[', ']']);
        let found: Vec<SocketAddr> = tokio::net::lookup_host((name, port)).await.map_err(failed)?.collect();
        // Where a name has addresses of both kinds, Go binds that of IPv4.
        let address = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
        let address = *address.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let socket = crate::listen::bind(address).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, header_timeout: HEADER_TIMEOUT })
    }

    /// Where it listens, with the port that was chosen.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long a client may take to shake hands, to send its request, or to send another one.
    #[must_use]
    pub const fn with_header_timeout(mut self, timeout: Duration) -> Self {
        self.header_timeout = timeout;
        self
    }

    /// Answers until `stop` is cancelled; then connections are closed, as they carry nothing that
    /// would be missed. With `tls` nothing else is spoken.
    pub fn serve<F>(
        self,
        tls: Option<TlsSource>,
        answer: impl Fn(request::Parts) -> F + Send + Sync + 'static,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()>
    where
        F: Future<Output = Page> + Send + 'static,
    {
        let answer: Answer = Arc::new(move |request| Box::pin(answer(request)));
        self.hold(tls, answer, stop)
    }

    fn hold(self, tls: Option<TlsSource>, answer: Answer, stop: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.accept(tls, answer, stop))
    }

    async fn accept(self, tls: Option<TlsSource>, answer: Answer, stop: CancellationToken) {
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
                    let answering = connection(socket, tls.clone(), Arc::clone(&answer), self.header_timeout);
                    let stop = stop.clone();
                    group.spawn("page", async move {
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

/// A page of this kind.
#[must_use]
pub fn page(kind: &'static str, body: impl Into<Bytes>) -> Page {
    let mut page = Response::new(Full::new(body.into()));
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page
}

/// A line of text that says why there is no page.
#[must_use]
pub fn refused(status: StatusCode, line: &str) -> Page {
    let mut page = page("text/plain; charset=utf-8", format!("{line}\n"));
    *page.status_mut() = status;
    page.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    page
}

/// Has the page for a request.
type Answer = Arc<dyn Fn(request::Parts) -> BoxFuture<'static, Page> + Send + Sync>;

async fn connection(socket: TcpStream, tls: Option<TlsSource>, answer: Answer, patience: Duration) {
    let Some(tls) = tls else { return speak(Box::new(socket), answer, patience).await };
    let shaking = TlsAcceptor::from(tls()).accept(socket);
    match tokio::time::timeout(patience, shaking).await {
        Ok(Ok(stream)) => speak(Box::new(stream), answer, patience).await,
        Ok(Err(error)) => tracing::debug!(%error, "Page was not asked for as it must be: no TLS handshake"),
        Err(_elapsed) => {}
    }
}

async fn speak(stream: Box<dyn Wire>, answer: Answer, patience: Duration) {
    let service = service_fn(move |request: Request<Incoming>| {
        let page = answer(request.into_parts().0);
        async move { Ok::<_, Infallible>(page.await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(BUFFER);
    let connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    if let Err(error) = connection.await {
        tracing::debug!(error = crate::chain(&error), "Connection for a page failed");
    }
}

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

const CONNECTIONS: usize = 128;

/// The least that hyper takes; a request needs a few hundred bytes.
const BUFFER: usize = 8 << 10;
