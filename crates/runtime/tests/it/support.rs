//! A service that tells who called, clients for it, and certificates.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use finial_runtime::listen::{
    Callers, Limits, Listener, Peer, TlsListener, UnixListener, UnixOptions, serve,
};
use finial_runtime::tasks::Group;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::tls::{
    Anchors, ClientVerifier, OwnCertificate, ServerTrust, ServerVerifier, client_config, server_config,
};
use spiffe::x509::{Attribute, Certificate, Issuer, Name, Role, Serial, Validity, X509Template, assemble};
use spiffe::{SpiffeId, UnixSecs};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower_service::Service;

/// Anything that takes longer has failed.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// A call without a message.
pub(crate) fn call_to(uri: impl AsRef<str>) -> http::request::Builder {
    Request::post(uri.as_ref()).header("content-type", "application/grpc")
}

/// Fails the test if `future` takes too long.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it takes too long")
}

/// Answers `/who` with who called and `/endless` with ever more, begins to answer `/silence`, never answers `/hang`, panics at `/panic`, and says of each call
/// that it has begun.
#[derive(Clone)]
pub(crate) struct Witness(mpsc::UnboundedSender<String>);

pub(crate) fn witness() -> (Witness, mpsc::UnboundedReceiver<String>) {
    let (tell, told) = mpsc::unbounded_channel();
    (Witness(tell), told)
}

impl Service<Request<Body>> for Witness {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let peer = request.extensions().get::<Peer>().unwrap().clone();
        self.0.send(path.clone()).ok();
        Box::pin(async move {
            match path.as_str() {
                "/hang" => return std::future::pending().await,
                "/panic" => panic!("on purpose"),
                "/retire" => peer.retire(),
                "/silence" => return Ok(Response::new(Body::new(Silence))),
                "/endless" => return Ok(Response::new(Body::new(Endless))),
                _ => {}
            }
            let mut response = Response::new(Body::empty());
            response.headers_mut().insert("who", describe(&peer).parse().unwrap());
            let address = peer.address().map(|address| address.to_string()).unwrap_or_default();
            response.headers_mut().insert("address", address.parse().unwrap());
            let authority = request.uri().authority().map_or("", |authority| authority.as_str());
            response.headers_mut().insert("authority", authority.parse().unwrap());
            Ok(response)
        })
    }
}

/// An answer that begins, and then nothing comes.
struct Silence;

impl http_body::Body for Silence {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
        Poll::Pending
    }
}

/// An answer without end.
struct Endless;

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(&[0; 64 << 10])))))
    }
}

fn describe(peer: &Peer) -> String {
    if let Some(caller) = peer.caller() {
        return format!("process {}", caller.process.pid());
    }
    if peer.is_local() {
        return "local".to_owned();
    }
    let read =
        |peer: &Peer| peer.certificates().first().map(|der| Certificate::parse(der).unwrap().uris().concat());
    (*peer.derived(read)).clone().unwrap_or_else(|| "nobody".to_owned())
}

/// A listener that is served until the token is cancelled.
pub(crate) struct Served {
    pub(crate) stop: CancellationToken,
    pub(crate) calls: mpsc::UnboundedReceiver<String>,
    pub(crate) group: Group,
}

pub(crate) fn served(listener: impl Into<Listener> + Send + 'static, limits: Limits) -> Served {
    let (witness, calls) = witness();
    let stop = CancellationToken::new();
    let group = Group::new(stop.clone());
    group.spawn("listener", serve(listener, limits, witness, stop.clone()));
    Served { stop, calls, group }
}

pub(crate) const OPTIONS: UnixOptions =
    UnixOptions { directory_mode: 0o755, socket_mode: 0o777, callers: Callers::Required };

pub(crate) fn unix(path: &Path) -> Served {
    served(UnixListener::bind(path, OPTIONS).unwrap(), Limits::local())
}

/// A client of HTTP/2 on a connection.
pub(crate) struct Client {
    pub(crate) sender: SendRequest<Empty<Bytes>>,
    pub(crate) connection: Group,
}

impl Client {
    pub(crate) async fn on(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
        let group = Group::new(CancellationToken::new());
        group.spawn("client", async move { drop(connection.await) });
        Self { sender, connection: group }
    }

    pub(crate) async fn unix(path: &Path) -> Self {
        Self::on(UnixStream::connect(path).await.unwrap()).await
    }

