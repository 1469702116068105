//! An agent's configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use spiffe::SpiffeId;
use spiffe::key::KeyKind;

use super::shared::{self, Missing, Unknown, span};
use super::{absolute, or_text, own, path, plugins, prefer, read};
use crate::go::{Span, quote, read_error};
use crate::plugins::Side;
use crate::raw::agent::{self as raw, Agent, File};
use crate::url;
use crate::{
    AgentConfig, AgentExperimental, Bootstrap, Broker, BrokerConfig, BundleFormat, ConfigError,
    JoinTokenText, Loaded, LogConfig, Note, Rebootstrap, SdsConfig, WorkloadRateLimits,
};

/// An agent's flags; what is empty, zero or false is not given.
#[derive(Clone, Default)]
pub struct AgentFlags {
    /// `-config`; the default is `conf/agent/agent.conf`.
    pub config: String,
    /// `-expandEnv`
    pub expand_env: bool,
    /// `-dataDir`
    pub data_dir: String,
    /// `-joinToken`. A secret.
    pub join_token: String,
    /// `-joinTokenFile`
    pub join_token_file: String,
    /// `-logFile`
    pub log_file: String,
    /// `-logFormat`
    pub log_format: String,
    /// `-logLevel`
    pub log_level: String,
    /// `-logSourceLocation`
    pub log_source_location: bool,
    /// `-serverAddress`
    pub server_address: String,
    /// `-serverPort`
    pub server_port: i64,
    /// `-socketPath`
    pub socket_path: String,
    /// `-trustDomain`
    pub trust_domain: String,
    /// `-disableWorkloadAPI`
    pub disable_workload_api: bool,
    /// `-disableSDSAPI`
    pub disable_sds_api: bool,
    /// `-trustBundle`
    pub trust_bundle: String,
    /// `-trustBundleUrl`
    pub trust_bundle_url: String,
    /// `-trustBundleFormat`
    pub trust_bundle_format: String,
    /// `-allowUnauthenticatedVerifiers`
    pub allow_unauthenticated_verifiers: bool,
    /// `-insecureBootstrap`
    pub insecure_bootstrap: bool,
    /// `-rebootstrapMode`
    pub rebootstrap_mode: String,
    /// `-rebootstrapDelay`
    pub rebootstrap_delay: String,
}

const DEFAULT_FILE: &str = "conf/agent/agent.conf";
const DEFAULT_SOCKET: &str = "/tmp/spire-agent/public/api.sock";
const DEFAULT_CACHE_SIZE: usize = 1000;
const SHORTEST_HIT_TIMEOUT: Span = Span::seconds(5);
const LONGEST_HIT_TIMEOUT: Span = Span::seconds(30);
const SHORTEST_AVAILABILITY: Span = Span::seconds(24 * 3600);

impl AgentConfig {
    /// Reads the file that the flags name, and checks all of it.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, in SPIRE's words.
    pub fn load(flags: &AgentFlags) -> Result<Loaded<Self>, ConfigError> {
        let file = if flags.config.is_empty() { DEFAULT_FILE } else { &flags.config };
        let mut file = read::<File>(Path::new(file), flags.expand_env)?;
        merge(&mut file.raw.agent, flags);
        let agent = &file.raw.agent;
        let wit_svid = shared::feature_flags(&agent.experimental.feature_flags)?;
        if !plugins::is_there(&file.body) {
            return Err("plugins section must be configured".into());
        }
        check_required(agent)?;
        let (rebootstrap, rebootstrap_delay) = rebootstrap(agent)?;
        let sync_interval = span(&agent.experimental.sync_interval, || {
            "could not parse synchronization interval".to_owned()
        })?;
        let log =
            shared::log(&agent.log_level, &agent.log_format, &agent.log_file, agent.log_source_location)?;
        let early = Early { log: log.clone(), wit_svid, rebootstrap, rebootstrap_delay, sync_interval };
        let mut notes = Vec::new();
        match check(&file, early, &mut notes) {
            Ok(config) => {
                let unbuilt = unbuilt(&config);
                Ok(Loaded { config, notes, unbuilt })
            }
            Err(text) => Err(ConfigError { text, notes, log: Some(Box::new(log)) }),
        }
    }
}

