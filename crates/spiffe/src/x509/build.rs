//! Certificates, written in two steps: [`X509Template::tbs`] gives the bytes to be signed, and
//! [`assemble`] joins them with a signature made wherever the key is.
//!
//! The order and criticality of extensions are those that SPIRE's certificates have: key usage,
//! extended key usage, basic constraints, subject and authority key identifier, names.

use std::fmt;
use std::sync::{Arc, LazyLock};

use super::Name;
use super::der;
use crate::key::{PublicKey, SigAlg, Signature};
use crate::{SpiffeId, UnixSecs};

pub(super) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
pub(super) const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
pub(super) const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
pub(super) const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];
pub(super) const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
pub(super) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
pub(super) const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
pub(super) const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// Bits of key usage by their number (RFC 5280, 4.2.1.3).
const SVID_USAGE: u16 = 1 | 1 << 2 | 1 << 4;
const CA_USAGE: u16 = 1 << 5 | 1 << 6;

/// A certificate in DER. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CertDer(Arc<[u8]>);

impl CertDer {
    /// The certificate of these bytes, unread.
    #[must_use]
    pub fn new(der: &[u8]) -> Self {
        Self(der.into())
    }

    /// The DER.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The DER, shared.
    #[must_use]
    pub fn to_shared(&self) -> Arc<[u8]> {
        Arc::clone(&self.0)
    }
}

impl AsRef<[u8]> for CertDer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for CertDer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertDer({} bytes)", self.0.len())
    }
}

/// A certificate's serial number: positive, at most 16 bytes when made here.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Serial(Arc<[u8]>);

impl Serial {
    /// The number of these big-endian bytes.
    #[must_use]
    pub fn from_be_bytes(bytes: &[u8]) -> Self {
        let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        Self(bytes.get(start..).unwrap_or_default().into())
    }

    /// The bytes, big-endian, without leading zeros.
    #[must_use]
    pub fn as_be_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    /// In decimal, as the datastore and the API have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits: Vec<u8> = vec![0];
        for byte in self.0.iter() {
            let mut carry = u32::from(*byte);
            for digit in &mut digits {
                carry += u32::from(*digit) << 8;
                *digit = u8::try_from(carry % 10).unwrap_or(0);
                carry /= 10;
            }
            while carry > 0 {
                digits.push(u8::try_from(carry % 10).unwrap_or(0));
                carry /= 10;
            }
        }
        digits.iter().rev().try_for_each(|digit| write!(f, "{digit}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// From when to when a certificate holds, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: UnixSecs,
    /// The last second.
    pub not_after: UnixSecs,
}

/// What the certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An X.509-SVID of a workload, agent or server.
    Svid,
    /// A signing certificate.
    Ca,
}

impl Role {
    /// What certificates are for, the same in all of a role: made once.
    fn extensions(self) -> &'static [u8] {
        static SVID: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let purposes = der::cat(der::SEQUENCE, &[&der::oid(SERVER_AUTH), &der::oid(CLIENT_AUTH)]);
            [
                extension(KEY_USAGE, true, &der::named_bits(SVID_USAGE)),
                extension(EXTENDED_KEY_USAGE, false, &purposes),
                extension(BASIC_CONSTRAINTS, true, &der::tlv(der::SEQUENCE, &[])),
            ]
            .concat()
        });
        static CA: LazyLock<Vec<u8>> = LazyLock::new(|| {
            [
                extension(KEY_USAGE, true, &der::named_bits(CA_USAGE)),
                extension(BASIC_CONSTRAINTS, true, &der::tlv(der::SEQUENCE, &der::truth())),
            ]
            .concat()
        });
        match self {
            Self::Svid => &SVID,
            Self::Ca => &CA,
        }
    }
}

/// What goes into a certificate.
#[derive(Clone, Debug)]
pub struct X509Template {
    /// Its serial number.
    pub serial: Serial,
    /// Its subject.
    pub subject: Name,
    /// From when to when it holds.
    pub validity: Validity,
    /// Whose key it is about.
    pub public_key: PublicKey,
    /// Its identity.
    pub id: SpiffeId,
    /// DNS names beside the identity.
    pub dns_names: Vec<String>,
    /// What it is for.
    pub role: Role,
}

/// Who signs.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// The issuer's subject, to the byte.
    pub name: Name,
    /// The issuer's subject key identifier; `None` on a self-signed certificate.
    pub key_id: Option<Vec<u8>>,
}

/// The to-be-signed part of a certificate and the algorithm it names.
#[derive(Clone)]
pub struct Tbs {
    bytes: Vec<u8>,
    alg: SigAlg,
}

impl Tbs {
    #[cfg(test)]
    pub(super) const fn of(bytes: Vec<u8>, alg: SigAlg) -> Self {
        Self { bytes, alg }
    }

    /// The bytes to sign.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How to sign them.
    #[must_use]
    pub const fn alg(&self) -> SigAlg {
        self.alg
    }
}

impl fmt::Debug for Tbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tbs({} bytes, {:?})", self.bytes.len(), self.alg)
    }
}

