//! Certificate signing requests (RFC 2986).
//!
//! SPIRE takes requests whose self-signature is wrong and keys that are too weak to sign with; here
//! both are refused: a signature over the request is the only proof that the asker holds the key.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_PKCS9_EXTENSION_REQUEST;
use x509_parser::prelude::FromDer;

use super::build::{SUBJECT_ALT_NAME, algorithm, alt_names, extension};
use super::parse::is_readable;
use super::verify::{SignatureAlgorithm, check_signature};
use super::{Name, der, form};
use crate::SpiffeId;
use crate::key::{KeyError, PrivateKey, PublicKey, PublicKeyKind};

/// The longest request that is looked at.
const MAX_CSR: usize = 64 * 1024;
/// The most names of one kind that are looked at.
const MAX_NAMES: usize = 1000;
/// The weakest RSA key that is signed.
const MIN_RSA_BITS: usize = 2048;

/// A request that was read. Extensions other than names are ignored, as SPIRE ignores them.
#[derive(Clone, Debug)]
pub struct Csr {
    /// The key to certify.
    pub public_key: PublicKey,
    /// The subject asked for.
    pub subject: Name,
    /// The URIs asked for.
    pub uris: Vec<String>,
    /// The DNS names asked for.
    pub dns_names: Vec<String>,
    tbs: Vec<u8>,
    signature: Vec<u8>,
    algorithm: SignatureAlgorithm,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It is no request.
    #[error("malformed certificate request")]
    Malformed,
    /// It is longer than is looked at.
    #[error("certificate request is too long")]
    TooLong,
    /// The key is of a kind or size that is not signed.
    #[error(
        "unsupported public key: use ECDSA on P-256, P-384 or P-521, Ed25519, or RSA of at least 2048 bits"
    )]
    WeakKey,
    /// The request is not signed by the key it names.
    #[error("signature check failed")]
    BadSignature,
}

impl Csr {
    /// Reads a request in DER without checking its signature.
    ///
    /// # Errors
    /// [`CsrError::Malformed`] or [`CsrError::TooLong`].
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR {
            return Err(CsrError::TooLong);
        }
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &csr.certification_request_info;
        let mut attributes =
            info.iter_attributes().filter(|attribute| attribute.oid == OID_PKCS9_EXTENSION_REQUEST);
        if !form::is_asked(info.subject.as_raw())
            || !attributes.all(|attribute| form::are_asked(attribute.value))
        {
            return Err(CsrError::Malformed);
        }
        let public_key = PublicKey::from_info(&info.subject_pki).map_err(|_| CsrError::Malformed)?;
        let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                for name in names.general_names.iter().take(MAX_NAMES) {
                    if let GeneralName::URI(uri) = name {
                        if !is_readable(uri) {
                            return Err(CsrError::Malformed);
                        }
                        uris.push((*uri).to_owned());
                    } else if let GeneralName::DNSName(dns) = name {
                        dns_names.push((*dns).to_owned());
                    }
                }
            }
        }
        Ok(Self {
            public_key,
            subject: Name::from_der(info.subject.as_raw()),
            uris,
            dns_names,
            tbs: info.raw.to_vec(),
            signature: csr.signature_value.data.to_vec(),
            algorithm: SignatureAlgorithm::read(&csr.signature_algorithm),
        })
    }

    /// Reads a request, refuses keys that are not signed, and checks that the key signed it.
    ///
    /// # Errors
    /// Any of [`CsrError`].
    pub fn verify(der: &[u8]) -> Result<Self, CsrError> {
        let csr = Self::parse(der)?;
        match csr.public_key.kind() {
            PublicKeyKind::EcP256
            | PublicKeyKind::EcP384
            | PublicKeyKind::EcP521
            | PublicKeyKind::Ed25519 => {}
            PublicKeyKind::Rsa(bits) if bits >= MIN_RSA_BITS => {}
            PublicKeyKind::Rsa(_) | PublicKeyKind::Other => {
                return Err(CsrError::WeakKey);
            }
        }
        check_signature(csr.algorithm, &csr.public_key, &csr.tbs, &csr.signature)
            .map_err(|_| CsrError::BadSignature)?;
        Ok(csr)
    }
}

