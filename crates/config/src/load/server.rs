//! A server's configuration.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use spiffe::key::KeyKind;
use spiffe::{SpiffeId, TrustDomain};

use super::shared::{self, Missing, Unknown, span};
use super::{absolute, or_text, path, plugins, prefer, read};
use crate::go::{Span, quote};
use crate::hcl::{self, Kept};
use crate::plugins::Side;
use crate::raw::server::{self as raw, File, Server};
use crate::{
    BundleEndpointConfig, CaConfig, ConfigError, EndpointProfile, FederatesWith, FederationConfig, Loaded,
    LogConfig, Note, PolicyConfig, PruneAgents, ServerConfig, ServerExperimental, ServerFinial,
    ServerRateLimits,
};

/// A server's flags; what is empty, zero or false is not given.
#[derive(Clone, Debug, Default)]
pub struct ServerFlags {
    /// `-config`; the default is `conf/server/server.conf`.
    pub config: String,
    /// `-expandEnv`
    pub expand_env: bool,
    /// `-bindAddress`
    pub bind_address: String,
    /// `-serverPort`
    pub server_port: i64,
    /// `-dataDir`
    pub data_dir: String,
    /// `-logFile`
    pub log_file: String,
    /// `-logFormat`
    pub log_format: String,
    /// `-logLevel`
    pub log_level: String,
    /// `-logSourceLocation`
    pub log_source_location: bool,
    /// `-socketPath`
    pub socket_path: String,
    /// `-trustDomain`
    pub trust_domain: String,
}

const DEFAULT_FILE: &str = "conf/server/server.conf";
const DEFAULT_SOCKET: &str = "/tmp/spire-server/private/api.sock";
const DEFAULT_CA_TTL: Span = Span::seconds(24 * 3600);
const DEFAULT_X509_SVID_TTL: Span = Span::seconds(3600);
const DEFAULT_JWT_SVID_TTL: Span = Span::seconds(300);
const MINUTE: Span = Span::seconds(60);
const DAY: Span = Span::seconds(24 * 3600);
/// An SVID's lifetime is a sixth of its authority's at most, and a week.
const CA_TO_SVID: i64 = 6;
const LONGEST_SVID: Span = Span::seconds(7 * 24 * 3600);

impl ServerConfig {
    /// Reads the file that the flags name, and checks all of it.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, in SPIRE's words.
    pub fn load(flags: &ServerFlags) -> Result<Loaded<Self>, ConfigError> {
        let file = if flags.config.is_empty() { DEFAULT_FILE } else { &flags.config };
        let mut file = read::<File>(Path::new(file), flags.expand_env)?;
        merge(&mut file.raw.server, flags);
        let wit_svid = shared::feature_flags(&file.raw.server.experimental.feature_flags)?;
        check_required(&file)?;
        let server = &file.raw.server;
        let log =
            shared::log(&server.log_level, &server.log_format, &server.log_file, server.log_source_location)?;
        let mut notes = Vec::new();
        match check(&file, log.clone(), wit_svid, &mut notes) {
            Ok(config) => {
                let unbuilt = unbuilt(&file.raw, &config);
                Ok(Loaded { config, notes, unbuilt })
            }
            Err(text) => Err(ConfigError { text, notes, log: Some(Box::new(log)) }),
        }
    }
}

fn merge(server: &mut Server, flags: &ServerFlags) {
    prefer(&flags.bind_address, &mut server.bind_address);
    if flags.server_port != 0 {
        server.bind_port = flags.server_port;
    }
    prefer(&flags.data_dir, &mut server.data_dir);
    prefer(&flags.log_file, &mut server.log_file);
    prefer(&flags.log_format, &mut server.log_format);
    prefer(&flags.log_level, &mut server.log_level);
    server.log_source_location |= flags.log_source_location;
    prefer(&flags.socket_path, &mut server.socket_path);
    prefer(&flags.trust_domain, &mut server.trust_domain);
    or_text(&mut server.bind_address, "0.0.0.0");
    if server.bind_port == 0 {
        server.bind_port = 8081;
    }
    or_text(&mut server.ca_ttl, "24h0m0s");
    or_text(&mut server.log_level, "INFO");
    or_text(&mut server.socket_path, DEFAULT_SOCKET);
}

