//! `KeyManager` plugins of servers.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::{Report, Settings};
use crate::go::{quote, read_error};

const UNDECODABLE: &str = "unable to decode configuration";
const NO_IDENTIFIER: &str = "configuration requires a key identifier file or a key identifier value";
const TWO_IDENTIFIERS: &str =
    "configuration can't have a key identifier file and a key identifier value at the same time";

#[derive(Default, Deserialize)]
#[serde(default)]
struct AwsKms {
    access_key_id: String,
    secret_access_key: String,
    region: String,
    key_identifier_file: String,
    key_identifier_value: String,
    key_policy_file: String,
    key_tags: BTreeMap<String, String>,
    enable_tag_based_key_discovery: bool,
}

pub(super) fn aws_kms(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<AwsKms>(report, UNDECODABLE) else { return };
    report.when(settings.region.is_empty(), "configuration is missing a region");
    let (file, value) = (&settings.key_identifier_file, &settings.key_identifier_value);
    if !value.is_empty() {
        // From A to z there are a few characters that are no letters; they are taken too.
        let fits = |c: char| matches!(c, 'A'..='z' | '0'..='9' | '/' | '-');
        report.when(
            !value.chars().all(fits),
            "Key identifier must contain only alphanumeric characters, forward slashes (/), underscores (_), \
             and dashes (-)",
        );
        report.when(value.starts_with("alias/aws/"), "Key identifier must not start with alias/aws/");
        report.when(value.len() > 256, "Key identifier must not be longer than 256 characters");
    }
    report.when(file.is_empty() && value.is_empty(), NO_IDENTIFIER);
    report.when(!file.is_empty() && !value.is_empty(), TWO_IDENTIFIERS);
    if let Err(why) = check_tags(&settings.key_tags) {
        report.say(format!("invalid configuration for key tags: {why}"));
    }
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), String> {
    if tags.len() > 50 {
        return Err(format!("too many tags: {} tags exceed AWS limit of 50", tags.len()));
    }
    let fits = |text: &str| {
        text.chars().all(|c| c.is_alphanumeric() || c.is_ascii_whitespace() || "+-=._:/@".contains(c))
    };
    let allowed = "contains invalid characters (allowed: letters, numbers, spaces, + - = . _ : / @)";
    for (key, value) in tags {
        let shown = quote(key);
        let lower = key.to_lowercase();
        if key.is_empty() {
            return Err("tag key cannot be empty".into());
        }
        if key.len() > 128 {
            return Err(format!("tag key {shown} exceeds maximum length of 128 characters"));
        }
        for prefix in ["aws:", "spire-"] {
            if lower.starts_with(prefix) {
                return Err(format!("tag key {shown} uses reserved prefix '{prefix}'"));
            }
        }
        if !fits(key) {
            return Err(format!("tag key {shown} {allowed}"));
        }
        if value.len() > 256 {
            return Err(format!("tag value for key {shown} exceeds maximum length of 256 characters"));
        }
        if !fits(value) {
            return Err(format!("tag value for key {shown} {allowed}"));
        }
    }
    Ok(())
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AzureKeyVault {
    key_identifier_file: String,
    key_identifier_value: String,
    key_vault_uri: String,
    tenant_id: String,
    subscription_id: String,
    app_id: String,
    app_secret: String,
}

pub(super) fn azure_key_vault(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<AzureKeyVault>(report, UNDECODABLE) else { return };
    let (file, value) = (&settings.key_identifier_file, &settings.key_identifier_value);
    report.when(settings.key_vault_uri.is_empty(), "configuration is missing the Key Vault URI");
    report.when(value.len() > 256, "Key identifier must not be longer than 256 characters");
    report.when(file.is_empty() && value.is_empty(), NO_IDENTIFIER);
    report.when(!file.is_empty() && !value.is_empty(), TWO_IDENTIFIERS);
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Disk {
    keys_path: String,
}

pub(super) fn disk(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<Disk>(report, UNDECODABLE) else { return };
    report.when(settings.keys_path.is_empty(), "keys_path is required");
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GcpKms {
    key_identifier_file: String,
    key_identifier_value: String,
    key_policy_file: String,
    key_ring: String,
    service_account_file: String,
}

/// What is left of a CryptoKey's name for the identifier.
const LONGEST_GCP_IDENTIFIER: usize = 63 - "spire-key".len() - "--".len() - "JWT-Signer-A".len();

pub(super) fn gcp_kms(settings: &Settings<'_>, report: &mut Report) {
    let settings = settings.decode::<GcpKms>(report, UNDECODABLE).unwrap_or_default();
    let (file, value) = (&settings.key_identifier_file, &settings.key_identifier_value);
    report.when(settings.key_ring.is_empty(), "configuration is missing the key ring");
    report.when(file.is_empty() && value.is_empty(), NO_IDENTIFIER);
    report.when(!file.is_empty() && !value.is_empty(), TWO_IDENTIFIERS);
    report.when(
        !value.chars().all(|c| c.is_lowercase() || c.is_numeric() || matches!(c, '-' | '_')),
        "Key identifier must contain only letters, numbers, underscores (_), and dashes (-)",
    );
    report.when(
        value.len() > LONGEST_GCP_IDENTIFIER,
        format!("Key identifier must not be longer than {LONGEST_GCP_IDENTIFIER} characters"),
    );
}

/// How to reach Vault and prove who one is there; `UpstreamAuthority "vault"` has it too.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct TokenAuth {
    token: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct CertAuth {
    cert_auth_mount_point: String,
    cert_auth_role_name: String,
    client_cert_path: String,
    client_key_path: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct AppRoleAuth {
    approle_auth_mount_point: String,
    approle_id: String,
    approle_secret_id: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct K8sAuth {
    k8s_auth_mount_point: String,
    k8s_auth_role_name: String,
    token_path: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HashicorpVault {
    // What all plugins for Vault have comes last, as SPIRE reads it.
    key_identifier_file: String,
    key_identifier_value: String,
    transit_engine_path: String,
    vault_addr: String,
    token_auth: Option<TokenAuth>,
    cert_auth: Option<CertAuth>,
    approle_auth: Option<AppRoleAuth>,
    k8s_auth: Option<K8sAuth>,
    ca_cert_path: String,
    insecure_skip_verify: bool,
    namespace: String,
}

/// Unlike SPIRE's, this check makes no identifier file where there is none.
pub(super) fn hashicorp_vault(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<HashicorpVault>(report, UNDECODABLE) else { return };
    match (settings.key_identifier_file.as_str(), settings.key_identifier_value.as_str()) {
        ("", "") => report.say("one of 'key_identifier_file' or 'key_identifier_value' must be provided"),
        (file, "") => {
            if let Err(why) = read_identifier(file) {
                report.say(format!(
                    "failed to generate or retrieve server ID: rpc error: code = Internal desc = failed to {why}"
                ));
            }
        }
        ("", _) => {}
        _ => report.say("only one of 'key_identifier_file' or 'key_identifier_value' should be provided"),
    }
}

fn read_identifier(path: &str) -> Result<(), String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("read server ID from path: {}", read_error(path, &error))),
    };
    let digits = text.chars().filter(char::is_ascii_hexdigit).count();
    let dashes = text.chars().filter(|c| *c == '-').count();
    let is_uuid = text.len() == 36 && digits == 32 && dashes == 4;
    if is_uuid {
        return Ok(());
    }
    let shown = quote(&text);
    Err(format!("parse server ID from path: uuid: incorrect UUID length {} in string {shown}", text.len()))
}
