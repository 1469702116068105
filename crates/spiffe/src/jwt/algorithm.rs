//! The signature algorithms of tokens (JWT-SVID section 2.1, WIT-SVID section 2.3; RFC 7518 section 3).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, UnparsedPublicKey, VerificationAlgorithm,
};

use super::JwtError;
use crate::key::{PublicKey, PublicKeyKind};

/// An algorithm of the closed list. RSA keys below 2048 bits verify nothing; a PSS salt is as long as
/// the digest (RFC 7518, 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    Ps256,
    Ps384,
    Ps512,
}

impl Algorithm {
    /// All names, in the order in which refusals list them.
    pub(super) const NAMES: &[&str] =
        &["ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];

    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            _ => return None,
        })
    }

    /// Whether a key is of the algorithm's kind and curve.
    pub(super) fn fits(self, key: &PublicKey) -> bool {
        self.by(key).is_some()
    }

    /// Checks a signature by a key, which must be of the algorithm's kind and curve.
    pub(super) fn verify(self, key: &PublicKey, signed: &str, signature: &[u8]) -> Result<(), JwtError> {
        let algorithm = self.by(key).ok_or(JwtError::BadSignature)?;
        UnparsedPublicKey::new(algorithm, key.raw())
            .verify(signed.as_bytes(), signature)
            .map_err(|_| JwtError::BadSignature)
    }

    fn by(self, key: &PublicKey) -> Option<&'static dyn VerificationAlgorithm> {
        Some(match (self, key.kind()) {
            (Self::Es256, PublicKeyKind::EcP256) => &ECDSA_P256_SHA256_FIXED,
            (Self::Es384, PublicKeyKind::EcP384) => &ECDSA_P384_SHA384_FIXED,
            (Self::Es512, PublicKeyKind::EcP521) => &ECDSA_P521_SHA512_FIXED,
            (Self::Rs256, PublicKeyKind::Rsa(_)) => &RSA_PKCS1_2048_8192_SHA256,
            (Self::Rs384, PublicKeyKind::Rsa(_)) => &RSA_PKCS1_2048_8192_SHA384,
            (Self::Rs512, PublicKeyKind::Rsa(_)) => &RSA_PKCS1_2048_8192_SHA512,
            (Self::Ps256, PublicKeyKind::Rsa(_)) => &RSA_PSS_2048_8192_SHA256,
            (Self::Ps384, PublicKeyKind::Rsa(_)) => &RSA_PSS_2048_8192_SHA384,
            (Self::Ps512, PublicKeyKind::Rsa(_)) => &RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_known_and_no_other() {
        assert!(Algorithm::NAMES.iter().all(|name| Algorithm::parse(name).is_some()));
        for name in ["", "none", "None", "HS256", "EdDSA", "ES256K", "es256", "ES256 ", "RS1"] {
            assert_eq!(Algorithm::parse(name), None, "{name}");
        }
    }
}
