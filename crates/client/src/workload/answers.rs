//! Answers of the Workload API, parsed at the door.
//!
//! An answer that lacks a mandatory field is discarded whole (Workload API, section 4.5).
//! Certificates are cut apart here; whether they are any good is for whoever verifies with them.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use proto::workload::{
    JwtBundlesResponse, Jwtsvid, ValidateJwtsvidResponse, X509BundlesResponse, X509svid, X509svidResponse,
};
use rustls::pki_types::CertificateDer;
use spiffe::{IdError, SpiffeId, TrustDomain};
use zeroize::Zeroizing;

/// More certificates than this in one field are an attack or a mistake.
const MOST_CERTIFICATES: usize = 10_000;

/// All identities of the caller and the bundles to verify peers with.
#[derive(Debug)]
pub struct X509Update {
    /// The identities: at least one, the default one first.
    pub svids: Vec<X509Svid>,
    /// The CA certificates by trust domain: those of the identities and federated ones.
    pub bundles: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    /// Revocation lists, DER.
    pub crls: Vec<Bytes>,
}

/// An X.509-SVID with its private key.
#[derive(Debug)]
pub struct X509Svid {
    /// Who it names.
    pub id: SpiffeId,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: Key,
    /// What it is for, where there are several.
    pub hint: String,
}

/// A private key, PKCS#8 DER. Wiped when dropped, never printed.
#[derive(Clone)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// The DER.
    #[must_use]
    pub fn secret_pkcs8(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The CA certificates of several trust domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Bundles {
    /// By trust domain.
    pub bundles: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    /// Revocation lists, DER.
    pub crls: Vec<Bytes>,
}

/// The JWT keys of several trust domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtBundles {
    /// By trust domain: a JWK set as JSON, as it came.
    pub bundles: BTreeMap<TrustDomain, Bytes>,
}

/// A JWT-SVID.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtSvid {
    /// Who it names.
    pub id: SpiffeId,
    /// The token. Whoever holds it can use it.
    pub token: Zeroizing<String>,
    /// What it is for, where there are several.
    pub hint: String,
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid").field("id", &self.id).field("hint", &self.hint).finish_non_exhaustive()
    }
}

/// What a good token says.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedJwt {
    /// Who it names.
    pub id: SpiffeId,
    /// All its claims.
    pub claims: proto::Claims,
}

/// Why an answer is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// A mandatory field is empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// An id is none.
    #[error("SPIFFE ID \"{}\": {reason}", text.escape_debug())]
    Id {
        /// What came.
        text: String,
        /// What is wrong with it.
        reason: IdError,
    },
    /// A list of certificates is none.
    #[error("{0} is no list of certificates")]
    Certificates(&'static str),
}

impl TryFrom<X509svidResponse> for X509Update {
    type Error = AnswerError;

    fn try_from(wire: X509svidResponse) -> Result<Self, AnswerError> {
        let mut bundles =
            by_trust_domain(wire.federated_bundles, |der| certificates("federated bundle", &der))?;
        let mut svids: Vec<X509Svid> = Vec::with_capacity(wire.svids.len());
        for wire in wire.svids {
            let own = certificates("bundle", &wire.bundle)?;
            let svid = X509Svid::try_from(wire)?;
            bundles.insert(svid.id.trust_domain(), own);
            // Hints are unique; of a wrong answer the first counts.
            if svid.hint.is_empty() || !svids.iter().any(|known| known.hint == svid.hint) {
                svids.push(svid);
            }
        }
        if svids.is_empty() {
            return Err(AnswerError::Empty("list of SVIDs"));
        }
        Ok(Self { svids, bundles, crls: wire.crl })
    }
}

impl TryFrom<X509svid> for X509Svid {
    type Error = AnswerError;

    fn try_from(wire: X509svid) -> Result<Self, AnswerError> {
        let chain = certificates("X.509-SVID", &wire.x509_svid)?;
        if chain.is_empty() {
            return Err(AnswerError::Empty("X.509-SVID"));
        }
        if wire.x509_svid_key.is_empty() {
            return Err(AnswerError::Empty("private key"));
        }
        Ok(Self {
            id: id(&wire.spiffe_id)?,
            chain,
            key: Key(Zeroizing::new(wire.x509_svid_key.to_vec())),
            hint: wire.hint,
        })
    }
}

impl TryFrom<X509BundlesResponse> for X509Bundles {
    type Error = AnswerError;

    fn try_from(wire: X509BundlesResponse) -> Result<Self, AnswerError> {
        let bundles = by_trust_domain(wire.bundles, |der| certificates("bundle", &der))?;
        Ok(Self { bundles, crls: wire.crl })
    }
}

impl TryFrom<JwtBundlesResponse> for JwtBundles {
    type Error = AnswerError;