fn merge(agent: &mut Agent, flags: &AgentFlags) {
    prefer(&flags.data_dir, &mut agent.data_dir);
    prefer(&flags.join_token, &mut agent.join_token);
    prefer(&flags.join_token_file, &mut agent.join_token_file);
    prefer(&flags.log_file, &mut agent.log_file);
    prefer(&flags.log_format, &mut agent.log_format);
    prefer(&flags.log_level, &mut agent.log_level);
    agent.log_source_location |= flags.log_source_location;
    prefer(&flags.server_address, &mut agent.server_address);
    if flags.server_port != 0 {
        agent.server_port = flags.server_port;
    }
    prefer(&flags.socket_path, &mut agent.socket_path);
    prefer(&flags.trust_domain, &mut agent.trust_domain);
    agent.disable_workload_api |= flags.disable_workload_api;
    agent.disable_sds_api |= flags.disable_sds_api;
    prefer(&flags.trust_bundle, &mut agent.trust_bundle_path);
    prefer(&flags.trust_bundle_url, &mut agent.trust_bundle_url);
    prefer(&flags.trust_bundle_format, &mut agent.trust_bundle_format);
    agent.allow_unauthenticated_verifiers |= flags.allow_unauthenticated_verifiers;
    agent.insecure_bootstrap |= flags.insecure_bootstrap;
    prefer(&flags.rebootstrap_mode, &mut agent.rebootstrap_mode);
    prefer(&flags.rebootstrap_delay, &mut agent.rebootstrap_delay);
    or_text(&mut agent.data_dir, ".");
    or_text(&mut agent.log_level, "INFO");
    or_text(&mut agent.trust_bundle_format, "pem");
    or_text(&mut agent.socket_path, DEFAULT_SOCKET);
}

/// What is looked at before anything else.
fn check_required(agent: &Agent) -> Result<(), String> {
    if !agent.join_token.is_empty() && !agent.join_token_file.is_empty() {
        return Err("only one of join_token or join_token_file can be specified, not both".into());
    }
    if agent.server_address.is_empty() {
        return Err("server_address must be configured".into());
    }
    if agent.server_port == 0 {
        return Err("server_port must be configured".into());
    }
    if agent.trust_domain.is_empty() {
        return Err("trust_domain must be configured".into());
    }
    check_bundle_source(agent)?;
    let pipe = |key: &str, instead: &str| {
        format!(
            "invalid configuration: {key} is not supported in this platform; please use {instead} instead"
        )
    };
    if !agent.experimental.named_pipe_name.is_empty() {
        return Err(pipe("named_pipe_name", "socket_path"));
    }
    if !agent.experimental.admin_named_pipe_name.is_empty() {
        return Err(pipe("admin_named_pipe_name", "admin_socket_path"));
    }
    Ok(())
}

/// There is exactly one source of the first bundle.
fn check_bundle_source(agent: &Agent) -> Result<(), String> {
    let has_url = !agent.trust_bundle_url.is_empty();
    let has_path = !agent.trust_bundle_path.is_empty();
    let has_socket = !agent.trust_bundle_unix_socket.is_empty();
    let workload_api = &agent.trust_bundle_spiffe_workload_api;
    let two =
        |one: &str, other: &str| Err(format!("only one of {one} or {other} can be specified, not both"));
    if !workload_api.is_empty() {
        let key = "trust_bundle_spiffe_workload_api";
        if agent.insecure_bootstrap {
            return two("insecure_bootstrap", key);
        }
        if has_url {
            return two("trust_bundle_url", key);
        }
        if has_path {
            return two("trust_bundle_path", key);
        }
        if has_socket {
            return Err(
                "trust_bundle_unix_socket can not be used with trust_bundle_spiffe_workload_api".into()
            );
        }
        url::check_workload_api(workload_api).map_err(|why| {
            format!(
                "trust_bundle_spiffe_workload_api is not a valid SPIFFE Workload API endpoint address: {why}"
            )
        })?;
    }
    if agent.insecure_bootstrap {
        match (has_url, has_path) {
            (true, true) => {
                return Err("only one of insecure_bootstrap, trust_bundle_url, or trust_bundle_path \
                            can be specified, not the three options"
                    .into());
            }
            (true, false) => return two("insecure_bootstrap", "trust_bundle_url"),
            (false, true) => return two("insecure_bootstrap", "trust_bundle_path"),
            (false, false) => {}
        }
    } else if !has_path && !has_url && workload_api.is_empty() {
        return Err("trust_bundle_path, trust_bundle_url, or trust_bundle_spiffe_workload_api must be \
                    configured unless insecure_bootstrap is set"
            .into());
    }
    if has_url && has_path {
        return two("trust_bundle_url", "trust_bundle_path");
    }
    if !["pem", "spiffe"].contains(&agent.trust_bundle_format.as_str()) {
        return Err("invalid value for trust_bundle_format, expected \"pem\" or \"spiffe\"".into());
    }
    if has_socket && !has_url {
        return Err("if trust_bundle_unix_socket is specified, so must be trust_bundle_url".into());
    }
    if has_url {
        check_bundle_url(&agent.trust_bundle_url, has_socket)?;
    }
    Ok(())
}

