//! Public keys.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{
    self, ParsedPublicKey, RsaParameters, RsaPssSaltLength, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{BadSignature, KeyError, KeyKind, SigAlg, Signature};
use crate::x509::is_public_key;

/// The longest key that is looked at: far above any that is in use.
const MAX_SPKI: usize = 8 * 1024;

/// What kind of public key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PublicKeyKind {
    /// ECDSA on P-256.
    EcP256,
    /// ECDSA on P-384.
    EcP384,
    /// ECDSA on P-521.
    EcP521,
    /// RSA with a modulus of so many bits.
    Rsa(usize),
    /// Ed25519.
    Ed25519,
    /// Anything else.
    Other,
}

impl PublicKeyKind {
    /// The kind as one that keys are made of here.
    #[must_use]
    pub const fn key_kind(self) -> Option<KeyKind> {
        match self {
            Self::EcP256 => Some(KeyKind::EcP256),
            Self::EcP384 => Some(KeyKind::EcP384),
            Self::Rsa(2048) => Some(KeyKind::Rsa2048),
            Self::Rsa(4096) => Some(KeyKind::Rsa4096),
            Self::EcP521 | Self::Rsa(_) | Self::Ed25519 | Self::Other => None,
        }
    }
}

/// A public key, kept as the DER `SubjectPublicKeyInfo` it came in. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    spki: Arc<[u8]>,
    kind: PublicKeyKind,
    /// Where the contents of the bit string start.
    raw_at: usize,
}

impl PublicKey {
    /// Reads a DER `SubjectPublicKeyInfo` with nothing behind it. Unknown kinds are read too.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        if der.len() > MAX_SPKI {
            return Err(KeyError::Malformed);
        }
        let (rest, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| KeyError::Malformed)?;
        if !rest.is_empty() {
            return Err(KeyError::Malformed);
        }
        Self::from_info(&info)
    }

    /// The key of a certificate or request that was parsed.
    pub(crate) fn from_info(info: &SubjectPublicKeyInfo<'_>) -> Result<Self, KeyError> {
        // The parser is more lenient, and passes over what stands behind the key.
        if info.raw.len() > MAX_SPKI || !is_public_key(info.raw) {
            return Err(KeyError::Malformed);
        }
        let raw = info.subject_public_key.data.as_ref();
        let raw_at = info.raw.len().checked_sub(raw.len()).ok_or(KeyError::Malformed)?;
        Ok(Self { spki: info.raw.into(), kind: kind_of(info), raw_at })
    }

    /// The DER `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The contents of the bit string: the point of an EC key, the `RSAPublicKey` of an RSA key.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        self.spki.get(self.raw_at..).unwrap_or_default()
    }

    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> PublicKeyKind {
        self.kind
    }

    /// The subject key identifier: SHA-1 of [`PublicKey::raw`] (RFC 5280, 4.2.1.2, method 1).
    #[must_use]
    pub fn key_id(&self) -> [u8; 20] {
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, self.raw());
        let mut id = [0; 20];
        for (to, from) in id.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        id
    }

    /// Checks a signature.
    ///
    /// # Errors
    /// [`BadSignature`], also when the key is of another kind than the algorithm.
    pub fn verify(&self, alg: SigAlg, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        match (alg, self.kind) {
            (SigAlg::EcdsaP256Sha256, PublicKeyKind::EcP256) => {
                self.check(&signature::ECDSA_P256_SHA256_ASN1, message, signature)
            }
            (SigAlg::EcdsaP384Sha384, PublicKeyKind::EcP384) => {
                self.check(&signature::ECDSA_P384_SHA384_ASN1, message, signature)
            }
            (SigAlg::EcdsaP384Sha256, PublicKeyKind::EcP384) => {
                self.check(&signature::ECDSA_P384_SHA256_ASN1, message, signature)
            }
            (SigAlg::EcdsaP521Sha512, PublicKeyKind::EcP521) => {
                self.check(&signature::ECDSA_P521_SHA512_ASN1, message, signature)
            }
            (SigAlg::EcdsaP521Sha256, PublicKeyKind::EcP521) => {
                self.check(&signature::ECDSA_P521_SHA256_ASN1, message, signature)
            }
            (SigAlg::RsaPkcs1Sha256, PublicKeyKind::Rsa(_)) => {
                self.check(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            (SigAlg::RsaPssSha256, PublicKeyKind::Rsa(_)) => PSS_SHA256
                .into_iter()
                .find_map(|alg| self.check(alg, message, signature).ok())
                .ok_or(BadSignature),
            _ => Err(BadSignature),
        }
    }

    /// Whether the key can verify tokens and, where it is an authority's, SVIDs: a point on its curve,
    /// an RSA key of a sane size.
    ///
    /// # Errors
    /// [`UnusableKey`].
    pub fn check_usable(&self) -> Result<(), UnusableKey> {
        let parses = |alg: &'static dyn VerificationAlgorithm| ParsedPublicKey::new(alg, self.raw()).is_ok();
        // Compressed points are refused as SPIRE refuses them.
        let on_curve = |alg, name| match self.raw() {
            [4, ..] if parses(alg) => Ok(()),
            [4, ..] => Err(UnusableKey::OffCurve(name)),
            _ => Err(UnusableKey::Encoding),
        };
        match self.kind {
            PublicKeyKind::EcP256 => on_curve(&signature::ECDSA_P256_SHA256_ASN1, "P256"),
            PublicKeyKind::EcP384 => on_curve(&signature::ECDSA_P384_SHA384_ASN1, "P384"),
            PublicKeyKind::EcP521 => on_curve(&signature::ECDSA_P521_SHA512_ASN1, "P521"),
            // The library looks at the size of a modulus only when it verifies with it.
            PublicKeyKind::Rsa(2048..=8192) if parses(&signature::RSA_PKCS1_2048_8192_SHA256) => Ok(()),
            PublicKeyKind::Rsa(_) => Err(UnusableKey::RsaSize),
            PublicKeyKind::Ed25519 | PublicKeyKind::Other => Err(UnusableKey::Kind),
        }
    }

    fn check(
        &self,
        alg: &'static dyn VerificationAlgorithm,
        message: &[u8],
        signature: &Signature,
    ) -> Result<(), BadSignature> {
        let key = UnparsedPublicKey::new(alg, self.raw());
        key.verify(message, signature.as_bytes()).map_err(|_| BadSignature)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?})", self.kind)
    }
}