    fn try_from(wire: JwtBundlesResponse) -> Result<Self, AnswerError> {
        Ok(Self { bundles: by_trust_domain(wire.bundles, Ok)? })
    }
}

impl TryFrom<Jwtsvid> for JwtSvid {
    type Error = AnswerError;

    fn try_from(wire: Jwtsvid) -> Result<Self, AnswerError> {
        if wire.svid.is_empty() {
            return Err(AnswerError::Empty("JWT-SVID"));
        }
        Ok(Self { id: id(&wire.spiffe_id)?, token: Zeroizing::new(wire.svid), hint: wire.hint })
    }
}

impl TryFrom<ValidateJwtsvidResponse> for ValidatedJwt {
    type Error = AnswerError;

    fn try_from(wire: ValidateJwtsvidResponse) -> Result<Self, AnswerError> {
        Ok(Self { id: id(&wire.spiffe_id)?, claims: wire.claims.unwrap_or_default() })
    }
}

fn id(text: &str) -> Result<SpiffeId, AnswerError> {
    SpiffeId::parse(text).map_err(|reason| AnswerError::Id { text: text.to_owned(), reason })
}

fn by_trust_domain<T>(
    wire: BTreeMap<String, Bytes>,
    read: impl Fn(Bytes) -> Result<T, AnswerError>,
) -> Result<BTreeMap<TrustDomain, T>, AnswerError> {
    let entry = |(text, bytes): (String, Bytes)| {
        let name = TrustDomain::parse(&text).map_err(|reason| AnswerError::Id { text, reason })?;
        Ok((name, read(bytes)?))
    };
    wire.into_iter().map(entry).collect()
}

/// Cuts concatenated DER apart.
fn certificates(what: &'static str, der: &[u8]) -> Result<Vec<CertificateDer<'static>>, AnswerError> {
    let mut found = Vec::new();
    let mut rest = der;
    while !rest.is_empty() {
        let length = sequence_length(rest).filter(|_| found.len() < MOST_CERTIFICATES);
        let (one, more) =
            length.and_then(|length| rest.split_at_checked(length)).ok_or(AnswerError::Certificates(what))?;
        found.push(CertificateDer::from(one.to_vec()));
        rest = more;
    }
    Ok(found)
}

/// The length of the DER SEQUENCE that `der` begins with, header included.
fn sequence_length(der: &[u8]) -> Option<usize> {
    let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
    if tag != 0x30 {
        return None;
    }
    if first < 0x80 {
        return Some(2 + usize::from(first));
    }
    let count = usize::from(first & 0x7f);
    if !(1..=4).contains(&count) {
        return None;
    }
    let length = rest.get(..count)?.iter().fold(0, |length: usize, byte| length << 8 | usize::from(*byte));
    length.checked_add(2 + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svid(hint: &str) -> X509svid {
        X509svid {
            spiffe_id: "spiffe://example.org/a".into(),
            x509_svid: Bytes::from_static(&[0x30, 1, 7, 0x30, 0x81, 1, 8]),
            x509_svid_key: Bytes::from_static(b"key"),
            bundle: Bytes::from_static(&[0x30, 0]),
            hint: hint.into(),
        }
    }

    fn update(svids: Vec<X509svid>) -> Result<X509Update, AnswerError> {
        X509Update::try_from(X509svidResponse { svids, ..Default::default() })
    }

    #[test]
    fn chains_are_cut_apart() {
        let update = update(vec![svid("")]).expect("valid");

        let chain: Vec<&[u8]> = update.svids[0].chain.iter().map(AsRef::as_ref).collect();
        assert_eq!(chain, [&[0x30, 1, 7][..], &[0x30, 0x81, 1, 8]]);
        assert_eq!(update.bundles.keys().map(TrustDomain::as_str).collect::<Vec<_>>(), ["example.org"]);
    }

    #[test]
    fn garbage_for_certificates_is_refused() {
        for garbage in [&[0x31, 0][..], &[0x30], &[0x30, 2, 1], &[0x30, 0x80], &[0x30, 0x85, 0, 0, 0, 0, 0]] {
            assert!(certificates("x", garbage).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn answers_that_lack_something_are_discarded() {
        let no_key = X509svid { x509_svid_key: Bytes::new(), ..svid("") };

        assert_eq!(update(vec![]).err(), Some(AnswerError::Empty("list of SVIDs")));
        assert_eq!(update(vec![no_key]).err(), Some(AnswerError::Empty("private key")));
    }

    #[test]
    fn of_equal_hints_the_first_counts() {
        let update = update(vec![svid("x"), svid("x"), svid(""), svid("")]).expect("valid");

        assert_eq!(update.svids.len(), 3);
    }

    #[test]
    fn keys_are_not_printed() {
        let update = update(vec![svid("")]).expect("valid");

        assert!(format!("{update:?}").contains("Key(..)"));
    }
}
