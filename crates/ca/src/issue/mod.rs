//! Issuing, in two steps: [`Issuer`] prepares a credential, checked against the profile, and
//! `sign` consumes what was prepared. Nothing unchecked can be signed, and nothing is signed twice:
//! composers have their say in between, and every certificate is read back and judged by its profile
//! before a key touches it. A WIT-SVID is read back once it is signed, as those read it who are shown it.

mod authority;
mod token;
mod x509;

use std::sync::Arc;

use plugin::{Key, PluginError};
use runtime::metrics::{Counter, Metrics};
use runtime::snapshot::Snapshot;
use spiffe::jwt::WitError;
use spiffe::key::{SigAlg, Signature};
use spiffe::x509::{ProfileError, SvidError, UnsignedError};
use spiffe::{SpiffeId, TrustDomain, UnixSecs};

pub use self::authority::{self_signed_ca, upstream_ca, upstream_csr};
pub use self::token::{JwtRequest, PreparedToken, TokenSvid, WitRequest};
pub use self::x509::{PreparedX509, X509Request, X509Svid};

use crate::authority::{ActiveAuthorities, AuthorityError};
use crate::profile::Profile;

/// Issues what the active authorities sign. Cheap to clone.
#[derive(Clone)]
pub struct Issuer {
    profile: Arc<Profile>,
    active: Snapshot<ActiveAuthorities>,
    signed: Signed,
}

/// How many credentials were signed.
#[derive(Clone, Default)]
struct Signed {
    x509: Counter,
    x509_ca: Counter,
    jwt: Counter,
}

impl Issuer {
    /// An issuer by these rules, with whatever authorities are active when it is asked.
    #[must_use]
    pub fn new(profile: Arc<Profile>, active: Snapshot<ActiveAuthorities>) -> Self {
        Self { profile, active, signed: Signed::default() }
    }

    /// Counts what it signs.
    #[must_use]
    pub fn with_metrics(self, metrics: &Metrics) -> Self {
        let counter = |what| metrics.counter(&["server_ca", "sign", what], &[]);
        let signed =
            Signed { x509: counter("x509_svid"), x509_ca: counter("x509_ca_svid"), jwt: counter("jwt_svid") };
        Self { signed, ..self }
    }

    /// The rules.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The authorities that are active now.
    #[must_use]
    pub fn active(&self) -> Arc<ActiveAuthorities> {
        self.active.load()
    }

    /// Prepares a certificate.
    ///
    /// # Errors
    /// Any of [`IssueError`] but the key manager's.
    pub fn prepare_x509(&self, request: X509Request, now: UnixSecs) -> Result<PreparedX509, IssueError> {
        let signer = self.active.load().x509.clone().ok_or(IssueError::NoX509)?;
        let counter = match request {
            X509Request::DownstreamCa { .. } => &self.signed.x509_ca,
            X509Request::Workload { .. } | X509Request::Agent { .. } | X509Request::Server { .. } => {
                &self.signed.x509
            }
        };
        Ok(x509::prepare(&self.profile, signer, request, now)?.counted_by(counter))
    }

    /// Prepares a JWT-SVID.
    ///
    /// # Errors
    /// Any of [`IssueError`] but the key manager's.
    pub fn prepare_jwt(&self, request: &JwtRequest, now: UnixSecs) -> Result<PreparedToken, IssueError> {
        let signer = self.active.load().jwt.clone().ok_or(IssueError::NoJwt)?;
        Ok(token::prepare_jwt(&self.profile, signer, request, now)?.counted_by(&self.signed.jwt))
    }

    /// Prepares a WIT-SVID.
    ///
    /// # Errors
    /// Any of [`IssueError`] but the key manager's.
    pub fn prepare_wit(&self, request: &WitRequest, now: UnixSecs) -> Result<PreparedToken, IssueError> {
        let signer = self.active.load().wit.clone().ok_or(IssueError::NoWit)?;
        token::prepare_wit(&self.profile, signer, request, now)
    }
}