/// What is looked at before anything else.
fn check_required(file: &super::File<File>) -> Result<(), String> {
    let server = &file.raw.server;
    if server.trust_domain.is_empty() {
        return Err("trust_domain must be configured".into());
    }
    if server.data_dir.is_empty() {
        return Err("data_dir must be configured".into());
    }
    if !plugins::is_there(&file.body) {
        return Err("plugins section must be configured".into());
    }
    if let Some(federation) = &server.federation {
        if let Some(acme) = federation.bundle_endpoint.as_ref().and_then(|endpoint| endpoint.acme.as_ref()) {
            if acme.domain_name.is_empty() {
                return Err("federation.bundle_endpoint.acme.domain_name must be configured".into());
            }
            if acme.email.is_empty() {
                return Err("federation.bundle_endpoint.acme.email must be configured".into());
            }
        }
        for (name, foreign) in &federation.federates_with {
            let url = &foreign.bundle_endpoint_url;
            let key = format!("federation.federates_with[\"{name}\"].bundle_endpoint_url");
            if url.is_empty() {
                return Err(format!("{key} must be configured"));
            }
            if !url.to_lowercase().starts_with("https://") {
                return Err(format!("{key} must use the HTTPS protocol; URL found: {}", quote(url)));
            }
        }
    }
    let experimental = &server.experimental;
    if !experimental.event_timeout.is_empty() && !experimental.sql_transaction_timeout.is_empty() {
        return Err(
            "both experimental sql_transaction_timeout and event_timeout set, only set event_timeout".into(),
        );
    }
    for cidr in &server.proxy_protocol_trusted_cidrs {
        if !is_cidr(cidr) {
            let shown = quote(cidr);
            return Err(format!(
                "invalid proxy_protocol_trusted_cidrs value {shown}: invalid CIDR address: {cidr}"
            ));
        }
    }
    if !experimental.named_pipe_name.is_empty() {
        return Err("invalid configuration: named_pipe_name is not supported in this platform; \
                    please use socket_path instead"
            .into());
    }
    Ok(())
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let digits = !length.is_empty() && length.len() <= 3 && length.bytes().all(|byte| byte.is_ascii_digit());
    digits && length.parse().is_ok_and(|length: u8| length <= longest)
}

fn check(
    file: &super::File<File>,
    log: LogConfig,
    wit_svid: bool,
    notes: &mut Vec<Note>,
) -> Result<ServerConfig, String> {
    let server = &file.raw.server;
    let bind =
        shared::resolve(server.bind_address.trim_matches(['[', ']']), server.bind_port).map_err(|why| {
            format!("could not resolve bind address \"{}:{}\": {why}", server.bind_address, server.bind_port)
        })?;
    let trust_domain = shared::trust_domain(&server.trust_domain, notes)?;
    let federation = federation(server, notes)?;
    let staleness = server.max_attested_node_info_staleness.as_deref();
    let max_agent_staleness = staleness.map(Span::parse).transpose().map_err(|why| {
        let shown = quote(staleness.unwrap_or_default());
        format!("could not parse max attested node staleness {shown}: {why}")
    })?;
    let admin_ids = server
        .admin_ids
        .iter()
        .map(|id| SpiffeId::parse(id).map_err(|why| format!("could not parse admin ID {}: {why}", quote(id))))
        .collect::<Result<_, _>>()?;
    let ttls = Ttls::read(server)?;
    ttls.advise(notes);
    let ca = ca(server, ttls.ca, notes)?;
    let plugins = plugins::read(&file.body)?;
    let prune_agents = prune_agents(server)?;
    if server.disable_jwt_svids {
        notes.push(Note::info("JWT-SVID profile is disabled"));
    }
    unknown_keys(&file.raw).finish(notes)?;
    let experimental = experimental(server, wit_svid, notes)?;
    let profiling = shared::profiling(
        server.profiling_enabled,
        server.profiling_port,
        server.profiling_freq,
        &server.profiling_names,
    );
    Ok(ServerConfig {
        trust_domain,
        bind,
        socket_path: absolute(Path::new(&server.socket_path)),
        data_dir: PathBuf::from(&server.data_dir),
        log,
        admin_ids,
        audit_log: server.audit_log_enabled,
        ca,
        x509_svid_ttl: ttls.x509.to_duration(),
        jwt_svid_ttl: ttls.jwt.to_duration(),
        agent_ttl: ttls.agent.unwrap_or(ttls.x509).to_duration(),
        disable_jwt_svids: server.disable_jwt_svids,
        rate_limits: ServerRateLimits {
            attestation: server.ratelimit.attestation.unwrap_or(true),
            signing: server.ratelimit.signing.unwrap_or(true),
        },
        max_agent_staleness: max_agent_staleness.map(Span::to_duration),
        proxy_protocol_trusted: server.proxy_protocol_trusted_cidrs.clone(),
        prune_agents,
        federation,
        experimental,
        finial: finial(server),
        plugins,
        health: shared::health(&file.raw.health_checks),
        telemetry: shared::telemetry(&file.raw.telemetry),
        profiling,
    })
}