fn check_bundle_url(text: &str, over_socket: bool) -> Result<(), String> {
    let address =
        url::Address::parse(text).map_err(|why| format!("unable to parse trust bundle URL: {why}"))?;
    if !over_socket {
        if address.scheme != "https" {
            return Err("trust bundle URL must start with https://".into());
        }
        return Ok(());
    }
    if address.scheme != "http" {
        return Err("trust bundle URL must start with http:// when used with trust bundle unix socket".into());
    }
    for prefix in ["spiffe-", "spire-"] {
        if address.query_keys().any(|key| key.starts_with(prefix)) {
            return Err(format!("trust_bundle_url query params can not start with {prefix}"));
        }
    }
    Ok(())
}

fn rebootstrap(agent: &Agent) -> Result<(Rebootstrap, Duration), String> {
    let mode = match agent.rebootstrap_mode.as_str() {
        "never" | "" => Rebootstrap::Never,
        "auto" => Rebootstrap::Auto,
        "always" => Rebootstrap::Always,
        other => return Err(format!("unknown rebootstrap mode specified: {other}")),
    };
    if mode != Rebootstrap::Never && agent.insecure_bootstrap {
        return Err("insecure_bootstrap option can not be used with rebootstrapping".into());
    }
    let delay = span(&agent.rebootstrap_delay, || "error parsing rebootstrap delay duration".to_owned())?;
    Ok((mode, delay.map_or(Duration::from_secs(600), Span::to_duration)))
}

/// What is known before there is a log.
struct Early {
    log: LogConfig,
    wit_svid: bool,
    rebootstrap: Rebootstrap,
    rebootstrap_delay: Duration,
    sync_interval: Option<Span>,
}

