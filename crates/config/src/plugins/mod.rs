//! The plugins that SPIRE has, how many of each type there may be, and what their settings must be.
//!
//! Every plugin can be validated here, whether this version has it or not.

mod agent;
mod check;
mod checkers;
mod keymanager;
mod nodeattestor;
mod publisher;
mod regexp;
mod sql;
mod template;
mod upstream;
mod workload;

use self::check::{Checker, Remark, report};
use crate::go::{quote, read_error, system_text};
use crate::{PluginBlock, PluginData};

/// Which program a plugin belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The server.
    Server,
    /// The agent.
    Agent,
}

/// A type of plugins.
struct Kind {
    name: &'static str,
    at_least: usize,
    /// 0 is no limit.
    at_most: usize,
    plugins: &'static [&'static str],
}

const SERVER: [Kind; 7] = [
    Kind {
        name: "BundlePublisher",
        at_least: 0,
        at_most: 0,
        plugins: &[
            "aws_s3",
            "azure_blob",
            "gcp_cloudstorage",
            "aws_rolesanywhere_trustanchor",
            "k8s_configmap",
        ],
    },
    Kind { name: "CredentialComposer", at_least: 0, at_most: 0, plugins: &["uniqueid"] },
    Kind { name: "DataStore", at_least: 1, at_most: 1, plugins: &["sql"] },
    Kind {
        name: "KeyManager",
        at_least: 1,
        at_most: 1,
        plugins: &["aws_kms", "azure_key_vault", "disk", "gcp_kms", "hashicorp_vault", "memory"],
    },
    Kind {
        name: "NodeAttestor",
        at_least: 0,
        at_most: 0,
        plugins: &[
            "aws_iid",
            "azure_imds",
            "azure_msi",
            "gcp_iit",
            "http_challenge",
            "join_token",
            "k8s_psat",
            "sshpop",
            "tpm_devid",
            "x509pop",
        ],
    },
    Kind { name: "Notifier", at_least: 0, at_most: 0, plugins: &["gcs_bundle", "k8sbundle"] },
    Kind {
        name: "UpstreamAuthority",
        at_least: 0,
        at_most: 1,
        // SPIRE's source has `ejbca` too; the recorded program has not.
        plugins: &["aws_pca", "awssecret", "cert-manager", "disk", "gcp_cas", "spire", "vault"],
    },
];

const AGENT: [Kind; 4] = [
    Kind { name: "KeyManager", at_least: 1, at_most: 1, plugins: &["disk", "memory"] },
    Kind {
        name: "NodeAttestor",
        at_least: 1,
        at_most: 1,
        plugins: &[
            "aws_iid",
            "azure_imds",
            "azure_msi",
            "gcp_iit",
            "http_challenge",
            "join_token",
            "k8s_psat",
            "sshpop",
            "tpm_devid",
            "x509pop",
        ],
    },
    Kind {
        name: "SVIDStore",
        at_least: 0,
        at_most: 0,
        plugins: &["aws_secretsmanager", "gcp_secretmanager"],
    },
    Kind {
        name: "WorkloadAttestor",
        at_least: 1,
        at_most: 0,
        plugins: &["docker", "k8s", "slurm", "systemd", "unix", "windows"],
    },
];

const fn kinds(side: Side) -> &'static [Kind] {
    match side {
        Side::Server => &SERVER,
        Side::Agent => &AGENT,
    }
}

/// Whether SPIRE has a built-in plugin of that type and name.
#[must_use]
pub fn is_known(side: Side, block: &PluginBlock) -> bool {
    let kind = kinds(side).iter().find(|kind| kind.name == block.kind);
    kind.is_some_and(|kind| kind.plugins.contains(&block.name.as_str()))
}

/// What is wrong with one plugin, or with the number of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The plugin, such as `KeyManager "disk"`, or a type.
    pub plugin: String,
    /// What is wrong.
    pub texts: Vec<String>,
}

