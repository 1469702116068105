//! Bundles: `spire.api.types.Bundle` of the APIs and `spire.common.Bundle` of the datastore.

use std::sync::Arc;

use bytes::Bytes;
use spiffe::bundle::{JwtAuthorityError, MAX_HINT};
use spiffe::x509::AnchorError;
use spiffe::{Bundle, IdError, JwtAuthority, TrustDomain, UnixSecs, X509Authority};

use crate::spire::{common, types};

/// Why a bundle could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The message is absent.
    #[error("no bundle provided")]
    Missing,
    /// A server answered with a trust domain that is none.
    #[error("bundle has an invalid trust domain \"{}\": {reason}", name.escape_debug())]
    AnsweredTrustDomain {
        /// What it answered.
        name: String,
        /// What is wrong with it.
        reason: IdError,
    },
    /// A request names a trust domain that is none.
    #[error("invalid trust domain: {0}")]
    TrustDomain(IdError),
    /// The datastore holds a trust domain id that is none.
    #[error("invalid trust domain id: {0}")]
    StoredTrustDomain(IdError),
    /// A key without an id.
    #[error("missing key ID")]
    MissingKeyId,
    /// A request holds something that is no X.509 authority.
    #[error("unable to parse X.509 authority: {0}")]
    X509Authority(AnchorError),
    /// A request holds something that is no JWT authority.
    #[error("unable to parse JWT authority: {0}")]
    JwtAuthority(JwtAuthorityError),
    /// A request holds WIT authorities, which nobody could take over yet.
    #[error("unable to parse WIT authority: WIT authorities cannot be set")]
    WitAuthority,
    /// A request's refresh hint is negative or beyond ten years.
    #[error("refresh hint is out of range")]
    RefreshHint,
}

impl From<&Bundle> for types::Bundle {
    fn from(bundle: &Bundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain.as_str().to_owned(),
            x509_authorities: bundle.x509_authorities.iter().map(Into::into).collect(),
            jwt_authorities: bundle.jwt_authorities.iter().map(Into::into).collect(),
            refresh_hint: bundle.refresh_hint,
            sequence_number: bundle.sequence_number,
            wit_authorities: bundle.wit_authorities.iter().map(Into::into).collect(),
        }
    }
}

/// A bundle as a server answers it.
impl TryFrom<&types::Bundle> for Bundle {
    type Error = BundleError;

    fn try_from(wire: &types::Bundle) -> Result<Self, BundleError> {
        let trust_domain = TrustDomain::parse(&wire.trust_domain)
            .map_err(|reason| BundleError::AnsweredTrustDomain { name: wire.trust_domain.clone(), reason })?;
        let jwt_authorities: Vec<JwtAuthority> = wire.jwt_authorities.iter().map(Into::into).collect();
        let wit_authorities: Vec<JwtAuthority> = wire.wit_authorities.iter().map(Into::into).collect();
        if jwt_authorities.iter().chain(&wit_authorities).any(|key| key.key_id.is_empty()) {
            return Err(BundleError::MissingKeyId);
        }
        Ok(Self {
            trust_domain,
            x509_authorities: wire.x509_authorities.iter().map(Into::into).collect(),
            jwt_authorities,
            wit_authorities,
            refresh_hint: wire.refresh_hint,
            sequence_number: wire.sequence_number,
        })
    }
}

/// The bundle of a request. Nobody taints by request, so taint flags are dropped.
///
/// # Errors
/// It is absent, of no trust domain, or holds what cannot be an authority; the first offence in the
/// order in which SPIRE looks is named.
pub fn requested(wire: Option<&types::Bundle>) -> Result<Bundle, BundleError> {
    let wire = wire.ok_or(BundleError::Missing)?;
    let trust_domain = TrustDomain::parse(&wire.trust_domain).map_err(BundleError::TrustDomain)?;
    trust_domain.check_length().map_err(BundleError::TrustDomain)?;
    let bundle = Bundle {
        trust_domain,
        x509_authorities: requested_x509(&wire.x509_authorities).map_err(BundleError::X509Authority)?,
        jwt_authorities: requested_jwt(&wire.jwt_authorities).map_err(BundleError::JwtAuthority)?,
        wit_authorities: Vec::new(),
        refresh_hint: wire.refresh_hint,
        sequence_number: wire.sequence_number,
    };
    if !wire.wit_authorities.is_empty() {
        return Err(BundleError::WitAuthority);
    }
    if !(0..=MAX_HINT).contains(&wire.refresh_hint) {
        return Err(BundleError::RefreshHint);
    }
    Ok(bundle)
}