/// What goes into a request.
#[derive(Clone, Debug)]
pub struct CsrTemplate {
    /// The subject.
    pub subject: Name,
    /// The identity; agents ask without one.
    pub id: Option<SpiffeId>,
    /// DNS names beside it.
    pub dns_names: Vec<String>,
}

impl CsrTemplate {
    /// The bytes to sign for the owner of `public_key`.
    #[must_use]
    pub fn tbs(&self, public_key: &PublicKey) -> Vec<u8> {
        let attributes = if self.id.is_none() && self.dns_names.is_empty() {
            Vec::new()
        } else {
            let names = extension(SUBJECT_ALT_NAME, false, &alt_names(&self.dns_names, self.id.as_ref()));
            let extensions = der::tlv(der::SEQUENCE, &names);
            // extensionRequest (PKCS #9)
            let oid = der::oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 14]);
            der::cat(der::SEQUENCE, &[&oid, &der::tlv(der::SET, &extensions)])
        };
        der::cat(
            der::SEQUENCE,
            &[&der::unsigned(&[]), self.subject.as_der(), public_key.spki(), &der::explicit(0, &attributes)],
        )
    }

    /// Joins signed bytes with their signature.
    #[must_use]
    pub fn assemble(tbs: &[u8], alg: crate::key::SigAlg, signature: &crate::key::Signature) -> Vec<u8> {
        der::cat(der::SEQUENCE, &[tbs, &algorithm(alg), &der::bits(signature.as_bytes())])
    }

    /// The whole request, signed by `key`.
    ///
    /// # Errors
    /// As [`PrivateKey::sign`].
    pub fn sign(&self, key: &PrivateKey) -> Result<Vec<u8>, KeyError> {
        let tbs = self.tbs(key.public());
        let alg = key.sig_alg()?;
        Ok(Self::assemble(&tbs, alg, &key.sign(alg, &tbs)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyKind;
    use crate::x509::Attribute;

    fn template() -> CsrTemplate {
        CsrTemplate {
            subject: Name::new(&[(Attribute::Country, "US"), (Attribute::Organization, "SPIRE")]),
            id: SpiffeId::parse("spiffe://example.org/web").ok(),
            dns_names: vec!["web.example.org".to_owned()],
        }
    }

    #[test]
    fn a_request_reads_back() {
        for kind in [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048] {
            let key = PrivateKey::generate(kind).unwrap();

            let csr = Csr::verify(&template().sign(&key).unwrap()).unwrap();

            assert_eq!(csr.public_key, *key.public());
            assert_eq!(csr.uris, ["spiffe://example.org/web"]);
            assert_eq!(csr.dns_names, ["web.example.org"]);
            assert_eq!(csr.subject.to_string(), "O=SPIRE,C=US");
        }
    }

    #[test]
    fn a_request_with_a_uri_that_cannot_be_read_is_none() {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let der = template().sign(&key).unwrap();
        let place = |text: &[u8]| der.windows(text.len()).position(|window| window == text).unwrap();

        let mut parsed = der.clone();
        parsed[place(b"example.org/web") + 3] = b' ';
        assert_eq!(Csr::parse(&parsed).unwrap_err(), CsrError::Malformed);
        let mut parsed = der.clone();
        parsed[place(b"/web")] = b'.';
        assert_eq!(Csr::parse(&parsed).unwrap().uris, ["spiffe://example.org.web"]);
    }

    #[test]
    fn a03_a_request_signed_by_another_key_is_refused() {
        let (mine, other) =
            (PrivateKey::generate(KeyKind::EcP256).unwrap(), PrivateKey::generate(KeyKind::EcP256).unwrap());
        let tbs = template().tbs(mine.public());
        let alg = other.sig_alg().unwrap();

        let forged = CsrTemplate::assemble(&tbs, alg, &other.sign(alg, &tbs).unwrap());

        assert_eq!(Csr::verify(&forged).map(|_| ()), Err(CsrError::BadSignature));
        assert!(Csr::parse(&forged).is_ok());
    }
}