fn check(file: &super::File<File>, early: Early, notes: &mut Vec<Note>) -> Result<AgentConfig, String> {
    let agent = &file.raw.agent;
    let experimental = &agent.experimental;
    let jwt_svid_cache_hit_timeout = hit_timeout(&experimental.jwt_svid_cache_hit_timeout, notes)?;
    if experimental.use_sync_authorized_entries.is_some() {
        notes.push(Note::deprecated(
            "The 'use_sync_authorized_entries' configuration is deprecated. The option to disable it will \
             be removed in SPIRE 1.13.",
        ));
    }
    let x509_svid_cache_max_size = cache_size(agent.x509_svid_cache_max_size, "x509_svid_cache_max_size")?;
    let jwt_svid_cache_max_size = cache_size(agent.jwt_svid_cache_max_size, "jwt_svid_cache_max_size")?;
    let trust_domain = shared::trust_domain(&agent.trust_domain, notes)?;
    let socket_path = absolute(Path::new(&agent.socket_path));
    let is_served = !agent.disable_workload_api || !agent.disable_sds_api;
    let admin_socket_path = path(&agent.admin_socket_path).map(|path| absolute(&path));
    if admin_socket_path.as_ref().is_some_and(|admin| is_served && shared::is_beside(admin, &socket_path)) {
        return Err("admin socket cannot be in the same directory or a subdirectory as that containing the \
                    Workload API socket"
            .into());
    }
    let join_token = join_token(agent)?;
    let sds = sds(&agent.sds, notes);
    let workload_key = workload_key(&agent.workload_x509_svid_key_type)?;
    let plugins = plugins::read(&file.body)?;
    unknown_keys(&file.raw).finish(notes)?;
    let authorized_delegates = agent
        .authorized_delegates
        .iter()
        .map(|text| {
            let id = SpiffeId::parse(text).map_err(|why| why.to_string())?;
            if id.is_member_of(&trust_domain) {
                return Ok(id);
            }
            Err(format!("SPIFFE ID \"{id}\" is not a member of trust domain \"{}\"", trust_domain.as_str()))
        })
        .collect::<Result<_, String>>()
        .map_err(|why| format!("error validating authorized delegate: {why}"))?;
    let broker = experimental
        .broker
        .as_ref()
        .map(|broker| check_broker(broker, is_served.then_some(socket_path.as_path())))
        .transpose()?;
    let availability_target = availability_target(&agent.availability_target)?;
    let rate_limits = rate_limits(&experimental.ratelimit)?;
    let finial = own::agent(&experimental.finial.clone().unwrap_or_default(), &plugins)?;
    let without_own = raw::Experimental { finial: None, ..experimental.clone() };
    if without_own != raw::Experimental::default() {
        notes.push(Note::warning(
            "Experimental features have been enabled. Please see doc/upgrading.md for upgrade and \
             compatibility considerations for experimental features.",
        ));
    }
    shared::note_feature_flags(&experimental.feature_flags, notes);
    let sync_interval = early.sync_interval.filter(|interval| interval.0 > 0);
    Ok(AgentConfig {
        trust_domain,
        server_address: agent.server_address.trim_matches(['[', ']']).to_owned(),
        server_port: u16::try_from(agent.server_port).unwrap_or_default(),
        socket_path,
        admin_socket_path,
        data_dir: PathBuf::from(&agent.data_dir),
        log: early.log,
        log_selectors: agent.log_selectors.clone(),
        join_token,
        bootstrap: bootstrap(agent),
        rebootstrap: early.rebootstrap,
        rebootstrap_delay: early.rebootstrap_delay,
        allow_unauthenticated_verifiers: agent.allow_unauthenticated_verifiers,
        allowed_foreign_jwt_claims: agent.allowed_foreign_jwt_claims.clone(),
        authorized_delegates,
        availability_target,
        disable_sds_api: agent.disable_sds_api,
        disable_workload_api: agent.disable_workload_api,
        jwt_svid_cache_max_size,
        x509_svid_cache_max_size,
        workload_key,
        sds,
        experimental: AgentExperimental {
            sync_interval: sync_interval.map_or(Duration::from_secs(5), Span::to_duration),
            jwt_svid_cache_hit_timeout,
            use_sync_authorized_entries: experimental.use_sync_authorized_entries.unwrap_or(true),
            require_pq_kem: experimental.require_pq_kem,
            wit_svid: early.wit_svid,
            rate_limits,
            broker,
        },
        finial,
        plugins,
        health: shared::health(&file.raw.health_checks),
        telemetry: shared::telemetry(&file.raw.telemetry),
        profiling: shared::profiling(
            agent.profiling_enabled,
            agent.profiling_port,
            agent.profiling_freq,
            &agent.profiling_names,
        ),
    })
}

fn hit_timeout(text: &str, notes: &mut Vec<Note>) -> Result<Duration, String> {
    let timeout = span(text, || "could not parse jwt_svid_cache_hit_timeout".to_owned())?;
    let Some(timeout) = timeout else { return Ok(LONGEST_HIT_TIMEOUT.to_duration()) };
    let refused =
        |how: &str, bound: Span| format!("jwt_svid_cache_hit_timeout ({timeout}) must be {how} than {bound}");
    if timeout < SHORTEST_HIT_TIMEOUT {
        return Err(refused("greater", SHORTEST_HIT_TIMEOUT));
    }
    if timeout >= LONGEST_HIT_TIMEOUT {
        return Err(refused("less", LONGEST_HIT_TIMEOUT));
    }
    notes.push(Note::warning("The use of 'jwt_svid_cache_hit_timeout' is experimental"));
    Ok(timeout.to_duration())
}

fn cache_size(size: i64, key: &str) -> Result<usize, String> {
    if size < 0 {
        return Err(format!("{key} should not be negative"));
    }
    Ok(usize::try_from(size).ok().filter(|size| *size > 0).unwrap_or(DEFAULT_CACHE_SIZE))
}

