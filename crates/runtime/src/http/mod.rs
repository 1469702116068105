//! Fetching a document over HTTP: one GET, bounded in time and size.
//!
//! Over TLS, with a configuration that the caller chooses and through the proxy that the environment
//! names, or in the clear over a Unix socket; never in the clear over a network. Redirections are
//! followed where the caller allows it, and only to `https`. What the document is, and whether a status
//! other than 200 will do, is the caller's affair.

mod proxy;

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, FusedFuture};
use http::header::{ACCEPT, CONTENT_TYPE, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;

/// How to reach the one who has the document.
#[derive(Clone, Debug)]
pub enum Route {
    /// By TCP and TLS; the address must be `https`.
    Tls(Arc<ClientConfig>),
    /// By this Unix socket; the address must be `http`.
    Unix(PathBuf),
}

/// What a fetch is held to.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// All of it, redirections included.
    pub timeout: Duration,
    /// Bytes of the document.
    pub size: usize,
    /// Redirections that are followed; further ones are handed back as they are.
    pub redirects: u8,
}

impl Default for FetchLimits {
    /// 30 s, 10 MiB, and as many redirections as Go follows.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), size: 10 << 20, redirects: 10 }
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// The document.
    pub body: Bytes,
}

impl Fetched {
    /// What the document says that it is, such as `application/json`.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        self.headers.get(CONTENT_TYPE)?.to_str().ok()
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address cannot be read.
    #[error("{address:?} is no URL")]
    Address {
        /// The address.
        address: String,
    },
    /// The address is not of the kind that the route takes.
    #[error("scheme must be {expected}: {address}")]
    Scheme {
        /// The kind.
        expected: &'static str,
        /// The address.
        address: Uri,
    },
    /// The connection does not open.
    #[error("cannot connect to {to}")]
    Connect {
        /// Host and port, or the socket.
        to: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No sense could be made of the other end.
    #[error("cannot read the answer")]
    Protocol(#[source] hyper::Error),
    /// The document broke off.
    #[error("cannot read the document")]
    Body(#[source] crate::BoxError),
    /// The document is too large.
    #[error("the document is larger than {limit} bytes")]
    TooLarge {
        /// What was allowed.
        limit: usize,
    },
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The configuration for TLS cannot be made.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// Fetches the document at `address`. Cancel-safe.
///
/// # Errors
/// See [`FetchError`]. An answer with any status is no error.
pub fn fetch<'a>(
    address: &'a str,
    route: &'a Route,
    limits: &'a FetchLimits,
) -> BoxFuture<'a, Result<Fetched, FetchError>> {
    Box::pin(async move {
        let malformed = |_| FetchError::Address { address: address.to_owned() };
        let mut address: Uri = address.parse().map_err(malformed)?;
        let fetching = async {
            for _ in 0..limits.redirects {
                let fetched = fetch_once(&address, route, limits.size).await?;
                match redirection(&fetched, &address) {
                    Some(next) => address = next,
                    None => return Ok(fetched),
                }
            }
            fetch_once(&address, route, limits.size).await
        };
        let timed_out = |_| FetchError::TimedOut(limits.timeout);
        tokio::time::timeout(limits.timeout, fetching).await.map_err(timed_out)?
    })
}

/// The roots of the system, by which servers on the web are believed. Those that cannot be read are left
/// out.
#[must_use]
pub fn system_roots() -> Vec<CertificateDer<'static>> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(error = crate::chain(error), "Cannot read a root certificate of the system");
    }
    found.certs
}

async fn fetch_once(address: &Uri, route: &Route, size: usize) -> Result<Fetched, FetchError> {
    let malformed = || FetchError::Address { address: address.to_string() };
    let authority = address.authority().ok_or_else(malformed)?;
    let socket: Box<dyn Wire> = match route {
        Route::Tls(config) => {
            check_scheme(address, "https")?;
            let port = authority.port_u16().unwrap_or(443);
            let host = authority.host().trim_start_matches('[').trim_end_matches(']');
            let to = || format!("{}:{port}", authority.host());
            let connected = connect_tls(host, port, config).await;
            connected.map_err(|source| FetchError::Connect { to: to(), source })?
        }
        Route::Unix(path) => {
            check_scheme(address, "http")?;
            connect_unix(path).await?
        }
    };

    let (mut sender, connection) =
        http1::handshake(TokioIo::new(socket)).await.map_err(FetchError::Protocol)?;
    let host = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host);
    let request = Request::get(address.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, host)
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, "*/*")
        .body(Empty::<Bytes>::new())
        .map_err(|_| malformed())?;
    let answer = async {
        let (head, body) = sender.send_request(request).await.map_err(FetchError::Protocol)?.into_parts();
        let body = Limited::new(body, size).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                FetchError::TooLarge { limit: size }
            } else {
                FetchError::Body(error)
            }
        })?;
        Ok(Fetched { status: head.status, headers: head.headers, body: body.to_bytes() })
    };
    // The connection only works while it is polled. How it ends is no matter where the answer is whole:
    // many servers hang up without taking leave.
    let mut connection = pin!(connection.fuse());
    let mut answer = pin!(answer);
    loop {
        tokio::select! {
            biased;
            fetched = &mut answer => return fetched,
            _ = &mut connection, if !connection.is_terminated() => {}
        }
    }
}

