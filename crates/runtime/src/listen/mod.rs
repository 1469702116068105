//! Listeners: TLS over TCP and Unix sockets, and what serves gRPC on them; and one for documents over
//! HTTPS, [`WebListener`].
//!
//! [`TlsListener`] and [`UnixListener`] are bound at start, so that a port in use fails the start;
//! [`serve()`] accepts on one until told to stop, then drains it. Every call carries its [`Peer`] among
//! the extensions of the request. The connections are served by hyper and not by tonic's own loop,
//! because that one has neither a limit on how long a connection may take to open nor a way to end
//! those which do not drain, and its connections would all be as old when they are closed.
//!
//! A connection may take [`Limits::opening`] to shake hands and to send HTTP/2's preface, in a task of
//! its own: a slow one holds up nobody. Nothing here knows what a certificate says: the verifier in
//! the TLS configuration decides who may connect, and whoever answers the calls what they may do.

mod accept;
mod calls;
mod doors;
mod gathered;
mod half_open;
mod handed;
mod headers;
mod io;
mod paced;
mod peer;
mod proxy;
mod resets;
mod serve;
mod shares;
mod socket;
mod tls;
mod unix;
mod unread;
mod web;

use std::io::Error as IoError;
use std::net::SocketAddr;
use std::path::PathBuf;

pub(crate) use accept::Refusals;
pub use handed::{give_up, inherit};
pub(crate) use handed::{hand_over, has_unclaimed, is_handing_over, pass_on, unclaimed};
pub use headers::{deadline, method};
pub use peer::{Peer, TlsPeer};
pub use proxy::{Network, NoNetwork};
pub use serve::{Limits, serve};
pub(crate) use tls::bind;
pub use tls::{TlsListener, TlsSource};
pub use unix::{Callers, UnixListener, UnixOptions, check_exposure};
pub use web::{WebAnswer, WebLimits, WebListener, WebReply};

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is in use, or not ours.
    #[error("cannot listen on {address}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: IoError,
    },
    /// The host is unknown, or its address in use or not ours.
    #[error("cannot listen on {host}:{port}")]
    Host {
        /// The host's name or address.
        host: String,
        /// The port.
        port: u16,
        /// What the system says.
        #[source]
        source: IoError,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: IoError,
    },
    /// A process answers on it.
    #[error("cannot listen on {}: another process listens there", path.display())]
    InUse {
        /// Its path.
        path: PathBuf,
    },
    /// Others could put a socket of theirs in its place.
    #[error(
        "cannot listen on {}: everybody may write to {} and could put another socket there",
        path.display(), folder.display()
    )]
    Exposed {
        /// The socket's path.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// The path is taken by something else, which is not ours to remove.
    #[error("cannot listen on {}: it exists and is no socket", path.display())]
    NoSocket {
        /// Its path.
        path: PathBuf,
    },
}

/// Something that listens.
#[derive(Debug)]
pub enum Listener {
    /// TLS over TCP.
    Tls(TlsListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl From<TlsListener> for Listener {
    fn from(listener: TlsListener) -> Self {
        Self::Tls(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}
