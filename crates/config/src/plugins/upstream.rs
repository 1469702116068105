//! `UpstreamAuthority` plugins.

use serde::Deserialize;

use super::check::{Report, Settings};
use super::keymanager::{AppRoleAuth, CertAuth, K8sAuth, TokenAuth};

const MALFORMED: &str = "plugin configuration is malformed";

#[derive(Default, Deserialize)]
#[serde(default)]
struct AwsPca {
    region: String,
    endpoint: String,
    certificate_authority_arn: String,
    signing_algorithm: String,
    ca_signing_template_arn: String,
    assume_role_arn: String,
    supplemental_bundle_path: String,
}

pub(super) fn aws_pca(settings: &Settings<'_>, report: &mut Report) {
    let Ok(settings) = settings.parse::<AwsPca>() else { return report.say(MALFORMED) };
    report.when(settings.region.is_empty(), "plugin configuration is missing the region");
    report.when(
        settings.certificate_authority_arn.is_empty(),
        "plugin configuration is missing the certificate_authority_arn",
    );
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AwsSecret {
    region: String,
    cert_file_arn: String,
    key_file_arn: String,
    bundle_file_arn: String,
    access_key_id: String,
    secret_access_key: String,
    secret_token: String,
    assume_role_arn: String,
}

pub(super) fn awssecret(settings: &Settings<'_>, report: &mut Report) {
    let Ok(settings) = settings.parse::<AwsSecret>() else { return report.say(MALFORMED) };
    report.when(settings.cert_file_arn.is_empty(), "configuration missing 'cert_file_arn' value");
    report.when(settings.key_file_arn.is_empty(), "configuration missing 'key_file_arn' value");
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CertManager {
    issuer_name: String,
    issuer_kind: String,
    issuer_group: String,
    namespace: String,
    kube_config_file: String,
}

pub(super) fn cert_manager(settings: &Settings<'_>, report: &mut Report) {
    let Ok(settings) = settings.parse::<CertManager>() else { return report.say(MALFORMED) };
    let empty = |key: &str| format!("plugin configuration has empty {key} property");
    report.when(settings.namespace.is_empty(), empty("namespace"));
    report.when(settings.issuer_name.is_empty(), empty("issuer_name"));
    let defaulting = |key: &str, to: &str| format!("{}, defaulting to value '{to}'", empty(key));
    report.when(settings.issuer_kind.is_empty(), defaulting("issuer_kind", "Issuer"));
    report.when(settings.issuer_group.is_empty(), defaulting("issuer_group", "cert-manager.io"));
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Disk {
    cert_file_path: String,
    key_file_path: String,
    bundle_file_path: String,
}

pub(super) fn disk(settings: &Settings<'_>, report: &mut Report) {
    let Ok(settings) = settings.parse::<Disk>() else { return report.say(MALFORMED) };
    report.when(
        settings.cert_file_path.is_empty() || settings.key_file_path.is_empty(),
        "'cert_file_path' and 'key_file_path' must be set and not empty",
    );
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GcpCas {
    root_cert_spec: RootCertSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RootCertSpec {
    project_name: String,
    region_name: String,
    ca_pool: String,
    label_key: String,
    label_value: String,
}

pub(super) fn gcp_cas(settings: &Settings<'_>, report: &mut Report) {
    let Ok(settings) = settings.parse::<GcpCas>() else { return report.say(MALFORMED) };
    let spec = &settings.root_cert_spec;
    let parts = [
        (&spec.project_name, "Project"),
        (&spec.region_name, "Location"),
        (&spec.label_key, "LabelKey"),
        (&spec.label_value, "LabelValue"),
    ];
    for (value, name) in parts {
        let text = format!("plugin configuration root_cert_spec.{name} is missing");
        report.when(value.is_empty(), text);
    }
    report.when(
        spec.ca_pool.is_empty(),
        "The ca_pool value is not configured. Falling back to searching the region for matching CAs. The \
         ca_pool configurable will be required in a future release.",
    );
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spire {
    server_address: String,
    server_port: String,
    workload_api_socket: String,
    experimental: SpireExperimental,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SpireExperimental {
    workload_api_named_pipe_name: String,
    require_pq_kem: bool,
}

pub(super) fn spire(settings: &Settings<'_>, report: &mut Report) {
    let Ok(settings) = settings.parse::<Spire>() else { return report.say(MALFORMED) };
    report.when(settings.server_address.is_empty(), "server_address is required");
    report.when(settings.server_port.is_empty(), "server_port is required");
    report.when(
        !settings.experimental.workload_api_named_pipe_name.is_empty(),
        "configuration: workload_api_named_pipe_name is not supported on this platform; please use \
         workload_api_socket instead",
    );
    report.when(settings.workload_api_socket.is_empty(), "workload_api_socket is required");
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Vault {
    vault_addr: String,
    token_auth: Option<TokenAuth>,
    cert_auth: Option<CertAuth>,
    approle_auth: Option<AppRoleAuth>,
    k8s_auth: Option<K8sAuth>,
    ca_cert_path: String,
    insecure_skip_verify: bool,
    namespace: String,
    pki_mount_point: String,
}

pub(super) fn vault(settings: &Settings<'_>, report: &mut Report) {
    if settings.parse::<Vault>().is_err() {
        report.say(MALFORMED);
    }
}
