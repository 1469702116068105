//! SPIFFE IDs: `spire.api.types.SPIFFEID` and what the server API demands of one.

use spiffe::{IdError, SpiffeId, TrustDomain};

use crate::spire::types;

impl From<&SpiffeId> for types::Spiffeid {
    fn from(id: &SpiffeId) -> Self {
        Self { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
    }
}

impl TryFrom<&types::Spiffeid> for SpiffeId {
    type Error = IdError;

    fn try_from(wire: &types::Spiffeid) -> Result<Self, IdError> {
        TrustDomain::parse(&wire.trust_domain)?.id_with_path(&wire.path)
    }
}

/// Why a request's SPIFFE ID was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestIdError {
    /// The field is absent.
    #[error("request must specify SPIFFE ID")]
    Missing,
    /// It is no SPIFFE ID.
    #[error(transparent)]
    Invalid(#[from] IdError),
    /// It is of another trust domain.
    #[error("\"{id}\" is not a member of trust domain \"{trust_domain}\"")]
    Foreign {
        /// The id.
        id: SpiffeId,
        /// The server's trust domain.
        trust_domain: TrustDomain,
    },
    /// It has the wrong kind of path.
    #[error("\"{id}\" is not {role} in trust domain \"{trust_domain}\"; {reason}")]
    WrongPath {
        /// The id.
        id: SpiffeId,
        /// What it should be: `an agent` or `a workload`.
        role: &'static str,
        /// The server's trust domain.
        trust_domain: TrustDomain,
        /// What is wrong with the path.
        reason: &'static str,
    },
    /// It has no path.
    #[error("\"{id}\" is not a member of trust domain \"{trust_domain}\"; path is empty")]
    NoPath {
        /// The id.
        id: SpiffeId,
        /// The server's trust domain.
        trust_domain: TrustDomain,
    },
}

/// The SPIFFE ID of a request, whatever it is.
///
/// # Errors
/// It is absent or no SPIFFE ID.
pub fn any(wire: Option<&types::Spiffeid>) -> Result<SpiffeId, RequestIdError> {
    let wire = wire.ok_or(RequestIdError::Missing)?;
    Ok(SpiffeId::try_from(wire)?)
}

/// The SPIFFE ID of a request: any with a path in `trust_domain`.
///
/// # Errors
/// It is something else.
pub fn member(
    trust_domain: &TrustDomain,
    wire: Option<&types::Spiffeid>,
) -> Result<SpiffeId, RequestIdError> {
    let id = native(trust_domain, wire)?;
    if id.path().is_empty() {
        return Err(RequestIdError::NoPath { id, trust_domain: trust_domain.clone() });
    }
    Ok(id)
}

/// The SPIFFE ID of a request: that of an agent in `trust_domain`.
///
/// # Errors
/// It is something else.
pub fn agent(trust_domain: &TrustDomain, wire: Option<&types::Spiffeid>) -> Result<SpiffeId, RequestIdError> {
    let id = native(trust_domain, wire)?;
    let reason = match id.path() {
        "" => "path is empty",
        path if path.starts_with("/spire/agent/") => return Ok(id),
        _ => "path is not in the agent namespace",
    };
    Err(RequestIdError::WrongPath { id, role: "an agent", trust_domain: trust_domain.clone(), reason })
}

/// The SPIFFE ID of a request: one that a workload in `trust_domain` may have.
///
/// # Errors
/// It is something else.
pub fn workload(
    trust_domain: &TrustDomain,
    wire: Option<&types::Spiffeid>,
) -> Result<SpiffeId, RequestIdError> {
    workload_of(trust_domain, any(wire)?)
}

/// `id`, unless a workload in `trust_domain` cannot have it.
///
/// # Errors
/// It cannot.
pub fn workload_of(trust_domain: &TrustDomain, id: SpiffeId) -> Result<SpiffeId, RequestIdError> {
    let id = own(trust_domain, id)?;
    let reason = match id.path() {
        "" => "path is empty",
        path if path == "/spire" || path.starts_with("/spire/") => "path is in the reserved namespace",
        _ => return Ok(id),
    };
    Err(RequestIdError::WrongPath { id, role: "a workload", trust_domain: trust_domain.clone(), reason })
}

/// `id`, unless it is longer than may be issued.
///
/// # Errors
/// It is longer.
pub fn issuable(id: SpiffeId) -> Result<SpiffeId, RequestIdError> {
    id.check_length()?;
    Ok(id)
}

fn native(trust_domain: &TrustDomain, wire: Option<&types::Spiffeid>) -> Result<SpiffeId, RequestIdError> {
    own(trust_domain, any(wire)?)
}

fn own(trust_domain: &TrustDomain, id: SpiffeId) -> Result<SpiffeId, RequestIdError> {
    if !id.is_member_of(trust_domain) {
        return Err(RequestIdError::Foreign { id, trust_domain: trust_domain.clone() });
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(trust_domain: &str, path: &str) -> types::Spiffeid {
        types::Spiffeid { trust_domain: trust_domain.into(), path: path.into() }
    }

    type Door = fn(&TrustDomain, Option<&types::Spiffeid>) -> Result<SpiffeId, RequestIdError>;

    fn refusal(door: Door, trust_domain: &str, path: &str) -> String {
        let own = TrustDomain::parse("example.org").expect("valid");
        door(&own, Some(&wire(trust_domain, path))).expect_err("refused").to_string()
    }

    #[test]
    fn ids_survive_the_wire() {
        let id = SpiffeId::parse("spiffe://example.org/a/b").expect("valid");

        let sent = types::Spiffeid::from(&id);

        assert_eq!(sent, wire("example.org", "/a/b"));
        assert_eq!(SpiffeId::try_from(&sent), Ok(id));
    }

    #[test]
    fn refusals_are_in_the_words_of_the_api() {
        assert_eq!(any(None).expect_err("refused").to_string(), "request must specify SPIFFE ID");
        assert_eq!(refusal(member, "", "/a"), "trust domain is missing");
        assert_eq!(refusal(member, "example.org", "a"), "path must have a leading slash");
        assert_eq!(
            refusal(member, "other.org", "/a"),
            "\"spiffe://other.org/a\" is not a member of trust domain \"example.org\""
        );
        assert_eq!(
            refusal(member, "example.org", ""),
            "\"spiffe://example.org\" is not a member of trust domain \"example.org\"; path is empty"
        );
        assert_eq!(
            refusal(agent, "example.org", "/a"),
            "\"spiffe://example.org/a\" is not an agent in trust domain \"example.org\"; path is not in the agent namespace"
        );
        assert_eq!(
            refusal(workload, "example.org", "/spire/server"),
            "\"spiffe://example.org/spire/server\" is not a workload in trust domain \"example.org\"; path is in the reserved namespace"
        );
        assert_eq!(
            refusal(workload, "example.org", ""),
            "\"spiffe://example.org\" is not a workload in trust domain \"example.org\"; path is empty"
        );
    }
}
