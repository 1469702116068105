//! The parts of a configuration that server and agent have alike.

use std::path::PathBuf;

use spiffe::SpiffeId;

/// `log_*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `log_level`, as written; checked.
    pub level: String,
    /// `log_format`: empty, `text` or `json`.
    pub format: String,
    /// `log_file`; none is stdout.
    pub file: Option<PathBuf>,
    /// `log_source_location`
    pub source_location: bool,
}

/// `health_checks`; absent or not enabled means no listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// `listener_enabled`
    pub enabled: bool,
    /// `bind_address`
    pub bind_address: String,
    /// `bind_port`
    pub bind_port: String,
    /// `live_path`
    pub live_path: String,
    /// `ready_path`
    pub ready_path: String,
}

/// `profiling_*`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProfilingConfig {
    /// `profiling_enabled`
    pub enabled: bool,
    /// `profiling_port`
    pub port: u16,
    /// `profiling_freq`: seconds between two profiles; 0 is none.
    pub frequency: u32,
    /// `profiling_names`
    pub names: Vec<String>,
}

/// `telemetry`
#[derive(Clone, Debug, Default)]
pub struct TelemetryConfig {
    /// `Prometheus`
    pub prometheus: Option<PrometheusConfig>,
    /// `DogStatsd`: addresses.
    pub dogstatsd: Vec<String>,
    /// `Statsd`: addresses.
    pub statsd: Vec<String>,
    /// `M3`: addresses and environments.
    pub m3: Vec<(String, String)>,
    /// `InMem` is there and not turned off.
    pub in_memory: bool,
    /// `MetricPrefix`; `None` is the program's default.
    pub prefix: Option<String>,
    /// `EnableTrustDomainLabel`
    pub trust_domain_label: bool,
    /// `EnableHostnameLabel`
    pub hostname_label: bool,
    /// `AllowedPrefixes`
    pub allowed_prefixes: Vec<String>,
    /// `BlockedPrefixes`
    pub blocked_prefixes: Vec<String>,
    /// `AllowedLabels`
    pub allowed_labels: Vec<String>,
    /// `BlockedLabels`
    pub blocked_labels: Vec<String>,
}

/// `telemetry.Prometheus`
#[derive(Clone, Debug)]
pub struct PrometheusConfig {
    /// `host`
    pub host: String,
    /// `port`
    pub port: u16,
    /// `tls`
    pub tls: Option<PrometheusTls>,
}

/// `telemetry.Prometheus.tls`
#[derive(Clone, Debug)]
pub struct PrometheusTls {
    /// `cert_file` and `key_file`; none with `use_spire_svid`.
    pub files: Option<(PathBuf, PathBuf)>,
    /// `client_ca_file`
    pub client_ca: Option<PathBuf>,
    /// `authorized_spiffe_ids`
    pub authorized: Vec<SpiffeId>,
}

/// One plugin block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginBlock {
    /// The type as written, such as `KeyManager`.
    pub kind: String,
    /// The name as written.
    pub name: String,
    /// `plugin_cmd`; empty for a built-in.
    pub command: String,
    /// `plugin_args`
    pub args: Vec<String>,
    /// `plugin_checksum`; empty for none.
    pub checksum: String,
    /// `enabled`
    pub enabled: bool,
    /// Where the plugin's own configuration is.
    pub data: PluginData,
}

/// Where a plugin's own configuration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PluginData {
    /// The block has none.
    Absent,
    /// `plugin_data`, as HCL text.
    Inline(String),
    /// `plugin_data_file`
    File(PathBuf),
}
