//! The one connection to the server, as the agent.
//!
//! It opens at the first call and is shared by all. It is dropped after any failed call, so that the
//! next one looks the address up anew, and after the agent's own SVID was renewed. A call is made
//! under a [`Lease`]: one that was refused under a lease from before the last renewal says nothing
//! about the agent.

use std::sync::{Arc, Mutex, PoisonError};

use client::{Address, DialError, Dialer, ServerClients};
use proto::convert::status;
use proto::spire::types::PermissionDeniedDetails;
use proto::spire::types::permission_denied_details::Reason;
use rustls::{CertificateError, ClientConfig};
use tonic::{Code, Status};

/// The connection. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Connection(Arc<Shared>);

struct Shared {
    dialer: Dialer,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    clients: Option<ServerClients>,
    generation: u64,
    dialled: u64,
}

/// The right to make calls, as the agent is now.
pub struct Lease {
    /// The clients.
    pub clients: ServerClients,
    /// How often the agent's own SVID had been renewed.
    pub generation: u64,
    /// Which connection it is.
    pub dialled: u64,
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
    /// To the server at `host` and `port`, with this configuration of TLS.
    #[must_use]
    pub fn new(host: &str, port: u16, tls: Arc<ClientConfig>) -> Self {
        let dialer = Dialer::new(Address::tcp(host, port)).with_tls(tls);
        Self(Arc::new(Shared { dialer, open: Mutex::default() }))
    }

    /// The clients. To be called within an async runtime.
    ///
    /// # Errors
    /// The address is none.
    pub fn lease(&self) -> Result<Lease, DialError> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let clients = match &open.clients {
            Some(clients) => clients.clone(),
            None => {
                open.dialled += 1;
                open.clients.insert(ServerClients::dial(&self.0.dialer)?).clone()
            }
        };
        Ok(Lease { clients, generation: open.generation, dialled: open.dialled })
    }

    /// Judges a failed call, and drops the connection it was made over.
    #[must_use]
    pub fn judge(&self, lease: &Lease, failure: &Status) -> Verdict {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.generation != lease.generation {
            return Verdict::Transient;
        }
        open.clients = None;
        drop(open);
        verdict(failure)
    }

    /// Drops the connection that a call failed over.
    pub fn reset(&self, lease: &Lease) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.generation == lease.generation {
            open.clients = None;
        }
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
        let verifier =
            spiffe::tls::ServerTrust::Unverified("spiffe://example.org/spire/server".parse().unwrap());
        let own = spiffe::tls::OwnCertificate::empty();
        let tls = crate::tls::client_config(verifier, own, crate::tls::PostQuantum::Required).unwrap();
        let connection = Connection::new("localhost", 1, tls);
        let lease = connection.lease().unwrap();
        assert_eq!(connection.judge(&lease, &recorded("AGENT_BANNED")), Verdict::Banned);

        connection.renewed();

        assert_eq!(connection.judge(&lease, &recorded("AGENT_BANNED")), Verdict::Transient);
        assert_eq!((lease.generation, connection.generation()), (0, 1));
    }
}