/// How long things live.
struct Ttls {
    ca: Span,
    x509: Span,
    jwt: Span,
    agent: Option<Span>,
}

impl Ttls {
    fn read(server: &Server) -> Result<Self, String> {
        let ttl = |text: &str, what: &str| span(text, || format!("could not parse {what} {}", quote(text)));
        let agent = ttl(&server.agent_ttl, "agent ttl")?;
        let x509 = ttl(&server.default_x509_svid_ttl, "default X509 SVID ttl")?;
        let jwt = ttl(&server.default_jwt_svid_ttl, "default JWT SVID ttl")?;
        let ca = ttl(&server.ca_ttl, "default CA ttl")?;
        Ok(Self {
            ca: ca.unwrap_or(DEFAULT_CA_TTL),
            x509: x509.unwrap_or(DEFAULT_X509_SVID_TTL),
            jwt: jwt.unwrap_or(DEFAULT_JWT_SVID_TTL),
            agent: agent.filter(|ttl| ttl.0 != 0),
        })
    }

    /// Says where lifetimes do not go together.
    fn advise(&self, notes: &mut Vec<Note>) {
        let longest = Span(self.ca.0 / CA_TO_SVID).min(LONGEST_SVID);
        let ca_for = |ttl: Span| Span(ttl.0.saturating_mul(CA_TO_SVID));
        let agent = self.agent.map(|ttl| ("agent_ttl", ttl));
        let checks = [("default_x509_svid_ttl", self.x509), ("default_jwt_svid_ttl", self.jwt)];
        for (name, ttl) in checks.into_iter().chain(agent) {
            if ttl <= longest {
                continue;
            }
            let text = if ttl < LONGEST_SVID {
                format!(
                    "{name} is too high for the configured ca_ttl value. SVIDs with shorter lifetimes may \
                     be issued. Please set {name} to {} or less, or the ca_ttl to {} or more, to guarantee \
                     the full {name} lifetime when CA rotations are scheduled.",
                    longest.short(),
                    ca_for(ttl).short()
                )
            } else if self.ca < ca_for(LONGEST_SVID) {
                format!(
                    "{name} is too high and the ca_ttl is too low. SVIDs with shorter lifetimes may be \
                     issued. Please set {name} to {} or less, and the ca_ttl to {} or more, to guarantee \
                     the full {name} lifetime when CA rotations are scheduled.",
                    LONGEST_SVID.short(),
                    ca_for(LONGEST_SVID).short()
                )
            } else {
                format!(
                    "{name} is too high. SVIDs with shorter lifetimes may be issued. Please set {name} to \
                     {} or less to guarantee the full {name} lifetime when CA rotations are scheduled.",
                    longest.short()
                )
            };
            notes.push(Note::warning(text));
        }
    }
}

fn ca(server: &Server, ttl: Span, notes: &mut Vec<Note>) -> Result<CaConfig, String> {
    let key = |text: &str, name: &str| -> Result<Option<KeyKind>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        KeyKind::parse(&text.to_lowercase()).map(Some).ok_or_else(|| {
            let text = quote(text);
            format!(
                "error parsing {name}: key type {text} is unknown; \
                 must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]"
            )
        })
    };
    let x509_key = key(&server.ca_key_type, "ca_key_type")?.unwrap_or(KeyKind::EcP256);
    let jwt_key = key(&server.jwt_key_type, "jwt_key_type")?.unwrap_or(x509_key);
    let wit_key = key(&server.experimental.wit_key_type, "wit_key_type")?.unwrap_or(x509_key);
    let subject = server.ca_subject.clone().unwrap_or_default();
    let is_empty =
        subject.country.is_empty() && subject.organization.is_empty() && subject.common_name.is_empty();
    if server.ca_subject.is_some() && is_empty {
        notes.push(Note::warning("ca_subject configurable is set but empty; the default will be used"));
    }
    Ok(CaConfig {
        ttl: ttl.to_duration(),
        x509_key,
        jwt_key,
        wit_key,
        country: subject.country,
        organization: subject.organization,
        common_name: subject.common_name,
        jwt_issuer: server.jwt_issuer.clone(),
        wit_issuer: server.experimental.wit_issuer.clone(),
    })
}

