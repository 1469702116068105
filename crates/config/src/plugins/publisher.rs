//! `BundlePublisher` and `Notifier` plugins.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::{Report, Settings};
use crate::go::{Span, quote};
use crate::url::Address;

const UNDECODABLE: &str = "unable to decode configuration";

#[derive(Default, Deserialize)]
#[serde(default)]
struct RolesAnywhere {
    access_key_id: String,
    secret_access_key: String,
    region: String,
    trust_anchor_id: String,
}

pub(super) fn aws_rolesanywhere(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<RolesAnywhere>(report, UNDECODABLE) else { return };
    report.when(settings.region.is_empty(), "configuration is missing the region");
    report.when(settings.trust_anchor_id.is_empty(), "configuration is missing the trust anchor id");
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AwsS3 {
    access_key_id: String,
    secret_access_key: String,
    region: String,
    bucket: String,
    object_key: String,
    format: String,
    endpoint: String,
    refresh_hint: String,
}

pub(super) fn aws_s3(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<AwsS3>(report, UNDECODABLE) else { return };
    report.when(settings.region.is_empty(), "configuration is missing the region");
    report.when(settings.bucket.is_empty(), "configuration is missing the bucket name");
    report.when(settings.object_key.is_empty(), "configuration is missing the object key");
    report.when(settings.format.is_empty(), "configuration is missing the bundle format");
    if let Err(why) = check_request_uri(&settings.endpoint) {
        report.say(format!("could not parse endpoint url: {why}"));
    }
    check_format(&settings.format, report);
    check_refresh_hint(&settings.refresh_hint, report);
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AzureBlob {
    storage_account_name: String,
    storage_account_key: String,
    service_endpoint: String,
    container_name: String,
    blob_name: String,
    format: String,
    tenant_id: String,
    app_id: String,
    app_secret: String,
    refresh_hint: String,
}

pub(super) fn azure_blob(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<AzureBlob>(report, UNDECODABLE) else { return };
    let name = &settings.storage_account_name;
    report.when(name.is_empty(), "configuration is missing the storage account name");
    report.when(settings.container_name.is_empty(), "configuration is missing the container name");
    report.when(settings.blob_name.is_empty(), "configuration is missing the blob name");
    report.when(settings.format.is_empty(), "configuration is missing the bundle format");
    check_format(&settings.format, report);
    let endpoint = match settings.service_endpoint.as_str() {
        "" => "blob.core.windows.net",
        endpoint => endpoint,
    };
    if let Err(why) = check_request_uri(&format!("https://{name}.{endpoint}")) {
        report.say(format!("could not parse service endpoint url: {why}"));
    }
    check_refresh_hint(&settings.refresh_hint, report);
    let parts = [
        (&settings.tenant_id, "tenant ID"),
        (&settings.app_id, "app ID"),
        (&settings.app_secret, "app secret"),
    ];
    let is_given = parts.iter().any(|(value, _)| !value.is_empty());
    if !settings.storage_account_key.is_empty() {
        report.when(is_given, "storage account key and client secret credentials are mutually exclusive");
    } else if is_given {
        for (value, what) in parts {
            report.when(value.is_empty(), format!("configuration is missing the {what}"));
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GcpCloudStorage {
    bucket_name: String,
    object_name: String,
    format: String,
    service_account_file: String,
    refresh_hint: String,
}

pub(super) fn gcp_cloudstorage(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<GcpCloudStorage>(report, UNDECODABLE) else { return };
    report.when(settings.bucket_name.is_empty(), "configuration is missing the bucket name");
    report.when(settings.object_name.is_empty(), "configuration is missing the object name");
    report.when(settings.format.is_empty(), "configuration is missing the bundle format");
    check_format(&settings.format, report);
    check_refresh_hint(&settings.refresh_hint, report);
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct K8sConfigmap {
    clusters: BTreeMap<String, ConfigmapCluster>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ConfigmapCluster {
    format: String,
    namespace: String,
    configmap_name: String,
    configmap_key: String,
    kubeconfig_path: String,
    refresh_hint: String,
}

/// The first cluster that is wrong is the last that is looked at.
pub(super) fn k8s_configmap(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<K8sConfigmap>(report, UNDECODABLE) else { return };
    report.when(settings.clusters.is_empty(), "No clusters configured, bundle will not be published");
    for (id, cluster) in &settings.clusters {
        let id = quote(id);
        let parts = [
            (&cluster.format, "bundle format"),
            (&cluster.namespace, "namespace"),
            (&cluster.configmap_name, "configmap name"),
            (&cluster.configmap_key, "configmap key"),
        ];
        if let Some((_, what)) = parts.iter().find(|(value, _)| value.is_empty()) {
            return report.say(format!("missing {what} in cluster {id}"));
        }
        if let Err(why) = parse_format(&cluster.format) {
            return report.say(format!("could not parse bundle format from cluster {id}: {why}"));
        }
        if !cluster.refresh_hint.is_empty()
            && let Err(why) = refresh_hint(&cluster.refresh_hint, report)
        {
            return report.say(format!("could not parse refresh_hint from cluster {id}: {why}"));
        }
    }
}

fn check_format(format: &str, report: &mut Report) {
    if let Err(why) = parse_format(format) {
        report.say(format!("could not parse bundle format from configuration: {why}"));
    }
}

fn parse_format(format: &str) -> Result<(), String> {
    if ["jwks", "spiffe", "pem"].contains(&format.to_lowercase().as_str()) {
        return Ok(());
    }
    Err(format!("unknown bundle format: {}", quote(format)))
}

fn check_refresh_hint(text: &str, report: &mut Report) {
    if text.is_empty() {
        return;
    }
    if let Err(why) = refresh_hint(text, report) {
        report.say(format!("could not parse refresh_hint: {why}"));
    }
}

fn refresh_hint(text: &str, report: &mut Report) -> Result<(), String> {
    let hint =
        Span::parse(text).map_err(|why| format!("could not parse refresh hint {}: {why}", quote(text)))?;
    report.when(
        hint >= Span::seconds(24 * 3600),
        "Bundle endpoint refresh hint set to a high value. To cover the case of unscheduled trust bundle \
         updates, it's recommended to have a smaller value, e.g. 5m",
    );
    report.when(
        hint < Span::seconds(60),
        "Bundle endpoint refresh hint set too low. SPIRE will not refresh more often than 1 minute",
    );
    Ok(())
}

/// A URL that is absolute, or a path from the root; none is fine too.
fn check_request_uri(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let address = Address::parse(text)?;
    if address.scheme.is_empty() && !text.starts_with('/') {
        return Err(format!("parse {}: invalid URI for request", quote(text)));
    }
    Ok(())
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GcsBundle {
    bucket: String,
    object_path: String,
    service_account_file: String,
}

pub(super) fn gcs_bundle(settings: &Settings<'_>, report: &mut Report) {
    let what = "plugin configuration is malformed";
    let Some(settings) = settings.decode::<GcsBundle>(report, what) else { return };
    report.when(settings.bucket.is_empty(), "bucket must be set");
    report.when(settings.object_path.is_empty(), "object_path must be set");
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct K8sBundle {
    namespace: String,
    config_map: String,
    config_map_key: String,
    webhook_label: String,
    api_service_label: String,
    kube_config_file_path: String,
    clusters: Vec<BundleCluster>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BundleCluster {
    namespace: String,
    config_map: String,
    config_map_key: String,
    webhook_label: String,
    api_service_label: String,
    kube_config_file_path: String,
}

pub(super) fn k8sbundle(settings: &Settings<'_>, report: &mut Report) {
    if settings.parse::<K8sBundle>().is_err() {
        report.say("plugin configuration is malformed");
    }
}
