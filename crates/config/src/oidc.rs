//! The configuration of an OIDC discovery provider.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::ConfigError;
use crate::go::{Span, quote, read_error};
use crate::hcl;
use crate::load::resolve_text;
use crate::url::Address;

/// The configuration of an OIDC discovery provider.
#[derive(Clone, Debug)]
pub struct OidcConfig {
    /// `log_format`
    pub log_format: String,
    /// `log_level`
    pub log_level: String,
    /// `log_path`; none is stdout.
    pub log_path: Option<PathBuf>,
    /// `log_requests`
    pub log_requests: bool,
    /// `domains`, each once.
    pub domains: Vec<String>,
    /// `set_key_use`
    pub set_key_use: bool,
    /// `allow_insecure_scheme`
    pub allow_insecure_scheme: bool,
    /// Where to listen.
    pub listener: OidcListener,
    /// Where the keys come from.
    pub source: OidcSource,
    /// How often the source is asked.
    pub poll_interval: Duration,
    /// `health_checks`: port, live path, ready path.
    pub health: Option<(u16, String, String)>,
    /// `jwt_issuer`; empty for none.
    pub jwt_issuer: String,
    /// `jwks_uri`; empty for none.
    pub jwks_uri: String,
    /// `server_path_prefix`
    pub server_path_prefix: String,
}

/// Where an OIDC discovery provider listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OidcListener {
    /// `insecure_addr`
    Insecure(String),
    /// `listen_socket_path`
    Socket(PathBuf),
    /// `acme`
    Acme {
        /// `directory_url`
        directory_url: String,
        /// `email`
        email: String,
        /// `cache_dir`; `None` where it is set to nothing.
        cache_dir: Option<PathBuf>,
    },
    /// `serving_cert_file`
    ServingCert {
        /// `cert_file_path`
        certificate: PathBuf,
        /// `key_file_path`
        key: PathBuf,
        /// `addr`
        bind: SocketAddr,
        /// `file_sync_interval`
        sync_interval: Duration,
    },
}

