//! From an address to a gRPC channel: Unix sockets and TCP, each with or without TLS.
//!
//! TLS is spoken here and not by the gRPC library, so that the same configurations serve every
//! protocol. A peer that does not agree on HTTP/2 is refused, as gRPC demands.

mod address;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

pub use address::{Address, AddressError, HostNames};

/// The largest answer any client here takes. gRPC's usual 4 MiB are too few for the entries of a
/// busy agent in one message.
pub const RECEIVE_LIMIT: usize = 64 << 20;

/// How long a connection may take to open, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Opens channels to one address. A channel reconnects by itself.
#[derive(Clone, Debug)]
pub struct Dialer {
    address: Address,
    source: Option<IpAddr>,
    tls: Option<Arc<ClientConfig>>,
    connect_timeout: Duration,
    call_timeout: Option<Duration>,
    keepalive: Option<Keepalive>,
}

/// Pings on an idle connection. Servers of other makes hang up on pings more often than every five
/// minutes, so there are none by default.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// Between pings.
    pub every: Duration,
    /// Until a connection without answer counts as dead.
    pub timeout: Duration,
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The address makes no URI.
    #[error("cannot dial {address}: no host name")]
    Authority {
        /// What was dialled.
        address: Address,
    },
    /// The connection did not open.
    #[error("cannot connect to {address}")]
    Connect {
        /// What was dialled.
        address: Address,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
}

impl Dialer {
    /// For this address, without TLS.
    #[must_use]
    pub const fn new(address: Address) -> Self {
        Self {
            address,
            source: None,
            tls: None,
            connect_timeout: CONNECT_TIMEOUT,
            call_timeout: None,
            keepalive: None,
        }
    }

    /// Calls over TCP come from this address of the machine.
    #[must_use]
    pub const fn with_source(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Speaks TLS. HTTP/2 is added to the protocols that `config` offers.
    #[must_use]
    pub fn with_tls(mut self, config: Arc<ClientConfig>) -> Self {
        let h2 = b"h2".to_vec();
        let mut config = config;
        if config.alpn_protocols != [h2.as_slice()] {
            Arc::make_mut(&mut config).alpn_protocols = vec![h2];
        }
        self.tls = Some(config);
        self
    }

    /// How long a connection may take to open.
    #[must_use]
    pub const fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a call may take: a unary one until its answer, a stream until it begins.
    #[must_use]
    pub const fn with_call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = Some(timeout);
        self
    }

    /// Pings.
    #[must_use]
    pub const fn with_keepalive(mut self, keepalive: Keepalive) -> Self {
        self.keepalive = Some(keepalive);
        self
    }

    /// What it dials.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// A channel that connects at its first call. It needs a running async runtime.
    ///
    /// # Errors
    /// The host has no name.
    pub fn channel(&self) -> Result<Channel, DialError> {
        Ok(self.endpoint()?.connect_with_connector_lazy(self.connector()))
    }

    /// A channel that is connected.
    ///
    /// # Errors
    /// The connection does not open in time.
    pub fn connect(&self) -> BoxFuture<'_, Result<Channel, DialError>> {
        let failed = |source| DialError::Connect { address: self.address.clone(), source };
        Box::pin(
            async move { self.endpoint()?.connect_with_connector(self.connector()).await.map_err(failed) },
        )
    }

    /// What opens connections: of one kind, so that what tonic does with it is compiled once.
    fn connector(
        &self,
    ) -> impl Service<Uri, Response = TokioIo<Box<dyn Wire>>, Error = io::Error, Future: Send> + Send + use<>
    {
        let target = Arc::new(self.clone());
        tower::service_fn(move |_: Uri| {
            let target = Arc::clone(&target);
            async move { target.open().await.map(TokioIo::new) }
        })
    }

    fn endpoint(&self) -> Result<Endpoint, DialError> {
        // The path of a socket is no authority; every server accepts `localhost`.
        let authority = match &self.address {
            Address::Unix(_) => "localhost".to_owned(),
            Address::Tcp { .. } => self.address.to_string(),
        };
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query("/").build();
        let uri = uri.map_err(|_| DialError::Authority { address: self.address.clone() })?;
        let mut endpoint =
            Endpoint::from(uri).connect_timeout(self.connect_timeout).http2_adaptive_window(true);
        if let Some(timeout) = self.call_timeout {
            endpoint = endpoint.timeout(timeout);
        }
        if let Some(keepalive) = self.keepalive {
            endpoint = endpoint
                .http2_keep_alive_interval(keepalive.every)
                .keep_alive_timeout(keepalive.timeout)
                .keep_alive_while_idle(true);
        }
        Ok(endpoint)
    }

    /// Connects and, if asked for, shakes hands.
    async fn open(&self) -> io::Result<Box<dyn Wire>> {
        let (socket, host): (Box<dyn Wire>, &str) = match &self.address {
            Address::Unix(path) => (Box::new(UnixStream::connect(path).await?), "localhost"),
            Address::Tcp { host, port } => {
                let socket = match self.source {
                    Some(source) => connect_from(source, host, *port).await?,
                    None => TcpStream::connect((host.as_str(), *port)).await?,
                };
                socket.set_nodelay(true)?;
                (Box::new(socket), host)
            }
        };
        let Some(tls) = &self.tls else { return Ok(socket) };

        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, socket).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("the peer does not speak HTTP/2"));
        }
        Ok(Box::new(stream))
    }
}

/// Connects from an address of this machine to the first of the same family that `host` has.
async fn connect_from(source: IpAddr, host: &str, port: u16) -> io::Result<TcpStream> {
    let mut found = lookup_host((host, port)).await?;
    let target = found.find(|target| target.is_ipv4() == source.is_ipv4());
    let target = target.ok_or_else(|| io::Error::other(format!("{host} has no address like {source}")))?;
    let socket = if source.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind(SocketAddr::new(source, 0))?;
    socket.connect(target).await
}

/// A connection, whatever its kind.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}