/// Checks the settings of every plugin and how many there are of each type.
///
/// # Errors
///
/// A plugin that is not there, or cannot be started.
pub fn validate(side: Side, blocks: &[PluginBlock]) -> Result<Vec<Complaint>, String> {
    let is_overridden = |block: &PluginBlock| {
        block.kind == "NodeAttestor"
            && block.name == "join_token"
            && block.enabled
            && !block.command.is_empty()
    };
    if blocks.iter().any(is_overridden) {
        return Err("the built-in join_token node attestor cannot be overridden by an external plugin".into());
    }
    let mut complaints = Vec::new();
    let (stores, others): (Vec<_>, Vec<_>) =
        blocks.iter().partition(|block| side == Side::Server && block.kind == "DataStore");
    if side == Side::Server {
        complaints.extend(check_store(stores.first().copied())?);
    }
    let mut counts: Vec<&str> = Vec::new();
    for block in others {
        let Some(kind) = kinds(side).iter().find(|kind| kind.name == block.kind && kind.name != "DataStore")
        else {
            return Err(format!("unsupported plugin type {}", quote(&block.kind)));
        };
        if !block.enabled {
            continue;
        }
        let checker = find(side, kind, block)
            .map_err(|why| format!("failed to load plugin {}: {why}", quote(&block.name)))?;
        let plugin = format!("{} \"{}\"", block.kind, block.name);
        let text = match data(block) {
            Ok(text) => text,
            Err(why) => {
                let texts = vec![format!("failed to read plugin configuration: {why}")];
                complaints.push(Complaint { plugin, texts });
                continue;
            }
        };
        let remarks = checker.map(|check| report(check, &text)).unwrap_or_default();
        // A server's configuration is only good when there is nothing at all to say about it.
        let counts_as_wrong = |remark: &Remark| remark.is_wrong || side == Side::Server;
        let texts: Vec<String> =
            remarks.into_iter().filter(counts_as_wrong).map(|remark| remark.text).collect();
        if !texts.is_empty() {
            complaints.push(Complaint { plugin, texts });
        }
        counts.push(kind.name);
    }
    for kind in kinds(side).iter().filter(|kind| kind.name != "DataStore") {
        let count = counts.iter().filter(|name| **name == kind.name).count();
        if let Some(why) = kind.miscounted(count) {
            let texts = vec![format!("constraint not satisfied: {why}")];
            complaints.push(Complaint { plugin: kind.name.to_owned(), texts });
        }
    }
    Ok(complaints)
}

/// The datastore is asked directly, not through the plugin interface, so it says everything twice.
fn check_store(block: Option<&PluginBlock>) -> Result<Option<Complaint>, String> {
    let plugin = "DataStore \"sql\"".to_owned();
    let Some(block) = block else {
        return Ok(Some(Complaint { plugin, texts: vec!["'datastore' must be configured".into()] }));
    };
    let text = data(block).map_err(|why| format!("failed to get DataStore configuration: {why}"))?;
    let twice = |remark: Remark| [remark.text.clone(), remark.text];
    let texts: Vec<String> = report(sql::check, &text).into_iter().flat_map(twice).collect();
    Ok((!texts.is_empty()).then_some(Complaint { plugin, texts }))
}

/// The text of a plugin's settings.
fn data(block: &PluginBlock) -> Result<String, String> {
    match &block.data {
        PluginData::Absent => Ok(String::new()),
        PluginData::Inline(text) => Ok(text.clone()),
        PluginData::File(path) => {
            std::fs::read_to_string(path).map_err(|error| read_error(&path.to_string_lossy(), &error))
        }
    }
}

/// What checks the plugin's settings; `None` where it has none, or is another program.
fn find(side: Side, kind: &Kind, block: &PluginBlock) -> Result<Option<Checker>, String> {
    if !block.command.is_empty() {
        return check_external(block).map(|()| None);
    }
    if !kind.plugins.contains(&block.name.as_str()) {
        let (name, kind) = (quote(&block.name), quote(kind.name));
        return Err(format!("no built-in plugin {name} for type {kind}"));
    }
    Ok(checkers::find(side, kind.name, &block.name))
}

/// Looks at a plugin that is a program of its own, without starting it.
fn check_external(block: &PluginBlock) -> Result<(), String> {
    let checksum = &block.checksum;
    if !checksum.is_empty() {
        if !checksum.len().is_multiple_of(2) || !checksum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("checksum is not a valid hex string".into());
        }
        if checksum.len() != 64 {
            return Err(format!("expected checksum of length 64; got {}", checksum.len()));
        }
    }
    let path = std::path::absolute(&block.command).unwrap_or_else(|_| block.command.clone().into());
    let found = std::fs::metadata(&path).and_then(|found| {
        let is_executable = std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o111 != 0;
        if found.is_file() && is_executable {
            Ok(())
        } else {
            Err(std::io::ErrorKind::PermissionDenied.into())
        }
    });
    found.map_err(|error| {
        format!("failed to launch plugin: fork/exec {}: {}", path.display(), system_text(&error))
    })
}

impl Kind {
    fn miscounted(&self, count: usize) -> Option<String> {
        let (least, most) = (self.at_least, self.at_most);
        if most > 0 && least == most && count != least {
            return Some(format!("expected exactly {least} but got {count}"));
        }
        if count < least {
            return Some(format!("expected at least {least} but got {count}"));
        }
        (most > 0 && count > most).then(|| format!("expected at most {most} but got {count}"))
    }
}
