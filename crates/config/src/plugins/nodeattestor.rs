//! `NodeAttestor` plugins of servers.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::{Report, Settings};
use super::{regexp, template};
use crate::go::{Span, quote, read_error};
use crate::hcl::UnusedKeys;

const UNDECODABLE: &str = "unable to decode configuration";
const MALFORMED: &str = "plugin configuration is malformed";

/// Reports a path template that cannot be parsed; `what` is what it makes.
pub(super) fn check_template(text: &str, what: &str, report: &mut Report) {
    let is_broken = !text.is_empty() && template::check(text).is_err();
    report.when(is_broken, format!("failed to parse agent {what} template: {}", quote(text)));
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AwsIid {
    access_key_id: String,
    secret_access_key: String,
    skip_block_device: bool,
    disable_instance_profile_selectors: bool,
    account_ids_for_local_validation: Vec<String>,
    agent_path_template: String,
    assume_role: String,
    partition: String,
    verify_organization: Option<Organization>,
    validate_eks_cluster_membership: Option<EksClusters>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Organization {
    management_account_id: String,
    assume_org_role: String,
    management_account_region: String,
    org_account_map_ttl: String,
    account_list_file: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct EksClusters {
    eks_cluster_names: Vec<String>,
}

pub(super) fn aws_iid(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<AwsIid>(report, UNDECODABLE) else { return };
    let is_set = |value: &str, variable: &str| {
        !value.is_empty() || std::env::var(variable).is_ok_and(|value| !value.is_empty())
    };
    let id = is_set(&settings.access_key_id, "AWS_ACCESS_KEY_ID");
    let secret = is_set(&settings.secret_access_key, "AWS_SECRET_ACCESS_KEY");
    let refused = |why: &str| format!("rpc error: code = InvalidArgument desc = {why}");
    let missing =
        |what: &str, other: &str| refused(&format!("configuration missing {what}, but has {other}"));
    report.when(id && !secret, missing("secret access key", "access key id"));
    report.when(!id && secret, missing("access key id", "secret access key"));
    check_template(&settings.agent_path_template, "svid", report);
    let partition = &settings.partition;
    report.when(
        !["", "aws", "aws-cn", "aws-us-gov"].contains(&partition.as_str()),
        format!("invalid partition {}, must be one of: [aws aws-cn aws-us-gov]", quote(partition)),
    );
    if let Some(Err(why)) = settings.verify_organization.as_ref().map(check_organization) {
        report.say(refused(&why));
    }
}

fn check_organization(settings: &Organization) -> Result<(), String> {
    let has_id = !settings.management_account_id.is_empty();
    let has_role = !settings.assume_org_role.is_empty();
    let file = &settings.account_list_file;
    if !file.is_empty() {
        if has_id || has_role {
            return Err("\"account_list_file\" is mutually exclusive with \"management_account_id\" and \
                        \"assume_org_role\" in the block: \"verify_organization\""
                .into());
        }
        check_account_list(file).map_err(|why| {
            format!("invalid \"account_list_file\" in the block: \"verify_organization\": {why}")
        })?;
    } else if !has_id || !has_role {
        return Err("please ensure that \"management_account_id\" & \"assume_org_role\" are present inside \
                    block or remove the block: \"verify_organization\" for feature node attestation using \
                    account id verification"
            .into());
    }
    let ttl = &settings.org_account_map_ttl;
    let ending = "remove the: \"org_account_map_ttl\", in the block: \"verify_organization\". \
                  Default TTL will be: \"3m\"";
    match Span::parse(ttl) {
        _ if ttl.is_empty() => Ok(()),
        Ok(ttl) if ttl >= Span::seconds(60) => Ok(()),
        Ok(_) => Err(format!(
            "please ensure that \"org_account_map_ttl\" if configured, it should be greater than or equal to \
             \"1m\". Otherwise {ending}"
        )),
        Err(_) => Err(format!(
            "please ensure that \"org_account_map_ttl\" if configured, it should be in duration and is \
             suffixed with required 'm' for time duration in minute ex. '5m'. Otherwise, {ending}"
        )),
    }
}

/// The file holds a JSON array of account numbers.
fn check_account_list(path: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("unable to read account list file: {}", read_error(path, &error)))?;
    let shown = quote(path);
    let accounts = strings_of_json(&text).ok_or_else(|| {
        format!("unable to parse account list file {shown}, expected a JSON array of account IDs")
    })?;
    for account in accounts {
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!(
                "invalid account id {} in account list file {shown}, expected a 12-digit AWS account id",
                quote(&account)
            ));
        }
    }
    Ok(())
}