    /// A call; what the service's headers say.
    pub(crate) async fn call(&mut self, path: &str) -> Result<Response<hyper::body::Incoming>, hyper::Error> {
        self.call_to("localhost", path).await
    }

    pub(crate) async fn call_to(
        &mut self,
        authority: &str,
        path: &str,
    ) -> Result<Response<hyper::body::Incoming>, hyper::Error> {
        self.sender.ready().await?;
        let uri = format!("http://{authority}{path}");
        self.sender.send_request(call_to(uri).body(Empty::new()).unwrap()).await
    }

    pub(crate) async fn who(&mut self) -> String {
        header(&self.call("/who").await.unwrap(), "who")
    }

    /// Ends when the connection has ended.
    pub(crate) async fn closed(self) {
        self.connection.ended().await;
    }
}

pub(crate) fn header<B>(response: &Response<B>, name: &str) -> String {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned()
}

/// A trust domain with one authority.
pub(crate) struct Domain {
    key: PrivateKey,
    certificate: Certificate,
}

#[derive(Debug)]
struct OneDomain(Arc<[Certificate]>);

impl Anchors for OneDomain {
    fn anchors(&self, _: &str) -> Option<Arc<[Certificate]>> {
        Some(Arc::clone(&self.0))
    }
}

impl Domain {
    pub(crate) fn new() -> Self {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let subject = Name::new(&[(Attribute::Country, "US")]);
        let template = template(&key, "spiffe://example.org", Role::Ca, subject.clone());
        let tbs = template.tbs(&Issuer { name: subject, key_id: None }, key.sig_alg().unwrap());
        let der = assemble(&tbs, &key.sign(tbs.alg(), tbs.as_bytes()).unwrap());
        Self { key, certificate: Certificate::parse(der.as_bytes()).unwrap() }
    }

    pub(crate) fn own(&self, id: &str) -> Arc<OwnCertificate> {
        let own = OwnCertificate::empty();
        self.renew(&own, id);
        own
    }

    pub(crate) fn renew(&self, own: &OwnCertificate, id: &str) {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let template = template(&key, id, Role::Svid, Name::new(&[(Attribute::Country, "US")]));
        let issuer = Issuer {
            name: self.certificate.subject().clone(),
            key_id: self.certificate.subject_key_id().map(<[u8]>::to_vec),
        };
        let tbs = template.tbs(&issuer, self.key.sig_alg().unwrap());
        let signature = self.key.sign(tbs.alg(), tbs.as_bytes()).unwrap();
        own.set(&[assemble(&tbs, &signature)], &key).unwrap();
    }

    fn anchors(&self) -> Arc<dyn Anchors> {
        Arc::new(OneDomain([self.certificate.clone()].into()))
    }

    pub(crate) fn server_config(&self) -> ServerConfig {
        let verifier = ClientVerifier::new(self.anchors(), Box::new(|_| Ok(())), false);
        server_config(verifier, self.own(SERVER)).unwrap()
    }

    pub(crate) fn listener(&self) -> TlsListener {
        let config = Arc::new(self.server_config());
        TlsListener::bind(LOCALHOST, Arc::new(move || Arc::clone(&config))).unwrap()
    }

    pub(crate) fn client_config(&self, own: Arc<OwnCertificate>) -> ClientConfig {
        let id = SpiffeId::parse(SERVER).unwrap();
        client_config(ServerVerifier::new(ServerTrust::Id(id, self.anchors())), own).unwrap()
    }

    pub(crate) async fn client(&self, address: SocketAddr, own: Arc<OwnCertificate>) -> io::Result<Client> {
        Ok(Client::on(shake_hands(address, self.client_config(own)).await?).await)
    }
}

pub(crate) async fn shake_hands(
    address: SocketAddr,
    config: ClientConfig,
) -> io::Result<TlsStream<TcpStream>> {
    wrap(TcpStream::connect(address).await?, config).await
}

pub(crate) async fn wrap(socket: TcpStream, config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("server.test").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

fn template(key: &PrivateKey, id: &str, role: Role, subject: Name) -> X509Template {
    X509Template {
        serial: Serial::from_be_bytes(&[1]),
        subject,
        validity: Validity { not_before: UnixSecs(0), not_after: UnixSecs(4_102_444_800) },
        public_key: key.public().clone(),
        id: SpiffeId::parse(id).unwrap(),
        dns_names: Vec::new(),
        role,
    }
}

pub(crate) const SERVER: &str = "spiffe://example.org/spire/server";

pub(crate) const LOCALHOST: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
