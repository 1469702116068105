//! Fetching documents.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use finial_runtime::http::{FetchError, FetchLimits, Route, fetch};
use finial_runtime::tasks::Group;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::support::soon;

/// Self-signed for 127.0.0.1.
const CERTIFICATE: &[u8] = include_bytes!("data/localhost.der");
const KEY: &[u8] = include_bytes!("data/localhost.key.der");

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn trusting(certificates: &[CertificateDer<'static>]) -> Route {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Route::Tls(Arc::new(config))
}

fn trusted() -> Route {
    trusting(&[CertificateDer::from(CERTIFICATE)])
}

/// Reads a request and hands back its head.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn reply(stream: &mut (impl AsyncWrite + Unpin), text: &str) {
    stream.write_all(text.as_bytes()).await.ok();
    stream.flush().await.ok();
}

/// A web server that gives these answers, one per connection; the last one again and again.
async fn web(answers: &'static [&'static str]) -> (SocketAddr, Group) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(CERTIFICATE)], PrivateKeyDer::try_from(KEY).unwrap())
        .unwrap();
    // It would rather speak HTTP/2.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let group = Group::new(CancellationToken::new());
    group.spawn("web", async move {
        let mut answers = answers.iter().peekable();
        let mut answer = "";
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(socket).await else { continue };
            request(&mut stream).await;
            answer = answers.next().copied().unwrap_or(answer);
            reply(&mut stream, answer).await;
            if answer.is_empty() {
                // Says nothing and stays.
                stream.read_u8().await.ok();
            }
        }
    });
    (address, group)
}

#[tokio::test]
async fn a_document_is_fetched_over_tls() {
    let (address, _web) =
        web(&["HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"]).await;

    let url = format!("https://{address}/bundle?a=b");
    let fetched = soon(fetch(&url, &trusted(), &FetchLimits::default())).await.unwrap();

    assert_eq!((fetched.status.as_u16(), &fetched.body[..]), (200, &b"{}"[..]));
    assert_eq!(fetched.content_type(), Some("application/json"));
}

#[tokio::test]
async fn a_document_is_fetched_over_a_socket_with_its_query() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let group = Group::new(CancellationToken::new());
    let (tell, told) = tokio::sync::oneshot::channel();
    group.spawn("web", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tell.send(request(&mut stream).await).unwrap();
        reply(&mut stream, "HTTP/1.1 404 Not Found\r\n\r\nnothing").await;
    });

    let url = "http://user@any.host/b?spire-attest-mode=bootstrap";
    let fetched = soon(fetch(url, &Route::Unix(path), &FetchLimits::default())).await.unwrap();

    assert_eq!((fetched.status.as_u16(), &fetched.body[..]), (404, &b"nothing"[..]));
    let asked = told.await.unwrap();
    assert!(
        asked.starts_with("GET /b?spire-attest-mode=bootstrap HTTP/1.1\r\nhost: any.host\r\n"),
        "{asked}"
    );
}

#[tokio::test]
async fn a_server_that_is_not_trusted_is_refused() {
    let (address, _web) = web(&["HTTP/1.1 200 OK\r\n\r\n"]).await;

    let url = format!("https://{address}/");
    let refused = soon(fetch(&url, &trusting(&[]), &FetchLimits::default())).await.unwrap_err();

    let text = finial_runtime::chain(&refused);
    assert!(text.starts_with(&format!("cannot connect to {address}: invalid peer certificate")), "{text}");
}

#[tokio::test]
async fn redirections_are_followed_so_far_and_only_to_https() {
    let limits = FetchLimits { redirects: 2, ..FetchLimits::default() };
    let (address, _web) = web(&[
        "HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone",
    ])
    .await;
    let (endless, _other) =
        web(&["HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n"]).await;
    let (clear, _third) =
        web(&["HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"]).await;
    let get = async |address| fetch(&format!("https://{address}/"), &trusted(), &limits).await;

    assert_eq!(&soon(get(address)).await.unwrap().body[..], b"done");
    assert_eq!(soon(get(endless)).await.unwrap().status.as_u16(), 302);
    assert!(matches!(soon(get(clear)).await.unwrap_err(), FetchError::Scheme { expected: "https", .. }));
}

#[tokio::test]
async fn size_and_time_are_bounded() {
    let limits = FetchLimits { size: 8, timeout: Duration::from_millis(200), ..FetchLimits::default() };
    let (large, _large) = web(&["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789"]).await;
    let (endless, _endless) =
        web(&["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n6\r\n123456\r\n"]).await;
    let (silent, _silent) = web(&[""]).await;
    let (broken, _broken) = web(&["HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n123"]).await;
    let (noise, _noise) = web(&["\0\0\0\x04\0\0\0\0\0"]).await;
    let get = async |address| fetch(&format!("https://{address}/"), &trusted(), &limits).await;

    assert!(matches!(soon(get(large)).await.unwrap_err(), FetchError::TooLarge { limit: 8 }));
    assert!(matches!(soon(get(endless)).await.unwrap_err(), FetchError::TooLarge { limit: 8 }));
    assert!(matches!(soon(get(silent)).await.unwrap_err(), FetchError::TimedOut(_)));
    assert!(matches!(soon(get(broken)).await.unwrap_err(), FetchError::Body(_)));
    assert!(matches!(soon(get(noise)).await.unwrap_err(), FetchError::Protocol(_)));
}

#[tokio::test]
async fn addresses_must_suit_the_route() {
    let limits = FetchLimits::default();
    let socket = Route::Unix("/nonexistent/web.sock".into());

    assert!(matches!(fetch("no url", &socket, &limits).await.unwrap_err(), FetchError::Address { .. }));
    let http = fetch("http://a/", &trusted(), &limits).await.unwrap_err();
    assert_eq!(http.to_string(), "scheme must be https: http://a/");
    let https = fetch("https://a/", &socket, &limits).await.unwrap_err();
    assert_eq!(https.to_string(), "scheme must be http: https://a/");
    let gone = fetch("http://a/", &socket, &limits).await.unwrap_err();
    assert_eq!(gone.to_string(), "cannot connect to /nonexistent/web.sock");
}
