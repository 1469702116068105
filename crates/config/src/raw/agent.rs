//! An agent's file.

use serde::Deserialize;

use super::shared::{Health, Telemetry};
use crate::hcl::{Kept, UnusedKeys};

/// The file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct File {
    pub(crate) agent: Agent,
    /// Only known here; the blocks are read from the tree, in their order.
    pub(crate) plugins: Option<Kept>,
    pub(crate) telemetry: Telemetry,
    pub(crate) health_checks: Health,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `agent`
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Agent {
    pub(crate) data_dir: String,
    pub(crate) admin_socket_path: String,
    pub(crate) insecure_bootstrap: bool,
    pub(crate) rebootstrap_mode: String,
    pub(crate) rebootstrap_delay: String,
    pub(crate) join_token: String,
    pub(crate) join_token_file: String,
    pub(crate) log_file: String,
    pub(crate) log_format: String,
    pub(crate) log_level: String,
    pub(crate) log_selectors: Vec<String>,
    pub(crate) log_source_location: bool,
    pub(crate) sds: Sds,
    pub(crate) server_address: String,
    pub(crate) server_port: i64,
    pub(crate) socket_path: String,
    pub(crate) disable_workload_api: bool,
    pub(crate) disable_sds_api: bool,
    pub(crate) workload_x509_svid_key_type: String,
    pub(crate) trust_bundle_format: String,
    pub(crate) trust_bundle_path: String,
    pub(crate) trust_bundle_spiffe_workload_api: String,
    pub(crate) trust_bundle_unix_socket: String,
    pub(crate) trust_bundle_url: String,
    pub(crate) trust_domain: String,
    pub(crate) allow_unauthenticated_verifiers: bool,
    pub(crate) allowed_foreign_jwt_claims: Vec<String>,
    pub(crate) availability_target: String,
    pub(crate) x509_svid_cache_max_size: i64,
    pub(crate) jwt_svid_cache_max_size: i64,
    pub(crate) authorized_delegates: Vec<String>,
    pub(crate) profiling_enabled: bool,
    pub(crate) profiling_port: i64,
    pub(crate) profiling_freq: i64,
    pub(crate) profiling_names: Vec<String>,
    pub(crate) experimental: Experimental,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// The join token is a secret, so nothing is shown.
impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Agent")
    }
}

/// `agent.sds`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Sds {
    pub(crate) default_svid_name: String,
    pub(crate) default_bundle_name: String,
    pub(crate) default_all_bundles_name: String,
    pub(crate) disable_spiffe_cert_validation: bool,
}

/// `agent.experimental`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Experimental {
    pub(crate) sync_interval: String,
    pub(crate) jwt_svid_cache_hit_timeout: String,
    pub(crate) named_pipe_name: String,
    pub(crate) admin_named_pipe_name: String,
    pub(crate) use_sync_authorized_entries: Option<bool>,
    pub(crate) require_pq_kem: bool,
    pub(crate) ratelimit: RateLimit,
    pub(crate) broker: Option<Broker>,
    pub(crate) feature_flags: Vec<String>,
    pub(crate) finial: Option<Finial>,
}

/// `agent.experimental.finial`: what only this program knows. SPIRE ignores the block.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Finial {
    pub(crate) vault: Option<bool>,
    pub(crate) held_callers: Option<i64>,
    pub(crate) hold_timeout: String,
    pub(crate) server_addresses: Vec<String>,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `agent.experimental.ratelimit`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct RateLimit {
    pub(crate) fetch_x509_svid: Option<i64>,
    pub(crate) fetch_jwt_svid: Option<i64>,
    pub(crate) fetch_x509_bundles: Option<i64>,
    pub(crate) fetch_jwt_bundles: Option<i64>,
    pub(crate) stream_secrets: Option<i64>,
    pub(crate) fetch_secrets: Option<i64>,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `agent.experimental.broker`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Broker {
    pub(crate) socket_path: String,
    pub(crate) bind_address: String,
    pub(crate) brokers: Vec<BrokerEntry>,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// One of `agent.experimental.broker.brokers`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct BrokerEntry {
    pub(crate) id: String,
    pub(crate) allowed_reference_types: Vec<ReferenceType>,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// One of `allowed_reference_types`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ReferenceType {
    pub(crate) type_url: String,
    pub(crate) allow_over_tcp: bool,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}
