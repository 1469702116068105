//! Path validation (RFC 5280, section 6) and the judgement of X.509-SVIDs (X509-SVID, section 5).
//!
//! The rules are those of Go's verifier, which SPIRE stands on, where the standards leave room: any
//! certificate of the bundle is an anchor, intermediates included; anchors that have expired anchor
//! nothing; extended key usages of signing certificates do not matter. Work is bounded: certificates,
//! depth and signature checks are counted before any crypto.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P256_SHA512_ASN1, ECDSA_P384_SHA256_ASN1,
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA512_ASN1, ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA384_ASN1,
    ECDSA_P521_SHA512_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::signature_algorithm::SignatureAlgorithm as ParsedAlgorithm;
use x509_parser::x509::AlgorithmIdentifier;

use super::Certificate;
use crate::key::{BadSignature, PublicKey, PublicKeyKind};
use crate::{IdError, SpiffeId, UnixSecs};

/// The most certificates a peer may send.
const MAX_CHAIN: usize = 32;
/// The longest path, leaf and anchor included.
const MAX_DEPTH: usize = 16;
/// The most signatures that are checked for one path.
const MAX_SIGNATURES: usize = 64;

/// The signature algorithms that are accepted; all else is `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignatureAlgorithm {
    Ecdsa(Hash),
    Pkcs1(Hash),
    Pss(Hash),
    Ed25519,
    Other,
}

/// The hash functions that are accepted in signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// Why no path leads from a leaf to an anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The peer sent more certificates than are looked at.
    #[error("chain has more than {MAX_CHAIN} certificates")]
    TooLong,
    /// A certificate on the way is not yet or no longer valid.
    #[error("certificate has expired or is not yet valid")]
    Expired,
    /// No anchor signed any certificate of the chain, or a rule on the way was broken.
    #[error("certificate signed by unknown authority")]
    UnknownAuthority,
    /// A certificate has a critical extension that is not understood.
    #[error("unhandled critical extension")]
    UnknownExtension,
    /// A signing certificate is none, or signs too long a path.
    #[error("certificate is not allowed to sign this path")]
    NotAuthorized,
    /// A name is outside the constraints of a signing certificate.
    #[error("name is not permitted by a name constraint")]
    NameConstraint,
    /// More work than is done for one path.
    #[error("path is too complicated")]
    TooComplicated,
}

