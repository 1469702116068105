//! Which check belongs to which plugin.

use super::check::Checker;
use super::{Side, keymanager};

/// The check of a plugin; `None` where it takes no settings.
pub(super) fn find(side: Side, kind: &str, name: &str) -> Option<Checker> {
    match side {
        Side::Server => server(kind, name),
        Side::Agent => None,
    }
}

fn server(kind: &str, name: &str) -> Option<Checker> {
    Some(match (kind, name) {
        ("KeyManager", "aws_kms") => keymanager::aws_kms,
        ("KeyManager", "azure_key_vault") => keymanager::azure_key_vault,
        ("KeyManager", "disk") => keymanager::disk,
        ("KeyManager", "gcp_kms") => keymanager::gcp_kms,
        ("KeyManager", "hashicorp_vault") => keymanager::hashicorp_vault,
        _ => return None,
    })
}
