//! `WorkloadAttestor` plugins.

use std::collections::BTreeMap;

use serde::Deserialize;
use spiffe::SpiffeId;

use super::check::{Report, Settings};
use crate::go::{Span, quote};
use crate::hcl::UnusedKeys;

const UNDECODABLE: &str = "unable to decode configuration";

#[derive(Default, Deserialize)]
#[serde(default)]
struct Sigstore {
    allowed_identities: BTreeMap<String, Vec<String>>,
    skipped_images: Vec<String>,
    rekor_url: Option<String>,
    ignore_sct: Option<bool>,
    ignore_tlog: Option<bool>,
    ignore_attestations: Option<bool>,
    registry_credentials: BTreeMap<String, RegistryCredential>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RegistryCredential {
    username: String,
    password: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Docker {
    docker_socket_path: String,
    container_id_cgroup_matchers: Vec<String>,
    use_new_container_locator: Option<bool>,
    verbose_container_locator_logs: bool,
    podman_socket_path: String,
    podman_socket_path_template: String,
    docker_version: String,
    sigstore: Option<Sigstore>,
    #[serde(rename = "$unused")]
    unused: UnusedKeys,
}

pub(super) fn docker(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<Docker>(report, UNDECODABLE) else { return };
    report.unknown(&settings.unused);
    let matchers = &settings.container_id_cgroup_matchers;
    if matchers.is_empty() {
        report.note("Using the new container locator");
    } else if settings.use_new_container_locator.unwrap_or(true) {
        return report.say(
            "the new container locator and custom cgroup matchers cannot both be used; please open an issue if \
             the new container locator fails to locate workload containers in your environment; to continue \
             using custom matchers set use_new_container_locator=false",
        );
    } else {
        report.note(
            "Using the legacy container locator with custom cgroup matchers. This feature will be removed in a \
             future release.",
        );
    }
    for pattern in matchers {
        if pattern.split('/').filter(|part| *part == "<id>").count() != 1 {
            let pattern = quote(pattern);
            return report
                .say(format!("pattern {pattern} must contain the container id token \"<id>\" exactly once"));
        }
    }
    let template = match settings.podman_socket_path_template.as_str() {
        "" => "unix:///run/user/%d/podman/podman.sock",
        template => template,
    };
    if let Err(why) = check_socket_template(template) {
        report.say(format!("invalid podman_socket_path_template: {why}"));
    }
}

fn check_socket_template(template: &str) -> Result<(), &'static str> {
    let mut placeholders = 0;
    let mut characters = template.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            continue;
        }
        match characters.next() {
            Some('%') => {}
            Some('d') => placeholders += 1,
            Some(_) => return Err("template only supports escaped %% or the %d UID placeholder"),
            None => return Err("trailing % at end of template"),
        }
    }
    if placeholders == 1 { Ok(()) } else { Err("template must contain exactly one %d UID placeholder") }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct K8s {
    kubelet_read_only_port: i64,
    kubelet_secure_port: i64,
    disable_kubelet_client: bool,
    max_poll_attempts: i64,
    poll_retry_interval: String,
    kubelet_ca_path: String,
    skip_kubelet_verification: bool,
    token_path: String,
    certificate_path: String,
    private_key_path: String,
    use_anonymous_authentication: bool,
    node_name_env: String,
    node_name: String,
    reload_interval: String,
    disable_container_selectors: bool,
    use_new_container_locator: Option<bool>,
    verbose_container_locator_logs: bool,
    enable_namespace_labels: bool,
    sigstore: Option<Sigstore>,
    experimental: Option<K8sExperimental>,
    #[serde(rename = "$unused")]
    unused: UnusedKeys,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct K8sExperimental {
    api_server: Option<ApiServer>,
    broker: Option<Broker>,
    #[serde(rename = "$unused")]
    unused: UnusedKeys,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ApiServer {
    cache: Option<Cache>,
    #[serde(rename = "$unused")]
    unused: UnusedKeys,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cache {
    enabled: bool,
    #[serde(rename = "$unused")]
    unused: UnusedKeys,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Broker {
    access_policy: String,
    brokers: Vec<BrokerEntry>,
    #[serde(rename = "$unused")]
    unused: UnusedKeys,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BrokerEntry {
    id: String,
    pod_reference_scope: String,
    #[serde(rename = "$unused")]
    unused: UnusedKeys,
}

pub(super) fn k8s(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<K8s>(report, UNDECODABLE) else { return };
    report.unknown(&settings.unused);
    if let Some(experimental) = &settings.experimental {
        report.unknown(&experimental.unused);
        if let Some(api_server) = &experimental.api_server {
            report.unknown(&api_server.unused);
            if let Some(cache) = &api_server.cache {
                report.unknown(&cache.unused);
            }
        }
        if let Some(broker) = &experimental.broker {
            check_broker(broker, settings.disable_kubelet_client, report);
        }
    }
    if settings.disable_kubelet_client {
        check_disabled_kubelet(&settings, report);
    }
    for (interval, what) in
        [(&settings.poll_retry_interval, "poll retry"), (&settings.reload_interval, "reload")]
    {
        if let (false, Err(why)) = (interval.is_empty(), Span::parse(interval)) {
            report.say(format!("unable to parse {what} interval: {why}"));
        }
    }
    report.when(
        settings.kubelet_secure_port > 0 && settings.kubelet_read_only_port > 0,
        "cannot use both the read-only and secure port",
    );
}

fn check_disabled_kubelet(settings: &K8s, report: &mut Report) {
    let conflicts = [
        ("kubelet_read_only_port", settings.kubelet_read_only_port > 0),
        ("kubelet_secure_port", settings.kubelet_secure_port > 0),
        ("kubelet_ca_path", !settings.kubelet_ca_path.is_empty()),
        ("skip_kubelet_verification", settings.skip_kubelet_verification),
        ("token_path", !settings.token_path.is_empty()),
        ("certificate_path", !settings.certificate_path.is_empty()),
        ("private_key_path", !settings.private_key_path.is_empty()),
        ("use_anonymous_authentication", settings.use_anonymous_authentication),
        ("node_name_env", !settings.node_name_env.is_empty()),
        ("node_name", !settings.node_name.is_empty()),
        ("reload_interval", !settings.reload_interval.is_empty()),
    ];
    for (key, is_set) in conflicts {
        report.when(is_set, format!("disable_kubelet_client cannot be used with {key}"));
    }
}

fn check_broker(broker: &Broker, without_kubelet: bool, report: &mut Report) {
    let path = "experimental.broker";
    report.unknown(&broker.unused);
    let one_of = "one of [permissive, enforced]";
    match broker.access_policy.as_str() {
        "permissive" | "enforced" => {}
        "" => report.say(format!("{path}.access_policy: must be specified as {one_of}")),
        other => {
            report.say(format!("{path}.access_policy: unsupported value {}; must be {one_of}", quote(other)))
        }
    }
    report.when(broker.brokers.is_empty(), format!("{path}.brokers: at least one broker is required"));
    for (at, entry) in broker.brokers.iter().enumerate() {
        report.unknown(&entry.unused);
        let id = &entry.id;
        if id.is_empty() {
            report.say(format!("{path}.brokers[{at}].id: must be specified"));
            continue;
        }
        if broker.brokers.iter().take(at).any(|other| other.id == *id) {
            report.say(format!("{path}.brokers[{id}].id: duplicate broker id"));
            continue;
        }
        if let Err(why) = SpiffeId::parse(id) {
            report.say(format!("{path}.brokers[{id}].id: {why}"));
            continue;
        }
        let scope = &entry.pod_reference_scope;
        let key = format!("{path}.brokers[{id}].pod_reference_scope");
        match scope.as_str() {
            "cluster" => {}
            "" | "agent_node" => report.when(
                without_kubelet,
                format!("{key} must be \"cluster\" when disable_kubelet_client is true"),
            ),
            other => report.say(format!(
                "{key}: unsupported value {}; must be one of [agent_node, cluster]",
                quote(other)
            )),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Unix {
    discover_workload_path: bool,
    workload_size_limit: i64,
}

pub(super) fn unix(settings: &Settings<'_>, report: &mut Report) {
    settings.decode::<Unix>(report, "failed to decode configuration");
}

pub(super) fn windows(settings: &Settings<'_>, report: &mut Report) {
    let _ = settings;
    report.say("plugin not supported in this platform");
}
