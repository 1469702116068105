//! `explain`: what the agent finds out of a workload, and which entries match.

use std::fmt::Write as _;

use proto::finial::explain::agent_client::AgentClient;
use proto::finial::explain::{ExplainWorkloadRequest, ExplainWorkloadResponse};
use tonic::metadata::MetadataValue;

use super::public_flags;
use crate::cli::duration::format_time;
use crate::cli::flags::{Flags, Kind, Output, flag};
use crate::cli::rpc::{self, client, output_flag};
use crate::cli::{Command, Failure, FlagError, Printer, explain, json};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    let mut flags = public_flags(&[
        flag("pid", Kind::Int, "The process to look at (default: this command itself)"),
        explain::SELECTORS,
    ]);
    flags.push(output_flag());
    vec![Command {
        name: "explain",
        about: "Explain which identities a workload has, and why",
        flags,
        on_flag_error: FlagError::Once,
        action: run,
    }]
}

fn run(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let pid = i32::try_from(flags.int("pid")).map_err(|_| "pid is no process ID".to_owned())?;
    let selectors = explain::selectors(flags.texts("selectors"))?;
    if pid != 0 && !selectors.is_empty() {
        return Err("pid and selectors exclude each other".to_owned().into());
    }
    let socket = rpc::agent_socket(flags)?;
    rpc::block_on(async {
        let dialed = rpc::dial_public(&socket);
        let mut request = tonic::Request::new(ExplainWorkloadRequest { pid, selectors });
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let explained = client!(AgentClient<_>, dialed)
            .explain(request)
            .await
            .map_err(|status| dialed.error("", &status))?
            .into_inner();
        printer.out = match flags.output() {
            Output::Json => json::line(&json::tree("finial.explain.v1.ExplainWorkloadResponse", &explained)?),
            Output::Pretty => pretty(&explained),
        };
        Ok(())
    })
}

fn pretty(explained: &ExplainWorkloadResponse) -> String {
    let mut text = format!("{}: {}\n", explained.reason, explained.explanation);
    let mut line = |label: &str, value: &str| {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{label:<11}: {value}");
    };
    line("Agent", &explained.agent_id);
    line("Agent SVID", &format!("expires {}", format_time(explained.agent_expires_at)));
    let age = explained.now - explained.synced_at;
    let how = if explained.is_pushed { "changes are pushed" } else { "the server is polled" };
    match explained.synced_at {
        0 => line("Sync", "never"),
        _ => line("Sync", &format!("{age} s ago; {how}")),
    }
    if !explained.misses_withheld {
        line("Entries", &explained.entries.to_string());
    }
    for attestor in &explained.attestors {
        let title = format!("Attestor {}", attestor.name);
        if attestor.error.is_empty() {
            let mut lines = explain::lines_of(&attestor.selectors);
            if lines.is_empty() {
                lines.push("nothing".to_owned());
            }
            explain::block(&mut text, &title, &lines);
        } else {
            explain::block(&mut text, &title, &[format!("failed: {}", attestor.error)]);
        }
    }
    if explained.attestors.is_empty() {
        explain::block(&mut text, "Selectors", &explain::lines_of(&explained.selectors));
    }
    let (has, now) = (&explained.selectors, explained.now);
    explain::block(&mut text, "Matching entries", &explain::candidates(&explained.matches, has, now));
    explain::block(&mut text, "Nearest entries", &explain::candidates(&explained.misses, has, now));
    if explained.misses_withheld && explained.matches.is_empty() {
        text.push_str("\nEntries that do not match are shown to root and on the admin socket.\n");
    }
    explain::grant(&mut text, &explained.grant);
    let _written = writeln!(
        text,
        "\nWhat the server knows of it, parents and expiry too:\n  finial server explain -agent {}{}",
        explained.agent_id,
        explain::flag_of(has)
    );
    text
}
