//! Private keys.

use std::sync::Arc;

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
    RsaPssSaltLength, RsaSignatureEncoding,
};
use zeroize::Zeroizing;

use super::{KeyError, KeyKind, PublicKey, PublicKeyKind, SigAlg, Signature};

/// A private key. Cheap to clone; the memory is wiped with the last clone.
#[derive(Clone)]
pub struct PrivateKey {
    pair: Pair,
    public: PublicKey,
}

#[derive(Clone)]
enum Pair {
    Ec(Arc<EcdsaKeyPair>),
    Rsa(Arc<RsaKeyPair>),
}

impl PrivateKey {
    /// Makes a key. RSA keys take from tenths of a second to many seconds: not on an async thread.
    ///
    /// # Errors
    /// [`KeyError::Failed`].
    pub fn generate(kind: KeyKind) -> Result<Self, KeyError> {
        let pair = match kind {
            KeyKind::EcP256 => Pair::Ec(Arc::new(generate_ec(&ECDSA_P256_SHA256_ASN1_SIGNING)?)),
            KeyKind::EcP384 => Pair::Ec(Arc::new(generate_ec(&ECDSA_P384_SHA384_ASN1_SIGNING)?)),
            KeyKind::Rsa2048 => Pair::Rsa(Arc::new(generate_rsa(KeySize::Rsa2048)?)),
            KeyKind::Rsa4096 => Pair::Rsa(Arc::new(generate_rsa(KeySize::Rsa4096)?)),
        };
        Self::from_pair(pair)
    }

    /// Reads a private key in DER: PKCS#8, or the older forms of EC (RFC 5915) and RSA (RFC 8017).
    ///
    /// # Errors
    /// [`KeyError::Unsupported`] when it is neither an EC key on P-256, P-384 or P-521 nor an RSA key of
    /// at least 2048 bits, [`KeyError::Malformed`] when it does not look like a key at all.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        for alg in [
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &ECDSA_P384_SHA384_ASN1_SIGNING,
            &ECDSA_P521_SHA512_ASN1_SIGNING,
        ] {
            let pair = EcdsaKeyPair::from_pkcs8(alg, der);
            if let Ok(pair) = pair.or_else(|_| EcdsaKeyPair::from_private_key_der(alg, der)) {
                return Self::from_pair(Pair::Ec(Arc::new(pair)));
            }
        }
        match RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der)) {
            Ok(pair) => Self::from_pair(Pair::Rsa(Arc::new(pair))),
            Err(_) if begins_as_key(der) => Err(KeyError::Unsupported),
            Err(_) => Err(KeyError::Malformed),
        }
    }

    /// The key as DER PKCS#8.
    ///
    /// # Errors
    /// [`KeyError::Failed`].
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let der = match &self.pair {
            Pair::Ec(pair) => {
                let document = pair.to_pkcs8v1().map_err(|_| KeyError::Failed)?;
                document.as_ref().to_vec()
            }
            Pair::Rsa(pair) => {
                let document: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyError::Failed)?;
                document.as_ref().to_vec()
            }
        };
        Ok(Zeroizing::new(der))
    }

    /// The public half.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The kind, if it is one that keys are made of here.
    #[must_use]
    pub const fn kind(&self) -> Option<KeyKind> {
        self.public.kind().key_kind()
    }

    /// The algorithm that certificates and tokens are signed with by this key.
    ///
    /// # Errors
    /// [`KeyError::Unsupported`].
    pub const fn sig_alg(&self) -> Result<SigAlg, KeyError> {
        match self.public.kind() {
            PublicKeyKind::EcP256 => Ok(SigAlg::EcdsaP256Sha256),
            PublicKeyKind::EcP384 => Ok(SigAlg::EcdsaP384Sha384),
            PublicKeyKind::Rsa(_) => Ok(SigAlg::RsaPkcs1Sha256),
            PublicKeyKind::EcP521 => Ok(SigAlg::EcdsaP521Sha512),
            PublicKeyKind::Ed25519 | PublicKeyKind::Other => Err(KeyError::Unsupported),
        }
    }

    /// Signs `message`, which is hashed here.
    ///
    /// # Errors
    /// [`KeyError::Mismatch`] when the algorithm is for another kind of key.
    pub fn sign(&self, alg: SigAlg, message: &[u8]) -> Result<Signature, KeyError> {
        let random = SystemRandom::new();
        match (&self.pair, alg, self.public.kind()) {
            (Pair::Ec(pair), SigAlg::EcdsaP256Sha256, PublicKeyKind::EcP256)
            | (Pair::Ec(pair), SigAlg::EcdsaP384Sha384, PublicKeyKind::EcP384)
            | (Pair::Ec(pair), SigAlg::EcdsaP521Sha512, PublicKeyKind::EcP521) => {
                let signature = pair.sign(&random, message).map_err(|_| KeyError::Failed)?;
                Ok(Signature::new(signature.as_ref().to_vec()))
            }
            (Pair::Ec(pair), SigAlg::EcdsaP384Sha256, PublicKeyKind::EcP384) => {
                sign_sha256(pair, &digest::SHA384, message)
            }
            (Pair::Ec(pair), SigAlg::EcdsaP521Sha256, PublicKeyKind::EcP521) => {
                sign_sha256(pair, &digest::SHA512, message)
            }
            (Pair::Rsa(pair), SigAlg::RsaPkcs1Sha256, _) => sign_rsa(pair, &RSA_PKCS1_SHA256, message),
            (Pair::Rsa(pair), SigAlg::RsaPssSha256, _) => sign_rsa(pair, &PSS_SHA256_LONGEST, message),
            _ => Err(KeyError::Mismatch),
        }
    }

    fn from_pair(pair: Pair) -> Result<Self, KeyError> {
        let spki: PublicKeyX509Der<'_> = match &pair {
            Pair::Ec(pair) => pair.public_key().as_der(),
            Pair::Rsa(pair) => pair.public_key().as_der(),
        }
        .map_err(|_| KeyError::Failed)?;
        let public = PublicKey::from_spki(spki.as_ref())?;
        Ok(Self { pair, public })
    }
}

