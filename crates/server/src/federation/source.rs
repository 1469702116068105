//! Which trust domains are federated with, and where their bundles come from: what the configuration
//! says, and for all others what the datastore says.

use std::collections::BTreeMap;

use config::FederatesWith;
use proto::convert::federation::EndpointProfile;
use spiffe::TrustDomain;
use store::FederationRelationship;

/// Where a bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// The address of the endpoint.
    pub(super) url: String,
    /// How the endpoint proves who it is.
    pub(super) profile: EndpointProfile,
}

impl Source {
    /// The profile by its name.
    pub(super) const fn profile_name(&self) -> &'static str {
        match self.profile {
            EndpointProfile::HttpsWeb => "https_web",
            EndpointProfile::HttpsSpiffe(_) => "https_spiffe",
        }
    }
}

/// All sources; the configuration's win. Without that of the own trust domain, whose bundle is made
/// here and nowhere else.
pub(super) fn merged(
    own: &TrustDomain,
    configured: &[FederatesWith],
    stored: Vec<FederationRelationship>,
) -> BTreeMap<TrustDomain, Source> {
    let stored = stored.into_iter().map(|stored| {
        (stored.trust_domain, Source { url: stored.bundle_endpoint_url, profile: stored.profile })
    });
    let configured = configured.iter().map(|configured| {
        let profile = configured.endpoint_spiffe_id.clone();
        let profile = profile.map_or(EndpointProfile::HttpsWeb, EndpointProfile::HttpsSpiffe);
        (configured.trust_domain.clone(), Source { url: configured.url.clone(), profile })
    });
    let mut sources: BTreeMap<_, _> = stored.chain(configured).collect();
    sources.remove(own);
    sources
}

#[cfg(test)]
mod tests {
    use spiffe::SpiffeId;

    use super::*;

    fn domain(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    #[test]
    fn the_configuration_wins_and_the_own_trust_domain_is_left_out() {
        let stored = |name: &str| FederationRelationship {
            trust_domain: domain(name),
            bundle_endpoint_url: format!("https://stored.{name}"),
            profile: EndpointProfile::HttpsWeb,
            bundle: None,
        };
        let configured = |name: &str| FederatesWith {
            trust_domain: domain(name),
            url: format!("https://configured.{name}"),
            endpoint_spiffe_id: Some(SpiffeId::parse("spiffe://a.test/endpoint").unwrap()),
        };

        let sources = merged(
            &domain("own.test"),
            &[configured("a.test"), configured("own.test")],
            vec![stored("a.test"), stored("b.test"), stored("own.test")],
        );

        let urls: Vec<_> =
            sources.values().map(|source| (source.url.as_str(), source.profile_name())).collect();
        assert_eq!(
            urls,
            [("https://configured.a.test", "https_spiffe"), ("https://stored.b.test", "https_web")]
        );
    }
}