fn join_token(agent: &Agent) -> Result<Option<JoinTokenText>, String> {
    let file = &agent.join_token_file;
    if file.is_empty() {
        let token = &agent.join_token;
        return Ok((!token.is_empty()).then(|| JoinTokenText(token.clone())));
    }
    let text = std::fs::read_to_string(file).map_err(|error| {
        format!("unable to read join token file {}: {}", quote(file), read_error(file, &error))
    })?;
    match text.trim() {
        "" => Err("join token file is empty".into()),
        token => Ok(Some(JoinTokenText(token.to_owned()))),
    }
}

fn sds(raw: &raw::Sds, notes: &mut Vec<Note>) -> SdsConfig {
    let or = |value: &str, default: &str| if value.is_empty() { default } else { value }.to_owned();
    let sds = SdsConfig {
        svid_name: or(&raw.default_svid_name, "default"),
        bundle_name: or(&raw.default_bundle_name, "ROOTCA"),
        all_bundles_name: or(&raw.default_all_bundles_name, "ALL"),
        disable_spiffe_validation: raw.disable_spiffe_cert_validation,
    };
    if sds.all_bundles_name == sds.bundle_name {
        notes.push(Note::warning(
            "The \"default_bundle_name\" and \"default_all_bundles_name\" configurables have the same value. \
             \"default_all_bundles_name\" will be ignored. Please configure distinct values or use the \
             defaults. This will be a configuration error in a future release.",
        ));
    }
    sds
}

fn workload_key(text: &str) -> Result<KeyKind, String> {
    if text.is_empty() {
        return Ok(KeyKind::EcP256);
    }
    KeyKind::parse(&text.to_lowercase()).filter(|kind| *kind != KeyKind::Rsa4096).ok_or_else(|| {
        format!("key type {} is unknown; must be one of [rsa-2048, ec-p256, ec-p384]", quote(text))
    })
}

fn bootstrap(agent: &Agent) -> Bootstrap {
    let format = if agent.trust_bundle_format == "spiffe" { BundleFormat::Spiffe } else { BundleFormat::Pem };
    if agent.insecure_bootstrap {
        return Bootstrap::Insecure;
    }
    if !agent.trust_bundle_spiffe_workload_api.is_empty() {
        return Bootstrap::WorkloadApi(agent.trust_bundle_spiffe_workload_api.clone());
    }
    if !agent.trust_bundle_url.is_empty() {
        let unix_socket = path(&agent.trust_bundle_unix_socket);
        return Bootstrap::Url { url: agent.trust_bundle_url.clone(), unix_socket, format };
    }
    Bootstrap::File { path: PathBuf::from(&agent.trust_bundle_path), format }
}

fn unknown_keys(file: &File) -> Unknown {
    let mut unknown = Unknown::new();
    unknown.add("top-level", &file.unused);
    unknown.add("agent", &file.agent.unused);
    let experimental = &file.agent.experimental;
    if let Some(broker) = &experimental.broker {
        unknown.add("experimental.broker", &broker.unused);
        for (at, entry) in broker.brokers.iter().enumerate() {
            let section = format!("experimental.broker.brokers[{at}]");
            unknown.add(section.clone(), &entry.unused);
            for (at, allowed) in entry.allowed_reference_types.iter().enumerate() {
                unknown.add(format!("{section}.allowed_reference_types[{at}]"), &allowed.unused);
            }
        }
    }
    unknown.telemetry(&file.telemetry);
    unknown.add("health check", &file.health_checks.unused);
    unknown.add("ratelimit", &experimental.ratelimit.unused);
    if let Some(finial) = &experimental.finial {
        unknown.add("experimental.finial", &finial.unused);
    }
    unknown
}

