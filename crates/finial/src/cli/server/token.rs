//! `token generate`.

use proto::spire::server::agent::CreateJoinTokenRequest;
use proto::spire::server::agent::agent_client::AgentClient;

use super::entry::parse_id;
use crate::cli::flags::{Flags, Kind, Output, flag, flag_or};
use crate::cli::rpc::{self, client, server_flags_with_output, with_server};
use crate::cli::{Command, Failure, FlagError, Printer, json};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    vec![Command {
        name: "token generate",
        about: "Generate a join token",
        flags: server_flags_with_output(&[
            flag_or("ttl", Kind::Int, "600", "Token TTL in seconds"),
            flag("spiffeID", Kind::Text, "Additional SPIFFE ID to assign the token owner (optional)"),
        ]),
        on_flag_error: FlagError::Once,
        action: generate,
    }]
}

fn generate(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    rpc::server_socket(flags)?;
    let agent_id = match flags.text("spiffeID") {
        "" => None,
        text => Some(parse_id(text)?),
    };
    let ttl = flags.int("ttl");
    let ttl = i32::try_from(ttl)
        .map_err(|_| format!("invalid value for TTL: overflow converting int({ttl}) to int32"))?;
    let warn = agent_id.is_none();
    with_server(flags, |dialed| async move {
        let request = CreateJoinTokenRequest { ttl, token: String::new(), agent_id };
        let token = client!(AgentClient<_>, dialed)
            .create_join_token(request)
            .await
            .map_err(|status| dialed.error("", &status))?
            .into_inner();
        printer.out = match flags.output() {
            Output::Json => json::line(&json::tree("spire.api.types.JoinToken", &token)?),
            Output::Pretty => {
                let warning = if warn { "Warning: Missing SPIFFE ID.\n" } else { "" };
                format!("Token: {}\n{warning}", token.value)
            }
        };
        Ok(())
    })
}