/// The strings of a JSON array of strings, as far as account numbers need it: without escapes.
fn strings_of_json(text: &str) -> Option<Vec<String>> {
    let inner = text.trim().strip_prefix('[')?.strip_suffix(']')?.trim();
    if inner.is_empty() {
        return Some(Vec::new());
    }
    inner.split(',').map(|item| item.trim().strip_prefix('"')?.strip_suffix('"').map(str::to_owned)).collect()
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AzureImds {
    tenants: BTreeMap<String, ImdsTenant>,
    agent_path_template: String,
    allowed_metadata_domains: Vec<String>,
    trust_bundle_path: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ImdsTenant {
    auth_type: String,
    secret_auth: Option<SecretAuth>,
    token_auth: Option<TokenAuth>,
    allowed_vm_tags: Vec<String>,
    restrict_to_subscriptions: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SecretAuth {
    app_id: String,
    app_secret: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenAuth {
    token_path: String,
    app_id: String,
}

/// SPIRE asks Microsoft for the tenant's id here; Finial does that when the plugin is loaded, and calls
/// the tenant by its domain.
pub(super) fn azure_imds(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<AzureImds>(report, UNDECODABLE) else { return };
    report.when(settings.tenants.is_empty(), "configuration must have at least one tenant");
    for (domain, tenant) in &settings.tenants {
        let misconfigured = |why: &str| format!("misconfigured tenant {}: {why}", quote(domain));
        match (&tenant.secret_auth, &tenant.token_auth) {
            (Some(_), Some(_)) => report
                .say(misconfigured("only one of secret_auth or token_auth may be specified in the config")),
            (None, Some(token)) => {
                report.when(token.token_path.is_empty(), misconfigured("missing token file path"));
                report.when(token.app_id.is_empty(), misconfigured("missing app id"));
            }
            (Some(secret), None) => {
                report.when(secret.app_id.is_empty(), misconfigured("missing app id"));
                report.when(secret.app_secret.is_empty(), misconfigured("missing app id"));
            }
            (None, None) => {}
        }
        for subscription in &tenant.restrict_to_subscriptions {
            report.when(
                subscription.trim().is_empty(),
                misconfigured("restrict_to_subscriptions entries must be non-empty"),
            );
        }
    }
    check_template(&settings.agent_path_template, "path", report);
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AzureMsi {
    tenants: BTreeMap<String, MsiTenant>,
    agent_path_template: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MsiTenant {
    resource_id: String,
    subscription_id: String,
    app_id: String,
    app_secret: String,
}

/// SPIRE asks the cloud's metadata service here for a tenant without credentials; Finial does that when
/// the plugin is loaded.
pub(super) fn azure_msi(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<AzureMsi>(report, UNDECODABLE) else { return };
    report.when(settings.tenants.is_empty(), "configuration must have at least one tenant");
    for (id, tenant) in &settings.tenants {
        let parts = [
            (&tenant.subscription_id, "subscription id"),
            (&tenant.app_id, "app id"),
            (&tenant.app_secret, "app secret"),
        ];
        let is_given = parts.iter().any(|(value, _)| !value.is_empty());
        for (value, what) in parts {
            report.when(
                is_given && value.is_empty(),
                format!("misconfigured tenant {}: missing {what}", quote(id)),
            );
        }
    }
    check_template(&settings.agent_path_template, "path", report);
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GcpIit {
    projectid_allow_list: Vec<String>,
    agent_path_template: String,
    use_instance_metadata: bool,
    allowed_label_keys: Vec<String>,
    allowed_metadata_keys: Vec<String>,
    max_metadata_value_size: i64,
    service_account_file: String,
}

pub(super) fn gcp_iit(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<GcpIit>(report, UNDECODABLE) else { return };
    report.when(settings.projectid_allow_list.is_empty(), "projectid_allow_list is required");
    check_template(&settings.agent_path_template, "path", report);
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HttpChallenge {
    allowed_dns_patterns: Vec<String>,
    required_port: Option<i64>,
    allow_non_root_ports: Option<bool>,
    tofu: Option<bool>,
}

pub(super) fn http_challenge(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<HttpChallenge>(report, UNDECODABLE) else { return };
    for pattern in &settings.allowed_dns_patterns {
        if let Err(why) = regexp::check(pattern) {
            report.say(format!("cannot compile allowed_dns_pattern: {}, {why}", quote(pattern)));
        }
    }
    let allows_any_port = settings.allow_non_root_ports.unwrap_or(true);
    let is_untrusted = match settings.required_port {
        Some(port) => port >= 1024,
        None => allows_any_port,
    };
    report.when(
        settings.tofu == Some(false) && is_untrusted,
        "you can not turn off trust on first use (TOFU) when non-root ports are allowed",
    );
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JoinToken {
    #[serde(rename = "$unused")]
    unused: UnusedKeys,
}

pub(super) fn join_token(settings: &Settings<'_>, report: &mut Report) {
    let Ok(settings) = settings.parse::<JoinToken>() else { return report.say(MALFORMED) };
    for key in &settings.unused.0 {
        report.note(format!("unknown setting \"{key}\" encountered"));
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct K8sPsat {
    clusters: BTreeMap<String, PsatCluster>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PsatCluster {
    service_account_allow_list: Vec<String>,
    audience: Option<Vec<String>>,
    kube_config_file: String,
    allowed_node_label_keys: Vec<String>,
    allowed_pod_label_keys: Vec<String>,
    use_pod_uid_for_agent_id: bool,
}

pub(super) fn k8s_psat(settings: &Settings<'_>, report: &mut Report) {
    let Ok(settings) = settings.parse::<K8sPsat>() else { return report.say(MALFORMED) };
    if settings.clusters.is_empty() {
        report.note("No clusters configured, PSAT attestation is effectively disabled");
    }
    for (name, cluster) in &settings.clusters {
        report.when(
            cluster.service_account_allow_list.is_empty(),
            format!("cluster {} configuration must have at least one service account allowed", quote(name)),
        );
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Sshpop {
    cert_authorities: Option<Vec<String>>,
    cert_authorities_path: String,
    canonical_domain: String,
    agent_path_template: String,
}

pub(super) fn sshpop(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<Sshpop>(report, "failed to decode configuration") else { return };
    let path = &settings.cert_authorities_path;
    report.when(
        settings.cert_authorities.is_none() && path.is_empty(),
        "missing required config value for \"cert_authorities\" or \"cert_authorities_path\"",
    );
    let mut authorities = settings.cert_authorities.unwrap_or_default();
    if !path.is_empty() {
        match keys_of(path) {
            Ok(keys) => authorities.extend(keys),
            Err(why) => report.say(format!("failed to get cert authorities from file: {why}")),
        }
    }
    if let Err(why) = check_authorities(&authorities) {
        report.say(format!("failed to create cert checker: {why}"));
    }
    check_template(&settings.agent_path_template, "svid", report);
}

fn keys_of(path: &str) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| read_error(path, &error))?;
    let keys: Vec<String> = text.split('\n').filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if keys.is_empty() { Err(format!("no data found in file: {}", quote(path))) } else { Ok(keys) }
}

fn check_authorities(authorities: &[String]) -> Result<(), String> {
    if authorities.is_empty() {
        return Err("must provide at least one cert authority".into());
    }
    for authority in authorities {
        if !is_authorized_key(authority) {
            return Err(format!("failed to parse public key {}: ssh: no key found", quote(authority)));
        }
    }
    Ok(())
}

/// A line of an `authorized_keys` file, options first or not: a type, and base64 that starts with it.
fn is_authorized_key(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(2).any(|pair| match pair {
        [kind, key] => {
            (kind.starts_with("ssh-") || kind.starts_with("ecdsa-sha2-") || kind.starts_with("sk-"))
                && key.starts_with("AAAA")
                && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
        }
        _ => false,
    })
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TpmDevid {
    devid_ca_path: String,
    endorsement_ca_path: String,
}

pub(super) fn tpm_devid(settings: &Settings<'_>, report: &mut Report) {
    let Ok(settings) = settings.parse::<TpmDevid>() else { return report.say(MALFORMED) };
    report.when(settings.devid_ca_path.is_empty(), "devid_ca_path is required");
    report.when(settings.endorsement_ca_path.is_empty(), "endorsement_ca_path is required");
    if let Err(why) = check_certificates(&settings.devid_ca_path) {
        report.say(format!("unable to load DevID trust bundle: {why}"));
    }
    if let Err(why) = check_certificates(&settings.endorsement_ca_path) {
        report.say(format!("unable to load endorsement trust bundle: {why}"));
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct X509pop {
    mode: String,
    spiffe_prefix: Option<String>,
    ca_bundle_path: String,
    ca_bundle_paths: Vec<String>,
    agent_path_template: String,
    max_intermediates: Option<i64>,
    max_rsa_key_size: Option<i64>,
    verify_client_ip: bool,
}

pub(super) fn x509pop(settings: &Settings<'_>, report: &mut Report) {
    let Some(settings) = settings.decode::<X509pop>(report, UNDECODABLE) else { return };
    let (one, many) = (&settings.ca_bundle_path, &settings.ca_bundle_paths);
    match settings.mode.as_str() {
        "" | "external_pki" => {
            report.when(
                !one.is_empty() && !many.is_empty(),
                "only one of ca_bundle_path or ca_bundle_paths can be configured, not both",
            );
            let paths = if one.is_empty() { many.as_slice() } else { std::slice::from_ref(one) };
            report.when(paths.is_empty(), "one of ca_bundle_path or ca_bundle_paths must be configured");
            for path in paths {
                if let Err(why) = check_certificates(path) {
                    report.say(format!("unable to load trust bundle {}: {why}", quote(path)));
                }
            }
        }
        "spiffe" => report.when(
            !one.is_empty() || !many.is_empty(),
            "you can not use ca_bundle_path or ca_bundle_paths in spiffe mode",
        ),
        _ => report.say("mode can only be either spiffe or external_pki"),
    }
    check_template(&settings.agent_path_template, "svid", report);
    let is_low = |limit: Option<i64>| limit.is_some_and(|limit| limit <= 0);
    report.when(is_low(settings.max_intermediates), "max_intermediates must be greater than 0");
    report.when(is_low(settings.max_rsa_key_size), "max_rsa_key_size must be greater than 0");
}

/// Looks whether a file holds certificates.
pub(super) fn check_certificates(path: &str) -> Result<(), String> {
    let text = std::fs::read(path).map_err(|error| read_error(path, &error))?;
    let mut is_empty = true;
    for (number, block) in spiffe::x509::pem(&text).iter().enumerate() {
        if block.label == "CERTIFICATE" {
            is_empty = false;
            spiffe::x509::Certificate::parse(&block.contents)
                .map_err(|error| format!("unable to parse certificate in block {number}: {error}"))?;
        }
    }
    if is_empty { Err("no certificates found in file".into()) } else { Ok(()) }
}
