//! What server and agent check alike.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;

use spiffe::{SpiffeId, TrustDomain};

use crate::go::{Span, quote, system_text};
use crate::hcl::UnusedKeys;
use crate::plugins::{self, Side};
use crate::raw::shared::{Health, Telemetry, Tls};
use crate::{
    HealthConfig, LogConfig, Note, PluginBlock, ProfilingConfig, PrometheusConfig, PrometheusTls,
    TelemetryConfig, Unbuilt,
};

const LEVELS: [&str; 8] = ["panic", "fatal", "error", "warn", "warning", "info", "debug", "trace"];
const FEATURE_FLAGS: [&str; 2] = ["i_am_a_test_flag", "wit-svid"];

/// Checks feature flags; whether `wit-svid` is among them.
pub(super) fn feature_flags(flags: &[String]) -> Result<bool, String> {
    let mut unknown: Vec<&str> =
        flags.iter().map(String::as_str).filter(|flag| !FEATURE_FLAGS.contains(flag)).collect();
    unknown.sort_unstable();
    if !unknown.is_empty() {
        return Err(format!("error loading feature flags: unknown feature flag(s): [{}]", unknown.join(" ")));
    }
    Ok(flags.iter().any(|flag| flag == "wit-svid"))
}

/// Says which feature flags are on.
pub(super) fn note_feature_flags(flags: &[String], notes: &mut Vec<Note>) {
    let text = |flag: &String| format!("Developer feature flag {} has been enabled", quote(flag));
    notes.extend(flags.iter().map(text).map(Note::warning));
}

/// Checks how to log. The file is opened here already: a name that cannot be opened is found early.
pub(super) fn log(level: &str, format: &str, file: &str, source_location: bool) -> Result<LogConfig, String> {
    if !file.is_empty() {
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
        let opened = options.append(true).create(true).open(file);
        opened.map_err(|error| format!("open {file}: {}", system_text(&error)))?;
    }
    if !LEVELS.contains(&level.to_lowercase().as_str()) {
        return Err(format!("could not start logger: not a valid logrus Level: {}", quote(level)));
    }
    if !["", "TEXT", "JSON"].contains(&format.to_uppercase().as_str()) {
        return Err(format!("could not start logger: unknown logger format: {}", quote(format)));
    }
    let (level, format) = (level.to_owned(), format.to_owned());
    Ok(LogConfig { level, format, file: super::path(file), source_location })
}

/// Parses the own trust domain.
pub(super) fn trust_domain(text: &str, notes: &mut Vec<Note>) -> Result<TrustDomain, String> {
    let parsed = TrustDomain::parse(text)
        .map_err(|error| format!("could not parse trust_domain {}: {error}", quote(text)))?;
    if parsed.check_length().is_err() {
        let mut note = Note::warning(
            "Configured trust domain name should be less than 255 characters to be SPIFFE compliant; \
             a longer trust domain name may impact interoperability",
        );
        note.fields.push(("trust_domain", parsed.as_str().to_owned()));
        notes.push(note);
    }
    Ok(parsed)
}

/// Reads a duration where one is set; `what` starts the complaint.
pub(super) fn span(text: &str, what: impl FnOnce() -> String) -> Result<Option<Span>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    Span::parse(text).map(Some).map_err(|error| format!("{}: {error}", what()))
}