/// Why a public key verifies nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableKey {
    /// Its coordinates are no point of the curve.
    #[error("{0} point not on curve")]
    OffCurve(&'static str),
    /// Its point is not written in full.
    #[error("point must be uncompressed")]
    Encoding,
    /// Its modulus is too small to be safe, or larger than is looked at.
    #[error("RSA key must have 2048 to 8192 bits")]
    RsaSize,
    /// It is of a kind that nothing here is verified with.
    #[error("unsupported public key: use ECDSA on P-256, P-384 or P-521, or RSA of at least 2048 bits")]
    Kind,
}

/// PSS with the salts that signers choose: the longest that fits, the digest's length, the default of
/// RFC 8017, none. The library cannot find the length out from the signature.
static PSS_SHA256: [&RsaParameters; 4] = [
    &signature::RSA_PSS_2048_8192_SHA256.with_pss_salt_length(RsaPssSaltLength::Max),
    &signature::RSA_PSS_2048_8192_SHA256,
    &signature::RSA_PSS_2048_8192_SHA256.with_pss_salt_length(RsaPssSaltLength::Custom(20)),
    &signature::RSA_PSS_2048_8192_SHA256.with_pss_salt_length(RsaPssSaltLength::Custom(0)),
];

fn kind_of(info: &SubjectPublicKeyInfo<'_>) -> PublicKeyKind {
    let algorithm = &info.algorithm.algorithm;
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        return match info.parsed() {
            Ok(Parsed::RSA(key)) => PublicKeyKind::Rsa(bits(key.modulus)),
            _ => PublicKeyKind::Other,
        };
    }
    if *algorithm == OID_SIG_ED25519 {
        return PublicKeyKind::Ed25519;
    }
    if *algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return PublicKeyKind::Other;
    }
    let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    match curve {
        Some(curve) if curve == OID_EC_P256 => PublicKeyKind::EcP256,
        Some(curve) if curve == OID_NIST_EC_P384 => PublicKeyKind::EcP384,
        Some(curve) if curve == OID_NIST_EC_P521 => PublicKeyKind::EcP521,
        _ => PublicKeyKind::Other,
    }
}

fn bits(modulus: &[u8]) -> usize {
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let modulus = modulus.get(zeros..).unwrap_or_default();
    let unused = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    (modulus.len() * 8).saturating_sub(unused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    #[test]
    fn nothing_stands_behind_a_key() {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let spki = key.public().spki();
        let (header, contents) = spki.split_at(2);

        let longer = [&[header[0], header[1] + 2], contents, &[5, 0]].concat();
        let behind = [spki, &[5, 0]].concat();

        assert!(PublicKey::from_spki(spki).is_ok());
        assert_eq!(PublicKey::from_spki(&longer), Err(KeyError::Malformed));
        assert_eq!(PublicKey::from_spki(&behind), Err(KeyError::Malformed));
    }
}
