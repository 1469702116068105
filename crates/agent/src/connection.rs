//! The one connection to the server, as the agent.
//!
//! It opens at the first call and is shared by all. It is dropped after any failed call, so that the
//! next one looks the address up anew, and after the agent's own SVID was renewed. A call is made
//! under a [`Lease`]: one that was refused under a lease from before the last renewal says nothing
//! about the agent.

use std::sync::{Arc, Mutex, PoisonError};

use client::{DialError, Dialer, ServerClients};
use proto::convert::status;
use proto::spire::types::PermissionDeniedDetails;
use proto::spire::types::permission_denied_details::Reason;
use rustls::{CertificateError, ClientConfig};
use tonic::{Code, Status};

use crate::servers::{Chosen, Servers};

/// The connection. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Connection(Arc<Shared>);

struct Shared {
    servers: Servers,
    tls: Arc<ClientConfig>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    clients: Option<(ServerClients, Chosen)>,
    generation: u64,
    dialled: u64,
    /// A server was found in trouble, and there is another.
    moves_on: bool,
}

/// The right to make calls, as the agent is now.
pub struct Lease {
    /// The clients.
    pub clients: ServerClients,
    /// How often the agent's own SVID had been renewed.
    pub generation: u64,
    /// Which connection it is.
    pub dialled: u64,
    /// To which server.
    server: Chosen,
}

/// What a failed call means to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server does not know the agent any more: it must attest anew.
    MustReattest,
    /// The agent is banned.
    Banned,
    /// The server's certificate does not lead to the agent's bundle.
    UnknownAuthority,
    /// Anything else: it may go better next time.
    Transient,
}

impl Connection {
    /// To one of `servers`, with this configuration of TLS.
    #[must_use]
    pub fn new(servers: Servers, tls: Arc<ClientConfig>) -> Self {
        Self(Arc::new(Shared { servers, tls, open: Mutex::default() }))
    }

    /// The clients. To be called within an async runtime.
    ///
    /// # Errors
    /// The address is none.
    pub fn lease(&self) -> Result<Lease, DialError> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (clients, server) = match &open.clients {
            Some((clients, server)) => (clients.clone(), *server),
            None => {
                open.dialled += 1;
                let (server, address) = self.0.servers.choose();
                let dialer = Dialer::new(address.clone()).with_tls(Arc::clone(&self.0.tls));
                let clients = ServerClients::dial(&dialer)?;
                open.clients = Some((clients.clone(), server));
                (clients, server)
            }
        };
        Ok(Lease { clients, generation: open.generation, dialled: open.dialled, server })
    }

    /// Calls under this lease are answered.
    pub fn answered(&self, lease: &Lease) {
        self.0.servers.answered(lease.server);
    }

    /// Whether a server was found in trouble since this was asked last, and another is to be tried: at
    /// once, for it has done nothing wrong.
    #[must_use]
    pub fn moves_on(&self) -> bool {
        std::mem::take(&mut self.0.open.lock().unwrap_or_else(PoisonError::into_inner).moves_on)
    }

    /// Judges a failed call, and drops the connection it was made over. That the server at hand leads
    /// to no known authority means nothing as long as there are others.
    #[must_use]
    pub fn judge(&self, lease: &Lease, failure: &Status) -> Verdict {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.generation != lease.generation {
            return Verdict::Transient;
        }
        open.drop_connection(lease);
        drop(open);
        let verdict = verdict(failure);
        if is_trouble(failure) {
            let moves_on = self.pass_over(lease);
            if verdict == Verdict::UnknownAuthority && moves_on {
                return Verdict::Transient;
            }
        }
        verdict
    }

    /// Drops the connection, and passes its server over: it did not answer.
    pub fn failed(&self, lease: &Lease) {
        self.reset(lease);
        self.pass_over(lease);
    }

    fn pass_over(&self, lease: &Lease) -> bool {
        self.0.servers.failed(lease.server);
        let moves_on = self.0.servers.has_another();
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).moves_on |= moves_on;
        moves_on
    }

    /// Drops the connection.
    pub fn reset(&self, lease: &Lease) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.drop_connection(lease);
    }

    /// How often the agent's own SVID was renewed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).generation
    }

    /// Drops the connection because the agent's own SVID is another now.
    pub fn renewed(&self) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.clients = None;
        open.generation += 1;
    }
}