/// Why a certificate chain is no X.509-SVID of the trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// The chain is empty.
    #[error("empty certificates chain")]
    Empty,
    /// The leaf has no URI SAN.
    #[error("certificate contains no URI SAN")]
    NoUri,
    /// The leaf has several URI SANs.
    #[error("certificate contains more than one URI SAN")]
    ManyUris,
    /// The leaf's URI is no SPIFFE ID.
    #[error("leaf certificate has an invalid URI: {0}")]
    BadId(#[from] IdError),
    /// The leaf names a trust domain instead of a workload.
    #[error("leaf certificate has a SPIFFE ID without path")]
    NoPath,
    /// The leaf is a signing certificate.
    #[error("leaf certificate with CA flag set to true")]
    IsCa,
    /// The leaf may sign certificates.
    #[error("leaf certificate with KeyCertSign key usage")]
    CertSign,
    /// The leaf may sign revocation lists.
    #[error("leaf certificate with KeyCrlSign key usage")]
    CrlSign,
    /// The leaf's key usage is missing, not critical, or without digital signatures.
    #[error("leaf certificate without critical DigitalSignature key usage")]
    NoDigitalSignature,
    /// The leaf's extended key usage lacks client or server authentication.
    #[error("leaf certificate without both client and server authentication")]
    WrongPurpose,
    /// No path leads to the bundle of the leaf's trust domain.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Judges `chain`, leaf first, against the anchors of its own trust domain and hands back its id.
///
/// # Errors
/// Any of [`SvidError`].
pub fn verify_svid(
    chain: &[Certificate],
    anchors: &[Certificate],
    now: UnixSecs,
) -> Result<SpiffeId, SvidError> {
    let (leaf, intermediates) = chain.split_first().ok_or(SvidError::Empty)?;
    let id = leaf_id(leaf)?;
    verify_path(leaf, intermediates, anchors, now)?;
    Ok(id)
}

/// The id of a leaf, with every rule that needs no bundle (X509-SVID, sections 4 and 5.2).
///
/// # Errors
/// Any of [`SvidError`] but the path's.
pub fn leaf_id(leaf: &Certificate) -> Result<SpiffeId, SvidError> {
    let id = match leaf.uris() {
        [] => return Err(SvidError::NoUri),
        [uri] => SpiffeId::parse(uri)?,
        _ => return Err(SvidError::ManyUris),
    };
    if id.path().is_empty() {
        return Err(SvidError::NoPath);
    }
    if leaf.is_ca() {
        return Err(SvidError::IsCa);
    }
    let usage = leaf.key_usage().ok_or(SvidError::NoDigitalSignature)?;
    if usage.cert_sign {
        return Err(SvidError::CertSign);
    }
    if usage.crl_sign {
        return Err(SvidError::CrlSign);
    }
    if !usage.critical || !usage.digital_signature {
        return Err(SvidError::NoDigitalSignature);
    }
    let fits =
        |purposes: super::parse::Purposes| purposes.any || (purposes.server_auth && purposes.client_auth);
    if !leaf.purposes().is_none_or(fits) {
        return Err(SvidError::WrongPurpose);
    }
    Ok(id)
}

/// Finds a path from `leaf` over `intermediates` to one of `anchors` that is valid at `now`.
///
/// # Errors
/// The reason that the most promising attempt failed for.
pub fn verify_path(
    leaf: &Certificate,
    intermediates: &[Certificate],
    anchors: &[Certificate],
    now: UnixSecs,
) -> Result<(), PathError> {
    find_path(leaf, intermediates, anchors, now).map(drop)
}

/// As [`verify_path`], and hands back the path: leaf first, anchor last.
///
/// # Errors
/// The reason that the most promising attempt failed for.
pub fn find_path<'a>(
    leaf: &'a Certificate,
    intermediates: &'a [Certificate],
    anchors: &'a [Certificate],
    now: UnixSecs,
) -> Result<Vec<&'a Certificate>, PathError> {
    if intermediates.len() >= MAX_CHAIN {
        return Err(PathError::TooLong);
    }
    if leaf.has_unknown_critical() {
        return Err(PathError::UnknownExtension);
    }
    check_time(leaf, now)?;
    let mut search = Search { intermediates, anchors, now, signatures: 0 };
    let mut path = vec![leaf];
    search.extend(&mut path)?;
    Ok(path)
}

struct Search<'a> {
    intermediates: &'a [Certificate],
    anchors: &'a [Certificate],
    now: UnixSecs,
    signatures: usize,
}

impl<'a> Search<'a> {
    /// Extends `path`, leaf first, up to an anchor; anchors are tried before intermediates. On
    /// failure the path is as it was.
    fn extend(&mut self, path: &mut Vec<&'a Certificate>) -> Result<(), PathError> {
        let Some(child) = path.last().copied() else { return Err(PathError::UnknownAuthority) };
        let mut reason = PathError::UnknownAuthority;
        let anchors = self.anchors;
        for anchor in likely(anchors, child) {
            match self.check_issuer(anchor, path) {
                Ok(()) => {
                    path.push(anchor);
                    return Ok(());
                }
                Err(PathError::TooComplicated) => return Err(PathError::TooComplicated),
                Err(why) => reason = why,
            }
        }
        if path.len() + 1 >= MAX_DEPTH {
            return Err(reason);
        }
        let intermediates = self.intermediates;
        for issuer in likely(intermediates, child) {
            // The same subject and key twice on a path leads nowhere.
            if path
                .iter()
                .any(|seen| seen.subject() == issuer.subject() && seen.public_key() == issuer.public_key())
            {
                continue;
            }
            match self.check_issuer(issuer, path) {
                Ok(()) => {
                    path.push(issuer);
                    match self.extend(path) {
                        Ok(()) => return Ok(()),
                        Err(PathError::TooComplicated) => return Err(PathError::TooComplicated),
                        Err(PathError::UnknownAuthority) => {}
                        Err(why) => reason = why,
                    }
                    path.pop();
                }
                Err(PathError::TooComplicated) => return Err(PathError::TooComplicated),
                Err(why) => reason = why,
            }
        }
        Err(reason)
    }