fn prune_agents(server: &Server) -> Result<Option<PruneAgents>, String> {
    let text = &server.prune_attested_nodes_expired_for;
    let expired_for = span(text, || "could not parse prune_attested_nodes_expired_for".to_owned())?;
    let batch_size = server.prune_attested_nodes_batch_size;
    Ok(expired_for.filter(|expired_for| expired_for.0 > 0).map(|expired_for| PruneAgents {
        expired_for: expired_for.to_duration(),
        batch_size: u32::try_from(batch_size).ok().filter(|size| *size > 0).unwrap_or(1000),
        tofu: server.prune_tofu_nodes,
    }))
}

fn unknown_keys(file: &File) -> Unknown {
    let server = &file.server;
    let mut unknown = Unknown::new();
    unknown.add("top-level", &file.unused);
    unknown.add("server", &server.unused);
    if let Some(subject) = &server.ca_subject {
        unknown.add("ca_subject", &subject.unused);
    }
    unknown.add("ratelimit", &server.ratelimit.unused);
    if let Some(endpoint) =
        server.federation.as_ref().and_then(|federation| federation.bundle_endpoint.as_ref())
    {
        unknown.add("bundle endpoint", &endpoint.unused);
        if let Some(acme) = &endpoint.acme {
            unknown.add("bundle endpoint ACME", &acme.unused);
        }
    }
    unknown.telemetry(&file.telemetry);
    unknown.add("health check", &file.health_checks.unused);
    if let Some(finial) = &server.experimental.finial {
        unknown.add("experimental.finial", &finial.unused);
    }
    unknown
}

fn federation(server: &Server, notes: &mut Vec<Note>) -> Result<FederationConfig, String> {
    let Some(federation) = &server.federation else { return Ok(FederationConfig::default()) };
    let bundle_endpoint =
        federation.bundle_endpoint.as_ref().map(|endpoint| bundle_endpoint(endpoint, notes)).transpose()?;
    let mut federates_with = Vec::new();
    for (name, foreign) in &federation.federates_with {
        let trust_domain = TrustDomain::parse(name).map_err(|why| why.to_string())?;
        let Some(profile) = &foreign.bundle_endpoint_profile else {
            let name = quote(name);
            return Err(format!(
                "federation configuration for trust domain {name}: missing bundle endpoint configuration"
            ));
        };
        let endpoint_spiffe_id = foreign_profile(profile).map_err(|why| {
            format!("error parsing federation relationship for trust domain {}: {why}", quote(name))
        })?;
        let url = foreign.bundle_endpoint_url.clone();
        federates_with.push(FederatesWith { trust_domain, url, endpoint_spiffe_id });
    }
    Ok(FederationConfig { bundle_endpoint, federates_with })
}

fn bundle_endpoint(
    endpoint: &raw::BundleEndpoint,
    notes: &mut Vec<Note>,
) -> Result<BundleEndpointConfig, String> {
    let hint = &endpoint.refresh_hint;
    let refresh_hint = span(hint, || format!("could not parse refresh_hint {}", quote(hint)))?;
    if refresh_hint.is_some_and(|hint| hint >= DAY) {
        notes.push(Note::warning(
            "Bundle endpoint refresh hint set to a high value. To cover the case of unscheduled trust \
             bundle updates, it's recommended to have a smaller value, e.g. 5m",
        ));
    }
    if refresh_hint.is_some_and(|hint| hint < MINUTE) {
        notes.push(Note::warning(
            "Bundle endpoint refresh hint set too low. SPIRE will not refresh more often than 1 minute",
        ));
    }
    // An address that is none means all of them.
    let address = endpoint.address.parse().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    Ok(BundleEndpointConfig {
        bind: SocketAddr::new(address, u16::try_from(endpoint.port).unwrap_or_default()),
        refresh_hint: refresh_hint.map_or(Duration::from_secs(300), Span::to_duration),
        profile: endpoint_profile(endpoint, notes)?,
    })
}

