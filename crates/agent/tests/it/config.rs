//! The configuration of an agent that nobody wrote a file for.

use std::path::Path;
use std::time::Duration;

use config::{
    AgentConfig, AgentExperimental, AgentFinial, Bootstrap, HealthConfig, LogConfig, ProfilingConfig,
    Rebootstrap, SdsConfig, TelemetryConfig, WorkloadRateLimits,
};
use spiffe::TrustDomain;
use spiffe::key::KeyKind;

/// With both sockets in `directory`.
pub(crate) fn config(directory: &Path) -> AgentConfig {
    AgentConfig {
        trust_domain: TrustDomain::parse("example.org").unwrap(),
        server_address: "127.0.0.1".to_owned(),
        server_port: 1,
        socket_path: directory.join("public/api.sock"),
        admin_socket_path: Some(directory.join("private/admin.sock")),
        data_dir: directory.join("data"),
        log: LogConfig {
            level: "DEBUG".to_owned(),
            format: String::new(),
            file: Some(directory.join("log")),
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
        disable_sds_api: true,
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
        finial: AgentFinial {
            vault: true,
            held_callers: 10,
            hold_timeout: Duration::from_secs(30),
            server_addresses: Vec::new(),
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
