//! `debug getinfo`.

use proto::spire::server::debug::GetInfoRequest;
use proto::spire::server::debug::debug_client::DebugClient;

use crate::cli::duration::format_duration;
use crate::cli::flags::{Flags, Output};
use crate::cli::rpc::{client, server_flags_with_output, with_server};
use crate::cli::{Command, Failure, FlagError, Printer, json, print};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    vec![Command {
        name: "debug getinfo",
        about: "Get the server's debug information",
        flags: server_flags_with_output(&[]),
        on_flag_error: FlagError::Once,
        action: info,
    }]
}

fn info(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    with_server(flags, |dialed| async move {
        let info = client!(DebugClient<_>, dialed)
            .get_info(GetInfoRequest {})
            .await
            .map_err(|status| dialed.error("", &status))?
            .into_inner();
        if flags.output() == Output::Json {
            printer.out = json::line(&json::tree("spire.api.server.debug.v1.GetInfoResponse", &info)?);
            return Ok(());
        }
        let mut text = "Server Debug Info:\n".to_owned();
        for (label, value) in [
            ("Uptime:", format_duration(i64::from(info.uptime) * 1_000_000_000)),
            ("Registered Agents:", info.agents_count.to_string()),
            ("Registration Entries:", info.entries_count.to_string()),
            ("Federated Bundles:", info.federated_bundles_count.to_string()),
        ] {
            text.push_str(&format!("  {label:<25}{value}\n"));
        }
        text.push_str("  SVID Chain:\n");
        for (index, link) in info.svid_chain.iter().enumerate() {
            text.push_str(&print::chain_link(index, link.id.as_ref(), &link.subject, link.expires_at));
        }
        printer.out = text;
        Ok(())
    })
}
