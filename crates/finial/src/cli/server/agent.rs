//! `agent count`, `list`, `show`, `ban`, `evict`, `purge`.

use proto::spire::server::agent::agent_client::AgentClient;
use proto::spire::server::agent::list_agents_request::Filter;
use proto::spire::server::agent::{
    BanAgentRequest, CountAgentsRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest,
    ListAgentsResponse, count_agents_request,
};
use proto::spire::types::{self, selector_match};
use spiffe::quote::quoted;
use time::OffsetDateTime;
use time::macros::format_description;

use super::entry::{parse_id, parse_selectors};
use crate::cli::flags::{Flag, Flags, Kind, Output, flag, flag_or};
use crate::cli::rpc::{self, Dialed, client, server_flags_with_output, with_server};
use crate::cli::{Command, Failure, FlagError, Printer, json, print, timestamp};

const PAGE_SIZE: i32 = 1000;

const FILTERS: [Flag; 6] = [
    flag("selector", Kind::Texts, "A colon-delimited type:value selector. Can be used more than once"),
    flag_or("matchSelectorsOn", Kind::Text, "superset", "How selectors match: exact, any, superset, subset"),
    flag("attestationType", Kind::Text, "Only agents of this attestation type, like join_token or x509pop"),
    flag("canReattest", Kind::Value, "Only agents that can (true) or cannot (false) re-attest"),
    flag("banned", Kind::Value, "Only agents that are banned (true) or not (false)"),
    flag(
        "expiresBefore",
        Kind::Text,
        "Only agents that expire before this time: 2006-01-02 15:04:05 -0700 -07",
    ),
];

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    let command = |name, about, flags: &[Flag], action| Command {
        name,
        about,
        flags: server_flags_with_output(flags),
        on_flag_error: FlagError::Once,
        action,
    };
    let id = [flag("spiffeID", Kind::Text, "The SPIFFE ID of the agent (agent identity)")];
    let purge_flags = [
        flag_or("expiredFor", Kind::Duration, "720h0m0s", "How long an agent must be expired"),
        flag("dryRun", Kind::Bool, "Only say which agents would be purged"),
    ];
    vec![
        command("agent count", "Count attested agents", &FILTERS, count),
        command("agent list", "List attested agents", &FILTERS, list_agents),
        command("agent show", "Show the details of an attested agent", &id, show),
        command("agent ban", "Ban an attested agent", &id, ban),
        command("agent evict", "Evict an attested agent", &id, evict),
        command("agent purge", "Purge expired agents that can re-attest", &purge_flags, purge),
    ]
}

fn count(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let filter = filter(flags)?;
    with_server(flags, |dialed| async move {
        let filter = count_agents_request::Filter {
            by_attestation_type: filter.by_attestation_type,
            by_selector_match: filter.by_selector_match,
            by_banned: filter.by_banned,
            by_can_reattest: filter.by_can_reattest,
            by_expires_before: filter.by_expires_before,
        };
        let reply = client!(AgentClient<_>, dialed)
            .count_agents(CountAgentsRequest { filter: Some(filter) })
            .await
            .map_err(|status| dialed.error("", &status))?
            .into_inner();
        printer.out = match flags.output() {
            Output::Json => json::line(&json::tree("spire.api.server.agent.v1.CountAgentsResponse", &reply)?),
            Output::Pretty => {
                let count = usize::try_from(reply.count).unwrap_or(0);
                print::counted(count, "attested agent", "attested agents") + "\n"
            }
        };
        Ok(())
    })
}