fn check_scheme(address: &Uri, expected: &'static str) -> Result<(), FetchError> {
    if address.scheme_str() == Some(expected) {
        return Ok(());
    }
    Err(FetchError::Scheme { expected, address: address.clone() })
}

async fn connect_tls(host: &str, port: u16, config: &Arc<ClientConfig>) -> io::Result<Box<dyn Wire>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let mut config = Arc::clone(config);
    // Without this a server may choose HTTP/2.
    if config.alpn_protocols != [b"http/1.1"] {
        Arc::make_mut(&mut config).alpn_protocols = vec![b"http/1.1".to_vec()];
    }
    let socket = proxy::connect(host, port).await?;
    socket.set_nodelay(true)?;
    Ok(Box::new(TlsConnector::from(config).connect(name, socket).await?))
}

async fn connect_unix(path: &Path) -> Result<Box<dyn Wire>, FetchError> {
    let connected = UnixStream::connect(path).await;
    let socket =
        connected.map_err(|source| FetchError::Connect { to: path.display().to_string(), source })?;
    Ok(Box::new(socket))
}

/// Where an answer sends us, if anywhere.
fn redirection(fetched: &Fetched, from: &Uri) -> Option<Uri> {
    let sends = [301, 302, 303, 307, 308].contains(&fetched.status.as_u16());
    let to = fetched.headers.get(LOCATION)?.to_str().ok().filter(|_| sends)?;
    resolved(to, from)
}

/// The address that `reference` means in a document at `base` (RFC 3986, 5.2), without its fragment.
fn resolved(reference: &str, base: &Uri) -> Option<Uri> {
    let reference = reference.split('#').next().filter(|reference| !reference.is_empty())?;
    let head = reference.split(['/', '?']).next()?;
    if head.contains(':') {
        return reference.parse().ok();
    }
    let scheme = base.scheme_str()?;
    if reference.starts_with("//") {
        return format!("{scheme}:{reference}").parse().ok();
    }
    let (path, query) = match reference.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (reference, String::new()),
    };
    let path = if path.is_empty() {
        base.path().to_owned()
    } else if path.starts_with('/') {
        without_dots(path)
    } else {
        let beside = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        without_dots(&format!("{beside}/{path}"))
    };
    format!("{scheme}://{}{path}{query}", base.authority()?).parse().ok()
}

/// An absolute path with its `.` and `..` carried out (RFC 3986, 5.2.4).
fn without_dots(path: &str) -> String {
    let mut kept = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    let names_a_directory = path.ends_with("/.") || path.ends_with("/..");
    let end = if names_a_directory && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}", kept.join("/"))
}

/// A connection, whatever its kind: HTTP/1.1 over it is compiled once.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

const AGENT: &str = "finial";

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn sent(status: u16, to: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_str(to).unwrap());
        let fetched = Fetched { status: StatusCode::from_u16(status).unwrap(), headers, body: Bytes::new() };
        redirection(&fetched, &Uri::from_static("https://example.org/a?b")).map(|uri| uri.to_string())
    }

    #[test]
    fn redirections_are_read() {
        assert_eq!(sent(302, "/c?d").as_deref(), Some("https://example.org/c?d"));
        assert_eq!(sent(308, "https://example.com/e").as_deref(), Some("https://example.com/e"));
        assert_eq!(sent(200, "/c"), None);
        assert_eq!(sent(304, "/c"), None);
        assert_eq!(sent(302, ""), None);
        assert_eq!(sent(302, "http://[::1"), None);
    }

    #[test]
    fn redirections_may_be_relative() {
        check("//example.com/c", "https://example.com/c");
        check("//example.com:8443", "https://example.com:8443/");
        check("c", "https://example.org/x/c");
        check("c?d:e#f", "https://example.org/x/c?d:e");
        check("../c", "https://example.org/c");
        check("../../../c/./d/..", "https://example.org/c/");
        check(".", "https://example.org/x/");
        check("?d", "https://example.org/x/a?d");

        fn check(reference: &str, address: &str) {
            let base = Uri::from_static("https://example.org/x/a?b");
            let resolved = resolved(reference, &base).map(|address| address.to_string());
            assert_eq!(resolved.as_deref(), Some(address), "{reference}");
        }
    }
}
