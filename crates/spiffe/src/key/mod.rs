//! Keys and signatures: the kinds that authorities and SVIDs use, and how they are written in DER.
//!
//! Private keys are never printed: [`PrivateKey`] has no `Debug`, the library below wipes its memory,
//! and PKCS#8 leaves it only as [`Zeroizing`](zeroize::Zeroizing) bytes.

mod forms;
mod pkcs8;
mod private;
mod public;
mod secret_jwk;

use std::fmt;

pub use forms::{FormError, KeyForm, private_key_of_pem};
pub use pkcs8::{Pkcs8Error, UnusedKind};
pub use private::PrivateKey;
pub use public::{PublicKey, PublicKeyKind, UnusableKey};

/// The kinds of keys that are made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// ECDSA on P-256.
    EcP256,
    /// ECDSA on P-384.
    EcP384,
    /// RSA of 2048 bits.
    Rsa2048,
    /// RSA of 4096 bits.
    Rsa4096,
}

impl KeyKind {
    /// The kind that configurations call `text`, in any letter case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "ec-p256" => Some(Self::EcP256),
            "ec-p384" => Some(Self::EcP384),
            "rsa-2048" => Some(Self::Rsa2048),
            "rsa-4096" => Some(Self::Rsa4096),
            _ => None,
        }
    }

    /// The name in configurations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EcP256 => "ec-p256",
            Self::EcP384 => "ec-p384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa4096 => "rsa-4096",
        }
    }

    /// The algorithm that certificates and tokens are signed with by keys of this kind.
    #[must_use]
    pub const fn sig_alg(self) -> SigAlg {
        match self {
            Self::EcP256 => SigAlg::EcdsaP256Sha256,
            Self::EcP384 => SigAlg::EcdsaP384Sha384,
            Self::Rsa2048 | Self::Rsa4096 => SigAlg::RsaPkcs1Sha256,
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How to sign. ECDSA signatures are in DER; [`Signature::to_fixed`] gives the form of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SigAlg {
    /// ECDSA on P-256 with SHA-256.
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384.
    EcdsaP384Sha384,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RsaPkcs1Sha256,
    /// ECDSA on P-521 with SHA-512.
    EcdsaP521Sha512,
    /// ECDSA on P-384 with SHA-256, which proofs of possession use whatever the curve.
    EcdsaP384Sha256,
    /// ECDSA on P-521 with SHA-256, for the same proofs.
    EcdsaP521Sha256,
    /// RSA-PSS with SHA-256 and the longest salt that fits.
    RsaPssSha256,
}

/// A signature, as bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature(Vec<u8>);

impl Signature {
    /// The signature with these bytes.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// An ECDSA signature as `r || s`, each padded to `width` bytes, as tokens hold it (RFC 7518,
    /// 3.4). `None` if this is no ECDSA signature of that size.
    #[must_use]
    pub fn to_fixed(&self, width: usize) -> Option<Vec<u8>> {
        let (r, s) = self.ecdsa_parts()?;
        let mut fixed = vec![0; width.checked_mul(2)?];
        let r_at = width.checked_sub(r.len())?;
        let s_at = (2 * width).checked_sub(s.len()).filter(|at| *at >= width)?;
        fixed.get_mut(r_at..width)?.copy_from_slice(r);
        fixed.get_mut(s_at..)?.copy_from_slice(s);
        Some(fixed)
    }

    /// The numbers of an ECDSA signature, without leading zeros.
    #[must_use]
    pub fn ecdsa_parts(&self) -> Option<(&[u8], &[u8])> {
        let (body, rest) = der_value(&self.0, 0x30)?;
        let (r, s) = der_value(body, 0x02)?;
        let (s, end) = der_value(s, 0x02)?;
        let trim = |number: &'_ [u8]| number.iter().take_while(|byte| **byte == 0).count();
        (rest.is_empty() && end.is_empty()).then_some(())?;
        Some((r.get(trim(r)..)?, s.get(trim(s)..)?))
    }

    /// The DER form of an ECDSA signature given as two numbers, most significant byte first.
    #[must_use]
    pub fn from_ecdsa_parts(r: &[u8], s: &[u8]) -> Self {
        let mut body = der_unsigned(r);
        body.extend(der_unsigned(s));
        let mut der = vec![0x30];
        der_length(&mut der, body.len());
        der.extend(body);
        Self(der)
    }
}

impl AsRef<[u8]> for Signature {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({} bytes)", self.0.len())
    }
}

/// Why a key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are no key.
    #[error("malformed key")]
    Malformed,
    /// It is a key of a kind that has no use here.
    #[error("unsupported key type: use ECDSA on P-256, P-384 or P-521, or RSA of at least 2048 bits")]
    Unsupported,
    /// The key cannot sign with this algorithm.
    #[error("key type and signature algorithm do not match")]
    Mismatch,
    /// The library failed.
    #[error("cryptographic operation failed")]
    Failed,
}

/// The signature does not belong to the message and the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("signature verification failed")]
pub struct BadSignature;

/// The contents of the DER value with this tag at the start of `input`, and what follows it.
fn der_value(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, input) = input.split_first()?;
    let (&short, input) = input.split_first()?;
    let (length, input) = match short {
        0..=0x7f => (usize::from(short), input),
        0x81 => input.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
        _ => return None,
    };
    (first == tag).then_some(())?;
    input.split_at_checked(length)
}

fn der_unsigned(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let number = number.get(zeros..).unwrap_or_default();
    let needs_zero = number.first().is_none_or(|byte| *byte >= 0x80);
    let mut der = vec![0x02];
    der_length(&mut der, number.len() + usize::from(needs_zero));
    if needs_zero {
        der.push(0);
    }
    der.extend_from_slice(number);
    der
}

fn der_length(der: &mut Vec<u8>, length: usize) {
    let [.., high, low] = length.to_be_bytes();
    match length {
        0..=0x7f => der.push(low),
        0x80..=0xff => der.extend([0x81, low]),
        _ => der.extend([0x82, high, low]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_in_configurations() {
        for kind in [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048, KeyKind::Rsa4096] {
            assert_eq!(KeyKind::parse(&kind.as_str().to_ascii_uppercase()), Some(kind));
        }
        assert_eq!(KeyKind::parse("ec-p521"), None);
    }

    #[test]
    fn ecdsa_signatures_change_their_form() {
        let signature = Signature::from_ecdsa_parts(&[0, 0, 0x80, 1], &[5]);

        assert_eq!(signature.as_bytes(), [0x30, 8, 2, 3, 0, 0x80, 1, 2, 1, 5]);
        assert_eq!(signature.ecdsa_parts(), Some((&[0x80, 1][..], &[5][..])));
        assert_eq!(signature.to_fixed(3), Some(vec![0, 0x80, 1, 0, 0, 5]));
        assert_eq!(signature.to_fixed(1), None);
        assert_eq!(Signature::new(vec![0x30, 9, 2, 1, 1]).to_fixed(32), None);
    }
}
