//! Private keys in PKCS#8 (RFC 5958) and in no other form, for files that other programs read too.

use std::fmt;

use super::{PrivateKey, PublicKeyKind};
use crate::x509::der;

pub(super) const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
pub(super) const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const X25519: &[u8] = &[0x2b, 0x65, 0x6e];
pub(super) const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
pub(super) const P224: &[u8] = &[0x2b, 0x81, 0x04, 0, 0x21];
pub(super) const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
pub(super) const P384: &[u8] = &[0x2b, 0x81, 0x04, 0, 0x22];
pub(super) const P521: &[u8] = &[0x2b, 0x81, 0x04, 0, 0x23];

/// Why bytes are no private key that is used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Pkcs8Error {
    /// They are no key.
    #[error("malformed key")]
    Malformed,
    /// They are an EC key in a form of its own (RFC 5915).
    #[error("EC private key outside PKCS#8")]
    BareEc,
    /// They are an RSA key in a form of its own (RFC 8017).
    #[error("RSA private key outside PKCS#8")]
    BareRsa,
    /// Their algorithm is not known; its object identifier.
    #[error("unknown algorithm {0}")]
    Algorithm(String),
    /// The curve is not named, or by a name that is not known.
    #[error("unknown elliptic curve")]
    Curve,
    /// They are a key, of a kind that is not used.
    #[error("no use for a key of kind {0}")]
    Kind(UnusedKind),
}

/// Kinds of private keys that are known, and not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnusedKind {
    /// ECDSA on P-224 or P-521.
    Ec(&'static str),
    /// RSA of another size: bits.
    Rsa(usize),
    /// Ed25519.
    Ed25519,
    /// X25519.
    X25519,
}

impl fmt::Display for UnusedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ec(curve) => f.write_str(curve),
            Self::Rsa(bits) => write!(f, "RSA-{bits}"),
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::X25519 => f.write_str("X25519"),
        }
    }
}

impl PrivateKey {
    /// Reads a private key in DER PKCS#8 of one of the kinds that keys are made of here.
    ///
    /// # Errors
    /// [`Pkcs8Error`].
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, Pkcs8Error> {
        let parts: Vec<_> = der::items(der).take(3).collect();
        let (algorithm, inner) = match parts.as_slice() {
            [(der::INTEGER, _), (der::SEQUENCE, algorithm), (der::OCTET_STRING, inner)] => {
                (*algorithm, *inner)
            }
            [(der::INTEGER, _), (der::OCTET_STRING, _), ..] if der::is_strict(der) => {
                return Err(Pkcs8Error::BareEc);
            }
            [(der::INTEGER, _), (der::INTEGER, _), (der::INTEGER, _)] if der::is_strict(der) => {
                return Err(Pkcs8Error::BareRsa);
            }
            _ => return Err(Pkcs8Error::Malformed),
        };
        let mut algorithm = der::elements(algorithm);
        let Some((der::OID, name)) = algorithm.next() else { return Err(Pkcs8Error::Malformed) };
        match name {
            RSA => check_size(inner)?,
            EC => check_curve(algorithm.next(), inner)?,
            X25519 => return Err(Pkcs8Error::Kind(UnusedKind::X25519)),
            ED25519 => return Err(Pkcs8Error::Kind(UnusedKind::Ed25519)),
            other => return Err(Pkcs8Error::Algorithm(dotted(other))),
        }
        let key = Self::from_der(der).map_err(|_| Pkcs8Error::Malformed)?;
        match key.public().kind() {
            PublicKeyKind::EcP256 | PublicKeyKind::EcP384 | PublicKeyKind::Rsa(2048 | 4096) => Ok(key),
            PublicKeyKind::Rsa(_) | PublicKeyKind::EcP521 | PublicKeyKind::Ed25519 | PublicKeyKind::Other => {
                Err(Pkcs8Error::Malformed)
            }
        }
    }
}

/// Whether the modulus has one of the sizes that are used.
fn check_size(key: &[u8]) -> Result<(), Pkcs8Error> {
    let mut numbers = der::items(key);
    let (Some((der::INTEGER, _)), Some((der::INTEGER, modulus))) = (numbers.next(), numbers.next()) else {
        return Err(Pkcs8Error::Malformed);
    };
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let modulus = modulus.get(zeros..).unwrap_or_default();
    let unset = modulus.first().map_or(0, |first| first.leading_zeros());
    match (modulus.len() * 8).saturating_sub(usize::try_from(unset).unwrap_or(0)) {
        2048 | 4096 => Ok(()),
        bits => Err(Pkcs8Error::Kind(UnusedKind::Rsa(bits))),
    }
}

