//! Documents over HTTPS, and certificates that are replaced while they are served.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use finial_runtime::clock::SystemClock;
use finial_runtime::http::{FetchLimits, Route, fetch};
use finial_runtime::listen::{WebAnswer, WebLimits, WebListener, WebReply};
use finial_runtime::served::ServedCertificate;
use finial_runtime::tasks::Group;
use http::StatusCode;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::tls::PostQuantum;
use spiffe::x509::to_pem;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::support::{Client, soon};

/// Self-signed for 127.0.0.1.
const CERTIFICATE: &[u8] = include_bytes!("data/localhost.der");
const KEY: &[u8] = include_bytes!("data/localhost.key.der");

fn write(folder: &Path, certificates: usize, key: &[u8]) {
    fs::write(folder.join("cert.pem"), to_pem("CERTIFICATE", CERTIFICATE).repeat(certificates)).unwrap();
    fs::write(folder.join("key.pem"), to_pem("PRIVATE KEY", key)).unwrap();
}

fn load(folder: &Path) -> Result<Arc<ServedCertificate>, String> {
    let loaded = ServedCertificate::load(folder.join("cert.pem"), folder.join("key.pem"));
    loaded.map_err(|error| finial_runtime::chain(&error).replace(&folder.display().to_string(), "."))
}

/// Says what was asked, under 404 for `/none`.
fn echo() -> WebAnswer {
    Arc::new(|method, path| match path {
        "/none" => WebReply::refused(StatusCode::NOT_FOUND, "nothing here"),
        path => WebReply::json(format!("{method} {path}").into()),
    })
}

struct Web {
    address: SocketAddr,
    stop: CancellationToken,
    group: Group,
}

fn serve(certificate: Arc<ServedCertificate>, limits: WebLimits) -> Web {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = WebListener::bind(any, PostQuantum::Optional.server().unwrap(), certificate)
        .unwrap()
        .with_limits(limits);
    let (address, stop) = (listener.address(), CancellationToken::new());
    let group = Group::new(stop.clone());
    group.spawn("web", listener.serve(echo(), stop.clone()));
    Web { address, stop, group }
}

fn client(protocol: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(CERTIFICATE)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

async fn connect(address: SocketAddr, protocol: &[u8]) -> TlsStream<TcpStream> {
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(client(protocol)).connect(name, socket).await.unwrap()
}

#[tokio::test]
async fn documents_are_given_over_both_versions_of_http() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 1, KEY);
    let web = serve(load(folder.path()).unwrap(), WebLimits::default());
    let get = async |path: &str| {
        let url = format!("https://{}{path}", web.address);
        soon(fetch(&url, &Route::Tls(client(b"http/1.1")), &FetchLimits::default())).await.unwrap()
    };

    let document = get("/a?b").await;
    let missing = get("/none").await;
    let mut http2 = Client::on(connect(web.address, b"h2").await).await;
    let posted = soon(http2.call("/none")).await.unwrap();

    assert_eq!((document.content_type(), &document.body[..]), (Some("application/json"), &b"GET /a"[..]));
    assert_eq!((missing.status.as_u16(), &missing.body[..]), (404, &b"nothing here\n"[..]));
    assert_eq!(posted.status().as_u16(), 404);
    web.stop.cancel();
    soon(web.group.ended()).await;
}

#[tokio::test]
async fn clients_that_dawdle_are_hung_up_on_and_make_room() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 1, KEY);
    let limits = WebLimits { connections: 2, ..WebLimits::default() };
    let few = serve(load(folder.path()).unwrap(), limits);
    let limits = WebLimits { waiting: Duration::from_millis(100), ..WebLimits::default() };
    let hasty = serve(load(folder.path()).unwrap(), limits);
    let limits = WebLimits { life: Duration::from_millis(300), ..WebLimits::default() };
    let brief = serve(load(folder.path()).unwrap(), limits);

    let mut oldest = TcpStream::connect(few.address).await.unwrap();
    let _second = connect(few.address, b"http/1.1").await;
    let _third = connect(few.address, b"http/1.1").await;
    assert_eq!(soon(oldest.read(&mut [0])).await.unwrap_or(0), 0);

    let mut silent = TcpStream::connect(hasty.address).await.unwrap();
    assert_eq!(soon(silent.read(&mut [0])).await.unwrap_or(0), 0);
    let mut shaken = connect(hasty.address, b"http/1.1").await;
    assert_eq!(soon(shaken.read(&mut [0])).await.unwrap_or(0), 0);

    let mut polite = Client::on(connect(brief.address, b"h2").await).await;
    assert!(soon(polite.call("/")).await.is_ok());
    soon(polite.connection.ended()).await;
}

#[tokio::test]
async fn a_replaced_certificate_is_served_without_a_restart_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 1, KEY);
    let served = load(folder.path()).unwrap();
    let web = serve(Arc::clone(&served), WebLimits::default());
    let follow = served.follow(Duration::ZERO, Arc::new(SystemClock), web.stop.clone());
    web.group.spawn("files", follow);
    let presented = async || {
        let stream = connect(web.address, b"http/1.1").await;
        stream.get_ref().1.peer_certificates().unwrap().len()
    };
    assert_eq!(presented().await, 1);

    let other = PrivateKey::generate(KeyKind::EcP256).unwrap().to_pkcs8().unwrap();
    write(folder.path(), 2, &other);
    assert_eq!(presented().await, 1);
    write(folder.path(), 3, KEY);
    soon(async { while presented().await != 3 {} }).await;

    web.stop.cancel();
    soon(web.group.ended()).await;
}

#[test]
fn keys_are_taken_in_whatever_form_they_are() {
    let folder = tempfile::tempdir().unwrap();
    for label in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ANY PRIVATE KEY"] {
        write(folder.path(), 1, KEY);
        let with_header = to_pem(label, KEY).replacen("-----\n", "-----\nA: b\n\n", 1);
        fs::write(folder.path().join("key.pem"), format!("text\n{with_header}")).unwrap();

        load(folder.path()).unwrap();
    }
}

#[test]
fn files_that_are_no_pair_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = || load(folder.path()).unwrap_err();
    assert_eq!(refused(), "cannot read ./cert.pem: no such file or directory");

    write(folder.path(), 0, KEY);
    assert_eq!(refused(), "no certificate in PEM found in ./cert.pem");
    write(folder.path(), 1, b"");
    assert!(refused().starts_with("cannot use ./cert.pem with ./key.pem: "), "{}", refused());
    fs::write(folder.path().join("key.pem"), "").unwrap();
    assert_eq!(refused(), "no private key in PEM found in ./key.pem");
    let other = PrivateKey::generate(KeyKind::EcP256).unwrap().to_pkcs8().unwrap();
    write(folder.path(), 1, &other);
    assert_eq!(refused(), "cannot use ./cert.pem with ./key.pem: keys may not be consistent: KeyMismatch");
}