/// The X.509 authorities of a request, untainted.
fn requested_x509(wire: &[types::X509Certificate]) -> Result<Vec<X509Authority>, AnchorError> {
    wire.iter().map(|authority| X509Authority::parse(&authority.asn1)).collect()
}

/// The JWT authorities of a request, untainted.
///
/// # Errors
/// One of them has no id, a used one, or no key that verifies tokens.
pub fn requested_jwt(wire: &[types::JwtKey]) -> Result<Vec<JwtAuthority>, JwtAuthorityError> {
    jwt_authorities(wire, JwtAuthority::parse)
}

/// The X.509 authorities that a request adds to the own bundle: any certificates.
///
/// # Errors
/// One of them is none.
pub fn appended_x509(wire: &[types::X509Certificate]) -> Result<Vec<X509Authority>, AnchorError> {
    wire.iter().map(|authority| X509Authority::parse_any(&authority.asn1)).collect()
}

/// The JWT authorities that a request adds to the own bundle: any keys.
///
/// # Errors
/// One of them has no id, a used one, or is no key.
pub fn appended_jwt(wire: &[types::JwtKey]) -> Result<Vec<JwtAuthority>, JwtAuthorityError> {
    jwt_authorities(wire, JwtAuthority::parse_any)
}

fn jwt_authorities(
    wire: &[types::JwtKey],
    parse: fn(&str, &[u8], UnixSecs) -> Result<JwtAuthority, JwtAuthorityError>,
) -> Result<Vec<JwtAuthority>, JwtAuthorityError> {
    let authorities: Vec<_> = wire
        .iter()
        .map(|key| parse(&key.key_id, &key.public_key, UnixSecs(key.expires_at)))
        .collect::<Result<_, _>>()?;
    JwtAuthority::check_distinct(&authorities)?;
    Ok(authorities)
}

impl types::Bundle {
    /// Clears the fields that `mask` does not name; without a mask none.
    pub fn retain(&mut self, mask: Option<&types::BundleMask>) {
        let Some(mask) = mask else { return };
        if !mask.x509_authorities {
            self.x509_authorities.clear();
        }
        if !mask.jwt_authorities {
            self.jwt_authorities.clear();
        }
        if !mask.wit_authorities {
            self.wit_authorities.clear();
        }
        if !mask.refresh_hint {
            self.refresh_hint = 0;
        }
        if !mask.sequence_number {
            self.sequence_number = 0;
        }
    }
}

impl From<&X509Authority> for types::X509Certificate {
    fn from(authority: &X509Authority) -> Self {
        Self { asn1: Bytes::copy_from_slice(&authority.der), tainted: authority.tainted }
    }
}

impl From<&types::X509Certificate> for X509Authority {
    fn from(wire: &types::X509Certificate) -> Self {
        Self { der: shared(&wire.asn1), tainted: wire.tainted }
    }
}

/// JWT and WIT keys are the same but for the name of their message.
macro_rules! key {
    ($wire:ty, $bytes:ident, $id:ident, $expires:ident, $tainted:ident) => {
        impl From<&JwtAuthority> for $wire {
            fn from(key: &JwtAuthority) -> Self {
                Self {
                    $bytes: Bytes::copy_from_slice(&key.public_key),
                    $id: key.key_id.clone(),
                    $expires: key.expires_at.0,
                    $tainted: key.tainted,
                }
            }
        }

        impl From<&$wire> for JwtAuthority {
            fn from(wire: &$wire) -> Self {
                Self {
                    key_id: wire.$id.clone(),
                    public_key: shared(&wire.$bytes),
                    expires_at: UnixSecs(wire.$expires),
                    tainted: wire.$tainted,
                }
            }
        }
    };
}