impl X509Template {
    /// The to-be-signed part under `issuer`, to be signed with `alg`.
    #[must_use]
    pub fn tbs(&self, issuer: &Issuer, alg: SigAlg) -> Tbs {
        let version = der::explicit(0, &der::unsigned(&[2]));
        let validity = der::cat(
            der::SEQUENCE,
            &[&der::instant(self.validity.not_before), &der::instant(self.validity.not_after)],
        );
        let extensions = der::explicit(3, &der::tlv(der::SEQUENCE, &self.extensions(issuer)));
        let bytes = der::cat(
            der::SEQUENCE,
            &[
                &version,
                &der::unsigned(self.serial.as_be_bytes()),
                &algorithm(alg),
                issuer.name.as_der(),
                &validity,
                self.subject.as_der(),
                self.public_key.spki(),
                &extensions,
            ],
        );
        Tbs { bytes, alg }
    }

    fn extensions(&self, issuer: &Issuer) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(self.role.extensions());
        out.extend(extension(SUBJECT_KEY_ID, false, &der::octets(&self.public_key.key_id())));
        if let Some(key_id) = &issuer.key_id {
            let value = der::tlv(der::SEQUENCE, &der::implicit(0, key_id));
            out.extend(extension(AUTHORITY_KEY_ID, false, &value));
        }
        // RFC 5280 4.2.1.6: critical where the subject is empty.
        let is_critical = self.subject.is_empty();
        let names = alt_names(&self.dns_names, Some(&self.id));
        out.extend(extension(SUBJECT_ALT_NAME, is_critical, &names));
        out
    }
}

/// Joins the to-be-signed part with its signature.
#[must_use]
pub fn assemble(tbs: &Tbs, signature: &Signature) -> CertDer {
    let der = der::cat(der::SEQUENCE, &[&tbs.bytes, &algorithm(tbs.alg), &der::bits(signature.as_bytes())]);
    CertDer(der.into())
}

/// The `AlgorithmIdentifier` of a signature.
pub(super) fn algorithm(alg: SigAlg) -> Vec<u8> {
    let ecdsa = |last: u8| der::tlv(der::SEQUENCE, &der::oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, last]));
    match alg {
        SigAlg::EcdsaP256Sha256 | SigAlg::EcdsaP384Sha256 | SigAlg::EcdsaP521Sha256 => ecdsa(2),
        SigAlg::EcdsaP384Sha384 => ecdsa(3),
        SigAlg::EcdsaP521Sha512 => ecdsa(4),
        SigAlg::RsaPkcs1Sha256 => {
            let oid = der::oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11]);
            der::cat(der::SEQUENCE, &[&oid, &der::null()])
        }
        SigAlg::RsaPssSha256 => {
            let sha256 =
                der::cat(der::SEQUENCE, &[&der::oid(&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1]), &der::null()]);
            let mgf = der::cat(
                der::SEQUENCE,
                &[&der::oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8]), &sha256],
            );
            let parameters = der::cat(
                der::SEQUENCE,
                &[
                    &der::explicit(0, &sha256),
                    &der::explicit(1, &mgf),
                    &der::explicit(2, &der::unsigned(&[32])),
                ],
            );
            let oid = der::oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10]);
            der::cat(der::SEQUENCE, &[&oid, &parameters])
        }
    }
}

/// An `AlgorithmIdentifier` with an object identifier or nothing (`NULL`) as its parameter.
pub(crate) fn algorithm_der(oid: &[u8], parameter: Option<&[u8]>) -> Vec<u8> {
    let parameter = parameter.map_or_else(|| der::null().to_vec(), der::oid);
    der::cat(der::SEQUENCE, &[&der::oid(oid), &parameter])
}

/// A `SubjectPublicKeyInfo`.
pub(crate) fn spki_der(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    der::cat(der::SEQUENCE, &[algorithm, &der::bits(key)])
}

/// An `RSAPublicKey`.
pub(crate) fn rsa_public_key_der(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    der::cat(der::SEQUENCE, &[&der::unsigned(modulus), &der::unsigned(exponent)])
}

/// The value of a subject alternative name extension: DNS names, then the URI.
pub(super) fn alt_names(dns_names: &[String], id: Option<&SpiffeId>) -> Vec<u8> {
    let mut names = Vec::new();
    for name in dns_names {
        names.extend(der::implicit(2, name.as_bytes()));
    }
    if let Some(id) = id {
        names.extend(der::implicit(6, id.as_str().as_bytes()));
    }
    der::tlv(der::SEQUENCE, &names)
}

/// One extension.
pub(super) fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { der::truth() } else { Vec::new() };
    der::cat(der::SEQUENCE, &[&der::oid(oid), &critical, &der::octets(value)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_in_decimal() {
        assert_eq!(Serial::from_be_bytes(&[]).to_string(), "0");
        assert_eq!(Serial::from_be_bytes(&[0, 255]).to_string(), "255");
        assert_eq!(Serial::from_be_bytes(&[0xff; 16]).to_string(), "340282366920938463463374607431768211455");
    }
}