static PSS_SHA256_LONGEST: RsaSignatureEncoding = RSA_PSS_SHA256.with_pss_salt_length(RsaPssSaltLength::Max);

fn generate_ec(alg: &'static EcdsaSigningAlgorithm) -> Result<EcdsaKeyPair, KeyError> {
    EcdsaKeyPair::generate(alg).map_err(|_| KeyError::Failed)
}

fn generate_rsa(size: KeySize) -> Result<RsaKeyPair, KeyError> {
    RsaKeyPair::generate(size).map_err(|_| KeyError::Failed)
}

/// Signs the SHA-256 of a message by a key whose own digest is `own`: a digest shorter than the curve's
/// order is the same number with zeros before it.
fn sign_sha256(
    pair: &EcdsaKeyPair,
    own: &'static digest::Algorithm,
    message: &[u8],
) -> Result<Signature, KeyError> {
    let short = digest::digest(&digest::SHA256, message);
    let mut wide = vec![0; own.output_len()];
    for (to, from) in wide.iter_mut().rev().zip(short.as_ref().iter().rev()) {
        *to = *from;
    }
    let wide = Digest::import_less_safe(&wide, own).map_err(|_| KeyError::Failed)?;
    let signature = pair.sign_digest(&wide).map_err(|_| KeyError::Failed)?;
    Ok(Signature::new(signature.as_ref().to_vec()))
}

/// Whether bytes begin as a private key does: a sequence of a version and an algorithm (PKCS#8), a number
/// (RFC 8017) or a text of bytes (RFC 5915).
fn begins_as_key(der: &[u8]) -> bool {
    let ([0x30, 0x82, _, _, body @ ..] | [0x30, 0x81, _, body @ ..] | [0x30, ..=0x7f, body @ ..]) = der
    else {
        return false;
    };
    matches!(body, [2, 1, 0 | 1, 0x30, ..] | [2, 1, 0, 2, ..] | [2, 1, 1, 4, ..])
}

