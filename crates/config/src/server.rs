//! What a server may assume of its configuration: every value checked, every default applied.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use spiffe::key::KeyKind;
use spiffe::{SpiffeId, TrustDomain};

use crate::{HealthConfig, LogConfig, PluginBlock, ProfilingConfig, TelemetryConfig};

/// The configuration of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `trust_domain`
    pub trust_domain: TrustDomain,
    /// `bind_address` and `bind_port`, resolved.
    pub bind: SocketAddr,
    /// `socket_path`: the local API's socket.
    pub socket_path: PathBuf,
    /// `data_dir`: made where it is missing.
    pub data_dir: PathBuf,
    /// How to log.
    pub log: LogConfig,
    /// `admin_ids`
    pub admin_ids: Vec<SpiffeId>,
    /// `audit_log_enabled`
    pub audit_log: bool,
    /// What authorities look like.
    pub ca: CaConfig,
    /// `default_x509_svid_ttl`
    pub x509_svid_ttl: Duration,
    /// `default_jwt_svid_ttl`
    pub jwt_svid_ttl: Duration,
    /// `agent_ttl`; the default is that of X.509-SVIDs.
    pub agent_ttl: Duration,
    /// `disable_jwt_svids`
    pub disable_jwt_svids: bool,
    /// Which limits are on.
    pub rate_limits: ServerRateLimits,
    /// `max_attested_node_info_staleness`; `None` where it is not set.
    pub max_agent_staleness: Option<Duration>,
    /// `proxy_protocol_trusted_cidrs`, checked, as written.
    pub proxy_protocol_trusted: Vec<String>,
    /// Pruning of agents.
    pub prune_agents: Option<PruneAgents>,
    /// The own bundle endpoint and the foreign ones.
    pub federation: FederationConfig,
    /// `experimental` but for `finial`.
    pub experimental: ServerExperimental,
    /// `experimental.finial`
    pub finial: ServerFinial,
    /// `plugins`, in the order of the file, the datastore's block among them.
    pub plugins: Vec<PluginBlock>,
    /// `health_checks`
    pub health: HealthConfig,
    /// `telemetry`
    pub telemetry: TelemetryConfig,
    /// `profiling_*`
    pub profiling: ProfilingConfig,
}

/// Authorities: subject, lifetime, keys, issuers.
#[derive(Clone, Debug)]
pub struct CaConfig {
    /// `ca_ttl`
    pub ttl: Duration,
    /// `ca_key_type`
    pub x509_key: KeyKind,
    /// `jwt_key_type`; the default is `ca_key_type`.
    pub jwt_key: KeyKind,
    /// `experimental.wit_key_type`; the default is `ca_key_type`.
    pub wit_key: KeyKind,
    /// `ca_subject.country`; all three empty mean the default subject.
    pub country: Vec<String>,
    /// `ca_subject.organization`
    pub organization: Vec<String>,
    /// `ca_subject.common_name`
    pub common_name: String,
    /// `jwt_issuer`; empty for none.
    pub jwt_issuer: String,
    /// `experimental.wit_issuer`; empty for none.
    pub wit_issuer: String,
}

/// `ratelimit`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerRateLimits {
    /// One attestation a second and address.
    pub attestation: bool,
    /// 500 signatures a second and address.
    pub signing: bool,
}

/// `prune_attested_nodes_expired_for`, with its companions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneAgents {
    /// How long an agent must have expired.
    pub expired_for: Duration,
    /// `prune_attested_nodes_batch_size`
    pub batch_size: u32,
    /// `prune_tofu_nodes`: those too that cannot attest again.
    pub tofu: bool,
}

/// `federation`
#[derive(Clone, Debug, Default)]
pub struct FederationConfig {
    /// `bundle_endpoint`
    pub bundle_endpoint: Option<BundleEndpointConfig>,
    /// `federates_with`, in the order of trust domains.
    pub federates_with: Vec<FederatesWith>,
}

/// `federation.bundle_endpoint`
#[derive(Clone, Debug)]
pub struct BundleEndpointConfig {
    /// `address` and `port`
    pub bind: SocketAddr,
    /// `refresh_hint`
    pub refresh_hint: Duration,
    /// `profile`
    pub profile: EndpointProfile,
}

/// How the own bundle endpoint proves who it is.
#[derive(Clone, Debug)]
pub enum EndpointProfile {
    /// By the server's own SVID.
    HttpsSpiffe,
    /// By a certificate of the web's authorities, got by ACME.
    Acme {
        /// `directory_url`
        directory_url: String,
        /// `domain_name`
        domain_name: String,
        /// `email`
        email: String,
        /// `tos_accepted`
        tos_accepted: bool,
    },
    /// By a certificate of the web's authorities, from files.
    ServingCert {
        /// `cert_file_path`
        certificate: PathBuf,
        /// `key_file_path`
        key: PathBuf,
        /// `file_sync_interval`
        sync_interval: Duration,
    },
}

/// One `federates_with` block.
#[derive(Clone, Debug)]
pub struct FederatesWith {
    /// Its label.
    pub trust_domain: TrustDomain,
    /// `bundle_endpoint_url`
    pub url: String,
    /// `bundle_endpoint_profile`: the id that the endpoint must have under `https_spiffe`; `None` is
    /// `https_web`.
    pub endpoint_spiffe_id: Option<SpiffeId>,
}

/// `experimental`
#[derive(Clone, Debug)]
pub struct ServerExperimental {
    /// `agent_spiffe_id_as_selector`
    pub agent_spiffe_id_as_selector: bool,
    /// `cache_reload_interval`: an upper bound for how late a peer's change is seen.
    pub cache_reload_interval: Duration,
    /// `full_cache_reload_interval`
    pub full_cache_reload_interval: Duration,
    /// `events_based_cache`
    pub events_based_cache: bool,
    /// `prune_events_older_than`
    pub prune_events_older_than: Duration,
    /// `event_timeout`, or its old name `sql_transaction_timeout`
    pub event_timeout: Duration,
    /// `require_pq_kem`
    pub require_pq_kem: bool,
    /// `feature_flags` holds `wit-svid`.
    pub wit_svid: bool,
    /// `auth_opa_policy_engine.local`
    pub policy: Option<PolicyConfig>,
}

/// `experimental.finial`: what SPIRE does not know, and passes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerFinial {
    /// `allow_agent_ids_anywhere`: node attestors may give ids outside of their own namespace, though never
    /// in that of another.
    pub allow_agent_ids_anywhere: bool,
    /// `allow_exposed_socket`: the socket may be below a folder that everybody may write to.
    pub allow_exposed_socket: bool,
    /// `audit_log_chain`: each audit line bears a number, its hash, and that of the one before it.
    pub audit_log_chain: bool,
    /// `database_notifications`: servers that share a PostgreSQL database notify each other of what they
    /// write.
    pub database_notifications: bool,
}

impl Default for ServerFinial {
    fn default() -> Self {
        Self {
            allow_agent_ids_anywhere: false,
            allow_exposed_socket: false,
            audit_log_chain: false,
            database_notifications: true,
        }
    }
}

/// `auth_opa_policy_engine.local`
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// `rego_path`
    pub rego: PathBuf,
    /// `policy_data_path`
    pub data: Option<PathBuf>,
}
