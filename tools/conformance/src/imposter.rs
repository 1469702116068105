//! A web server that answers whatever it is told to, under any certificate; and a client that asks
//! whatever it likes and believes anybody.

use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::wire::{Shown, client_config};

/// What a web server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    /// Sends this, and hangs up.
    Answer(Vec<u8>),
    /// Sends this slowly, a byte now and then.
    Drip(Vec<u8>),
}

impl Behaviour {
    /// An answer with this status, further headers (each with its line end) and body.
    pub(crate) fn answer(status: &str, headers: &str, body: &str) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n");
        Self::Answer((head + body).into_bytes())
    }
}

/// The server; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Imposter {
    /// Where it listens.
    pub(crate) port: u16,
    behaviour: Arc<Mutex<Behaviour>>,
    _runtime: Runtime,
}

impl Imposter {
    /// Starts a server that presents `shown`.
    pub(crate) fn start(shown: &Shown, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a bound port").port();
        listener.set_nonblocking(true).expect("a socket");
        let chain = shown.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(shown.key.clone()));
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has the usual versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a key of the certificate");
        let behaviour = Arc::new(Mutex::new(behaviour));
        let runtime = Runtime::new().expect("a runtime");
        let (shared, acceptor) = (Arc::clone(&behaviour), TlsAcceptor::from(Arc::new(config)));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((socket, _)) = listener.accept().await {
                let behaviour = shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
                tokio::spawn(answer(acceptor.clone(), socket, behaviour));
            }
        });
        Self { port, behaviour, _runtime: runtime }
    }

    /// Behaves otherwise from the next connection on.
    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }
}

/// Whether the client is content is no matter here.
async fn answer(acceptor: TlsAcceptor, socket: TcpStream, behaviour: Behaviour) -> Option<()> {
    let mut stream = acceptor.accept(socket).await.ok()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    match behaviour {
        Behaviour::Answer(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            stream.shutdown().await.ok()
        }
        Behaviour::Drip(bytes) => {
            for byte in bytes {
                stream.write_all(&[byte]).await.ok()?;
                stream.flush().await.ok()?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Some(())
        }
    }
}

/// Sends `request` over TLS to a port of this machine and hands back all that comes; `None` where the
/// connection fails, or is closed without an answer, within `patience`.
pub(crate) async fn exchange(
    port: u16,
    request: &str,
    versions: &[&'static rustls::SupportedProtocolVersion],
    patience: Duration,
) -> Option<String> {
    let mut config: ClientConfig = client_config(None, versions);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let exchanged = async {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let name = ServerName::try_from("localhost").expect("a DNS name");
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.ok()?;
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        // How it hangs up is no matter.
        stream.read_to_end(&mut answer).await.ok();
        Some(String::from_utf8_lossy(&answer).into_owned()).filter(|answer| !answer.is_empty())
    };
    tokio::time::timeout(patience, exchanged).await.ok().flatten()
}