fn list_agents(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let filter = filter(flags)?;
    with_server(flags, |dialed| async move {
        let agents = list(&dialed, filter).await.map_err(|status| dialed.error("", &status))?;
        printer.out = match flags.output() {
            Output::Json => {
                let reply = ListAgentsResponse { agents, next_page_token: String::new() };
                json::line(&json::tree("spire.api.server.agent.v1.ListAgentsResponse", &reply)?)
            }
            Output::Pretty if agents.is_empty() => "No attested agents found\n".to_owned(),
            Output::Pretty => {
                let found = print::counted(agents.len(), "attested agent", "attested agents");
                agents.iter().fold(format!("Found {found}:\n\n"), |text, agent| text + &print::agent(agent))
            }
        };
        Ok(())
    })
}

async fn list(dialed: &Dialed, filter: Filter) -> Result<Vec<types::Agent>, tonic::Status> {
    let mut agents = Vec::new();
    let mut request = ListAgentsRequest {
        filter: Some(filter),
        output_mask: None,
        page_size: PAGE_SIZE,
        page_token: String::new(),
    };
    loop {
        let reply = client!(AgentClient<_>, dialed).list_agents(request.clone()).await?.into_inner();
        agents.extend(reply.agents);
        if reply.next_page_token.is_empty() {
            return Ok(agents);
        }
        request.page_token = reply.next_page_token;
    }
}

