//! TLS over TCP.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use rustls::ServerConfig;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{ListenError, Network, Peer, TlsPeer, handed, proxy};

/// What hands out the TLS configuration for each new connection, so that a change of certificates or
/// trust holds from the next one on.
pub type TlsSource = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// A bound TCP port that speaks TLS and, over it, HTTP/2 alone.
///
/// The configuration must offer `h2` and must not resume sessions, since a resumed session would skip
/// the verifier; `spiffe::tls::server_config` makes such ones.
pub struct TlsListener {
    socket: TcpListener,
    address: SocketAddr,
    config: TlsSource,
    proxies: Arc<[Network]>,
}

impl TlsListener {
    /// Binds `address`; port 0 is any free one. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// What the system says: mostly that the port is in use.
    pub fn bind(address: SocketAddr, config: TlsSource) -> Result<Self, ListenError> {
        let socket = bind(address).map_err(|source| ListenError::Address { address, source })?;
        let address = socket.local_addr().map_err(|source| ListenError::Address { address, source })?;
        Ok(Self { socket, address, config, proxies: Arc::default() })
    }

    /// Believes the PROXY protocol from these networks. From others no connection may begin with it,
    /// and from these it need not.
    #[must_use]
    pub fn with_trusted_proxies(mut self, networks: Vec<Network>) -> Self {
        self.proxies = networks.into();
        self
    }

    /// Where it listens, with the port that was chosen.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) async fn accept(&self) -> io::Result<Arrival> {
        let (socket, remote) = self.socket.accept().await?;
        Ok(Arrival { socket, remote, config: (self.config)(), proxies: Arc::clone(&self.proxies) })
    }
}

impl fmt::Debug for TlsListener {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TlsListener").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A client that has yet to shake hands.
pub(super) struct Arrival {
    socket: TcpStream,
    remote: SocketAddr,
    config: Arc<ServerConfig>,
    proxies: Arc<[Network]>,
}

impl Arrival {
    pub(super) const fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Whether it may be a proxy that is trusted to say whom it speaks for.
    pub(super) fn is_proxied(&self) -> bool {
        proxy::is_trusted(self.remote, &self.proxies)
    }

    /// Shakes hands. Not bounded in time.
    pub(super) async fn shake_hands(mut self) -> io::Result<(Box<TlsStream<TcpStream>>, Peer)> {
        // Nothing is set up for who says nothing, and hangs up in the end.
        if self.socket.ready(Interest::READABLE).await?.is_read_closed() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let local = self.socket.local_addr()?;
        let remote = if self.proxies.is_empty() {
            self.remote
        } else {
            proxy::source(&mut self.socket, self.remote, &self.proxies).await?
        };

        let stream = TlsAcceptor::from(self.config).accept(self.socket).await?;

        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the client does not speak HTTP/2"));
        }
        let certificates = session.peer_certificates().unwrap_or_default();
        let peer = Peer::tls(TlsPeer {
            remote,
            local,
            certificates: certificates.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            key_exchange: session.negotiated_key_exchange_group().map(|group| group.name()),
        });
        Ok((Box::new(stream), peer))
    }
}

/// A socket that listens at this address: one that was passed to this program, or a new one. What it
/// accepts has its options.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = listening(address)?;
    // Small answers must not wait for more to come; a host that vanished must not stay for ever.
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, TCP_KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(&socket, TCP_KEEPALIVE)?;
    Ok(socket)
}

fn listening(address: SocketAddr) -> io::Result<TcpListener> {
    if let Some(taken) = handed::take_tcp(address) {
        let socket = std::net::TcpListener::from(taken.socket);
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket)?;
        handed::keep(&socket, taken.is_managers)?;
        return Ok(socket);
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of the process before us may linger on the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let socket = socket.listen(BACKLOG)?;
    handed::keep(&socket, false)?;
    Ok(socket)
}

/// Connections that wait for us to accept them; the system may allow fewer.
const BACKLOG: u32 = 4096;

/// As Go's listeners do.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn what_is_accepted_has_the_options_of_the_socket_that_listens() {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();

        let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());

        let (accepted, _) = accepted.unwrap();
        assert!(sockopt::tcp_nodelay(&accepted).unwrap());
        assert!(sockopt::socket_keepalive(&accepted).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&accepted).unwrap(), TCP_KEEPALIVE);
        assert_eq!(sockopt::tcp_keepintvl(&accepted).unwrap(), TCP_KEEPALIVE);
    }
}
