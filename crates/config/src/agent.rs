//! What an agent may assume of its configuration: every value checked, every default applied.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use spiffe::key::KeyKind;
use spiffe::{SpiffeId, TrustDomain};

use crate::{HealthConfig, LogConfig, PluginBlock, ProfilingConfig, TelemetryConfig};

/// The configuration of an agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// `trust_domain`
    pub trust_domain: TrustDomain,
    /// `server_address`, without brackets.
    pub server_address: String,
    /// `server_port`
    pub server_port: u16,
    /// `socket_path`: the Workload API's socket.
    pub socket_path: PathBuf,
    /// `admin_socket_path`
    pub admin_socket_path: Option<PathBuf>,
    /// `data_dir`: made where it is missing.
    pub data_dir: PathBuf,
    /// How to log.
    pub log: LogConfig,
    /// `log_selectors`
    pub log_selectors: Vec<String>,
    /// `join_token`, or what the file of `join_token_file` held. A secret.
    pub join_token: Option<JoinTokenText>,
    /// Where the first trust bundle comes from.
    pub bootstrap: Bootstrap,
    /// `rebootstrap_mode`
    pub rebootstrap: Rebootstrap,
    /// `rebootstrap_delay`
    pub rebootstrap_delay: Duration,
    /// `allow_unauthenticated_verifiers`
    pub allow_unauthenticated_verifiers: bool,
    /// `allowed_foreign_jwt_claims`
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// `authorized_delegates`
    pub authorized_delegates: Vec<SpiffeId>,
    /// `availability_target`
    pub availability_target: Option<Duration>,
    /// `disable_sds_api`
    pub disable_sds_api: bool,
    /// `disable_workload_api`
    pub disable_workload_api: bool,
    /// `jwt_svid_cache_max_size`
    pub jwt_svid_cache_max_size: usize,
    /// `x509_svid_cache_max_size`
    pub x509_svid_cache_max_size: usize,
    /// `workload_x509_svid_key_type`
    pub workload_key: KeyKind,
    /// `sds`
    pub sds: SdsConfig,
    /// `experimental` but for `finial`.
    pub experimental: AgentExperimental,
    /// `experimental.finial`: what SPIRE does not know.
    pub finial: AgentFinial,
    /// `plugins`, in the order of the file.
    pub plugins: Vec<PluginBlock>,
    /// `health_checks`
    pub health: HealthConfig,
    /// `telemetry`
    pub telemetry: TelemetryConfig,
    /// `profiling_*`
    pub profiling: ProfilingConfig,
}

/// A join token: not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinTokenText(pub String);

impl std::fmt::Debug for JoinTokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinTokenText")
    }
}

/// Where the first trust bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// `insecure_bootstrap`: whoever answers with the server's id is believed, once.
    Insecure,
    /// `trust_bundle_path`
    File {
        /// The file.
        path: PathBuf,
        /// `trust_bundle_format`
        format: BundleFormat,
    },
    /// `trust_bundle_url`
    Url {
        /// The address; `https` unless there is a socket.
        url: String,
        /// `trust_bundle_unix_socket`
        unix_socket: Option<PathBuf>,
        /// `trust_bundle_format`
        format: BundleFormat,
    },
    /// `trust_bundle_spiffe_workload_api`: an address such as `unix:///run/api.sock`.
    WorkloadApi(String),
}

/// `trust_bundle_format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleFormat {
    /// `pem`
    Pem,
    /// `spiffe`
    Spiffe,
}

/// `rebootstrap_mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebootstrap {
    /// `never`
    Never,
    /// `auto`
    Auto,
    /// `always`
    Always,
}

/// `sds`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdsConfig {
    /// `default_svid_name`
    pub svid_name: String,
    /// `default_bundle_name`
    pub bundle_name: String,
    /// `default_all_bundles_name`
    pub all_bundles_name: String,
    /// `disable_spiffe_cert_validation`
    pub disable_spiffe_validation: bool,
}

/// `experimental`
#[derive(Clone, Debug)]
pub struct AgentExperimental {
    /// `sync_interval`
    pub sync_interval: Duration,
    /// `jwt_svid_cache_hit_timeout`
    pub jwt_svid_cache_hit_timeout: Duration,
    /// `use_sync_authorized_entries`
    pub use_sync_authorized_entries: bool,
    /// `require_pq_kem`
    pub require_pq_kem: bool,
    /// `feature_flags` holds `wit-svid`.
    pub wit_svid: bool,
    /// `ratelimit`: requests a second and selector set; 0 is no limit.
    pub rate_limits: WorkloadRateLimits,
    /// `broker`
    pub broker: Option<BrokerConfig>,
}

/// `experimental.finial` of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentFinial {
    /// `vault`: whether what workloads get outlives a restart, sealed in `data_dir`. Where it is not
    /// set, it does if the key manager is `disk`.
    pub vault: bool,
    /// `held_callers`: how many callers that come before there is anything to serve may wait.
    pub held_callers: usize,
    /// `hold_timeout`: how long they may.
    pub hold_timeout: Duration,
    /// `server_addresses`: further servers of the trust domain, in the order in which they are tried
    /// after `server_address`; hosts are without brackets.
    pub server_addresses: Vec<(String, u16)>,
}

/// `experimental.ratelimit`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkloadRateLimits {
    /// `fetch_x509_svid`
    pub fetch_x509_svid: u32,
    /// `fetch_jwt_svid`
    pub fetch_jwt_svid: u32,
    /// `fetch_x509_bundles`
    pub fetch_x509_bundles: u32,
    /// `fetch_jwt_bundles`
    pub fetch_jwt_bundles: u32,
    /// `stream_secrets`
    pub stream_secrets: u32,
    /// `fetch_secrets`
    pub fetch_secrets: u32,
}

/// `experimental.broker`
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// `socket_path`
    pub socket_path: Option<PathBuf>,
    /// `bind_address`
    pub bind: Option<SocketAddr>,
    /// `brokers`
    pub brokers: Vec<Broker>,
}

/// One of `experimental.broker.brokers`.
#[derive(Clone, Debug)]
pub struct Broker {
    /// `id`
    pub id: SpiffeId,
    /// `allowed_reference_types`: the type and whether it may be used over TCP.
    pub allowed_reference_types: Vec<(String, bool)>,
}