    /// Whether `issuer` may stand above `path` and signed its last certificate.
    fn check_issuer(&mut self, issuer: &Certificate, path: &[&Certificate]) -> Result<(), PathError> {
        if issuer.has_unknown_critical() {
            return Err(PathError::UnknownExtension);
        }
        check_time(issuer, self.now)?;
        let constraints = issuer.basic_constraints().filter(|constraints| constraints.is_ca);
        // Version 1 certificates have no extensions at all; they are no signing certificates here.
        let (true, Some(constraints)) = (issuer.is_v3(), constraints) else {
            return Err(PathError::NotAuthorized);
        };
        if issuer.key_usage().is_some_and(|usage| !usage.cert_sign) {
            return Err(PathError::NotAuthorized);
        }
        let below = path.len() - 1;
        if constraints.path_len.is_some_and(|most| usize::try_from(most).is_ok_and(|most| below > most)) {
            return Err(PathError::NotAuthorized);
        }
        if let Some(constraints) = issuer.constraints()
            && !path.iter().all(|certificate| constraints.admit(certificate.names()))
        {
            return Err(PathError::NameConstraint);
        }
        let Some(child) = path.last() else { return Err(PathError::UnknownAuthority) };
        self.signatures += 1;
        if self.signatures > MAX_SIGNATURES {
            return Err(PathError::TooComplicated);
        }
        let (signed, algorithm, signature) = child.signed_part();
        check_signature(algorithm, issuer.public_key(), signed, signature)
            .map_err(|_| PathError::UnknownAuthority)
    }
}

fn check_time(certificate: &Certificate, now: UnixSecs) -> Result<(), PathError> {
    let valid = certificate.not_before() <= now && now <= certificate.not_after();
    if valid { Ok(()) } else { Err(PathError::Expired) }
}

/// Those of `certificates` whose name is that of the issuer of `child`, the likeliest first. Key
/// identifiers say which to try first, and no more (RFC 5280, 4.2.1.1): there are authorities that were
/// made anew with another one.
fn likely<'a>(
    certificates: &'a [Certificate],
    child: &'a Certificate,
) -> impl Iterator<Item = &'a Certificate> {
    [Likeness::Same, Likeness::Unknown, Likeness::Other].into_iter().flat_map(move |wanted| {
        certificates.iter().filter(move |issuer| {
            let likeness = match (issuer.subject_key_id(), child.authority_key_id()) {
                (Some(own), Some(named)) if own == named => Likeness::Same,
                (Some(_), Some(_)) => Likeness::Other,
                _ => Likeness::Unknown,
            };
            likeness == wanted && issuer.subject() == child.issuer()
        })
    })
}

/// How an issuer's key identifier relates to the one that a certificate names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Likeness {
    Same,
    Unknown,
    Other,
}

