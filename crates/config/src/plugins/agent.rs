//! Plugins of agents, but for workload attestors.

use serde::Deserialize;

use super::check::{Report, Settings};
use crate::go::read_error;
use crate::hcl::UnusedKeys;

const UNDECODABLE: &str = "unable to decode configuration";

/// A plugin without settings of its own.
pub(super) fn without_settings(settings: &Settings<'_>, report: &mut Report) {
    report.when(!settings.is_empty(), "no supported configuration interface found");
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DiskKeys {
    directory: String,
}

pub(super) fn disk_keys(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<DiskKeys>(report, UNDECODABLE) else { return };
    report.when(settings.directory.is_empty(), "directory must be configured");
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AwsIid {
    ec2_metadata_endpoint: String,
}

pub(super) fn aws_iid(settings: &Settings<'_>, report: &mut Report) {
    settings.decode::<AwsIid>(report, UNDECODABLE);
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AzureImds {
    tenant_domain: String,
}

pub(super) fn azure_imds(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<AzureImds>(report, UNDECODABLE) else { return };
    report.when(settings.tenant_domain.is_empty(), "tenant_domain is required");
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AzureMsi {
    resource_id: String,
}

pub(super) fn azure_msi(settings: &Settings<'_>, report: &mut Report) {
    settings.decode::<AzureMsi>(report, UNDECODABLE);
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GcpIit {
    identity_token_host: String,
    service_account: String,
}

pub(super) fn gcp_iit(settings: &Settings<'_>, report: &mut Report) {
    settings.decode::<GcpIit>(report, UNDECODABLE);
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HttpChallenge {
    hostname: String,
    agentname: String,
    port: i64,
    advertised_port: i64,
}

pub(super) fn http_challenge(settings: &Settings<'_>, report: &mut Report) {
    settings.decode::<HttpChallenge>(report, UNDECODABLE);
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct K8sPsat {
    cluster: String,
    token_path: String,
}

pub(super) fn k8s_psat(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<K8sPsat>(report, UNDECODABLE) else { return };
    report.when(settings.cluster.is_empty(), "missing required cluster block");
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Sshpop {
    host_key_path: String,
    host_cert_path: String,
}

pub(super) fn sshpop(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<Sshpop>(report, "failed to decode configuration") else { return };
    let files = [
        (settings.host_key_path.as_str(), "/etc/ssh/ssh_host_rsa_key", "key"),
        (settings.host_cert_path.as_str(), "/etc/ssh/ssh_host_rsa_key-cert.pub", "cert"),
    ];
    for (path, default, what) in files {
        let path = if path.is_empty() { default } else { path };
        if let Err(error) = std::fs::metadata(path) {
            report.say(format!("failed to read host {what} file: {}", read_error(path, &error)));
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TpmDevid {
    devid_priv_path: String,
    devid_pub_path: String,
    devid_cert_path: String,
    devid_password: String,
    owner_hierarchy_password: String,
    endorsement_hierarchy_password: String,
    tpm_device_path: String,
}

pub(super) fn tpm_devid(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<TpmDevid>(report, UNDECODABLE) else { return };
    let required = [
        (&settings.devid_cert_path, "devid_cert_path"),
        (&settings.devid_priv_path, "devid_priv_path"),
        (&settings.devid_pub_path, "devid_pub_path"),
    ];
    for (value, key) in required {
        report.when(value.is_empty(), format!("invalid configuration: {key} is required"));
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct X509pop {
    private_key_path: String,
    certificate_path: String,
    intermediates_path: String,
    spiffe_endpoint_socket: String,
}

pub(super) fn x509pop(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<X509pop>(report, UNDECODABLE) else { return };
    if settings.spiffe_endpoint_socket.is_empty() {
        report.when(settings.private_key_path.is_empty(), "private_key_path is required");
        report.when(settings.certificate_path.is_empty(), "certificate_path is required");
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AwsSecretsManager {
    access_key_id: String,
    secret_access_key: String,
    region: String,
}

pub(super) fn aws_secretsmanager(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<AwsSecretsManager>(report, UNDECODABLE) else { return };
    report.when(settings.region.is_empty(), "region is required");
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GcpSecretManager {
    service_account_file: String,
    #[serde(rename = "$unused")]
    unused: UnusedKeys,
}

pub(super) fn gcp_secretmanager(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<GcpSecretManager>(report, UNDECODABLE) else { return };
    report.unknown(&settings.unused);
}
