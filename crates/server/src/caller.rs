//! Who calls: what the connection says, found out once, and what the call is allowed as, found out each
//! time.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use runtime::listen;
use spiffe::x509::{self, Certificate};
use spiffe::{SpiffeId, UnixSecs};
use tonic::{Request, Status};

use crate::authz::{Open, Rule};

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Whoever may open the server's own socket.
    Local,
    /// A TLS client.
    Remote {
        /// Where it calls from.
        address: SocketAddr,
        /// Who its certificate says it is, verified at the handshake; `None` for an anonymous one.
        certificate: Option<ClientCertificate>,
    },
}

/// What is known of a client by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    /// Its id.
    pub(crate) id: SpiffeId,
    /// The serial number in decimal digits, as rows hold it.
    pub(crate) serial: String,
    /// The last second in which the certificate holds.
    pub(crate) not_after: UnixSecs,
}

impl Peer {
    /// The other end of `connection`. TLS has verified the certificates; one that cannot be read all
    /// the same makes an anonymous caller.
    pub(crate) fn of(connection: &listen::Peer) -> Self {
        let Some(address) = connection.address() else { return Self::Local };
        let certificate = connection.certificates().first().and_then(|der| {
            let certificate = Certificate::parse(der).ok()?;
            Some(ClientCertificate {
                id: x509::leaf_id(&certificate).ok()?,
                serial: certificate.serial().to_string(),
                not_after: certificate.not_after(),
            })
        });
        Self::Remote { address, certificate }
    }

    /// The certificate, if there is one.
    pub(crate) const fn certificate(&self) -> Option<&ClientCertificate> {
        match self {
            Self::Local => None,
            Self::Remote { certificate, .. } => certificate.as_ref(),
        }
    }

    /// Where it calls from, if it is remote.
    pub(crate) const fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Local => None,
            Self::Remote { address, .. } => Some(*address),
        }
    }
}

/// What a call is allowed as. The first of these that the method's rule names is it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Anybody may call this method.
    Anybody,
    /// The server's own socket.
    Local,
    /// An administrator, by configuration or by entry.
    Admin,
    /// A server below this one, by entry.
    Downstream,
    /// An attested agent whose SVID is the active one.
    Agent,
}

/// The caller of one method, in the extensions of each request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The connection.
    pub(crate) peer: Arc<Peer>,
    /// What the call is allowed as.
    pub(crate) role: Role,
    /// The rule of the method.
    pub(crate) rule: &'static Rule,
    /// To whom this call is open.
    pub(crate) open: Open,
    /// When the client stops to wait, if it said so.
    pub(crate) deadline: Option<Instant>,
    /// Where to note who it is that attests, if that is to be told.
    pub(crate) attesting: Option<Arc<OnceLock<SpiffeId>>>,
}

impl Caller {
    /// The caller of `request`.
    ///
    /// # Errors
    /// `Internal` for a request that did not come through the door.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::internal("caller missing from request"))
    }

    /// The id of the caller.
    ///
    /// # Errors
    /// `Internal` for a caller without one: rules let such callers in only where no id is needed.
    pub(crate) fn id(&self) -> Result<&SpiffeId, Status> {
        let certificate = self.peer.certificate();
        certificate
            .map(|certificate| &certificate.id)
            .ok_or_else(|| Status::internal("caller ID missing from request context"))
    }

    /// The address that limits count by; `None` for the server's own socket.
    pub(crate) fn limited_by(&self) -> Option<IpAddr> {
        self.peer.address().map(|address| address.ip().to_canonical())
    }
}
