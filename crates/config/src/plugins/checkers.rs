//! Which check belongs to which plugin.

use super::check::Checker;
use super::{Side, agent, keymanager, nodeattestor, publisher, upstream, workload};

/// The check of a plugin; `None` where it takes no settings.
pub(super) fn find(side: Side, kind: &str, name: &str) -> Option<Checker> {
    match side {
        Side::Server => of_server(kind, name),
        Side::Agent => of_agent(kind, name),
    }
}

fn of_server(kind: &str, name: &str) -> Option<Checker> {
    Some(match (kind, name) {
        ("BundlePublisher", "aws_rolesanywhere_trustanchor") => publisher::aws_rolesanywhere,
        ("BundlePublisher", "aws_s3") => publisher::aws_s3,
        ("BundlePublisher", "azure_blob") => publisher::azure_blob,
        ("BundlePublisher", "gcp_cloudstorage") => publisher::gcp_cloudstorage,
        ("BundlePublisher", "k8s_configmap") => publisher::k8s_configmap,
        ("KeyManager", "aws_kms") => keymanager::aws_kms,
        ("KeyManager", "azure_key_vault") => keymanager::azure_key_vault,
        ("KeyManager", "disk") => keymanager::disk,
        ("KeyManager", "gcp_kms") => keymanager::gcp_kms,
        ("KeyManager", "hashicorp_vault") => keymanager::hashicorp_vault,
        ("NodeAttestor", "aws_iid") => nodeattestor::aws_iid,
        ("NodeAttestor", "azure_imds") => nodeattestor::azure_imds,
        ("NodeAttestor", "azure_msi") => nodeattestor::azure_msi,
        ("NodeAttestor", "gcp_iit") => nodeattestor::gcp_iit,
        ("NodeAttestor", "http_challenge") => nodeattestor::http_challenge,
        ("NodeAttestor", "join_token") => nodeattestor::join_token,
        ("NodeAttestor", "k8s_psat") => nodeattestor::k8s_psat,
        ("NodeAttestor", "sshpop") => nodeattestor::sshpop,
        ("NodeAttestor", "tpm_devid") => nodeattestor::tpm_devid,
        ("NodeAttestor", "x509pop") => nodeattestor::x509pop,
        ("Notifier", "gcs_bundle") => publisher::gcs_bundle,
        ("Notifier", "k8sbundle") => publisher::k8sbundle,
        ("UpstreamAuthority", "aws_pca") => upstream::aws_pca,
        ("UpstreamAuthority", "awssecret") => upstream::awssecret,
        ("UpstreamAuthority", "cert-manager") => upstream::cert_manager,
        ("UpstreamAuthority", "disk") => upstream::disk,
        ("UpstreamAuthority", "gcp_cas") => upstream::gcp_cas,
        ("UpstreamAuthority", "spire") => upstream::spire,
        ("UpstreamAuthority", "vault") => upstream::vault,
        _ => return None,
    })
}

fn of_agent(kind: &str, name: &str) -> Option<Checker> {
    Some(match (kind, name) {
        ("KeyManager", "disk") => agent::disk_keys,
        ("NodeAttestor", "aws_iid") => agent::aws_iid,
        ("NodeAttestor", "azure_imds") => agent::azure_imds,
        ("NodeAttestor", "azure_msi") => agent::azure_msi,
        ("NodeAttestor", "gcp_iit") => agent::gcp_iit,
        ("NodeAttestor", "http_challenge") => agent::http_challenge,
        ("NodeAttestor", "k8s_psat") => agent::k8s_psat,
        ("NodeAttestor", "sshpop") => agent::sshpop,
        ("NodeAttestor", "tpm_devid") => agent::tpm_devid,
        ("NodeAttestor", "x509pop") => agent::x509pop,
        ("SVIDStore", "aws_secretsmanager") => agent::aws_secretsmanager,
        ("SVIDStore", "gcp_secretmanager") => agent::gcp_secretmanager,
        ("WorkloadAttestor", "docker") => workload::docker,
        ("WorkloadAttestor", "k8s") => workload::k8s,
        ("WorkloadAttestor", "slurm" | "systemd") => agent::without_settings,
        ("WorkloadAttestor", "unix") => workload::unix,
        ("WorkloadAttestor", "windows") => workload::windows,
        _ => return None,
    })
}
