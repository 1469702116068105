//! Authorities as clients hand them in. What could verify nothing is refused at the door; rows of the
//! datastore do not come through here, since what SPIRE has stored must still load.

use std::sync::Arc;

use super::{JwtAuthority, X509Authority};
use crate::UnixSecs;
use crate::key::{KeyError, PublicKey, PublicKeyKind, UnusableKey};
use crate::x509::{AnchorError, Certificate};

/// Why something is no JWT authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtAuthorityError {
    /// The key cannot be read.
    #[error(transparent)]
    Malformed(#[from] KeyError),
    /// The key verifies no token (RFC 7518, 3.3 and 3.4; JWT-SVID, 3).
    #[error(transparent)]
    Key(#[from] UnusableKey),
    /// It has no id.
    #[error("missing key ID")]
    NoKeyId,
    /// It ended before the epoch.
    #[error("expiry is out of range")]
    Expiry,
    /// Another one has its id: no token could say which of the two it means.
    #[error("key ID {} is used twice", .0.escape_debug())]
    Ambiguous(String),
}

impl X509Authority {
    /// The authority of one CA certificate in DER. Its times are not looked at: bundles hold
    /// authorities of tomorrow and of yesterday.
    ///
    /// # Errors
    /// Any of [`AnchorError`].
    pub fn parse(der: &[u8]) -> Result<Self, AnchorError> {
        Ok(Self { der: Certificate::parse_anchor(der)?.to_shared(), tainted: false })
    }

    /// The authority of one certificate in DER, whatever it could anchor: for the own bundle, whose
    /// owner may move anything there that other servers of the trust domain use.
    ///
    /// # Errors
    /// [`AnchorError`] if it is not one certificate, or its key is no point of its curve.
    pub fn parse_any(der: &[u8]) -> Result<Self, AnchorError> {
        let mut all = Certificate::parse_all(der)?.into_iter();
        match (all.next(), all.next()) {
            (Some(certificate), None) => {
                let key = certificate.public_key();
                // A point off its curve makes no certificate, here as in SPIRE.
                if matches!(key.kind(), PublicKeyKind::EcP256 | PublicKeyKind::EcP384 | PublicKeyKind::EcP521)
                {
                    key.check_usable()?;
                }
                Ok(Self { der: certificate.to_shared(), tainted: false })
            }
            (None, _) => Err(AnchorError::Empty),
            (Some(_), Some(_)) => Err(AnchorError::Several),
        }
    }
}

impl JwtAuthority {
    /// The authority `key_id` with a key in DER. Whether it has ended already is not looked at.
    ///
    /// # Errors
    /// Any of [`JwtAuthorityError`] but [`JwtAuthorityError::Ambiguous`].
    pub fn parse(key_id: &str, public_key: &[u8], expires_at: UnixSecs) -> Result<Self, JwtAuthorityError> {
        PublicKey::from_spki(public_key)?.check_usable()?;
        Self::of_parts(key_id, public_key, expires_at)
    }

    /// As [`Self::parse`], with keys too that verify nothing here, as long as they are keys: for the
    /// own bundle, see [`X509Authority::parse_any`].
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_any(
        key_id: &str,
        public_key: &[u8],
        expires_at: UnixSecs,
    ) -> Result<Self, JwtAuthorityError> {
        let key = PublicKey::from_spki(public_key)?;
        if !matches!(key.kind(), PublicKeyKind::Rsa(_) | PublicKeyKind::Ed25519) {
            key.check_usable()?;
        }
        Self::of_parts(key_id, public_key, expires_at)
    }

    fn of_parts(key_id: &str, public_key: &[u8], expires_at: UnixSecs) -> Result<Self, JwtAuthorityError> {
        if key_id.is_empty() {
            return Err(JwtAuthorityError::NoKeyId);
        }
        if expires_at < UnixSecs(0) {
            return Err(JwtAuthorityError::Expiry);
        }
        Ok(Self { key_id: key_id.to_owned(), public_key: Arc::from(public_key), expires_at, tainted: false })
    }

    /// Whether each has an id of its own.
    ///
    /// # Errors
    /// [`JwtAuthorityError::Ambiguous`] with the first id that comes again.
    pub fn check_distinct(authorities: &[Self]) -> Result<(), JwtAuthorityError> {
        let mut seen = std::collections::HashSet::new();
        match authorities.iter().find(|authority| !seen.insert(authority.key_id.as_str())) {
            Some(again) => Err(JwtAuthorityError::Ambiguous(again.key_id.clone())),
            None => Ok(()),
        }
    }
}
