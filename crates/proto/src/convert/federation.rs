//! Federation relationships: where the bundle of another trust domain comes from.

use spiffe::{Bundle, IdError, SpiffeId, TrustDomain};

use super::bundle::{self, BundleError};
use crate::spire::types;
use spiffe::url::Url;
use types::federation_relationship::BundleEndpointProfile;

/// A relationship as a request describes it. A field that the request's mask leaves out is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedRelationship {
    /// Whose bundle it is about.
    pub trust_domain: TrustDomain,
    /// Where it is: an `https` URL with a host.
    pub bundle_endpoint_url: Option<String>,
    /// Who stands behind that URL.
    pub profile: Option<EndpointProfile>,
    /// The bundle to start with.
    pub bundle: Option<Bundle>,
}

/// How a bundle endpoint proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointProfile {
    /// With a Web PKI certificate.
    HttpsWeb,
    /// With an X.509-SVID of this id.
    HttpsSpiffe(SpiffeId),
}

/// Why a relationship was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelationshipError {
    /// The message is absent.
    #[error("missing federation relationship")]
    Missing,
    /// Its trust domain is none.
    #[error("failed to parse trust domain: {0}")]
    TrustDomain(IdError),
    /// Its URL is none.
    #[error("failed to parse bundle endpoint URL: parse \"{}\": {why}", url.escape_debug())]
    Url {
        /// The text.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// Its URL is of another scheme.
    #[error("bundle endpoint URL must use the https scheme")]
    Scheme,
    /// Its URL has no host.
    #[error("bundle endpoint URL must specify the host")]
    NoHost,
    /// Its URL names a port that cannot be.
    #[error("bundle endpoint URL has a port out of range")]
    Port,
    /// Its URL names a user.
    #[error("bundle endpoint URL must not contain user info")]
    UserInfo,
    /// It has no profile.
    #[error("unsupported bundle endpoint profile type: <nil>")]
    NoProfile,
    /// The id of its endpoint is none.
    #[error("failed to parse endpoint SPIFFE ID: {0}")]
    EndpointId(IdError),
    /// Its bundle cannot be read.
    #[error("failed to parse bundle: {0}")]
    Bundle(BundleError),
    /// Its bundle is of another trust domain.
    #[error(
        "trust domain bundle (\"{bundle}\") must match the trust domain of the federation relationship (\"{relationship}\")"
    )]
    ForeignBundle {
        /// Whose bundle it is, as the request names it.
        bundle: String,
        /// Whose it should be.
        relationship: TrustDomain,
    },
}

/// The relationship of a request. Without a mask all of it counts.
///
/// # Errors
/// It is absent or a field that counts is wrong.
pub fn requested(
    wire: Option<&types::FederationRelationship>,
    mask: Option<&types::FederationRelationshipMask>,
) -> Result<RequestedRelationship, RelationshipError> {
    let wire = wire.ok_or(RelationshipError::Missing)?;
    let counts = |field: fn(&types::FederationRelationshipMask) -> bool| mask.is_none_or(field);

    let trust_domain = TrustDomain::parse(&wire.trust_domain).map_err(RelationshipError::TrustDomain)?;
    trust_domain.check_length().map_err(RelationshipError::TrustDomain)?;
    let bundle_endpoint_url = if counts(|mask| mask.bundle_endpoint_url) {
        Some(checked_url(&wire.bundle_endpoint_url)?)
    } else {
        None
    };
    let profile = if counts(|mask| mask.bundle_endpoint_profile) {
        Some(wire.bundle_endpoint_profile.as_ref().ok_or(RelationshipError::NoProfile)?.try_into()?)
    } else {
        None
    };
    let bundle = if counts(|mask| mask.trust_domain_bundle) {
        wire.trust_domain_bundle.as_ref().map(|bundle| own_bundle(bundle, &trust_domain)).transpose()?
    } else {
        None
    };
    Ok(RequestedRelationship { trust_domain, bundle_endpoint_url, profile, bundle })
}

impl TryFrom<&BundleEndpointProfile> for EndpointProfile {
    type Error = RelationshipError;

    fn try_from(wire: &BundleEndpointProfile) -> Result<Self, RelationshipError> {
        match wire {
            BundleEndpointProfile::HttpsWeb(_) => Ok(Self::HttpsWeb),
            BundleEndpointProfile::HttpsSpiffe(profile) => SpiffeId::parse(&profile.endpoint_spiffe_id)
                .map(Self::HttpsSpiffe)
                .map_err(RelationshipError::EndpointId),
        }
    }
}