key!(types::JwtKey, public_key, key_id, expires_at, tainted);
key!(types::WitKey, public_key, key_id, expires_at, tainted);
key!(common::PublicKey, pkix_bytes, kid, not_after, tainted_key);
key!(crate::plugin::types::JwtKey, public_key, key_id, expires_at, tainted);
key!(crate::plugin::types::WitKey, public_key, key_id, expires_at, tainted);

impl From<&X509Authority> for crate::plugin::types::X509Certificate {
    fn from(authority: &X509Authority) -> Self {
        Self { asn1: Bytes::copy_from_slice(&authority.der), tainted: authority.tainted }
    }
}

impl From<&crate::plugin::types::X509Certificate> for X509Authority {
    fn from(wire: &crate::plugin::types::X509Certificate) -> Self {
        Self { der: shared(&wire.asn1), tainted: wire.tainted }
    }
}

/// A bundle as plugins get it.
impl From<&Bundle> for crate::plugin::types::Bundle {
    fn from(bundle: &Bundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain.as_str().to_owned(),
            x509_authorities: bundle.x509_authorities.iter().map(Into::into).collect(),
            jwt_authorities: bundle.jwt_authorities.iter().map(Into::into).collect(),
            refresh_hint: bundle.refresh_hint,
            sequence_number: bundle.sequence_number,
            wit_authorities: bundle.wit_authorities.iter().map(Into::into).collect(),
        }
    }
}

/// A bundle as the datastore keeps it.
impl From<&Bundle> for common::Bundle {
    fn from(bundle: &Bundle) -> Self {
        Self {
            trust_domain_id: bundle.trust_domain.id().as_str().to_owned(),
            root_cas: bundle
                .x509_authorities
                .iter()
                .map(|authority| common::Certificate {
                    der_bytes: Bytes::copy_from_slice(&authority.der),
                    tainted_key: authority.tainted,
                })
                .collect(),
            jwt_signing_keys: bundle.jwt_authorities.iter().map(Into::into).collect(),
            refresh_hint: bundle.refresh_hint,
            sequence_number: bundle.sequence_number,
            wit_signing_keys: bundle.wit_authorities.iter().map(Into::into).collect(),
        }
    }
}

/// What the datastore holds is taken as it is; a `der` may hold several certificates.
impl TryFrom<&common::Bundle> for Bundle {
    type Error = BundleError;

    fn try_from(stored: &common::Bundle) -> Result<Self, BundleError> {
        Ok(Self {
            trust_domain: TrustDomain::parse(&stored.trust_domain_id)
                .map_err(BundleError::StoredTrustDomain)?,
            x509_authorities: stored
                .root_cas
                .iter()
                .map(|authority| X509Authority {
                    der: shared(&authority.der_bytes),
                    tainted: authority.tainted_key,
                })
                .collect(),
            jwt_authorities: stored.jwt_signing_keys.iter().map(Into::into).collect(),
            wit_authorities: stored.wit_signing_keys.iter().map(Into::into).collect(),
            refresh_hint: stored.refresh_hint,
            sequence_number: stored.sequence_number,
        })
    }
}