/// `workload_socket` is that of the Workload API, where it is served.
fn check_broker(raw: &raw::Broker, workload_socket: Option<&Path>) -> Result<BrokerConfig, String> {
    if raw.socket_path.is_empty() && raw.bind_address.is_empty() {
        return Err("experimental.broker requires socket_path, bind_address, or both".into());
    }
    let socket_path = path(&raw.socket_path).map(|path| absolute(&path));
    if let (Some(own), Some(other)) = (&socket_path, workload_socket)
        && shared::is_beside(own, other)
    {
        return Err(
            "broker socket cannot be in the same directory or a subdirectory as that containing the \
                    Workload API socket"
                .into(),
        );
    }
    let bind = if raw.bind_address.is_empty() {
        None
    } else {
        let shown = quote(&raw.bind_address);
        let resolved = super::resolve_text(&raw.bind_address);
        Some(resolved.map_err(|why| format!("invalid experimental.broker.bind_address {shown}: {why}"))?)
    };
    for (at, entry) in raw.brokers.iter().enumerate() {
        if entry.id.is_empty() {
            return Err(format!("experimental.broker.brokers[{at}].id: must be specified"));
        }
        if raw.brokers.iter().take(at).any(|other| other.id == entry.id) {
            return Err(format!("experimental.broker.brokers[{}].id: duplicate broker id", entry.id));
        }
    }
    let brokers = raw.brokers.iter().map(broker).collect::<Result<_, _>>()?;
    Ok(BrokerConfig { socket_path, bind, brokers })
}

fn broker(entry: &raw::BrokerEntry) -> Result<Broker, String> {
    let section = format!("experimental.broker.brokers[{}]", entry.id);
    let id = SpiffeId::parse(&entry.id).map_err(|why| format!("{section}.id: {why}"))?;
    let types = &entry.allowed_reference_types;
    let section = format!("{section}.allowed_reference_types");
    if types.is_empty() {
        return Err(format!("{section}: must list at least one reference type URL"));
    }
    for (at, allowed) in types.iter().enumerate() {
        if allowed.type_url.is_empty() {
            return Err(format!("{section}[{at}].type_url: must be specified"));
        }
        if allowed.type_url == "*" && types.len() != 1 {
            return Err(format!("{section}: wildcard \"*\" must be the only allowed reference type"));
        }
    }
    let allowed_reference_types =
        types.iter().map(|allowed| (allowed.type_url.clone(), allowed.allow_over_tcp)).collect();
    Ok(Broker { id, allowed_reference_types })
}

fn availability_target(text: &str) -> Result<Option<Duration>, String> {
    let target = span(text, || "unable to parse availability_target".to_owned())?;
    if target.is_some_and(|target| target < SHORTEST_AVAILABILITY) {
        return Err(format!("availability_target must be at least {SHORTEST_AVAILABILITY}"));
    }
    Ok(target.map(Span::to_duration))
}

fn rate_limits(raw: &raw::RateLimit) -> Result<WorkloadRateLimits, String> {
    let limit = |value: Option<i64>, key: &str| match value.unwrap_or(0) {
        value if value < 0 => Err(format!("experimental.ratelimit.{key} must not be negative")),
        value => Ok(u32::try_from(value).unwrap_or(u32::MAX)),
    };
    Ok(WorkloadRateLimits {
        fetch_x509_svid: limit(raw.fetch_x509_svid, "fetch_x509_svid")?,
        fetch_jwt_svid: limit(raw.fetch_jwt_svid, "fetch_jwt_svid")?,
        fetch_x509_bundles: limit(raw.fetch_x509_bundles, "fetch_x509_bundles")?,
        fetch_jwt_bundles: limit(raw.fetch_jwt_bundles, "fetch_jwt_bundles")?,
        stream_secrets: limit(raw.stream_secrets, "stream_secrets")?,
        fetch_secrets: limit(raw.fetch_secrets, "fetch_secrets")?,
    })
}

/// The settings that this version has not; one place for all of them.
fn unbuilt(config: &AgentConfig) -> Vec<crate::Unbuilt> {
    let mut missing = Missing::default();
    missing.when(
        config.experimental.wit_svid,
        "agent.experimental.feature_flags = [\"wit-svid\"]",
        "remove the flag",
    );
    missing.when(config.server_port == 0, "agent.server_port", "set it to a port below 65536");
    missing.health(&config.health);
    missing.plugins(Side::Agent, &config.plugins, &AGENT_PLUGINS);
    missing.0
}

/// The plugins that are there, by type and name.
const AGENT_PLUGINS: [(&str, &str); 5] = [
    ("KeyManager", "disk"),
    ("KeyManager", "memory"),
    ("NodeAttestor", "join_token"),
    ("NodeAttestor", "x509pop"),
    ("WorkloadAttestor", "unix"),
];