impl From<&EndpointProfile> for BundleEndpointProfile {
    fn from(profile: &EndpointProfile) -> Self {
        match profile {
            EndpointProfile::HttpsWeb => Self::HttpsWeb(types::HttpsWebProfile {}),
            EndpointProfile::HttpsSpiffe(id) => {
                Self::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id: id.as_str().to_owned() })
            }
        }
    }
}

impl types::FederationRelationship {
    /// Clears the fields that `mask` does not name; without a mask none.
    pub fn retain(&mut self, mask: Option<&types::FederationRelationshipMask>) {
        let Some(mask) = mask else { return };
        if !mask.bundle_endpoint_url {
            self.bundle_endpoint_url.clear();
        }
        if !mask.bundle_endpoint_profile {
            self.bundle_endpoint_profile = None;
        }
        if !mask.trust_domain_bundle {
            self.trust_domain_bundle = None;
        }
    }
}

fn own_bundle(wire: &types::Bundle, relationship: &TrustDomain) -> Result<Bundle, RelationshipError> {
    let bundle = bundle::requested(Some(wire)).map_err(RelationshipError::Bundle)?;
    if bundle.trust_domain != *relationship {
        return Err(RelationshipError::ForeignBundle {
            bundle: wire.trust_domain.clone(),
            relationship: relationship.clone(),
        });
    }
    Ok(bundle)
}

/// The URL as SPIRE writes it again.
fn checked_url(text: &str) -> Result<String, RelationshipError> {
    let url = Url::parse(text).map_err(|why| RelationshipError::Url { url: text.to_owned(), why })?;
    if url.scheme != "https" {
        return Err(RelationshipError::Scheme);
    }
    if !url.has_host() {
        return Err(RelationshipError::NoHost);
    }
    if url.has_user {
        return Err(RelationshipError::UserInfo);
    }
    if !url.has_possible_port() {
        return Err(RelationshipError::Port);
    }
    Ok(url.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> types::FederationRelationship {
        types::FederationRelationship {
            trust_domain: "other.org".into(),
            bundle_endpoint_url: "https://other.org:8443/bundle".into(),
            trust_domain_bundle: Some(types::Bundle {
                trust_domain: "other.org".into(),
                ..Default::default()
            }),
            bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
        }
    }

    fn refusal(change: impl FnOnce(&mut types::FederationRelationship)) -> String {
        let mut wire = sample();
        change(&mut wire);
        requested(Some(&wire), None).expect_err("refused").to_string()
    }

    #[test]
    fn refusals_are_in_the_words_of_the_api() {
        let url = |url: &str| refusal(|wire| wire.bundle_endpoint_url = url.into());

        assert_eq!(url("http://other.org"), "bundle endpoint URL must use the https scheme");
        assert_eq!(url(""), "bundle endpoint URL must use the https scheme");
        assert_eq!(url("https://other.org:65536/"), "bundle endpoint URL has a port out of range");
        assert_eq!(url("https:///bundle"), "bundle endpoint URL must specify the host");
        assert_eq!(url("https:other.org"), "bundle endpoint URL must specify the host");
        assert_eq!(url("https://a:b@other.org"), "bundle endpoint URL must not contain user info");
        assert_eq!(
            url("https://other.org/\n"),
            "failed to parse bundle endpoint URL: parse \"https://other.org/\\n\": net/url: invalid control character in URL"
        );
        assert_eq!(
            refusal(|wire| wire.bundle_endpoint_profile = None),
            "unsupported bundle endpoint profile type: <nil>"
        );
        assert_eq!(
            refusal(|wire| wire.trust_domain = "Other".into()),
            "failed to parse trust domain: trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
        );
        assert_eq!(
            refusal(|wire| wire.trust_domain = "third.org".into()),
            "trust domain bundle (\"other.org\") must match the trust domain of the federation relationship (\"third.org\")"
        );
        assert_eq!(
            refusal(|wire| {
                if let Some(bundle) = &mut wire.trust_domain_bundle {
                    bundle.trust_domain = "spiffe://third.org".into();
                }
            }),
            "trust domain bundle (\"spiffe://third.org\") must match the trust domain of the federation relationship (\"other.org\")"
        );
    }

    #[test]
    fn fields_outside_the_mask_do_not_count() {
        let mut wire = sample();
        wire.bundle_endpoint_url = "nonsense".into();
        wire.bundle_endpoint_profile = None;

        let read = requested(Some(&wire), Some(&types::FederationRelationshipMask::default()));

        let expected = RequestedRelationship {
            trust_domain: TrustDomain::parse("other.org").expect("valid"),
            bundle_endpoint_url: None,
            profile: None,
            bundle: None,
        };
        assert_eq!(read, Ok(expected));
    }
}
