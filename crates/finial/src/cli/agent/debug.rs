//! `debug getinfo`.

use proto::spire::agent::debug::GetInfoRequest;
use proto::spire::agent::debug::debug_client::DebugClient;

use super::{admin_flags, dial_admin};
use crate::cli::duration::{format_duration, format_rfc3339};
use crate::cli::flags::{Flags, Output};
use crate::cli::rpc::{self, client};
use crate::cli::{Command, Failure, FlagError, Printer, json, print};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    vec![Command {
        name: "debug getinfo",
        about: "Get the agent's debug information",
        flags: admin_flags(&[]),
        on_flag_error: FlagError::Once,
        action: info,
    }]
}

fn info(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    rpc::block_on(async {
        let dialed = dial_admin(flags);
        let info = client!(DebugClient<_>, dialed)
            .get_info(GetInfoRequest {})
            .await
            .map_err(|status| dialed.error("", &status))?
            .into_inner();
        if flags.output() == Output::Json {
            printer.out = json::line(&json::tree("spire.agent.debug.v1.GetInfoResponse", &info)?);
            return Ok(());
        }
        let last_sync = match info.last_sync_success {
            0 => "(never)".to_owned(),
            at => format_rfc3339(at),
        };
        let mut text = "Agent Debug Info:\n".to_owned();
        for (label, value) in [
            ("Uptime:", format_duration(i64::from(info.uptime) * 1_000_000_000)),
            ("Last Sync Success:", last_sync),
            ("Cached X.509 SVIDs:", info.cached_x509_svids_count.to_string()),
            ("Cached JWT SVIDs:", info.cached_jwt_svids_count.to_string()),
            ("Cached SVID Store X.509 SVIDs:", info.cached_svidstore_x509_svids_count.to_string()),
        ] {
            text.push_str(&format!("  {label:<33}{value}\n"));
        }
        text.push_str("  SVID Chain:\n");
        for (index, link) in info.svid_chain.iter().enumerate() {
            text.push_str(&print::chain_link(index, link.id.as_ref(), &link.subject, link.expires_at));
        }
        printer.out = text;
        Ok(())
    })
}
