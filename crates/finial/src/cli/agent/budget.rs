//! `budget`: how long a node's workloads go on without a server.

use std::path::Path;

use proto::finial::budget::budget_client::BudgetClient;
use proto::finial::budget::{GetBudgetRequest, GetBudgetResponse};
use runtime::clock::{Clock, SystemClock};

use super::{admin_flags, dial_admin};
use crate::cli::duration::{format_duration, format_rfc3339};
use crate::cli::flags::{Flags, Kind, Output, flag};
use crate::cli::rpc::{self, client};
use crate::cli::{Command, Failure, FlagError, Printer, json};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    let data_dir =
        flag("dataDir", Kind::Text, "Read what an agent stored in this directory, instead of asking one");
    vec![Command {
        name: "budget",
        about: "Say how long workloads go on without a server",
        flags: admin_flags(&[data_dir]),
        on_flag_error: FlagError::Once,
        action: budget,
    }]
}

fn budget(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let budget = match flags.text("dataDir") {
        "" => rpc::block_on(async {
            let dialed = dial_admin(flags);
            let answer = client!(BudgetClient<_>, dialed).get_budget(GetBudgetRequest {}).await;
            Ok::<_, Failure>(answer.map_err(|status| dialed.error("", &status))?.into_inner())
        })?,
        directory => agent::stored_budget(Path::new(directory), SystemClock.now())?,
    };
    printer.out = match flags.output() {
        Output::Json => json::line(&json::tree("finial.budget.v1.GetBudgetResponse", &budget)?),
        Output::Pretty => pretty(&budget),
    };
    Ok(())
}

/// As a table: what ends, how long until then, when that is.
fn pretty(budget: &GetBudgetResponse) -> String {
    let mut text = format!("Without a server from now on ({}):\n", format_rfc3339(budget.now));
    let mut line = |what: &str, at: i64, note: &str| {
        let note = if note.is_empty() { String::new() } else { format!("  {note}") };
        let when = match at {
            0 => "there is none".to_owned(),
            _ => format!("{:<14}{}", left(at - budget.now), format_rfc3339(at)),
        };
        text.push_str(&format!("  {what:<34}{when}{note}\n"));
    };
    let first = budget.first.clone().unwrap_or_default();
    line("First X.509-SVID of a workload", first.expires_at, &first.spiffe_id);
    line("First cached JWT-SVID", budget.first_jwt_expires_at, "");
    let attests = match budget.reattestable {
        true => "the node attests anew by itself",
        false => "after it, a new join token or an eviction",
    };
    line("The agent's own SVID", budget.agent_expires_at, attests);
    for bundle in &budget.bundles {
        line(&format!("Bundle of {}", bundle.trust_domain), bundle.expires_at, "");
    }
    let heard = match budget.synced_at {
        0 => "never".to_owned(),
        at => format!("{} ago", left(budget.now - at)),
    };
    let restart = match budget.outlives_restarts {
        true => "loses nothing: the vault has it",
        false => "loses all: there is no vault",
    };
    let at_worst = match budget.at_worst {
        0 => "-".to_owned(),
        seconds => left(seconds),
    };
    for (what, value) in [
        ("Last heard from a server", heard),
        ("X.509-SVIDs / entries", format!("{} / {}", budget.x509_svids, budget.entries)),
        ("A restart of the agent", restart.to_owned()),
        ("Budget, whenever an outage begins", at_worst),
    ] {
        text.push_str(&format!("  {what:<34}{value}\n"));
    }
    text
}

/// A number of seconds in words; nothing is left of what is over.
fn left(seconds: i64) -> String {
    if seconds <= 0 { "0s".to_owned() } else { format_duration(seconds.saturating_mul(1_000_000_000)) }
}
