//! What tests of several modules are made of.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use config::{
    AgentConfig, AgentExperimental, Bootstrap, HealthConfig, LogConfig, ProfilingConfig, Rebootstrap,
    SdsConfig, TelemetryConfig, WorkloadRateLimits,
};
use spiffe::key::KeyKind;

use spiffe::{Bundle, Entry, EntryId, Selector, SpiffeId, TrustDomain, UnixSecs};

use crate::state::{AgentIdentity, AgentState, X509Svid};

/// An entry of `example.org` with selectors of type `unix`.
pub(crate) fn entry(id: &str, path: &str, selectors: &[&str]) -> Entry {
    let selectors: Arc<[Selector]> = selectors.iter().map(|value| Selector::new("unix", value)).collect();
    Entry {
        id: EntryId::new(id),
        spiffe_id: SpiffeId::parse(&format!("spiffe://example.org{path}")).expect("a path"),
        parent_id: SpiffeId::parse("spiffe://example.org/spire/agent/join_token/1").expect("an id"),
        selector_set: selectors.iter().cloned().collect(),
        selectors,
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Arc::from([]),
        admin: false,
        downstream: false,
        expires_at: UnixSecs(0),
        dns_names: Arc::from([]),
        revision_number: 0,
        store_svid: false,
        hint: String::new(),
        created_at: UnixSecs(1),
        additional_attributes: None,
    }
}

/// The agent of the tests.
pub(crate) fn agent_id() -> SpiffeId {
    SpiffeId::parse("spiffe://example.org/spire/agent/join_token/1").expect("an id")
}

/// The state of an agent that was just attested, without a certificate.
pub(crate) fn state() -> AgentState {
    let agent = AgentIdentity { id: agent_id(), chain: Arc::from([]), reattestable: false };
    AgentState::new(agent, Bundle::empty(TrustDomain::parse("example.org").expect("a name")))
}

/// The authority behind the SVIDs of the tests.
pub(crate) const AUTHORITY: [u8; 20] = [7; 20];

/// An SVID of `entry` without certificates.
pub(crate) fn svid(entry: &Entry, renew_at: SystemTime) -> X509Svid {
    X509Svid::assumed(entry, renew_at, AUTHORITY)
}

/// A configuration with SPIRE's defaults, of an agent that believes any server, without plugins.
pub(crate) fn config() -> AgentConfig {
    AgentConfig {
        trust_domain: TrustDomain::parse("example.org").expect("a name"),
        server_address: "127.0.0.1".to_owned(),
        server_port: 8081,
        socket_path: "api.sock".into(),
        admin_socket_path: None,
        data_dir: ".".into(),
        log: LogConfig {
            level: "INFO".to_owned(),
            format: String::new(),
            file: None,
            source_location: false,
        },
        log_selectors: Vec::new(),
        join_token: None,
        bootstrap: Bootstrap::Insecure,
        rebootstrap: Rebootstrap::Never,
        rebootstrap_delay: Duration::from_secs(600),
        allow_unauthenticated_verifiers: false,
        allowed_foreign_jwt_claims: Vec::new(),
        authorized_delegates: Vec::new(),
        availability_target: None,
        disable_sds_api: false,
        disable_workload_api: false,
        jwt_svid_cache_max_size: 1000,
        x509_svid_cache_max_size: 1000,
        workload_key: KeyKind::EcP256,
        sds: SdsConfig {
            svid_name: "default".to_owned(),
            bundle_name: "ROOTCA".to_owned(),
            all_bundles_name: "ALL".to_owned(),
            disable_spiffe_validation: false,
        },
        experimental: AgentExperimental {
            sync_interval: Duration::from_secs(5),
            jwt_svid_cache_hit_timeout: Duration::from_secs(30),
            use_sync_authorized_entries: true,
            require_pq_kem: false,
            wit_svid: false,
            rate_limits: WorkloadRateLimits::default(),
            broker: None,
        },
        plugins: Vec::new(),
        health: HealthConfig {
            enabled: false,
            bind_address: "localhost".to_owned(),
            bind_port: "80".to_owned(),
            live_path: "/live".to_owned(),
            ready_path: "/ready".to_owned(),
        },
        telemetry: TelemetryConfig::default(),
        profiling: ProfilingConfig::default(),
    }
}