fn endpoint_profile(
    endpoint: &raw::BundleEndpoint,
    notes: &mut Vec<Note>,
) -> Result<EndpointProfile, String> {
    let kept = match (&endpoint.acme, &endpoint.profile) {
        (Some(_), Some(_)) => {
            return Err("either bundle endpoint 'acme' or 'profile' can be set, but not both".into());
        }
        (Some(old), None) => {
            notes.push(Note::deprecated(
                "ACME configuration within the bundle_endpoint is deprecated. Please use ACME configuration \
                 as part of the https_web profile instead.",
            ));
            return Ok(acme(old));
        }
        (None, None) => {
            notes.push(Note::deprecated(
                "Bundle endpoint is configured but has no profile set, using https_spiffe as default; please \
                 configure a profile explicitly. This will be fatal in a future release.",
            ));
            return Ok(EndpointProfile::HttpsSpiffe);
        }
        (None, Some(kept)) => kept,
    };
    let profiles: raw::Profiles = profiles(kept)?;
    if let Some(web) = profiles.https_web {
        return match (web.acme, web.serving_cert_file) {
            (Some(settings), _) => Ok(acme(&settings)),
            (None, Some(files)) => serving_cert(&files),
            (None, None) => Err("malformed https_web profile configuration: \
                                 'acme' or 'serving_cert_file' is required"
                .into()),
        };
    }
    match profiles.https_spiffe {
        Some(_) => Ok(EndpointProfile::HttpsSpiffe),
        None => Err("unknown bundle endpoint profile configured; \
                     current supported profiles are \"https_spiffe\" and 'https_web\""
            .into()),
    }
}

fn acme(settings: &raw::Acme) -> EndpointProfile {
    EndpointProfile::Acme {
        directory_url: settings.directory_url.clone(),
        domain_name: settings.domain_name.clone(),
        email: settings.email.clone(),
        tos_accepted: settings.tos_accepted,
    }
}

fn serving_cert(files: &raw::ServingCert) -> Result<EndpointProfile, String> {
    let interval = Span::parse(&files.file_sync_interval)?;
    let read = |file: &String| {
        std::fs::read_to_string(file)
            .map_err(|error| format!("failed to load certificate: {}", crate::go::read_error(file, &error)))
    };
    let texts = [("certificate", read(&files.cert_file_path)?), ("key", read(&files.key_file_path)?)];
    if let Some((what, _)) = texts.iter().find(|(_, text)| !text.contains("-----BEGIN ")) {
        return Err(format!("failed to load certificate: tls: failed to find any PEM data in {what} input"));
    }
    Ok(EndpointProfile::ServingCert {
        certificate: PathBuf::from(&files.cert_file_path),
        key: PathBuf::from(&files.key_file_path),
        sync_interval: if interval.0 == 0 { Duration::from_secs(3600) } else { interval.to_duration() },
    })
}

/// The id that the endpoint must have; `None` under `https_web`.
fn foreign_profile(kept: &Kept) -> Result<Option<SpiffeId>, String> {
    let profiles: raw::ForeignProfiles = profiles(kept)?;
    if profiles.https_web.is_some() {
        return Ok(None);
    }
    let Some(spiffe) = profiles.https_spiffe else {
        return Err("no bundle endpoint profile defined; \
                    current supported profiles are \"https_spiffe\" and 'https_web\""
            .into());
    };
    SpiffeId::parse(&spiffe.endpoint_spiffe_id)
        .map(Some)
        .map_err(|why| format!("could not get endpoint SPIFFE ID: {why}"))
}

fn profiles<T: serde::de::DeserializeOwned>(kept: &Kept) -> Result<T, String> {
    match kept {
        Kept::Items(1, text) => {
            hcl::from_str(text).map_err(|error| format!("failed to decode configuration: {error}"))
        }
        Kept::Items(..) => Err("exactly one bundle endpoint profile is expected".into()),
        Kept::Other(_) => Err("malformed configuration".into()),
    }
}

fn finial(server: &Server) -> ServerFinial {
    let raw = server.experimental.finial.clone().unwrap_or_default();
    ServerFinial {
        allow_agent_ids_anywhere: raw.allow_agent_ids_anywhere,
        allow_exposed_socket: raw.allow_exposed_socket,
        audit_log_chain: raw.audit_log_chain,
        database_notifications: raw.database_notifications.unwrap_or(true),
    }
}

