//! What a certificate must be to stand in a bundle (X509-SVID, sections 3, 4.1 and 4.3; RFC 5280, 4.2).
//!
//! SPIRE stores whatever parses. Here a certificate that could never anchor an X.509-SVID is refused
//! where it comes in: stored, it would only be distrusted later, and silently. Not looked at are its
//! times (bundles hold authorities of tomorrow and of yesterday) and, where its algorithm is not one
//! of ours, its own signature (RFC 5280, 6.1: that of an anchor is no part of a path).

use super::verify::{SignatureAlgorithm, check_signature};
use super::{Certificate, CertificateError, der};
use crate::SpiffeId;
use crate::key::{PublicKeyKind, UnusableKey};

/// Why a certificate is no X.509 authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// There is none.
    #[error("no certificate")]
    Empty,
    /// It cannot be read.
    #[error(transparent)]
    Malformed(#[from] CertificateError),
    /// It can be read, but is not in DER.
    #[error("malformed certificate: not in DER")]
    NotDer,
    /// Several stand behind each other.
    #[error("more than one certificate")]
    Several,
    /// It is not one of a CA.
    #[error("certificate is not a CA")]
    NotCa,
    /// Its key usage does not allow to sign certificates.
    #[error("certificate must not sign certificates")]
    NoCertSign,
    /// It has a critical extension that is not understood.
    #[error("unhandled critical extension")]
    UnknownExtension,
    /// It names a workload.
    #[error("SPIFFE ID of a signing certificate must not have a path")]
    HasPath,
    /// Its key verifies nothing.
    #[error(transparent)]
    Key(#[from] UnusableKey),
    /// It says that it signed itself, and did not.
    #[error("certificate is damaged: it did not sign itself")]
    NotSelfSigned,
}

impl Certificate {
    /// Reads exactly one certificate that may be an X.509 authority.
    ///
    /// # Errors
    /// Any of [`AnchorError`].
    pub fn parse_anchor(der: &[u8]) -> Result<Self, AnchorError> {
        let mut all = Self::parse_all(der)?.into_iter();
        let certificate = all.next().ok_or(AnchorError::Empty)?;
        if all.next().is_some() {
            return Err(AnchorError::Several);
        }
        if !der::is_strict(certificate.der()) {
            return Err(AnchorError::NotDer);
        }
        // Version 1 certificates have no extensions, so they never say that they are a CA.
        if !certificate.is_ca() {
            return Err(AnchorError::NotCa);
        }
        if certificate.key_usage().is_some_and(|usage| !usage.cert_sign) {
            return Err(AnchorError::NoCertSign);
        }
        if certificate.has_unknown_critical() {
            return Err(AnchorError::UnknownExtension);
        }
        let has_path = |uri: &String| SpiffeId::parse(uri).is_ok_and(|id| !id.path().is_empty());
        if certificate.uris().iter().any(has_path) {
            return Err(AnchorError::HasPath);
        }
        let key = certificate.public_key();
        // Unlike tokens, certificates may be signed by Ed25519.
        if key.kind() != PublicKeyKind::Ed25519 {
            key.check_usable()?;
        }
        let (signed, algorithm, signature) = certificate.signed_part();
        if certificate.issuer() == certificate.subject()
            && algorithm != SignatureAlgorithm::Other
            && check_signature(algorithm, key, signed, signature).is_err()
        {
            return Err(AnchorError::NotSelfSigned);
        }
        Ok(certificate)
    }
}