/// Resolves a host, which may be empty or in brackets, and a port.
pub(super) fn resolve(host: &str, port: i64) -> Result<SocketAddr, String> {
    let port = u16::try_from(port).map_err(|_| format!("address {port}: invalid port"))?;
    if host.is_empty() {
        return Ok(SocketAddr::new(IpAddr::from([0_u16; 8]), port));
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    let unknown = || format!("lookup {host}: no such host");
    // What only looks like an address, or cannot be a name, is not asked for.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_number = |label: &str| match label.strip_prefix("0x").or_else(|| label.strip_prefix("0X")) {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    };
    if !host.bytes().all(is_name) || host.split('.').all(is_number) {
        return Err(unknown());
    }
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(|_| unknown())?.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
    first.copied().ok_or_else(unknown)
}

/// Collects the keys that nobody knows.
pub(super) struct Unknown(Vec<Note>);

impl Unknown {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn add(&mut self, section: impl Into<String>, keys: &UnusedKeys) {
        if !keys.0.is_empty() {
            self.0.push(Note::unknown_keys(section, &keys.0));
        }
    }

    pub(super) fn telemetry(&mut self, telemetry: &Telemetry) {
        if let Some(prometheus) = &telemetry.prometheus {
            self.add("Prometheus", &prometheus.unused);
        }
        telemetry.dogstatsd.iter().for_each(|sink| self.add("DogStatsd", &sink.unused));
        telemetry.statsd.iter().for_each(|sink| self.add("Statsd", &sink.unused));
        telemetry.m3.iter().for_each(|sink| self.add("M3", &sink.unused));
        if let Some(in_memory) = &telemetry.in_memory {
            self.add("InMem", &in_memory.unused);
        }
    }

    /// Ends the collection: any unknown key is an error.
    pub(super) fn finish(self, notes: &mut Vec<Note>) -> Result<(), String> {
        let is_fine = self.0.is_empty();
        notes.extend(self.0);
        if is_fine { Ok(()) } else { Err("unknown configuration detected".to_owned()) }
    }
}

pub(super) fn health(raw: &Health) -> HealthConfig {
    let or = |value: &str, default: &str| if value.is_empty() { default } else { value }.to_owned();
    HealthConfig {
        enabled: raw.listener_enabled,
        bind_address: or(raw.bind_address.trim_matches(['[', ']']), "localhost"),
        bind_port: or(&raw.bind_port, "80"),
        live_path: or(&raw.live_path, "/live"),
        ready_path: or(&raw.ready_path, "/ready"),
    }
}

/// Numbers beyond what the system has are the largest that it has: SPIRE takes them at this point, and
/// what they are for finds out.
pub(super) fn profiling(enabled: bool, port: i64, frequency: i64, names: &[String]) -> ProfilingConfig {
    ProfilingConfig {
        enabled,
        port: u16::try_from(port).unwrap_or(if port < 0 { 0 } else { u16::MAX }),
        frequency: u32::try_from(frequency).unwrap_or(if frequency < 0 { 0 } else { u32::MAX }),
        names: names.to_vec(),
    }
}

pub(super) fn telemetry(raw: &Telemetry) -> TelemetryConfig {
    let addresses =
        |sinks: &[crate::raw::shared::Sink]| sinks.iter().map(|sink| sink.address.clone()).collect();
    TelemetryConfig {
        prometheus: raw.prometheus.as_ref().map(|prometheus| PrometheusConfig {
            host: if prometheus.host.is_empty() { "localhost".to_owned() } else { prometheus.host.clone() },
            port: u16::try_from(prometheus.port).unwrap_or_default(),
            tls: prometheus.tls.as_ref().map(tls),
        }),
        dogstatsd: addresses(&raw.dogstatsd),
        statsd: addresses(&raw.statsd),
        m3: raw.m3.iter().map(|sink| (sink.address.clone(), sink.env.clone())).collect(),
        in_memory: raw.in_memory.is_some(),
        prefix: (!raw.prefix.is_empty()).then(|| raw.prefix.clone()),
        trust_domain_label: raw.trust_domain_label.unwrap_or(false),
        hostname_label: raw.hostname_label.unwrap_or(true),
        allowed_prefixes: raw.allowed_prefixes.clone(),
        blocked_prefixes: raw.blocked_prefixes.clone(),
        allowed_labels: raw.allowed_labels.clone(),
        blocked_labels: raw.blocked_labels.clone(),
    }
}

fn tls(raw: &Tls) -> PrometheusTls {
    PrometheusTls {
        files: (!raw.use_spire_svid).then(|| (raw.cert_file.clone().into(), raw.key_file.clone().into())),
        client_ca: super::path(&raw.client_ca_file),
        authorized: raw.authorized_spiffe_ids.iter().filter_map(|id| SpiffeId::parse(id).ok()).collect(),
    }
}

/// Collects what is set and not part of this version.
#[derive(Default)]
pub(super) struct Missing(pub(super) Vec<Unbuilt>);

impl Missing {
    pub(super) fn when(&mut self, is_set: bool, key: impl Into<String>, advice: &'static str) {
        if is_set {
            self.0.push(Unbuilt { key: key.into(), advice });
        }
    }
}

impl Missing {
    /// To SPIRE's library the paths of the reports may be patterns, with a method, a host or wildcards;
    /// where it can make nothing of them, SPIRE ends with a stack trace.
    pub(super) fn health(&mut self, health: &HealthConfig) {
        let is_no_path = |path: &str| !path.starts_with('/') || path.contains(['{', ' ', '\t']);
        for (key, path) in [("live_path", &health.live_path), ("ready_path", &health.ready_path)] {
            let key = format!("health_checks.{key} = \"{path}\"");
            self.when(health.enabled && is_no_path(path), key, "set it to a path, with a slash in front");
        }
        let is_one = health.enabled && health.live_path == health.ready_path;
        let key = format!("one path \"{}\" for both health_checks", health.live_path);
        self.when(is_one, key, "set live_path and ready_path to different paths");
    }

    /// Plugins that are switched off do not count, nor do those that SPIRE does not know either: the
    /// catalog refuses them in SPIRE's words.
    pub(super) fn plugins(&mut self, side: Side, blocks: &[PluginBlock], built: &[(&str, &str)]) {
        for block in blocks.iter().filter(|block| block.enabled) {
            let key = format!("plugins.{} \"{}\"", block.kind, block.name);
            if !block.command.is_empty() {
                self.when(true, format!("{key}.plugin_cmd"), "use a built-in plugin");
                continue;
            }
            let is_built = built.contains(&(block.kind.as_str(), block.name.as_str()));
            self.when(!is_built && plugins::is_known(side, block), key, "use another plugin of its type");
        }
    }
}

/// Whether one path is below the folder of another.
pub(super) fn is_beside(path: &Path, other: &Path) -> bool {
    let folder = super::absolute(other);
    let folder = folder.parent().unwrap_or_else(|| Path::new("/"));
    let path = super::absolute(path);
    path != folder && path.starts_with(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(live: &str, ready: &str, expected: &[&str]) {
        let health = Health {
            listener_enabled: true,
            live_path: live.to_owned(),
            ready_path: ready.to_owned(),
            ..Health::default()
        };
        let mut missing = Missing::default();
        missing.health(&super::health(&health));
        let keys: Vec<String> = missing.0.into_iter().map(|unbuilt| unbuilt.key).collect();
        assert_eq!(keys, expected, "{live} {ready}");
    }

    #[test]
    fn what_only_looks_like_an_address_is_no_host() {
        for host in ["1", "127.1", "010.0.0.1", "0x7f000001", "0X7F.1", "127.0.0.0x1"] {
            assert_eq!(resolve(host, 1), Err(format!("lookup {host}: no such host")));
        }
        assert_eq!(resolve("127.0.0.1", 1), Ok(SocketAddr::from(([127, 0, 0, 1], 1))));
    }

    #[test]
    fn health_paths_that_would_never_be_found_are_refused_by_name() {
        check("", "", &[]);
        check("/", "/ready", &[]);
        check("//l", "/%20", &[]);
        check("live", "/ready", &["health_checks.live_path = \"live\""]);
        check("/live", "GET /ready", &["health_checks.ready_path = \"GET /ready\""]);
        check("/{x}", "/a b", &["health_checks.live_path = \"/{x}\"", "health_checks.ready_path = \"/a b\""]);
        check("/x", "/x", &["one path \"/x\" for both health_checks"]);
        check("/ready", "", &["one path \"/ready\" for both health_checks"]);
    }
}
