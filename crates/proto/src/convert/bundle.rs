//! Bundles: `spire.api.types.Bundle` of the APIs and `spire.common.Bundle` of the datastore.

use std::sync::Arc;

use bytes::Bytes;
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
    /// A key of a request without an id.
    #[error("unable to parse JWT authority: missing key ID")]
    MissingRequestKeyId,
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

/// The bundle of a request. Nobody taints by request, so taint flags are dropped. Certificates and
/// keys are not looked into: whoever stores them checks them.
///
/// # Errors
/// It is absent, of no trust domain, or holds keys without ids.
pub fn requested(wire: Option<&types::Bundle>) -> Result<Bundle, BundleError> {
    let wire = wire.ok_or(BundleError::Missing)?;
    let trust_domain = TrustDomain::parse(&wire.trust_domain).map_err(BundleError::TrustDomain)?;
    let untainted = |mut key: JwtAuthority| {
        key.tainted = false;
        key
    };
    let jwt_authorities: Vec<_> = wire.jwt_authorities.iter().map(|key| untainted(key.into())).collect();
    let wit_authorities: Vec<_> = wire.wit_authorities.iter().map(|key| untainted(key.into())).collect();
    if jwt_authorities.iter().chain(&wit_authorities).any(|key| key.key_id.is_empty()) {
        return Err(BundleError::MissingRequestKeyId);
    }
    Ok(Bundle {
        trust_domain,
        x509_authorities: wire
            .x509_authorities
            .iter()
            .map(|authority| X509Authority { der: shared(&authority.asn1), tainted: false })
            .collect(),
        jwt_authorities,
        wit_authorities,
        refresh_hint: wire.refresh_hint,
        sequence_number: wire.sequence_number,
    })
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
    use super::*;

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

    #[test]
    fn requests_cannot_taint() {
        let bundle = requested(Some(&(&sample()).into())).expect("valid");

        assert!(!bundle.x509_authorities.iter().any(|authority| authority.tainted));
        assert!(!bundle.jwt_authorities.iter().chain(&bundle.wit_authorities).any(|key| key.tainted));
    }

    #[test]
    fn refusals_are_in_the_words_of_the_api() {
        let wire = |change: fn(&mut types::Bundle)| {
            let mut wire = types::Bundle::from(&sample());
            change(&mut wire);
            requested(Some(&wire)).expect_err("refused").to_string()
        };

        assert_eq!(requested(None).expect_err("refused").to_string(), "no bundle provided");
        assert_eq!(wire(|w| w.trust_domain.clear()), "invalid trust domain: trust domain is missing");
        assert_eq!(
            wire(|w| w.jwt_authorities.iter_mut().for_each(|key| key.key_id.clear())),
            "unable to parse JWT authority: missing key ID"
        );
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