/// Why a credential is not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// There is no X.509 authority yet.
    #[error("X509 CA is not available for signing")]
    NoX509,
    /// There is no JWT authority yet, or none at all.
    #[error("JWT key is not available for signing")]
    NoJwt,
    /// There is no WIT authority yet, or none at all.
    #[error("WIT key is not available for signing")]
    NoWit,
    /// The identity is another trust domain's.
    #[error("invalid {what} ID: \"{id}\" is not a member of trust domain \"{trust_domain}\"")]
    Foreign {
        /// The kind of credential.
        what: &'static str,
        /// The identity.
        id: SpiffeId,
        /// The trust domain that issues.
        trust_domain: TrustDomain,
    },
    /// The identity is the trust domain itself.
    #[error("invalid {what} ID: \"{id}\" is not a member of trust domain \"{trust_domain}\"; path is empty")]
    NoPath {
        /// The kind of credential.
        what: &'static str,
        /// The identity.
        id: SpiffeId,
        /// The trust domain that issues.
        trust_domain: TrustDomain,
    },
    /// A token is for nobody.
    #[error("invalid JWT-SVID audience: cannot be empty")]
    NoAudience,
    /// The authority has ended, so whatever it signs has ended too.
    #[error("invalid {what}: already expired as of {at}")]
    Expired {
        /// The kind of credential.
        what: &'static str,
        /// When it would have ended.
        at: UnixSecs,
    },
    /// A credential composer refused or failed.
    #[error("cannot compose {what}")]
    Compose {
        /// The kind of credential.
        what: &'static str,
        /// What it said.
        #[source]
        error: PluginError,
    },
    /// What was to be signed cannot be read back, or is not what the profile allows.
    #[error("invalid {what}: {reason}")]
    Profile {
        /// The kind of credential.
        what: &'static str,
        /// The rule it breaks.
        reason: UnsignedError,
    },
    /// A composer made a claim that no token of this trust domain may have.
    #[error("invalid JWT-SVID: {0}")]
    Claims(&'static str),
    /// A WIT-SVID is not what those accept who are shown it.
    #[error("invalid WIT-SVID: {0}")]
    Wit(WitError),
    /// The upstream authority gave no chain.
    #[error("plugin response missing X.509 CA chain")]
    NoChain,
    /// The upstream authority gave no roots, so nobody could verify what it signed.
    #[error("plugin response missing upstream X.509 roots")]
    NoRoots,
    /// The upstream authority gave more than can be meant.
    #[error("plugin response has too many certificates")]
    TooMany,
    /// The upstream authority signed what is no CA of this trust domain.
    #[error(
        "X509 CA minted by upstream authority is invalid: invalid upstream-signed X509 CA: \
         invalid X509 CA: {0}"
    )]
    UpstreamCa(ProfileError),
    /// What the new CA signs would be refused by everybody.
    #[error(
        "X509 CA minted by upstream authority is invalid: X509 CA produced an invalid X509-SVID chain: {0}"
    )]
    UpstreamChain(SvidError),
    /// The key cannot be that of an authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The key manager did not sign.
    #[error("cannot sign {what}")]
    Sign {
        /// The kind of credential.
        what: &'static str,
        /// What the key manager said.
        #[source]
        error: PluginError,
    },
    /// The key manager gave a signature that its own public key refuses.
    #[error("key manager gave a wrong signature for key \"{key}\"")]
    BadSignature {
        /// The key.
        key: String,
    },
}

/// The identity is one that this trust domain gives.
fn check_member(what: &'static str, id: &SpiffeId, trust_domain: &TrustDomain) -> Result<(), IssueError> {
    let (id, trust_domain) = (id.clone(), trust_domain.clone());
    if !id.is_member_of(&trust_domain) {
        return Err(IssueError::Foreign { what, id, trust_domain });
    }
    if id.path().is_empty() {
        return Err(IssueError::NoPath { what, id, trust_domain });
    }
    Ok(())
}

/// Signs, and looks at the result if the key is in foreign hands.
async fn sign(
    key: &dyn Key,
    alg: SigAlg,
    message: &[u8],
    what: &'static str,
) -> Result<Signature, IssueError> {
    let signature = key.sign(alg, message).await.map_err(|error| IssueError::Sign { what, error })?;
    if key.is_external() && key.public().verify(alg, message, &signature).is_err() {
        return Err(IssueError::BadSignature { key: key.id().to_string() });
    }
    Ok(signature)
}
