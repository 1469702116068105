//! Who calls: what the connection says, found out once, and what the call is allowed as, found out each
//! time.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use runtime::listen;
use spiffe::x509::{self, Certificate};
use spiffe::{SpiffeId, UnixSecs};
use tonic::{Request, Status};
use uuid::Uuid;

use crate::authz::{Open, Rule};
use crate::context::Context;

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
    /// The call's name in the log, once a line has told it.
    pub(crate) request_id: Arc<OnceLock<Uuid>>,
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

    /// The name of this call in the log.
    pub(crate) fn request_id(&self) -> Uuid {
        *self.request_id.get_or_init(Uuid::new_v4)
    }

    /// The service and the method, as the log has them.
    pub(crate) fn service_and_method(&self) -> (&'static str, &'static str) {
        service_and_method(self.rule.method)
    }

    /// What the call is allowed as, and by what, as the log has it.
    pub(crate) fn authorised(&self, context: &Context) -> (&'static str, &'static str) {
        let is_by_configuration = || {
            let certificate = self.peer.certificate();
            certificate.is_some_and(|certificate| context.config.admin_ids.contains(&certificate.id))
        };
        match self.role {
            Role::Anybody => ("nobody", ""),
            Role::Local => ("local", "transport"),
            Role::Admin if is_by_configuration() => ("admin", "config"),
            Role::Admin => ("admin", "entries"),
            Role::Downstream => ("downstream", "entries"),
            Role::Agent => ("agent", "datastore"),
        }
    }

    /// The address that limits count by; `None` for the server's own socket.
    pub(crate) fn limited_by(&self) -> Option<IpAddr> {
        self.peer.address().map(|address| address.ip().to_canonical())
    }
}

/// The service and the method of a path, as the log has them.
pub(crate) fn service_and_method(path: &str) -> (&str, &str) {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let service = service.strip_prefix("spire.api.server.").unwrap_or(service);
    let service = match service {
        "logger.v1.Logger" => "Logger",
        "grpc.health.v1.Health" => "Health",
        other => other,
    };
    (service, method)
}

/// Logs a line of a call at a level, with the fields that all lines of a call have.
macro_rules! tell {
    ($level:ident, $context:expr, $caller:expr, $($rest:tt)+) => {{
        let caller: &$crate::caller::Caller = $caller;
        let (service, method) = caller.service_and_method();
        let (authorized_as, authorized_via) = caller.authorised($context);
        tracing::$level!(
            subsystem_name = "api",
            service,
            method,
            authorized_as,
            authorized_via,
            request_id = %caller.request_id(),
            caller_addr = caller.peer.address().map(tracing::field::display),
            caller_id = caller.peer.certificate().map(|certificate| certificate.id.as_str()),
            $($rest)+
        )
    }};
}
pub(crate) use tell;
