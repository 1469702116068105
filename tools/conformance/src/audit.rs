//! The audit log of a server while operators, an agent and a workload use it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use crate::metrics::operations;
use crate::plane::{Plane, PlaneConfig, Product, pause};
use crate::wire::{Caller, Messages};
use crate::workload::Workload;

/// The lines of one run, in order, by `service/method`.
pub type AuditLines = BTreeMap<String, Vec<Map<String, Value>>>;

/// What a server of `product` writes: a call of each kind, some of which fail.
///
/// # Errors
/// Says what did not succeed.
///
/// # Panics
/// If a program does not start.
pub fn audit_lines(product: &Product, recorded: &Path) -> Result<AuditLines, String> {
    let extra = "audit_log_enabled = true\n  log_format = \"json\"";
    let config = PlaneConfig { server_extra: extra.to_owned(), agent: true, ..PlaneConfig::default() };
    let plane = Plane::start(product, &config, &BTreeMap::new());
    let messages = Messages::load(&recorded.join("api/api.fds"));
    let runtime = Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let local = Caller::local(&messages, plane.word("sock"));
        for (method, request) in operations(plane.word("td"), plane.word("uid")) {
            local.ask(method, request).await?;
        }
        for (method, request) in refused() {
            local.call(method, &[request], &[]).await?;
        }
        work(&plane).await
    })?;
    let log = fs::read_to_string(plane.dir().join("server.log")).map_err(|error| error.to_string())?;
    let mut lines = AuditLines::new();
    for line in log.lines().filter(|line| line.contains("API accessed")) {
        let line: Map<String, Value> =
            serde_json::from_str(line).map_err(|error| format!("{line} is no JSON: {error}"))?;
        let word = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        lines.entry(format!("{}/{}", word("service"), word("method"))).or_default().push(line);
    }
    Ok(lines)
}

/// The names of all fields, and of those values that are the same in every run the values too.
#[must_use]
pub fn steady(lines: &[Map<String, Value>]) -> BTreeSet<String> {
    let shown = |(name, value): (&String, &Value)| {
        if VOLATILE.contains(&name.as_str()) { name.clone() } else { format!("{name}={value}") }
    };
    lines.iter().map(|line| line.iter().map(shown).collect::<Vec<_>>().join(" ")).collect()
}

/// What differs between two runs of the same program.
const VOLATILE: [&str; 10] = [
    "time",
    "request_id",
    "caller_addr",
    "csr",
    "expires_at",
    "agent_id",
    "caller_id",
    "caller_path",
    "agent_version",
    "status_message",
];

/// Calls that fail.
fn refused() -> Vec<(&'static str, Value)> {
    vec![
        ("/spire.api.server.entry.v1.Entry/GetEntry", json!({"id": "none"})),
        ("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", json!({"ids": ["none"]})),
        (
            "/spire.api.server.agent.v1.Agent/BanAgent",
            json!({"id": {"trust_domain": "example.org", "path": "/spire/agent/none"}}),
        ),
        ("/spire.api.server.svid.v1.SVID/MintX509SVID", json!({"ttl": 60})),
        ("/spire.api.server.agent.v1.Agent/CreateJoinToken", json!({})),
    ]
}

async fn work(plane: &Plane) -> Result<(), String> {
    let workload = Workload::at(plane.word("asock"));
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let got = async {
            workload.svids().await?.next().await?;
            workload.token("audit").await.map(drop)
        };
        match got.await {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() > deadline => return Err(format!("no SVID: {why:?}")),
            Err(_) => pause(),
        }
    }
}
