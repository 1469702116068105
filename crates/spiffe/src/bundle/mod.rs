//! Trust bundles: the authorities of one trust domain.
//!
//! `authority` says what may stand in one; `json` reads and writes the SPIFFE bundle format and plain JWK sets; `pem` lists of certificates.

mod authority;
mod json;
mod pem;

use std::sync::Arc;

pub use authority::JwtAuthorityError;
pub use json::{BundleJsonError, MAX_HINT};

use crate::{TrustDomain, UnixSecs};

/// The authorities of a trust domain. Immutable; shared as `Arc<Bundle>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Whose authorities these are.
    pub trust_domain: TrustDomain,
    /// X.509 authorities in stored order.
    pub x509_authorities: Vec<X509Authority>,
    /// JWT authorities in stored order.
    pub jwt_authorities: Vec<JwtAuthority>,
    /// WIT authorities in stored order.
    pub wit_authorities: Vec<JwtAuthority>,
    /// Seconds after which consumers should ask again; 0 = not set.
    pub refresh_hint: i64,
    /// Raised with every change of contents.
    pub sequence_number: u64,
}

/// An X.509 authority: one CA certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Authority {
    /// The certificate, DER.
    pub der: Arc<[u8]>,
    /// Compromised: what it signed must be replaced.
    pub tainted: bool,
}

/// A JWT or WIT authority: one public key and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtAuthority {
    /// The key id (`kid`).
    pub key_id: String,
    /// The public key, DER `SubjectPublicKeyInfo`.
    pub public_key: Arc<[u8]>,
    /// When it stops to be used; 0 = never.
    pub expires_at: UnixSecs,
    /// Compromised: what it signed must be replaced.
    pub tainted: bool,
}

impl Bundle {
    /// A bundle without authorities.
    #[must_use]
    pub const fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            wit_authorities: Vec::new(),
            refresh_hint: 0,
            sequence_number: 0,
        }
    }
}