/// Where the keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OidcSource {
    /// `server_api`: its address.
    Server(String),
    /// `workload_api`: its socket, and the trust domain.
    Workload(PathBuf, String),
    /// `file`
    File(PathBuf),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    log_format: String,
    log_level: String,
    log_path: String,
    log_requests: bool,
    domains: Vec<String>,
    set_key_use: bool,
    allow_insecure_scheme: bool,
    insecure_addr: String,
    listen_socket_path: String,
    acme: Option<Acme>,
    serving_cert_file: Option<ServingCert>,
    server_api: Option<ServerApi>,
    workload_api: Option<WorkloadApi>,
    file: Option<File>,
    health_checks: Option<Health>,
    experimental: Pipes,
    jwt_issuer: String,
    jwks_uri: String,
    server_path_prefix: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Acme {
    directory_url: String,
    email: String,
    tos_accepted: bool,
    cache_dir: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ServingCert {
    cert_file_path: String,
    key_file_path: String,
    addr: String,
    file_sync_interval: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ServerApi {
    address: String,
    poll_interval: String,
    experimental: Pipes,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WorkloadApi {
    socket_path: String,
    trust_domain: String,
    poll_interval: String,
    experimental: Pipes,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    path: String,
    poll_interval: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Health {
    bind_port: i64,
    live_path: String,
    ready_path: String,
}

/// Names of pipes, which only another system has; they are known and not looked at.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Pipes {
    listen_named_pipe_name: String,
    named_pipe_name: String,
}

const DEFAULT_POLL_INTERVAL: Span = Span::seconds(10);
const DEFAULT_SYNC_INTERVAL: Span = Span::seconds(60);
const DEFAULT_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

impl OidcConfig {
    /// Reads a file and checks all of it.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, in SPIRE's words.
    pub fn load(path: &Path, expand_env: bool) -> Result<Self, ConfigError> {
        let shown = path.to_string_lossy();
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("unable to load configuration: {}", read_error(&shown, &error)))?;
        let text = if expand_env { hcl::expand_env(&text, |name| std::env::var(name).ok()) } else { text };
        let raw: Raw =
            hcl::from_str(&text).map_err(|error| format!("unable to decode configuration: {error}"))?;
        Ok(check(raw)?)
    }
}

fn check(raw: Raw) -> Result<OidcConfig, String> {
    if raw.domains.is_empty() {
        return Err("at least one domain must be configured".into());
    }
    if let Some(acme) = &raw.acme {
        if !raw.insecure_addr.is_empty() {
            return Err("insecure_addr and the acme section are mutually exclusive".into());
        }
        if !acme.tos_accepted {
            return Err("tos_accepted must be set to true in the acme configuration section".into());
        }
        if acme.email.is_empty() {
            return Err("email must be configured in the acme configuration section".into());
        }
    }
    let serving_cert = raw.serving_cert_file.as_ref().map(serving_cert).transpose()?;
    let intervals = intervals(&raw)?;
    check_listeners(&raw)?;
    check_sources(&raw)?;
    let poll_interval = match intervals.as_slice() {
        [] => {
            return Err(
                "exactly one of the server_api, workload_api, or file sections must be configured".into()
            );
        }
        [interval] => *interval,
        _ => return Err("the server_api, workload_api, and file sections are mutually exclusive".into()),
    };
    check_addresses(&raw)?;
    let mut domains: Vec<String> = Vec::new();
    for domain in raw.domains {
        if !domain.is_ascii() || domain.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(format!("domain {} must already be punycode encoded", quote(&domain)));
        }
        if !domains.contains(&domain) {
            domains.push(domain);
        }
    }
    let source = match (raw.server_api, raw.workload_api, raw.file) {
        (Some(server), ..) => OidcSource::Server(server.address),
        (None, Some(api), _) => OidcSource::Workload(api.socket_path.into(), api.trust_domain),
        (None, None, file) => OidcSource::File(file.unwrap_or_default().path.into()),
    };
    let listener = match (raw.acme, serving_cert) {
        (Some(acme), _) => OidcListener::Acme {
            directory_url: or(acme.directory_url, DEFAULT_DIRECTORY),
            email: acme.email,
            cache_dir: acme
                .cache_dir
                .map_or_else(|| Some("./.acme-cache".into()), |path| (!path.is_empty()).then(|| path.into())),
        },
        (None, Some(listener)) => listener,
        (None, None) if raw.listen_socket_path.is_empty() => OidcListener::Insecure(raw.insecure_addr),
        (None, None) => OidcListener::Socket(raw.listen_socket_path.into()),
    };
    let health = raw.health_checks.map(|health| {
        let port = u16::try_from(health.bind_port).ok().filter(|port| *port > 0).unwrap_or(8008);
        (port, or(health.live_path, "/live"), or(health.ready_path, "/ready"))
    });
    Ok(OidcConfig {
        log_format: raw.log_format,
        log_level: or(raw.log_level, "info"),
        log_path: (!raw.log_path.is_empty()).then(|| raw.log_path.into()),
        log_requests: raw.log_requests,
        domains,
        set_key_use: raw.set_key_use,
        allow_insecure_scheme: raw.allow_insecure_scheme,
        listener,
        source,
        poll_interval: poll_interval.to_duration(),
        health,
        jwt_issuer: raw.jwt_issuer,
        jwks_uri: raw.jwks_uri,
        server_path_prefix: or(raw.server_path_prefix, "/"),
    })
}

fn or(value: String, default: &str) -> String {
    if value.is_empty() { default.to_owned() } else { value }
}

fn serving_cert(raw: &ServingCert) -> Result<OidcListener, String> {
    let section = "in the serving_cert_file configuration section";
    if raw.cert_file_path.is_empty() {
        return Err(format!("cert_file_path must be configured {section}"));
    }
    if raw.key_file_path.is_empty() {
        return Err(format!("key_file_path must be configured {section}"));
    }
    let address = if raw.addr.is_empty() { ":443" } else { &raw.addr };
    let bind = resolve_text(address).map_err(|why| format!("invalid addr {section}: {why}"))?;
    let sync_interval = interval(&raw.file_sync_interval, DEFAULT_SYNC_INTERVAL)
        .map_err(|why| format!("invalid file_sync_interval {section}: {why}"))?
        .to_duration();
    Ok(OidcListener::ServingCert {
        certificate: PathBuf::from(&raw.cert_file_path),
        key: PathBuf::from(&raw.key_file_path),
        bind,
        sync_interval,
    })
}

/// The interval of every source that there is.
fn intervals(raw: &Raw) -> Result<Vec<Span>, String> {
    let mut intervals = Vec::new();
    let mut add = |text: &str, section: &str| {
        let interval = interval(text, DEFAULT_POLL_INTERVAL)
            .map_err(|why| format!("invalid poll_interval in the {section} configuration section: {why}"))?;
        intervals.push(interval);
        Ok::<_, String>(())
    };
    if let Some(server) = &raw.server_api {
        add(&server.poll_interval, "server_api")?;
    }
    if let Some(workload) = &raw.workload_api {
        if workload.trust_domain.is_empty() {
            return Err("trust_domain must be configured in the workload_api configuration section".into());
        }
        add(&workload.poll_interval, "workload_api")?;
    }
    if let Some(file) = &raw.file {
        add(&file.poll_interval, "file")?;
    }
    Ok(intervals)
}

fn interval(text: &str, default: Span) -> Result<Span, String> {
    let interval = if text.is_empty() { Span::default() } else { Span::parse(text)? };
    Ok(if interval.0 <= 0 { default } else { interval })
}

fn check_listeners(raw: &Raw) -> Result<(), String> {
    let (acme, files) = (raw.acme.is_some(), raw.serving_cert_file.is_some());
    let (insecure, socket) = (!raw.insecure_addr.is_empty(), !raw.listen_socket_path.is_empty());
    let both = |one: &str, other: &str| Err(format!("{one} and {other} are mutually exclusive"));
    match (acme, files, insecure, socket) {
        (false, false, false, false) => {
            Err("either acme, serving_cert_file, insecure_addr or listen_socket_path must be configured"
                .into())
        }
        (true, true, ..) => both("acme", "serving_cert_file"),
        (true, _, _, true) => both("listen_socket_path", "the acme section"),
        (_, true, true, _) => both("serving_cert_file", "insecure_addr"),
        (_, true, _, true) => both("serving_cert_file", "listen_socket_path"),
        (_, _, true, true) => both("insecure_addr", "listen_socket_path"),
        _ => Ok(()),
    }
}

fn check_sources(raw: &Raw) -> Result<(), String> {
    if let Some(server) = &raw.server_api {
        if server.address.is_empty() {
            return Err("address must be configured in the server_api configuration section".into());
        }
        if !server.address.starts_with("unix:") {
            return Err(
                "address must use the unix name system in the server_api configuration section".into()
            );
        }
    }
    if raw.workload_api.as_ref().is_some_and(|workload| workload.socket_path.is_empty()) {
        return Err("socket_path must be configured in the workload_api configuration section".into());
    }
    Ok(())
}

fn check_addresses(raw: &Raw) -> Result<(), String> {
    if !raw.jwt_issuer.is_empty() {
        let issuer = Address::parse(&raw.jwt_issuer)
            .map_err(|why| format!("the jwt_issuer url could not be parsed: {why}"))?;
        if issuer.scheme.is_empty() {
            return Err("the jwt_issuer url must contain a scheme".into());
        }
        if issuer.host.is_empty() {
            return Err("the jwt_issuer url must contain a host".into());
        }
    }
    if !raw.jwks_uri.is_empty() {
        let what = "the jwks_uri setting could not be parsed";
        let address = Address::parse(&raw.jwks_uri).map_err(|why| format!("{what}: {why}"))?;
        if address.scheme.is_empty() || address.host.is_empty() {
            return Err(format!("{what}: it needs a scheme and a host"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<OidcConfig, String> {
        check(hcl::from_str(text).map_err(|error| error.to_string())?)
    }

    fn refused(text: &str, why: &str) {
        assert_eq!(load(text).map(|_| ()), Err(why.to_owned()), "{text}");
    }

    #[test]
    fn defaults_are_filled_in() {
        let text = r#"domains = ["a.test", "a.test"] insecure_addr = ":80" server_api { address = "unix:///x" }
                      health_checks {}"#;
        let config = load(text).expect("it is good");

        assert_eq!(config.domains, ["a.test"]);
        assert_eq!(config.log_level, "info");
        assert_eq!(config.poll_interval, Duration::from_secs(10));
        assert_eq!(config.health, Some((8008, "/live".to_owned(), "/ready".to_owned())));
        assert_eq!(config.server_path_prefix, "/");
        assert_eq!(config.source, OidcSource::Server("unix:///x".to_owned()));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let domain = "domains = [\"d.test\"]\n";
        refused("domains = []", "at least one domain must be configured");
        refused(
            &format!("{domain}server_api {{}}"),
            "either acme, serving_cert_file, insecure_addr or listen_socket_path must be configured",
        );
        refused(
            &format!("{domain}acme {{}} server_api {{}}"),
            "tos_accepted must be set to true in the acme configuration section",
        );
        refused(
            &format!("{domain}insecure_addr = \":0\" workload_api {{}}"),
            "trust_domain must be configured in the workload_api configuration section",
        );
        refused(
            &format!(
                "{domain}insecure_addr = \":0\" listen_socket_path = \"x\" server_api {{ address = \"unix:x\" }}"
            ),
            "insecure_addr and listen_socket_path are mutually exclusive",
        );
        refused(
            &format!(
                "{domain}insecure_addr = \":0\" file {{ path = \"x\" }} server_api {{ address = \"unix:x\" }}"
            ),
            "the server_api, workload_api, and file sections are mutually exclusive",
        );
        refused(
            "domains = [\"BÜCHER.test\"] insecure_addr = \":0\" file { path = \"x\" }",
            "domain \"BÜCHER.test\" must already be punycode encoded",
        );
    }
}
