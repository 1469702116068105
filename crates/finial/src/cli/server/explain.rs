//! `explain`: what an agent may serve to a workload, and why not more.

use std::fmt::Write as _;

use proto::finial::explain::server_client::ServerClient;
use proto::finial::explain::{ExplainAgentRequest, ExplainAgentResponse};
use proto::spire::types;
use spiffe::SpiffeId;

use crate::cli::duration::format_time;
use crate::cli::flags::{Flags, Kind, Output, flag};
use crate::cli::rpc::{client, server_flags_with_output, with_server};
use crate::cli::{Command, Failure, FlagError, Printer, explain, json};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    vec![Command {
        name: "explain",
        about: "Explain which entries an agent may serve to a workload, and why",
        flags: server_flags_with_output(&[
            flag("agent", Kind::Text, "The SPIFFE ID of the agent"),
            explain::SELECTORS,
        ]),
        on_flag_error: FlagError::Once,
        action: run,
    }]
}

fn run(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let agent = SpiffeId::parse(flags.text("agent"))
        .map_err(|error| format!("agent {:?} is no SPIFFE ID: {error}", flags.text("agent")))?;
    let selectors = explain::selectors(flags.texts("selectors"))?;
    if selectors.is_empty() {
        return Err("at least one selector is required".to_owned().into());
    }
    with_server(flags, |dialed| async move {
        let request = ExplainAgentRequest {
            agent_id: Some(types::Spiffeid::from(&agent)),
            selectors: selectors.clone(),
        };
        let explained = client!(ServerClient<_>, dialed)
            .explain(request)
            .await
            .map_err(|status| dialed.error("", &status))?
            .into_inner();
        printer.out = match flags.output() {
            Output::Json => json::line(&json::tree("finial.explain.v1.ExplainAgentResponse", &explained)?),
            Output::Pretty => pretty(&explained, &selectors),
        };
        Ok(())
    })
}

fn pretty(explained: &ExplainAgentResponse, has: &[types::Selector]) -> String {
    let mut text = format!("{}: {}\n", explained.reason, explained.explanation);
    let mut line = |label: &str, value: &str| {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{label:<11}: {value}");
    };
    line("Agent", &explained.agent_id);
    if explained.is_attested {
        line("Attested by", &explained.attestation_type);
        let state =
            if explained.is_banned { "banned".to_owned() } else { format_time(explained.agent_expires_at) };
        line("Agent SVID", &if explained.is_banned { state } else { format!("expires {state}") });
        line("Sync", if explained.is_pushed { "changes are pushed" } else { "the agent polls, or is away" });
    }
    line("Entries", &explained.entries.to_string());
    explain::block(&mut text, "Agent's selectors", &explain::lines_of(&explained.agent_selectors));
    explain::block(&mut text, "Agent's aliases", &explained.aliases);
    let now = explained.now;
    explain::block(&mut text, "Matching entries", &explain::candidates(&explained.matches, has, now));
    explain::block(
        &mut text,
        "Matching entries that are not below this agent",
        &explain::candidates(&explained.elsewhere, has, now),
    );
    explain::block(&mut text, "Nearest entries", &explain::candidates(&explained.misses, has, now));
    explain::grant(&mut text, &explained.grant);
    text
}
