//! The bundle endpoint: the own bundle in SPIFFE format over HTTPS, for whoever asks (SPIFFE Trust
//! Domain and Bundle, 4; SPIFFE Federation, 5).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use config::{BundleEndpointConfig, EndpointProfile};
use http::{Method, StatusCode};
use runtime::clock::Clock;
use runtime::listen::{WebListener, WebReply};
use runtime::served::{ServedCertificate, ServedError};
use runtime::snapshot::Snapshot;
use rustls::server::ResolvesServerCert;
use spiffe::tls::PostQuantum;
use spiffe::{Bundle, TrustDomain, X509Authority};
use tokio_util::sync::CancellationToken;

use crate::keep::{BundleSet, KnownBundle};

/// The endpoint, its port bound.
pub(crate) struct Endpoint {
    listener: WebListener,
    document: Document,
    refresh_hint: Duration,
    /// The certificate from files, and how often these are looked at.
    files: Option<(Arc<ServedCertificate>, Duration)>,
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointError {
    /// The profile is still to come.
    #[error("ACME is not part of this version of Finial; use serving_cert_file or https_spiffe")]
    Acme,
    /// There is no certificate to present.
    #[error("failed to load certificate")]
    Certificate(#[from] ServedError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The port cannot be listened on.
    #[error(transparent)]
    Listen(runtime::BoxError),
}

impl Endpoint {
    /// Binds the port. Under `https_spiffe` it presents `own`, the server's SVID as it is at each
    /// handshake.
    ///
    /// # Errors
    /// Any of [`EndpointError`].
    pub(crate) fn bind(
        config: &BundleEndpointConfig,
        exchanges: PostQuantum,
        trust_domain: TrustDomain,
        bundles: Snapshot<BundleSet>,
        own: Arc<dyn ResolvesServerCert>,
    ) -> Result<Self, EndpointError> {
        let (certificate, files) = match &config.profile {
            EndpointProfile::HttpsSpiffe => (own, None),
            EndpointProfile::ServingCert { certificate, key, sync_interval } => {
                let served = ServedCertificate::load(certificate.clone(), key.clone())?;
                (Arc::clone(&served) as Arc<dyn ResolvesServerCert>, Some((served, *sync_interval)))
            }
            EndpointProfile::Acme { .. } => return Err(EndpointError::Acme),
        };
        let listener = WebListener::bind(config.bind, exchanges.server()?, certificate);
        let listener = listener.map_err(EndpointError::Listen)?;
        let refresh_hint = i64::try_from(config.refresh_hint.as_secs()).unwrap_or(i64::MAX);
        let document = Document { trust_domain, bundles, refresh_hint, written: ArcSwapOption::empty() };
        Ok(Self { listener, document, refresh_hint: config.refresh_hint, files })
    }

    /// Where it listens, with the port that was chosen.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Serves until `stop` is cancelled.
    pub(crate) async fn serve(self, clock: Arc<dyn Clock>, stop: CancellationToken) {
        tracing::info!(
            subsystem_name = "endpoints",
            addr = %self.address(),
            refresh_hint = as_go_writes(self.refresh_hint),
            "Serving bundle endpoint"
        );
        let document = self.document;
        let answer = Arc::new(move |method: &Method, path: &str| document.answer(method, path));
        let serving = self.listener.serve(answer, stop.clone());
        match self.files {
            Some((served, every)) => drop(tokio::join!(serving, served.follow(every, clock, stop))),
            None => serving.await,
        }
    }
}

/// A duration of whole seconds as SPIRE's log has it.
fn as_go_writes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// The own bundle as a document: written when it is first asked for after a change.
struct Document {
    trust_domain: TrustDomain,
    bundles: Snapshot<BundleSet>,
    refresh_hint: i64,
    written: ArcSwapOption<(Arc<KnownBundle>, Bytes)>,
}

impl Document {
    fn answer(&self, method: &Method, path: &str) -> WebReply {
        if method != Method::GET {
            return WebReply::refused(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed");
        }
        if path != "/" {
            return WebReply::refused(StatusCode::NOT_FOUND, "404 page not found");
        }
        let Some(known) = self.bundles.load().get(&self.trust_domain).cloned() else {
            tracing::error!(
                subsystem_name = "bundle_endpoint",
                error = "trust domain bundle not found",
                "Unable to retrieve local bundle"
            );
            let text = "500 unable to retrieve local bundle";
            return WebReply::refused(StatusCode::INTERNAL_SERVER_ERROR, text);
        };
        WebReply::json(self.bytes_of(known))
    }

    fn bytes_of(&self, known: Arc<KnownBundle>) -> Bytes {
        let written = self.written.load();
        if let Some((_, bytes)) = written.as_deref().filter(|(of, _)| Arc::ptr_eq(of, &known)) {
            return bytes.clone();
        }
        let bytes = Bytes::from(self.write(&known));
        self.written.store(Some(Arc::new((known, bytes.clone()))));
        bytes
    }

    fn write(&self, known: &KnownBundle) -> String {
        let document = Bundle {
            // Of items that hold several certificates each is one.
            x509_authorities: known
                .anchors
                .iter()
                .map(|anchor| X509Authority { der: anchor.to_shared(), tainted: false })
                .collect(),
            jwt_authorities: known.bundle.jwt_authorities.clone(),
            // SPIRE publishes none, and up to 1.14 refuses a document with a use it does not know.
            wit_authorities: Vec::new(),
            refresh_hint: self.refresh_hint,
            sequence_number: known.bundle.sequence_number,
            trust_domain: known.bundle.trust_domain.clone(),
        };
        document.to_spiffe_json()
    }
}

#[cfg(test)]
mod tests {
    use runtime::snapshot::Publisher;
    use spiffe::key::{KeyKind, PrivateKey};
    use spiffe::{JwtAuthority, UnixSecs};

    use super::*;

    fn bundle(sequence_number: u64) -> Arc<Bundle> {
        let key = |key_id: &str| JwtAuthority {
            key_id: key_id.to_owned(),
            public_key: PrivateKey::generate(KeyKind::EcP256).unwrap().public().spki().into(),
            expires_at: UnixSecs(7),
            tainted: false,
        };
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        Arc::new(Bundle {
            jwt_authorities: vec![key("jwt")],
            wit_authorities: vec![key("wit")],
            sequence_number,
            ..Bundle::empty(trust_domain)
        })
    }

    #[test]
    fn the_document_is_written_once_per_change_with_the_configured_hint_and_without_wit_authorities() {
        let publisher = Publisher::new(BundleSet::new([bundle(1)]));
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let document = Document {
            trust_domain: trust_domain.clone(),
            bundles: publisher.snapshot(),
            refresh_hint: 600,
            written: ArcSwapOption::empty(),
        };

        let (first, second) = (document.answer(&Method::GET, "/"), document.answer(&Method::GET, "/"));
        publisher.publish(Arc::new(BundleSet::new([bundle(2)])));
        let third = document.answer(&Method::GET, "/");

        assert_eq!(first.body.as_ptr(), second.body.as_ptr());
        let read = |reply: &WebReply| Bundle::from_endpoint(trust_domain.clone(), &reply.body).unwrap();
        assert_eq!((read(&first).sequence_number, read(&first).refresh_hint), (1, 600));
        assert_eq!((read(&first).jwt_authorities.len(), read(&first).wit_authorities.len()), (1, 0));
        assert_eq!(read(&third).sequence_number, 2);
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        let written = |seconds| as_go_writes(Duration::from_secs(seconds));

        assert_eq!([written(300), written(59), written(3600)], ["5m0s", "59s", "1h0m0s"]);
    }

    #[test]
    fn other_methods_other_paths_and_a_missing_bundle_are_told_apart() {
        let document = |bundles| Document {
            trust_domain: TrustDomain::parse("example.org").unwrap(),
            bundles: Snapshot::fixed(bundles),
            refresh_hint: 600,
            written: ArcSwapOption::empty(),
        };
        let some = document(BundleSet::new([bundle(1)]));
        let none = document(BundleSet::default());

        assert_eq!(some.answer(&Method::HEAD, "/").body, "405 method not allowed\n");
        assert_eq!(some.answer(&Method::POST, "/x").status.as_u16(), 405);
        assert_eq!(some.answer(&Method::GET, "/x").body, "404 page not found\n");
        assert_eq!(none.answer(&Method::GET, "/").body, "500 unable to retrieve local bundle\n");
    }
}
