//! Who is at the other end of a connection.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use rustls::NamedGroup;
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use crate::peer::Caller;

/// The other end of a connection, as every call on it finds it among its request's extensions. Cheap
/// to clone; clones are the same.
#[derive(Clone, Debug)]
pub struct Peer(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    origin: Origin,
    derived: OnceLock<Arc<dyn Any + Send + Sync>>,
    retired: CancellationToken,
}

#[derive(Debug)]
enum Origin {
    Tls(TlsPeer),
    Local(Option<Caller>, Vec<CertificateDer<'static>>),
}

/// What TLS and TCP tell of the other end.
#[derive(Clone, Debug)]
pub struct TlsPeer {
    /// Its address; where a trusted proxy stands between, what that says.
    pub remote: SocketAddr,
    /// The address it connected to.
    pub local: SocketAddr,
    /// Its certificate first, then those it sent along. Empty if it showed none; otherwise the
    /// configuration's verifier has accepted them.
    pub certificates: Vec<CertificateDer<'static>>,
    /// How the keys were agreed on.
    pub key_exchange: Option<NamedGroup>,
}

impl Peer {
    /// A peer that came by TLS.
    #[must_use]
    pub fn tls(peer: TlsPeer) -> Self {
        Self::new(Origin::Tls(peer))
    }

    /// A peer that came by a Unix socket; the caller is known unless the listener does not ask for it.
    #[must_use]
    pub fn local(caller: Option<Caller>) -> Self {
        Self::local_with(caller, Vec::new())
    }

    /// The same, which showed these certificates, that the listener's verifier has accepted.
    #[must_use]
    pub fn local_with(caller: Option<Caller>, certificates: Vec<CertificateDer<'static>>) -> Self {
        Self::new(Origin::Local(caller, certificates))
    }

    fn new(origin: Origin) -> Self {
        Self(Arc::new(Connection { origin, derived: OnceLock::new(), retired: CancellationToken::new() }))
    }

    /// Whether it came by a Unix socket.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.0.origin, Origin::Local(..))
    }

    /// What TLS tells of it, if it came that way.
    #[must_use]
    pub fn as_tls(&self) -> Option<&TlsPeer> {
        match &self.0.origin {
            Origin::Tls(peer) => Some(peer),
            Origin::Local(..) => None,
        }
    }

    /// The process, if it came by a Unix socket and can be told.
    #[must_use]
    pub fn caller(&self) -> Option<&Caller> {
        match &self.0.origin {
            Origin::Local(caller, _) => caller.as_ref(),
            Origin::Tls(_) => None,
        }
    }

    /// Its certificates, its own first. Empty if it showed none.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        match &self.0.origin {
            Origin::Tls(peer) => &peer.certificates,
            Origin::Local(_, certificates) => certificates,
        }
    }

    /// Its network address, if it has one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.as_tls().map(|peer| peer.remote)
    }

    /// What `make` makes of it, made once per connection and kept with it: the place for what would
    /// otherwise be parsed again at each call. There is room for one type; another one is made anew
    /// each time.
    pub fn derived<T: Any + Send + Sync>(&self, make: impl Fn(&Self) -> T) -> Arc<T> {
        let kept = self.0.derived.get_or_init(|| Arc::new(make(self)));
        Arc::clone(kept).downcast().unwrap_or_else(|_| Arc::new(make(self)))
    }

    /// The connection takes no more calls, and closes once those that run have ended.
    pub fn retire(&self) {
        self.0.retired.cancel();
    }

    /// Cancelled when the connection takes no more calls: a call that would go on for ever ends then, or
    /// the connection never closes.
    #[must_use]
    pub fn leaving(&self) -> &CancellationToken {
        &self.0.retired
    }

    pub(super) fn retired(&self) -> &CancellationToken {
        &self.0.retired
    }

    /// Whether nothing is known of it that would tell it from any other.
    pub(super) fn is_anonymous(&self) -> bool {
        self.as_tls().is_some_and(|peer| peer.certificates.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_is_derived_is_derived_once_per_connection() {
        let made = AtomicUsize::new(0);
        let peer = Peer::local(None);
        let count = |_: &Peer| made.fetch_add(1, Ordering::Relaxed);

        assert_eq!(*peer.derived(count), 0);
        assert_eq!(*peer.derived(count), 0);
        assert_eq!(*peer.derived(|_| "another type"), "another type");

        assert_eq!(made.into_inner(), 1);
    }
}