fn sign_rsa(
    pair: &RsaKeyPair,
    encoding: &'static RsaSignatureEncoding,
    message: &[u8],
) -> Result<Signature, KeyError> {
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(encoding, &SystemRandom::new(), message, &mut signature).map_err(|_| KeyError::Failed)?;
    Ok(Signature::new(signature))
}

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Display};
    use std::marker::PhantomData;

    use super::*;

    /// Whether a type can be written: the inherent constant is found before the trait's, where it exists.
    struct Shown<T>(PhantomData<T>);

    trait Hidden {
        const DEBUG: bool = false;
        const DISPLAY: bool = false;
        const SERIALIZE: bool = false;
    }

    impl<T> Hidden for Shown<T> {}

    impl<T: Debug> Shown<T> {
        const DEBUG: bool = true;
    }

    impl<T: Display> Shown<T> {
        const DISPLAY: bool = true;
    }

    impl<T: serde::Serialize> Shown<T> {
        const SERIALIZE: bool = true;
    }

    #[test]
    fn k05_a_private_key_cannot_be_written() {
        type Key = Shown<PrivateKey>;
        assert_eq!([Key::DEBUG, Key::DISPLAY, Key::SERIALIZE], [false; 3]);
        type Text = Shown<String>;
        assert_eq!([Text::DEBUG, Text::DISPLAY, Text::SERIALIZE], [true; 3], "the question is a question");
    }

    fn check_round_trip(kind: KeyKind, algs: &[SigAlg]) {
        let key = PrivateKey::generate(kind).unwrap();
        let again = PrivateKey::from_der(&key.to_pkcs8().unwrap()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(again.kind(), Some(kind));
        for alg in algs {
            let signature = again.sign(*alg, b"message").unwrap();
            key.public().verify(*alg, b"message", &signature).unwrap();
            key.public().verify(*alg, b"massage", &signature).unwrap_err();
        }
    }

    #[test]
    fn keys_sign_and_survive_their_stored_form() {
        check_round_trip(KeyKind::EcP256, &[SigAlg::EcdsaP256Sha256]);
        check_round_trip(KeyKind::EcP384, &[SigAlg::EcdsaP384Sha384, SigAlg::EcdsaP384Sha256]);
        check_round_trip(KeyKind::Rsa2048, &[SigAlg::RsaPkcs1Sha256, SigAlg::RsaPssSha256]);
    }

    /// A key on P-521, as PKCS#8 and as RFC 5915 has it.
    fn p521() -> [Vec<u8>; 2] {
        let pair = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_ASN1_SIGNING).unwrap();
        let older: aws_lc_rs::encoding::EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
        [pair.to_pkcs8v1().unwrap().as_ref().to_vec(), older.as_ref().to_vec()]
    }

    #[test]
    fn keys_on_p521_are_read_and_sign() {
        for der in p521() {
            let key = PrivateKey::from_der(&der).unwrap();

            assert_eq!(key.kind(), None, "none are made here");
            assert_eq!(key.sig_alg(), Ok(SigAlg::EcdsaP521Sha512));
            for alg in [SigAlg::EcdsaP521Sha512, SigAlg::EcdsaP521Sha256] {
                let signature = key.sign(alg, b"message").unwrap();
                key.public().verify(alg, b"message", &signature).unwrap();
                key.public().verify(alg, b"massage", &signature).unwrap_err();
            }
            assert_eq!(key.sign(SigAlg::EcdsaP384Sha384, b""), Err(KeyError::Mismatch));
        }
    }

    #[test]
    fn a_key_of_another_kind_is_told_from_what_is_no_key() {
        let ed25519 = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();

        assert_eq!(PrivateKey::from_der(ed25519.as_ref()).err(), Some(KeyError::Unsupported));
        assert_eq!(PrivateKey::from_der(&[0x30, 3, 2, 1, 7]).err(), Some(KeyError::Malformed));
    }

    #[test]
    fn a_key_signs_only_with_its_own_algorithms() {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();

        assert_eq!(key.sign(SigAlg::EcdsaP384Sha384, b""), Err(KeyError::Mismatch));
        assert_eq!(key.sign(SigAlg::RsaPkcs1Sha256, b""), Err(KeyError::Mismatch));
        assert_eq!(PrivateKey::from_der(b"no key").err(), Some(KeyError::Malformed));
    }
}