fn shared(bytes: &Bytes) -> Arc<[u8]> {
    Arc::from(bytes.as_ref())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    const CERTIFICATE: &str = "MIIBHzCBxqADAgECAgEBMAoGCCqGSM49BAMCMA4xDDAKBgNVBAMMA29uZTAgFw0yMDAxMDEwMDAwMDBaGA8yMDkwMD\
        EwMTAwMDAwMFowDjEMMAoGA1UEAwwDb25lMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEmxq0XWeEZN18GQVREiR0\
        G5pqhHGhEqvNgbaTvxFTB6ZIx9G7B3jkbn0BXYwG2eq4xH/ZffQtxzXfN1Iw0zIcz6MTMBEwDwYDVR0TAQH/BAUwAw\
        EB/zAKBggqhkjOPQQDAgNIADBFAiAiqKnBjyq+2WYuRAkHMdyHtF7UkKpXU3uFtzNbj5jqywIhAOR45SzZF1X0UQ0R\
        YIhv/XauQl3McBoOibfmCooa7caO";
    const PUBLIC_KEY: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEx4iUy5Ji4YDn0bKQAZzlNsPae5ewupP2vH/v0nYzhONCh3HEt8rZPC\
        +cPgFczJVpQc0ZwrjyO52tX1YjQ/ocjw==";

    fn sample() -> Bundle {
        let key = |id: &str| JwtAuthority {
            key_id: id.into(),
            public_key: Arc::from([1, 2].as_slice()),
            expires_at: UnixSecs(7),
            tainted: true,
        };
        Bundle {
            x509_authorities: vec![X509Authority { der: Arc::from([3].as_slice()), tainted: true }],
            jwt_authorities: vec![key("j")],
            wit_authorities: vec![key("w")],
            refresh_hint: 60,
            sequence_number: 5,
            ..Bundle::empty(TrustDomain::parse("example.org").expect("valid"))
        }
    }

    #[test]
    fn bundles_survive_both_wires() {
        let bundle = sample();

        assert_eq!(Bundle::try_from(&types::Bundle::from(&bundle)), Ok(bundle.clone()));
        assert_eq!(Bundle::try_from(&common::Bundle::from(&bundle)), Ok(bundle));
    }

    /// A CA certificate and a public key, both P-256.
    fn usable() -> types::Bundle {
        let decode =
            |text: &str| Bytes::from(base64::engine::general_purpose::STANDARD.decode(text).unwrap());
        types::Bundle {
            trust_domain: "example.org".into(),
            x509_authorities: vec![types::X509Certificate { asn1: decode(CERTIFICATE), tainted: true }],
            jwt_authorities: vec![types::JwtKey {
                public_key: decode(PUBLIC_KEY),
                key_id: "j".into(),
                expires_at: 7,
                tainted: true,
            }],
            ..Default::default()
        }
    }

    #[test]
    fn requests_cannot_taint() {
        let bundle = requested(Some(&usable())).expect("valid");

        assert_eq!((bundle.x509_authorities.len(), bundle.jwt_authorities.len()), (1, 1));
        assert!(!bundle.x509_authorities.iter().any(|authority| authority.tainted));
        assert!(!bundle.jwt_authorities.iter().any(|key| key.tainted));
    }

    #[test]
    fn refusals_are_in_the_words_of_the_api() {
        let wire = |change: fn(&mut types::Bundle)| {
            let mut wire = usable();
            change(&mut wire);
            requested(Some(&wire)).expect_err("refused").to_string()
        };
        let jwt = |change: fn(&mut types::JwtKey)| {
            let mut wire = usable();
            wire.jwt_authorities.iter_mut().for_each(change);
            requested(Some(&wire)).expect_err("refused").to_string()
        };

        assert_eq!(requested(None).expect_err("refused").to_string(), "no bundle provided");
        assert_eq!(wire(|w| w.trust_domain.clear()), "invalid trust domain: trust domain is missing");
        assert_eq!(
            wire(|w| w.x509_authorities.push(types::X509Certificate::default())),
            "unable to parse X.509 authority: no certificate"
        );
        assert_eq!(jwt(|key| key.key_id.clear()), "unable to parse JWT authority: missing key ID");
        assert_eq!(jwt(|key| key.expires_at = -1), "unable to parse JWT authority: expiry is out of range");
        assert_eq!(
            wire(|w| w.jwt_authorities.push(w.jwt_authorities[0].clone())),
            "unable to parse JWT authority: key ID j is used twice"
        );
        assert_eq!(
            wire(|w| w.wit_authorities.push(types::WitKey::default())),
            "unable to parse WIT authority: WIT authorities cannot be set"
        );
        assert_eq!(wire(|w| w.refresh_hint = -1), "refresh hint is out of range");
    }

    #[test]
    fn a_mask_keeps_the_trust_domain_and_what_it_names() {
        let mut wire = types::Bundle::from(&sample());

        wire.retain(Some(&types::BundleMask { refresh_hint: true, ..Default::default() }));

        let expected =
            types::Bundle { trust_domain: "example.org".into(), refresh_hint: 60, ..Default::default() };
        assert_eq!(wire, expected);
    }
}