impl SignatureAlgorithm {
    /// Reads the identifier; parameters that the standards do not allow make it `Other`.
    pub(super) fn read(identifier: &AlgorithmIdentifier<'_>) -> Self {
        match identifier.algorithm.as_bytes() {
            // 1.2.840.10045.4.3
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => return Self::Ecdsa(Hash::Sha256),
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => return Self::Ecdsa(Hash::Sha384),
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4] => return Self::Ecdsa(Hash::Sha512),
            // 1.2.840.113549.1.1
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11] => return Self::Pkcs1(Hash::Sha256),
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12] => return Self::Pkcs1(Hash::Sha384),
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13] => return Self::Pkcs1(Hash::Sha512),
            // 1.3.101.112
            [0x2b, 0x65, 0x70] => return Self::Ed25519,
            // RSASSA-PSS: its parameters say which.
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10] => {}
            _ => return Self::Other,
        }
        let Ok(ParsedAlgorithm::RSASSA_PSS(parameters)) = ParsedAlgorithm::try_from(identifier) else {
            return Self::Other;
        };
        match parameters.hash_algorithm_oid().as_bytes() {
            // 2.16.840.1.101.3.4.2
            [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1] => Self::Pss(Hash::Sha256),
            [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2] => Self::Pss(Hash::Sha384),
            [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3] => Self::Pss(Hash::Sha512),
            _ => Self::Other,
        }
    }

    /// The verifier for this algorithm under a key of `kind`.
    fn verifier(self, kind: PublicKeyKind) -> Option<&'static dyn VerificationAlgorithm> {
        use Hash::{Sha256, Sha384, Sha512};
        use PublicKeyKind::{EcP256, EcP384, EcP521, Rsa};
        Some(match (self, kind) {
            (Self::Ecdsa(Sha256), EcP256) => &ECDSA_P256_SHA256_ASN1,
            (Self::Ecdsa(Sha384), EcP256) => &ECDSA_P256_SHA384_ASN1,
            (Self::Ecdsa(Sha512), EcP256) => &ECDSA_P256_SHA512_ASN1,
            (Self::Ecdsa(Sha256), EcP384) => &ECDSA_P384_SHA256_ASN1,
            (Self::Ecdsa(Sha384), EcP384) => &ECDSA_P384_SHA384_ASN1,
            (Self::Ecdsa(Sha512), EcP384) => &ECDSA_P384_SHA512_ASN1,
            (Self::Ecdsa(Sha256), EcP521) => &ECDSA_P521_SHA256_ASN1,
            (Self::Ecdsa(Sha384), EcP521) => &ECDSA_P521_SHA384_ASN1,
            (Self::Ecdsa(Sha512), EcP521) => &ECDSA_P521_SHA512_ASN1,
            (Self::Pkcs1(Sha256), Rsa(_)) => &RSA_PKCS1_2048_8192_SHA256,
            (Self::Pkcs1(Sha384), Rsa(_)) => &RSA_PKCS1_2048_8192_SHA384,
            (Self::Pkcs1(Sha512), Rsa(_)) => &RSA_PKCS1_2048_8192_SHA512,
            (Self::Pss(Sha256), Rsa(_)) => &RSA_PSS_2048_8192_SHA256,
            (Self::Pss(Sha384), Rsa(_)) => &RSA_PSS_2048_8192_SHA384,
            (Self::Pss(Sha512), Rsa(_)) => &RSA_PSS_2048_8192_SHA512,
            (Self::Ed25519, PublicKeyKind::Ed25519) => &ED25519,
            _ => return None,
        })
    }
}

/// Checks a signature in DER form under `key`.
pub(super) fn check_signature(
    algorithm: SignatureAlgorithm,
    key: &PublicKey,
    message: &[u8],
    signature: &[u8],
) -> Result<(), BadSignature> {
    let verifier = algorithm.verifier(key.kind()).ok_or(BadSignature)?;
    check(verifier, key, message, signature)
}

pub(crate) fn check(
    verifier: &'static dyn VerificationAlgorithm,
    key: &PublicKey,
    message: &[u8],
    signature: &[u8],
) -> Result<(), BadSignature> {
    let key = UnparsedPublicKey::new(verifier, key.raw());
    key.verify(message, signature).map_err(|_: aws_lc_rs::error::Unspecified| BadSignature)
}
