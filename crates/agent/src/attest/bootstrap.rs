//! Where an agent has its first bundle from.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use bytes::Bytes;
use client::{Address, WorkloadApi};
use config::{AgentConfig, Bootstrap, BundleFormat};
use runtime::chain;
use runtime::clock::{Clock, within};
use runtime::http::{self, FetchError, FetchLimits, Route};
use spiffe::tls::web_config;
use spiffe::{Bundle, TrustDomain, X509Authority};
use time::format_description::well_known::Rfc3339;
use tracing::{debug, info};
use url::Url;

use crate::stored::{AgentData, BootstrapUse};

/// How long another agent's Workload API may take.
const WORKLOAD_API_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a download may take, and how large it may be.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(30);
const LARGEST_DOCUMENT: usize = 4 << 20;

/// What an agent knows its server by at the first meeting.
pub(crate) enum Trust {
    /// The authorities that vouch for it.
    Bundle(Bundle),
    /// Nothing but the id that it claims.
    Insecure,
}

/// Why there is no first bundle.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The file cannot be read.
    #[error("could not parse trust bundle: {step} {path}: {reason}", path = .path.display())]
    File {
        /// What could not be done, in Go's words: a directory opens, but cannot be read.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// What the source has is no bundle.
    #[error("{0}")]
    Format(String),
    /// The source has an empty one.
    #[error("no certificates found in trust bundle")]
    Empty,
    /// Another Workload API does not give one.
    #[error("unable to fetch trust bundle from SPIFFE Workload API {address}: {reason}")]
    WorkloadApi {
        /// Its address.
        address: String,
        /// What it said.
        reason: String,
    },
    /// Another Workload API gives those of other trust domains only.
    #[error("SPIFFE Workload API {address} did not provide a trust bundle for trust domain {trust_domain:?}")]
    NotProvided {
        /// Its address.
        address: String,
        /// The trust domain.
        trust_domain: TrustDomain,
    },
    /// The URL is none.
    #[error("unable to parse trust bundle URL: {0}")]
    BadUrl(#[from] url::ParseError),
    /// The URL does not answer.
    #[error("unable to fetch trust bundle URL {url}")]
    Fetch {
        /// The URL.
        url: String,
        /// Why.
        #[source]
        source: Box<FetchError>,
    },
    /// The URL answers something else.
    #[error("error downloading trust bundle: {0}")]
    Status(StatusCode),
}

/// Asks the configured source.
pub(super) async fn fetch(
    config: &AgentConfig,
    data: &AgentData,
    clock: &dyn Clock,
) -> Result<Trust, BootstrapError> {
    let bundle = match &config.bootstrap {
        Bootstrap::Insecure => return Ok(Trust::Insecure),
        Bootstrap::File { path, format } => {
            let text = std::fs::read(path).map_err(|error| {
                let step = if error.kind() == io::ErrorKind::IsADirectory { "read" } else { "open" };
                BootstrapError::File { step, path: path.clone(), reason: error.to_string() }
            })?;
            parse(&config.trust_domain, &text, *format)?
        }
        Bootstrap::WorkloadApi(address) => {
            announce(data);
            debug!("Fetching trust bundle from SPIFFE Workload API: {address}");
            from_workload_api(&config.trust_domain, address, clock).await?
        }
        Bootstrap::Url { url, unix_socket, format } => {
            announce(data);
            let text = download(config, data, url, unix_socket.as_deref()).await?;
            parse(&config.trust_domain, &text, *format)?
        }
    };
    if bundle.x509_authorities.is_empty() {
        return Err(BootstrapError::Empty);
    }
    Ok(Trust::Bundle(bundle))
}

fn announce(data: &AgentData) {
    let what = match data.bootstrap {
        BootstrapUse::Rebootstrap => "reattestation",
        BootstrapUse::Bootstrap | BootstrapUse::Unspecified => "attestation",
    };
    info!(attempts = data.attempts, "Server {what} attempt");
}

fn parse(trust_domain: &TrustDomain, text: &[u8], format: BundleFormat) -> Result<Bundle, BootstrapError> {
    match format {
        BundleFormat::Pem => Bundle::from_pem(trust_domain.clone(), text).map_err(BootstrapError::Format),
        BundleFormat::Spiffe => Bundle::from_spiffe_json(trust_domain.clone(), text)
            .map_err(|error| BootstrapError::Format(format!("unable to parse SPIFFE trust bundle: {error}"))),
    }
}

/// What the URL answers. Over a socket its owner is told who asks and how it stands.
async fn download(
    config: &AgentConfig,
    data: &AgentData,
    url: &str,
    socket: Option<&Path>,
) -> Result<Bytes, BootstrapError> {
    let (url, route) = match socket {
        None => {
            let tls = web_config(http::system_roots());
            let tls = tls
                .map_err(FetchError::Tls)
                .map_err(|source| BootstrapError::Fetch { url: url.to_owned(), source: source.into() })?;
            (url.to_owned(), Route::Tls(Arc::new(tls)))
        }
        Some(socket) => (with_circumstances(config, data, url)?, Route::Unix(socket.to_owned())),
    };
    debug!(url, "Server attestation url");
    let limits = FetchLimits { timeout: DOWNLOAD_TIMEOUT, size: LARGEST_DOCUMENT, ..FetchLimits::default() };
    let fetched = http::fetch(&url, &route, &limits).await;
    let fetched = fetched.map_err(|source| BootstrapError::Fetch { url, source: source.into() })?;
    if fetched.status != StatusCode::OK {
        return Err(BootstrapError::Status(fetched.status));
    }
    Ok(fetched.body)
}

fn with_circumstances(config: &AgentConfig, data: &AgentData, url: &str) -> Result<String, url::ParseError> {
    let mut url = Url::parse(url)?;
    let mode = match data.bootstrap {
        BootstrapUse::Rebootstrap => "rebootstrap",
        BootstrapUse::Bootstrap | BootstrapUse::Unspecified => "bootstrap",
    };
    let since = data.trying_since.and_then(|since| since.replace_nanosecond(0).ok()?.format(&Rfc3339).ok());
    let own = [
        ("spiffe-trust-domain", config.trust_domain.as_str().to_owned()),
        ("spire-attest-mode", mode.to_owned()),
        ("spire-attest-start-time", since.unwrap_or_default()),
        ("spire-connection-attempts", data.attempts.to_string()),
        ("spire-server-address", config.server_address.clone()),
        ("spire-server-port", config.server_port.to_string()),
    ];
    let is_own = |name: &str| own.iter().any(|(own, _)| *own == name);
    let given = url.query_pairs().into_owned().filter(|(name, _)| !is_own(name));
    let mut pairs: Vec<(String, String)> = given.collect();
    pairs.extend(own.map(|(name, value)| (name.to_owned(), value)));
    pairs.sort_by(|one, other| one.0.cmp(&other.0));
    url.query_pairs_mut().clear().extend_pairs(pairs);
    Ok(url.into())
}

async fn from_workload_api(
    trust_domain: &TrustDomain,
    address: &str,
    clock: &dyn Clock,
) -> Result<Bundle, BootstrapError> {
    let failed = |reason: String| BootstrapError::WorkloadApi { address: address.to_owned(), reason };
    let target = Address::parse(address).map_err(|error| failed(error.to_string()))?;
    let api = WorkloadApi::at(target).map_err(|error| failed(chain(&error)))?;
    let answer = within(clock, WORKLOAD_API_TIMEOUT, api.x509_bundles()).await;
    let answer = answer.ok_or_else(|| failed("it did not answer in time".to_owned()))?;
    let mut bundles = answer.map_err(|error| failed(chain(&error)))?.bundles;
    let certificates = bundles.remove(trust_domain).ok_or_else(|| BootstrapError::NotProvided {
        address: address.to_owned(),
        trust_domain: trust_domain.clone(),
    })?;
    let authority = |der: &rustls::pki_types::CertificateDer<'_>| X509Authority {
        der: der.as_ref().into(),
        tainted: false,
    };
    let mut bundle = Bundle::empty(trust_domain.clone());
    bundle.x509_authorities = certificates.iter().map(authority).collect();
    Ok(bundle)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use runtime::clock::SystemClock;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::fixtures;

    const PEM: &[u8] =
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/keys/bootstrap.pem"));
    const SPIFFE: &[u8] =
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/keys/bootstrap.spiffe.json"));

    async fn ask(bootstrap: Bootstrap) -> Result<usize, String> {
        let config = AgentConfig { bootstrap, ..fixtures::config() };
        let data = AgentData {
            bootstrap: BootstrapUse::Bootstrap,
            trying_since: Some((UNIX_EPOCH + Duration::from_millis(1500)).into()),
            attempts: 3,
            ..AgentData::default()
        };
        match fetch(&config, &data, &SystemClock).await {
            Ok(Trust::Bundle(bundle)) => Ok(bundle.x509_authorities.len()),
            Ok(Trust::Insecure) => Ok(0),
            Err(error) => Err(chain(&error)),
        }
    }

    /// Answers one request on `socket` with `answer`; gives the request's first line.
    async fn answer_once(socket: UnixListener, answer: Vec<u8>) -> String {
        let (mut stream, _) = socket.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        stream.write_all(&answer).await.unwrap();
        stream.shutdown().await.unwrap();
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        request.lines().next().unwrap().to_owned()
    }

    async fn ask_socket(status: &str, body: &[u8]) -> (Result<usize, String>, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = UnixListener::bind(&path).unwrap();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = [head.as_bytes(), body].concat();
        let bootstrap = Bootstrap::Url {
            url: "http://localhost/bundle?b=1&spire-server-port=9".to_owned(),
            unix_socket: Some(path),
            format: BundleFormat::Pem,
        };
        tokio::join!(ask(bootstrap), answer_once(socket, answer))
    }

    #[tokio::test]
    async fn files_are_read_in_both_formats() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, contents: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, contents).unwrap();
            path
        };
        let (pem, spiffe) = (file("a", PEM), file("b", SPIFFE));
        let from = |path: &Path, format| Bootstrap::File { path: path.to_owned(), format };

        assert_eq!(ask(from(&pem, BundleFormat::Pem)).await, Ok(2));
        assert_eq!(ask(from(&spiffe, BundleFormat::Spiffe)).await, Ok(2));
        let wrong = ask(from(&pem, BundleFormat::Spiffe)).await.unwrap_err();
        assert!(wrong.starts_with("unable to parse SPIFFE trust bundle: "), "{wrong}");
        let missing = ask(from(&directory.path().join("c"), BundleFormat::Pem)).await.unwrap_err();
        assert!(missing.starts_with("could not parse trust bundle: open "), "{missing}");
        let folder = ask(from(directory.path(), BundleFormat::Pem)).await.unwrap_err();
        assert!(folder.starts_with("could not parse trust bundle: read "), "{folder}");
        assert_eq!(ask(Bootstrap::Insecure).await, Ok(0));
    }

    #[tokio::test]
    async fn the_owner_of_a_socket_is_told_who_asks() {
        let (outcome, request) = ask_socket("200 OK", PEM).await;

        assert_eq!(outcome, Ok(2));
        assert_eq!(
            request,
            "GET /bundle?b=1&spiffe-trust-domain=example.org&spire-attest-mode=bootstrap\
             &spire-attest-start-time=1970-01-01T00%3A00%3A01Z&spire-connection-attempts=3\
             &spire-server-address=127.0.0.1&spire-server-port=8081 HTTP/1.1"
        );
    }

    #[tokio::test]
    async fn anything_but_a_bundle_is_refused() {
        let (outcome, _) = ask_socket("404 Not Found", PEM).await;
        assert_eq!(outcome, Err("error downloading trust bundle: 404 Not Found".to_owned()));

        let (outcome, _) = ask_socket("200 OK", b"nothing").await;
        assert_eq!(outcome, Err("no PEM blocks".to_owned()));
    }
}
