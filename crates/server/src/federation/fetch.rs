//! One bundle, fetched from where it comes from and judged; nothing is stored here.
//!
//! Under `https_web` the endpoint is who the web's authorities say, by the roots of the system; under
//! `https_spiffe` it is who its X.509-SVID says, which must be of exactly the id of the relationship and
//! verify by the stored bundle of that id's trust domain. A redirection changes nothing of that: the
//! one who is asked next must prove the same. There is no way back from one profile to the other.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use proto::convert::federation::EndpointProfile;
use runtime::http::{FetchError, FetchLimits, Fetched, Route};
use runtime::snapshot::Snapshot;
use rustls::ClientConfig;
use spiffe::bundle::BundleJsonError;
use spiffe::tls::{OwnCertificate, ServerTrust, ServerVerifier, client_config, web_config};
use spiffe::{Bundle, SpiffeId, TrustDomain};
use store::StoreError;

use super::source::Source;
use crate::context::Context;
use crate::keep::{BundleSet, StoredAnchors};
use crate::tls::ClockTime;

/// Why a bundle is not refreshed, in SPIRE's words where it has some.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchFailed {
    /// Nothing is known by which the endpoint could be verified.
    #[error("can't perform SPIFFE Authentication: local copy of bundle not found")]
    NotBootstrapped,
    /// What is known cannot be read.
    #[error("failed to fetch local copy of bundle")]
    Read(#[source] StoreError),
    /// The endpoint does not answer, or is not who it should be.
    #[error("failed to fetch federated bundle from endpoint: failed to fetch bundle")]
    Fetch(#[from] FetchError),
    /// As [`Self::Fetch`], where the certificate is none of the web.
    #[error(
        "failed to fetch federated bundle from endpoint: failed to authenticate bundle endpoint using web \
         authentication (an endpoint that presents a SPIFFE ID needs https_spiffe instead of https_web)"
    )]
    NotOfTheWeb(#[source] FetchError),
    /// It answers something else.
    #[error(
        "failed to fetch federated bundle from endpoint: unexpected status {status} fetching bundle: {text}"
    )]
    Status {
        /// The status.
        status: u16,
        /// How what it says begins.
        text: String,
    },
    /// It answers what is no bundle.
    #[error("failed to fetch federated bundle from endpoint: failed to decode bundle")]
    Document(#[from] BundleJsonError),
    /// It answers more keys than are taken.
    #[error("failed to fetch federated bundle from endpoint: the bundle has more than {MOST_KEYS} keys")]
    TooManyKeys,
    /// The bundle cannot be stored.
    #[error("failed to store fetched federated bundle")]
    Store(#[source] StoreError),
}

/// Fetches the bundle of `trust_domain`. Cancel-safe.
///
/// # Errors
/// Any of [`FetchFailed`] but [`FetchFailed::Store`].
pub(super) async fn fetch(
    context: &Context,
    trust_domain: &TrustDomain,
    source: &Source,
) -> Result<Bundle, FetchFailed> {
    let tls = match &source.profile {
        EndpointProfile::HttpsWeb => web_tls()?,
        EndpointProfile::HttpsSpiffe(endpoint) => spiffe_tls(context, endpoint).await?,
    };
    let fetched = runtime::http::fetch(&source.url, &Route::Tls(tls), &LIMITS).await;
    let fetched = fetched.map_err(|error| match source.profile {
        EndpointProfile::HttpsWeb if is_certificate_refused(&error) => FetchFailed::NotOfTheWeb(error),
        EndpointProfile::HttpsWeb | EndpointProfile::HttpsSpiffe(_) => error.into(),
    })?;
    read(trust_domain, &fetched)
}

fn read(trust_domain: &TrustDomain, fetched: &Fetched) -> Result<Bundle, FetchFailed> {
    if fetched.status.as_u16() != 200 {
        return Err(FetchFailed::Status { status: fetched.status.as_u16(), text: beginning(&fetched.body) });
    }
    let bundle = Bundle::from_endpoint(trust_domain.clone(), &fetched.body)?;
    let keys = bundle.x509_authorities.len() + bundle.jwt_authorities.len() + bundle.wit_authorities.len();
    if keys > MOST_KEYS {
        return Err(FetchFailed::TooManyKeys);
    }
    Ok(bundle)
}

/// The roots of the system, read once in the life of the process, as Go's programs do.
fn web_tls() -> Result<Arc<ClientConfig>, FetchError> {
    static WEB: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(known) = WEB.get() {
        return Ok(Arc::clone(known));
    }
    let made = Arc::new(web_config(runtime::http::system_roots())?);
    Ok(Arc::clone(WEB.get_or_init(|| made)))
}

async fn spiffe_tls(context: &Context, endpoint: &SpiffeId) -> Result<Arc<ClientConfig>, FetchFailed> {
    let known = context.store.fetch_bundle(endpoint.trust_domain()).await.map_err(FetchFailed::Read)?;
    let known = known.ok_or(FetchFailed::NotBootstrapped)?;
    // The bundle of that trust domain alone: no other may vouch for the endpoint.
    let anchors = Arc::new(StoredAnchors(Snapshot::fixed(BundleSet::new([known]))));
    let verifier = ServerVerifier::new(ServerTrust::Id(endpoint.clone(), anchors));
    let mut config = client_config(verifier, OwnCertificate::empty()).map_err(FetchError::Tls)?;
    config.time_provider = Arc::new(ClockTime(Arc::clone(&context.clock)));
    Ok(Arc::new(config))
}

/// Whether TLS refused who answered.
fn is_certificate_refused(error: &FetchError) -> bool {
    let FetchError::Connect { source, .. } = error else { return false };
    let cause = source.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}

/// What somebody else said, fit for a line of a log.
fn beginning(body: &[u8]) -> String {
    let (shown, _) = body.split_at(body.len().min(MOST_SHOWN));
    let printable = |shown: char| if shown.is_control() { ' ' } else { shown };
    String::from_utf8_lossy(shown).trim().chars().map(printable).collect()
}

/// All of it within so much time and bytes, over as many redirections as Go's client follows.
const LIMITS: FetchLimits = FetchLimits { timeout: Duration::from_secs(30), size: 10 << 20, redirects: 10 };

/// Keys of one bundle.
const MOST_KEYS: usize = 1000;

/// Bytes of an answer that is no bundle.
const MOST_SHOWN: usize = 1024;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

    use super::*;

    fn answer(status: u16, body: impl Into<Bytes>) -> Result<Bundle, String> {
        let status = StatusCode::from_u16(status).unwrap();
        let fetched = Fetched { status, headers: HeaderMap::new(), body: body.into() };
        let trust_domain = TrustDomain::parse("foreign.test").unwrap();
        read(&trust_domain, &fetched).map_err(|error| runtime::chain(&error))
    }

    #[test]
    fn what_is_no_bundle_is_told_in_one_printable_line() {
        assert_eq!(
            answer(502, "<html>\u{1b}[31mbad\r\n gateway\n"),
            Err("failed to fetch federated bundle from endpoint: unexpected status 502 fetching bundle: \
                 <html> [31mbad   gateway"
                .to_owned())
        );
        let html = answer(200, "<html>").unwrap_err();
        let start =
            "failed to fetch federated bundle from endpoint: failed to decode bundle: unable to parse JWKS";
        assert!(html.starts_with(start), "{html}");
        assert!(answer(204, vec![b'x'; 4096]).unwrap_err().len() < 1200);
    }

    #[test]
    fn a_bundle_without_keys_is_one_that_trusts_nothing() {
        let bundle = answer(200, r#"{"keys":[],"spiffe_sequence":7}"#).unwrap();

        assert_eq!((bundle.trust_domain.as_str(), bundle.sequence_number), ("foreign.test", 7));
        assert!(bundle.x509_authorities.is_empty() && bundle.jwt_authorities.is_empty());
    }
}