/// Whether the curve, which the algorithm names or else the key, is one of those that are used.
fn check_curve(named: Option<(u8, &[u8])>, key: &[u8]) -> Result<(), Pkcs8Error> {
    let within = || {
        let (_, parameters) = der::items(key).find(|(tag, _)| *tag == 0xa0)?;
        der::elements(parameters).next()
    };
    match named.filter(|(tag, _)| *tag == der::OID).or_else(within) {
        Some((der::OID, P256 | P384)) => Ok(()),
        Some((der::OID, P224)) => Err(Pkcs8Error::Kind(UnusedKind::Ec("P-224"))),
        Some((der::OID, P521)) => Err(Pkcs8Error::Kind(UnusedKind::Ec("P-521"))),
        _ => Err(Pkcs8Error::Curve),
    }
}

/// An object identifier as it is written; its arcs that do not fit are cut off.
fn dotted(encoded: &[u8]) -> String {
    let mut arcs = encoded
        .split_inclusive(|byte| byte & 0x80 == 0)
        .map(|arc| arc.iter().fold(0_u64, |arc, byte| arc.wrapping_shl(7) | u64::from(byte & 0x7f)));
    let first = arcs.next().unwrap_or(0);
    let top = (first / 40).min(2);
    let rest = arcs.map(|arc| format!(".{arc}"));
    std::iter::once(format!("{top}.{}", first - top * 40)).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyKind;

    fn stored(kind: KeyKind) -> Vec<u8> {
        PrivateKey::generate(kind).unwrap().to_pkcs8().unwrap().to_vec()
    }

    fn inner(pkcs8: &[u8]) -> Vec<u8> {
        der::items(pkcs8).nth(2).unwrap().1.to_vec()
    }

    fn wrapped(algorithm: &[&[u8]], key: &[u8]) -> Vec<u8> {
        let algorithm = der::cat(der::SEQUENCE, algorithm);
        der::cat(der::SEQUENCE, &[&der::unsigned(&[]), &algorithm, &der::octets(key)])
    }

    fn refused(der: &[u8]) -> Pkcs8Error {
        PrivateKey::from_pkcs8(der).err().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        for kind in [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048] {
            let key = PrivateKey::generate(kind).unwrap();

            let again = PrivateKey::from_pkcs8(&key.to_pkcs8().unwrap()).unwrap();

            assert_eq!(again.public(), key.public());
        }
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        assert_eq!(refused(&inner(&stored(KeyKind::EcP256))), Pkcs8Error::BareEc);
        assert_eq!(refused(&inner(&stored(KeyKind::Rsa2048))), Pkcs8Error::BareRsa);
        for der in [&[][..], b"no key", &[0x30, 0], &stored(KeyKind::EcP384)[..50]] {
            assert_eq!(refused(der), Pkcs8Error::Malformed);
        }
    }

    #[test]
    fn other_kinds_are_refused_by_name() {
        let key = inner(&stored(KeyKind::EcP256));
        let under = |algorithm: &[u8], curve: &[u8]| {
            refused(&wrapped(&[&der::oid(algorithm), &der::oid(curve)], &key))
        };
        assert_eq!(under(EC, P521), Pkcs8Error::Kind(UnusedKind::Ec("P-521")));
        assert_eq!(under(EC, P224), Pkcs8Error::Kind(UnusedKind::Ec("P-224")));
        assert_eq!(under(EC, &[0x2b, 0x81, 0x04, 0, 0x0a]), Pkcs8Error::Curve);
        assert_eq!(under(ED25519, &[]), Pkcs8Error::Kind(UnusedKind::Ed25519));
        assert_eq!(under(X25519, &[]), Pkcs8Error::Kind(UnusedKind::X25519));
        let pss = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];
        assert_eq!(under(&pss, &[]), Pkcs8Error::Algorithm("1.2.840.113549.1.1.10".to_owned()));
        let explicit = wrapped(&[&der::oid(EC), &der::cat(der::SEQUENCE, &[])], &key);
        assert_eq!(refused(&explicit), Pkcs8Error::Curve);
        let modulus = [&[0x0f][..], &[0xff; 127]].concat();
        let small = der::cat(der::SEQUENCE, &[&der::unsigned(&[]), &der::unsigned(&modulus)]);
        assert_eq!(
            refused(&wrapped(&[&der::oid(RSA), &der::null()], &small)),
            Pkcs8Error::Kind(UnusedKind::Rsa(1020))
        );
    }
}
