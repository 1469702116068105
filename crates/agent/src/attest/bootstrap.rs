//! Where an agent has its first bundle from.

use std::path::PathBuf;
use std::time::Duration;

use client::{Address, WorkloadApi};
use config::{AgentConfig, Bootstrap, BundleFormat};
use runtime::chain;
use runtime::clock::{Clock, within};
use spiffe::{Bundle, TrustDomain, X509Authority};
use tracing::{debug, info};

use crate::stored::{AgentData, BootstrapUse};

/// How long another agent's Workload API may take.
const WORKLOAD_API_TIMEOUT: Duration = Duration::from_secs(60);

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
    #[error("could not parse trust bundle: open {path}: {reason}", path = .path.display())]
    File {
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
    /// The URL does not give one.
    #[error("{0}")]
    Url(String),
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
            let text = std::fs::read(path)
                .map_err(|error| BootstrapError::File { path: path.clone(), reason: error.to_string() })?;
            parse(&config.trust_domain, &text, *format)?
        }
        Bootstrap::WorkloadApi(address) => {
            announce(data);
            debug!("Fetching trust bundle from SPIFFE Workload API: {address}");
            from_workload_api(&config.trust_domain, address, clock).await?
        }
        Bootstrap::Url { .. } => {
            announce(data);
            return Err(BootstrapError::Url("trust_bundle_url is not part of this version".to_owned()));
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
