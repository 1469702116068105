//! Dialling with TLS.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use client::{Address, Dialer, ServerClients};
use proto::health::HealthCheckRequest;
use proto::health::health_server::HealthServer;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::server::StandIn;

/// Self-signed for 127.0.0.1.
const CERTIFICATE: &[u8] = include_bytes!("data/localhost.der");
const KEY: &[u8] = include_bytes!("data/localhost.key.der");

fn certificate() -> CertificateDer<'static> {
    CertificateDer::from(CERTIFICATE)
}

fn acceptor(protocols: &[&str]) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(KEY).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate()], key)
        .expect("a pair");
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

fn dialer(port: u16) -> Dialer {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Dialer::new(Address::tcp("127.0.0.1", port)).with_tls(Arc::new(config))
}

/// Accepts connections, TLS before gRPC, while `test` runs.
async fn beside_server<T>(protocols: &[&str], test: impl AsyncFnOnce(Dialer) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let acceptor = acceptor(protocols);
    let incoming = futures::stream::unfold((listener, acceptor), |(listener, acceptor)| async move {
        let (socket, _) = listener.accept().await.expect("a connection");
        Some((acceptor.accept(socket).await.map(Accepted), (listener, acceptor)))
    });
    let server = Server::builder().add_service(HealthServer::new(StandIn)).serve_with_incoming(incoming);

    tokio::select! {
        result = test(dialer(port)) => result,
        end = server => unreachable!("the server ended: {end:?}"),
    }
}

/// A TLS stream that tonic takes.
struct Accepted(TlsStream<TcpStream>);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[tokio::test]
async fn a_server_answers_over_tls() {
    beside_server(&["h2"], async |dialer| {
        let server = ServerClients::new(dialer.connect().await.expect("a connection"));

        server.health().check(HealthCheckRequest::default()).await.expect("an answer");
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_agrees_on_no_protocol_is_refused() {
    beside_server(&[], async |dialer| {
        let refusal = dialer.connect().await.expect_err("no HTTP/2");

        let mut reasons = Vec::new();
        let mut next: Option<&dyn Error> = Some(&refusal);
        while let Some(error) = next {
            reasons.push(error.to_string());
            next = error.source();
        }
        assert!(reasons.iter().any(|reason| reason == "the peer does not speak HTTP/2"), "{reasons:?}");
    })
    .await;
}
