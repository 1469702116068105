//! What server and agent have alike in their files.

use serde::Deserialize;

use crate::hcl::{Kept, UnusedKeys};

/// `health_checks`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Health {
    pub(crate) listener_enabled: bool,
    pub(crate) bind_address: String,
    pub(crate) bind_port: String,
    pub(crate) ready_path: String,
    pub(crate) live_path: String,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `telemetry`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Telemetry {
    #[serde(rename = "Prometheus")]
    pub(crate) prometheus: Option<Prometheus>,
    #[serde(rename = "DogStatsd")]
    pub(crate) dogstatsd: Vec<Sink>,
    #[serde(rename = "Statsd")]
    pub(crate) statsd: Vec<Sink>,
    #[serde(rename = "M3")]
    pub(crate) m3: Vec<M3>,
    #[serde(rename = "InMem")]
    pub(crate) in_memory: Option<Nothing>,
    #[serde(rename = "MetricPrefix")]
    pub(crate) prefix: String,
    #[serde(rename = "EnableTrustDomainLabel")]
    pub(crate) trust_domain_label: Option<bool>,
    #[serde(rename = "EnableHostnameLabel")]
    pub(crate) hostname_label: Option<bool>,
    #[serde(rename = "AllowedPrefixes")]
    pub(crate) allowed_prefixes: Vec<String>,
    #[serde(rename = "BlockedPrefixes")]
    pub(crate) blocked_prefixes: Vec<String>,
    #[serde(rename = "AllowedLabels")]
    pub(crate) allowed_labels: Vec<String>,
    #[serde(rename = "BlockedLabels")]
    pub(crate) blocked_labels: Vec<String>,
}

/// `telemetry.Prometheus`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Prometheus {
    pub(crate) host: String,
    pub(crate) port: i64,
    pub(crate) tls: Option<Tls>,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// `telemetry.Prometheus.tls`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Tls {
    pub(crate) cert_file: String,
    pub(crate) key_file: String,
    pub(crate) client_ca_file: String,
    pub(crate) use_spire_svid: bool,
    pub(crate) authorized_spiffe_ids: Vec<String>,
}

/// One of `telemetry.DogStatsd` or `telemetry.Statsd`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Sink {
    pub(crate) address: String,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// One of `telemetry.M3`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct M3 {
    pub(crate) address: String,
    pub(crate) env: String,
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// A block without keys: `telemetry.InMem`, and `experimental.finial`, which has none yet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Nothing {
    #[serde(rename = "$unused")]
    pub(crate) unused: UnusedKeys,
}

/// What a plugin's block holds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Plugin {
    pub(crate) plugin_cmd: String,
    pub(crate) plugin_args: Vec<String>,
    pub(crate) plugin_checksum: String,
    pub(crate) plugin_data: Option<Kept>,
    pub(crate) plugin_data_file: Option<String>,
    pub(crate) enabled: Option<bool>,
}