impl Open {
    /// Unless there is another already.
    fn drop_connection(&mut self, lease: &Lease) {
        if self.generation == lease.generation && self.dialled == lease.dialled {
            self.clients = None;
        }
    }
}

/// Whether another server may do better: this one cannot be reached, or is not what it should be, or
/// says that it cannot work.
pub(crate) fn is_trouble(failure: &Status) -> bool {
    std::error::Error::source(failure).is_some()
        || matches!(
            failure.code(),
            Code::Unavailable | Code::Internal | Code::Unknown | Code::DeadlineExceeded
        )
}

/// What a failed call means to the agent.
#[must_use]
pub fn verdict(failure: &Status) -> Verdict {
    if failure.code() == Code::PermissionDenied {
        let details = status::detail::<PermissionDeniedDetails>(failure);
        return match details.map(|details| details.reason()) {
            Some(Reason::AgentBanned) => Verdict::Banned,
            Some(
                Reason::AgentExpired
                | Reason::AgentNotActive
                | Reason::AgentNotAttested
                | Reason::AgentMustReattest,
            ) => Verdict::MustReattest,
            Some(Reason::Unknown) | None => Verdict::Transient,
        };
    }
    if is_unknown_authority(failure) { Verdict::UnknownAuthority } else { Verdict::Transient }
}

/// Whether the connection was refused here because nobody known vouches for the server.
#[must_use]
pub fn is_unknown_authority(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) =
            error.downcast_ref::<rustls::Error>()
        {
            return true;
        }
        // What an I/O error wraps is not its source.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
impl Connection {
    /// To where no server is.
    pub(crate) fn to_nobody() -> Self {
        let verifier =
            spiffe::tls::ServerTrust::Unverified("spiffe://example.org/spire/server".parse().unwrap());
        let own = spiffe::tls::OwnCertificate::empty();
        let tls = crate::tls::client_config(verifier, own, crate::tls::PostQuantum::Required).unwrap();
        let clock = Arc::new(runtime::clock::SystemClock);
        Self::new(Servers::new(client::Address::tcp("localhost", 1), None, clock), tls)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use bytes::Bytes;
    use serde_json::Value;

    use super::*;

    const DENIALS: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/wire-exchanges/denials.json"));

    fn recorded(name: &str) -> Status {
        let all: Value = serde_json::from_str(DENIALS).unwrap();
        let status = &all["denials"][name]["status"];
        let details = status["grpc_status_details_bin"].as_str().unwrap_or_default();
        let details = Bytes::from(BASE64_STANDARD.decode(details).unwrap());
        assert_eq!(status["code"], "PERMISSION_DENIED");
        Status::with_details(Code::PermissionDenied, status["message"].as_str().unwrap(), details)
    }

    #[test]
    fn refusals_of_spire_are_understood() {
        for name in ["AGENT_NOT_ACTIVE", "AGENT_NOT_ATTESTED", "AGENT_MUST_REATTEST", "AGENT_EXPIRED"] {
            assert_eq!(verdict(&recorded(name)), Verdict::MustReattest, "{name}");
        }
        assert_eq!(verdict(&recorded("AGENT_BANNED")), Verdict::Banned);
        assert_eq!(verdict(&recorded("not an agent")), Verdict::Transient);
        assert_eq!(verdict(&recorded("workload method refused to agents")), Verdict::Transient);
        assert_eq!(
            verdict(&Status::unavailable("certificate signed by unknown authority")),
            Verdict::Transient
        );
    }

    #[test]
    fn an_unknown_authority_is_found_below_other_errors() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let io = std::io::Error::other(std::io::Error::other(tls));
        assert!(is_unknown_authority(&io));

        let expired = rustls::Error::InvalidCertificate(CertificateError::Expired);
        assert!(!is_unknown_authority(&std::io::Error::other(expired)));
    }

    #[tokio::test]
    async fn a_refusal_under_an_svid_that_was_replaced_says_nothing() {
        let connection = Connection::to_nobody();
        let lease = connection.lease().unwrap();
        assert_eq!(connection.judge(&lease, &recorded("AGENT_BANNED")), Verdict::Banned);

        connection.renewed();

        assert_eq!(connection.judge(&lease, &recorded("AGENT_BANNED")), Verdict::Transient);
        assert_eq!((lease.generation, connection.generation()), (0, 1));
    }
}