fn experimental(
    server: &Server,
    wit_svid: bool,
    notes: &mut Vec<Note>,
) -> Result<ServerExperimental, String> {
    let raw = &server.experimental;
    let without_own = raw::Experimental { finial: None, ..raw.clone() };
    if without_own != raw::Experimental::default() {
        notes.push(Note::warning(
            "Experimental features have been enabled. Please see doc/upgrading.md for upgrade and \
             compatibility considerations for experimental features.",
        ));
    }
    let interval = |text: &str, what: &str, default: Span| {
        span(text, || format!("could not parse {what} interval"))
            .map(|interval| interval.filter(|interval| interval.0 > 0).unwrap_or(default).to_duration())
    };
    let cache_reload_interval = interval(&raw.cache_reload_interval, "cache reload", Span::seconds(5))?;
    let full_cache_reload_interval = interval(&raw.full_cache_reload_interval, "full cache reload", DAY)?;
    let prune_events_older_than =
        interval(&raw.prune_events_older_than, "prune events", Span::seconds(12 * 3600))?;
    if !raw.sql_transaction_timeout.is_empty() {
        notes.push(Note::deprecated(
            "experimental.sql_transaction_timeout is deprecated, use experimental.event_timeout instead",
        ));
    }
    let default = Span::seconds(15 * 60);
    let event_timeout = if raw.event_timeout.is_empty() {
        interval(&raw.sql_transaction_timeout, "SQL transaction timeout", default)?
    } else {
        interval(&raw.event_timeout, "event timeout", default)?
    };
    if raw.events_based_cache {
        notes.push(Note::info("Using events based cache"));
    }
    shared::note_feature_flags(&raw.feature_flags, notes);
    let local = raw.auth_opa_policy_engine.as_ref().map(|policy| policy.local.clone().unwrap_or_default());
    Ok(ServerExperimental {
        agent_spiffe_id_as_selector: raw.agent_spiffe_id_as_selector,
        cache_reload_interval,
        full_cache_reload_interval,
        events_based_cache: raw.events_based_cache,
        prune_events_older_than,
        event_timeout,
        require_pq_kem: raw.require_pq_kem,
        wit_svid,
        policy: local.map(|local| PolicyConfig {
            rego: PathBuf::from(local.rego_path),
            data: path(&local.policy_data_path),
        }),
    })
}

/// The settings that this version has not; one place for all of them.
fn unbuilt(file: &File, config: &ServerConfig) -> Vec<crate::Unbuilt> {
    let server = &file.server;
    let mut missing = Missing::default();
    let endpoint = config.federation.bundle_endpoint.as_ref();
    missing.when(
        endpoint.is_some_and(|endpoint| matches!(endpoint.profile, EndpointProfile::Acme { .. })),
        "server.federation.bundle_endpoint.profile \"https_web\".acme",
        "use serving_cert_file, or the profile \"https_spiffe\"",
    );
    let port = server.federation.as_ref().and_then(|own| own.bundle_endpoint.as_ref()).map(|own| own.port);
    if let Some(port) = port.filter(|port| u16::try_from(*port).is_err()) {
        let key = format!("server.federation.bundle_endpoint.port = {port}");
        missing.when(true, key, "set it to a port, at most 65535");
    }
    let lifetimes = [
        ("ca_ttl", config.ca.ttl),
        ("default_x509_svid_ttl", config.x509_svid_ttl),
        ("default_jwt_svid_ttl", config.jwt_svid_ttl),
    ];
    for (key, ttl) in lifetimes {
        missing.when(ttl.is_zero(), format!("server.{key} = 0"), "set it to a lifetime above zero");
    }
    missing.health(&config.health);
    missing.plugins(Side::Server, &config.plugins, &SERVER_PLUGINS);
    missing.0
}

/// The plugins that are there, by type and name.
const SERVER_PLUGINS: [(&str, &str); 8] = [
    ("CredentialComposer", "uniqueid"),
    ("DataStore", "sql"),
    ("KeyManager", "disk"),
    ("KeyManager", "memory"),
    ("NodeAttestor", "join_token"),
    ("NodeAttestor", "x509pop"),
    ("UpstreamAuthority", "disk"),
    ("UpstreamAuthority", "spire"),
];
