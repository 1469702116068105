//! A server's file.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::shared::{Health, Nothing, Telemetry};
use crate::hcl::{Kept, UnusedKeys};

/// The file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct File {
    pub(crate) server: Server,
    /// Only known here; the blocks are read from the tree, in their order.
    pub(crate) plugins: Option<Kept>,
    pub(crate) telemetry: Telemetry,
    pub(crate) health_checks: Health,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `server`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Server {
    pub(crate) admin_ids: Vec<String>,
    pub(crate) agent_ttl: String,
    pub(crate) audit_log_enabled: bool,
    pub(crate) bind_address: String,
    pub(crate) bind_port: i64,
    pub(crate) ca_key_type: String,
    pub(crate) ca_subject: Option<CaSubject>,
    pub(crate) ca_ttl: String,
    pub(crate) data_dir: String,
    pub(crate) default_x509_svid_ttl: String,
    pub(crate) default_jwt_svid_ttl: String,
    pub(crate) experimental: Experimental,
    pub(crate) federation: Option<Federation>,
    pub(crate) disable_jwt_svids: bool,
    pub(crate) jwt_issuer: String,
    pub(crate) jwt_key_type: String,
    pub(crate) log_file: String,
    pub(crate) log_level: String,
    pub(crate) log_format: String,
    pub(crate) log_source_location: bool,
    pub(crate) prune_attested_nodes_expired_for: String,
    pub(crate) prune_attested_nodes_batch_size: i64,
    pub(crate) prune_tofu_nodes: bool,
    pub(crate) proxy_protocol_trusted_cidrs: Vec<String>,
    pub(crate) ratelimit: RateLimit,
    pub(crate) socket_path: String,
    pub(crate) trust_domain: String,
    pub(crate) max_attested_node_info_staleness: Option<String>,
    pub(crate) profiling_enabled: bool,
    pub(crate) profiling_port: i64,
    pub(crate) profiling_freq: i64,
    pub(crate) profiling_names: Vec<String>,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `server.ca_subject`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct CaSubject {
    pub(crate) country: Vec<String>,
    pub(crate) organization: Vec<String>,
    pub(crate) common_name: String,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `server.ratelimit`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct RateLimit {
    pub(crate) attestation: Option<bool>,
    pub(crate) signing: Option<bool>,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `server.experimental`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Experimental {
    pub(crate) agent_spiffe_id_as_selector: bool,
    pub(crate) auth_opa_policy_engine: Option<Policy>,
    pub(crate) cache_reload_interval: String,
    pub(crate) full_cache_reload_interval: String,
    pub(crate) events_based_cache: bool,
    pub(crate) prune_events_older_than: String,
    pub(crate) event_timeout: String,
    pub(crate) sql_transaction_timeout: String,
    pub(crate) require_pq_kem: bool,
    pub(crate) wit_key_type: String,
    pub(crate) wit_issuer: String,
    pub(crate) feature_flags: Vec<String>,
    pub(crate) named_pipe_name: String,
    pub(crate) finial: Option<Finial>,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `server.experimental.finial`: what only this program knows. SPIRE ignores the block.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Finial {
    pub(crate) allow_agent_ids_anywhere: bool,
    pub(crate) allow_exposed_socket: bool,
    pub(crate) audit_log_chain: bool,
    pub(crate) database_notifications: Option<bool>,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `server.experimental.auth_opa_policy_engine`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Policy {
    pub(crate) local: Option<LocalPolicy>,
}

/// `server.experimental.auth_opa_policy_engine.local`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct LocalPolicy {
    pub(crate) rego_path: String,
    pub(crate) policy_data_path: String,
}

/// `server.federation`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Federation {
    pub(crate) bundle_endpoint: Option<BundleEndpoint>,
    pub(crate) federates_with: BTreeMap<String, FederatesWith>,
}

/// `server.federation.bundle_endpoint`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct BundleEndpoint {
    pub(crate) address: String,
    pub(crate) port: i64,
    pub(crate) refresh_hint: String,
    pub(crate) acme: Option<Acme>,
    pub(crate) profile: Option<Kept>,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// The profiles that `bundle_endpoint.profile` may name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Profiles {
    pub(crate) https_spiffe: Option<Nothing>,
    pub(crate) https_web: Option<HttpsWeb>,
}

/// `bundle_endpoint.profile "https_web"`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct HttpsWeb {
    pub(crate) acme: Option<Acme>,
    pub(crate) serving_cert_file: Option<ServingCert>,
}

/// `acme`, in the profile or, as before, in the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Acme {
    pub(crate) directory_url: String,
    pub(crate) domain_name: String,
    pub(crate) email: String,
    pub(crate) tos_accepted: bool,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `bundle_endpoint.profile "https_web".serving_cert_file`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ServingCert {
    pub(crate) cert_file_path: String,
    pub(crate) key_file_path: String,
    pub(crate) file_sync_interval: String,
}

/// `server.federation.federates_with`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct FederatesWith {
    pub(crate) bundle_endpoint_url: String,
    pub(crate) bundle_endpoint_profile: Option<Kept>,
}

/// The profiles that `bundle_endpoint_profile` may name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ForeignProfiles {
    pub(crate) https_spiffe: Option<ForeignSpiffe>,
    pub(crate) https_web: Option<Nothing>,
}

/// `bundle_endpoint_profile "https_spiffe"`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ForeignSpiffe {
    pub(crate) endpoint_spiffe_id: String,
}