fn show(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let id = required_id(flags)?;
    with_server(flags, |dialed| async move {
        let agent = client!(AgentClient<_>, dialed)
            .get_agent(GetAgentRequest { id: Some(id), output_mask: None })
            .await
            .map_err(|status| dialed.error("", &status))?
            .into_inner();
        printer.out = match flags.output() {
            Output::Json => json::line(&json::tree("spire.api.types.Agent", &agent)?),
            Output::Pretty => {
                let head = format!("Found an attested agent given its SPIFFE ID\n\n{}", print::agent(&agent));
                agent.selectors.iter().fold(head, |text, selector| {
                    text + &format!("Selectors         : {}:{}\n", selector.r#type, selector.value)
                })
            }
        };
        Ok(())
    })
}

fn ban(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let id = required_id(flags)?;
    with_server(flags, |dialed| async move {
        client!(AgentClient<_>, dialed)
            .ban_agent(BanAgentRequest { id: Some(id) })
            .await
            .map_err(|status| dialed.error("", &status))?;
        printer.out = done(flags, "Agent banned successfully");
        Ok(())
    })
}

fn evict(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let id = required_id(flags)?;
    with_server(flags, |dialed| async move {
        client!(AgentClient<_>, dialed)
            .delete_agent(DeleteAgentRequest { id: Some(id) })
            .await
            .map_err(|status| dialed.error("", &status))?;
        printer.out = done(flags, "Agent evicted successfully");
        Ok(())
    })
}

fn done(flags: &Flags, text: &str) -> String {
    match flags.output() {
        Output::Json => "{}\n".to_owned(),
        Output::Pretty => format!("{text}\n"),
    }
}

fn purge(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    rpc::server_socket(flags)?;
    let dry_run = flags.is_on("dryRun");
    let limit = OffsetDateTime::from_unix_timestamp_nanos(
        i128::from(now_nanos()) - i128::from(flags.nanos("expiredFor")),
    )
    .map_err(|error| format!("cannot tell the time {:?} ago: {error}", flags.text("expiredFor")))?;
    let form = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000 UTC");
    let limit = limit.format(form).map_err(|error| error.to_string())?.replace("+0000 UTC", "+0000 +00");
    with_server(flags, |dialed| async move {
        let filter = Filter { by_can_reattest: Some(true), by_expires_before: limit, ..Filter::default() };
        let agents =
            list(&dialed, filter).await.map_err(|status| dialed.error("failed to list agents: ", &status))?;
        let mut purged = Vec::new();
        for agent in agents {
            let shown = print::id_text(agent.id.as_ref());
            let failure = if dry_run {
                None
            } else {
                client!(AgentClient<_>, dialed)
                    .delete_agent(DeleteAgentRequest { id: agent.id })
                    .await
                    .err()
                    .map(|status| dialed.failed(&status))
            };
            purged.push((shown, failure));
        }
        printer.out = match flags.output() {
            Output::Json => purged_json(&purged, dry_run),
            Output::Pretty => purged_text(&purged, dry_run),
        };
        Ok(())
    })
}

fn purged_json(agents: &[(String, Option<String>)], dry_run: bool) -> String {
    let items: Vec<String> = agents
        .iter()
        .map(|(id, failure)| {
            let error = failure
                .as_ref()
                .map_or_else(String::new, |text| format!(",\"error\":{}", json::quoted(text)));
            format!(
                "{{\"agent_id\":{},\"deleted\":{}{error}}}",
                json::quoted(id),
                !dry_run && failure.is_none()
            )
        })
        .collect();
    format!("{{\"expired_agents\":[{}]}}\n", items.join(","))
}

fn purged_text(agents: &[(String, Option<String>)], dry_run: bool) -> String {
    if agents.is_empty() {
        return "No agents to purge.\n".to_owned();
    }
    let mut text = format!("Found {}\n\n", print::counted(agents.len(), "expired agent", "expired agents"));
    if dry_run {
        text.push_str("\nAgents that can be purged:\n");
        return agents.iter().fold(text, |text, (id, _)| text + &format!("SPIFFE ID         : {id}\n"));
    }
    if agents.iter().any(|(_, failure)| failure.is_none()) {
        text.push_str("Agents purged:\n");
    }
    for (id, _) in agents.iter().filter(|(_, failure)| failure.is_none()) {
        text.push_str(&format!("SPIFFE ID         : {id}\n"));
    }
    if agents.iter().any(|(_, failure)| failure.is_some()) {
        text.push_str("Agents not purged:\n");
    }
    for (id, failure) in agents {
        if let Some(failure) = failure {
            text.push_str(&format!("SPIFFE ID         : {id}\nError             : {failure}\n"));
        }
    }
    text
}

fn required_id(flags: &Flags) -> Result<types::Spiffeid, String> {
    rpc::server_socket(flags)?;
    match flags.text("spiffeID") {
        "" => Err("a SPIFFE ID is required".to_owned()),
        text => parse_id(text),
    }
}

fn filter(flags: &Flags) -> Result<Filter, String> {
    rpc::server_socket(flags)?;
    let mut filter = Filter {
        by_attestation_type: flags.text("attestationType").to_owned(),
        by_expires_before: flags.text("expiresBefore").to_owned(),
        // What is neither true nor false means all, as in SPIRE.
        by_banned: tri_state(flags.text("banned")),
        by_can_reattest: tri_state(flags.text("canReattest")),
        ..Filter::default()
    };
    if !flags.texts("selector").is_empty() {
        let how = match flags.text("matchSelectorsOn") {
            "exact" => selector_match::MatchBehavior::MatchExact,
            "any" => selector_match::MatchBehavior::MatchAny,
            "superset" => selector_match::MatchBehavior::MatchSuperset,
            "subset" => selector_match::MatchBehavior::MatchSubset,
            _ => return Err("unsupported match behavior".to_owned()),
        };
        let mut selectors = Vec::new();
        for text in flags.texts("selector") {
            let parsed = parse_selectors(std::slice::from_ref(text));
            selectors
                .extend(parsed.map_err(|why| format!("error parsing selector {}: {why}", quoted(text)))?);
        }
        filter.by_selector_match = Some(types::SelectorMatch { selectors, r#match: how.into() });
    }
    if !filter.by_expires_before.is_empty() {
        timestamp::check(&filter.by_expires_before).map_err(|why| format!("date is not valid: {why}"))?;
    }
    Ok(filter)
}

fn tri_state(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn now_nanos() -> i64 {
    let now = runtime_now();
    i64::try_from(now.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "a command reads the time once, for the instant it sends")]
fn runtime_now() -> OffsetDateTime {
    OffsetDateTime::from(std::time::SystemTime::now())
}
