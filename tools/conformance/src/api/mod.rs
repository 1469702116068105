//! Calls of the server's API as they were recorded from SPIRE, played against a server process.
//!
//! One file is one group: a server configuration, the callers it needs, calls that set its world up,
//! and cases. A case is one or more calls with what each must come to: code, message, status details
//! and answers. After each case everything it made is removed.

mod callers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use regex::Regex;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::expect::{Moment, Numbered};
use crate::outcome::Outcome;
use crate::plane::{Plane, PlaneConfig, Product};
use crate::wire::{Messages, Reply};
pub(crate) use callers::Callers;

/// Codes with which a stricter server may refuse what SPIRE accepts by mistake.
const REFUSALS: [&str; 3] = ["INVALID_ARGUMENT", "FAILED_PRECONDITION", "PERMISSION_DENIED"];
/// The same as numbers, in the status of one item of a batch.
const REFUSAL_NUMBERS: [i64; 3] = [3, 9, 7];

/// How long the agent may take to see the entries it waits for.
const AGENT_SEES: Duration = Duration::from_secs(60);

/// One recorded group.
#[derive(Debug)]
pub struct ApiGroup {
    world: WorldSetup,
    messages: Messages,
    cases: Vec<Case>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WorldSetup {
    extra: String,
    experimental: String,
    callers: Vec<String>,
    setup: Vec<Call>,
    #[serde(rename = "await")]
    awaited: Option<usize>,
    settle: u64,
    agent_ttl: Option<String>,
    fresh: bool,
}

#[derive(Debug, Deserialize)]
struct Case {
    id: String,
    calls: Vec<Call>,
    judge: Option<String>,
    stricter_allowed: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Call {
    #[serde(rename = "as")]
    caller: String,
    method: String,
    #[serde(default)]
    req: Value,
    reqs: Option<Vec<Value>>,
    raw: Option<Vec<String>>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    wait: f64,
    #[serde(default)]
    expect: Expected,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Expected {
    code: String,
    message: String,
    message_starts: Option<String>,
    details: Vec<Value>,
    answers: Vec<Value>,
}

impl ApiGroup {
    /// Reads the group `name` in `folder`.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn load(folder: &Path, name: &str) -> Self {
        let read = |file: &str| fs::read_to_string(folder.join(file)).expect("a recorded file can be read");
        let mut worlds: BTreeMap<String, WorldSetup> =
            serde_json::from_str(&read("groups.json")).expect("the groups");
        let cases = read(&format!("{name}.jsonl"))
            .lines()
            .map(|line| serde_json::from_str(line).expect("a recorded case"))
            .collect();
        Self {
            world: worlds.remove(name).expect("every file has a group"),
            messages: Messages::load(&folder.join("api.fds")),
            cases,
        }
    }

    /// How many cases it has.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.cases.len()
    }

    /// Whether it has none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// Plays every case on a server of `product`.
    ///
    /// # Panics
    /// If the server does not start.
    #[must_use]
    pub fn play(&self, product: &Product) -> Outcome {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let mut outcome = Outcome::default();
        let mut stage = None;
        for case in &self.cases {
            if stage.is_none() || self.world.fresh {
                drop(stage.take());
                stage = Some(Stage::set(product, &self.world, &self.messages, &runtime));
            }
            let judged = match &stage {
                Some(Ok(stage)) => {
                    let judged = runtime.block_on(stage.play(case));
                    runtime.block_on(stage.clean());
                    judged
                }
                Some(Err(why)) => Err(why.clone()),
                None => continue,
            };
            outcome.add(&case.id, judged);
        }
        outcome
    }
}

/// A running server with its callers.
struct Stage {
    callers: Callers,
    started: Instant,
    baseline: BTreeMap<&'static str, BTreeSet<String>>,
    // Last, so that the connections go first.
    _plane: Plane,
}

/// What a case can leave behind: how to list it, where the items are, their key, how to delete them.
const LEAVINGS: [(&str, &str, &str); 4] = [
    ("/spire.api.server.entry.v1.Entry/ListEntries", "entries", "id"),
    ("/spire.api.server.agent.v1.Agent/ListAgents", "agents", "id"),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships",
        "federation_relationships",
        "trust_domain",
    ),
    ("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", "bundles", "trust_domain"),
];

impl Stage {
    fn set(
        product: &Product,
        world: &WorldSetup,
        messages: &Messages,
        runtime: &tokio::runtime::Runtime,
    ) -> Result<Self, String> {
        let ttl = world.agent_ttl.as_deref().unwrap_or("1h");
        let config = PlaneConfig {
            server_extra: format!(
                r#"ca_ttl = "24h"
  default_x509_svid_ttl = "1h"
  default_jwt_svid_ttl = "5m"
  agent_ttl = "{ttl}"
  ratelimit {{ attestation = false }}
  experimental {{
    cache_reload_interval = "1s"
    {}
  }}
  {}"#,
                world.experimental, world.extra
            ),
            ..PlaneConfig::default()
        };
        let started = Instant::now();
        let plane = Plane::start(product, &config, &BTreeMap::new());
        runtime.block_on(async {
            let callers = Callers::prepare(messages, &plane, &world.callers).await?;
            let mut stage = Self { callers, started, baseline: BTreeMap::new(), _plane: plane };
            stage.set_up(world).await?;
            stage.baseline = stage.present().await;
            Ok(stage)
        })
    }

    async fn set_up(&self, world: &WorldSetup) -> Result<(), String> {
        for call in &world.setup {
            self.callers.get(&call.caller)?.ask(&call.method, call.req.clone()).await?;
        }
        if let Some(awaited) = world.awaited {
            let agent = self.callers.get("agent")?;
            let deadline = Instant::now() + AGENT_SEES;
            loop {
                let mask = json!({"output_mask": {}});
                let seen = agent.ask("/spire.api.server.entry.v1.Entry/GetAuthorizedEntries", mask).await?;
                let seen = seen["entries"].as_array().map_or(0, Vec::len);
                if seen == awaited {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(format!("the agent sees {seen} entries, not {awaited}"));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(world.settle)).await;
        Ok(())
    }

    async fn play(&self, case: &Case) -> Result<(), String> {
        let mut numbered = Numbered::default();
        let mut earlier: Vec<Value> = Vec::new();
        for (number, call) in case.calls.iter().enumerate() {
            tokio::time::sleep(Duration::from_secs_f64(call.wait)).await;
            let at = Moment {
                now: OffsetDateTime::now_utc().unix_timestamp(),
                age: i64::try_from(self.started.elapsed().as_secs()).unwrap_or(i64::MAX),
            };
            let place = |why: String| {
                let method = call.method.rsplit('/').next().unwrap_or_default();
                format!("call {number} ({} {method}): {why}", call.caller)
            };
            let reply = self.call(call, &earlier, at).await.map_err(place)?;
            let judged = judge(case, &call.expect, &reply, &mut numbered, at);
            if judged.is_err() && case.stricter_allowed.is_some() && is_refused(&call.expect, &reply) {
                return Ok(());
            }
            judged.map_err(place)?;
            earlier.push(reply.answers.into_iter().next().unwrap_or_default());
        }
        Ok(())
    }

    async fn call(&self, call: &Call, earlier: &[Value], at: Moment) -> Result<Reply, String> {
        let caller = self.callers.get(&call.caller)?;
        let metadata: Vec<(String, String)> = call.metadata.clone().into_iter().collect();
        if let Some(raw) = &call.raw {
            let decode =
                |base64: &String| STANDARD.decode(base64).map(Bytes::from).map_err(|error| error.to_string());
            let raw = raw.iter().map(decode).collect::<Result<_, _>>()?;
            return caller.call_raw(&call.method, raw, &metadata).await;
        }
        let requests = call.reqs.clone().unwrap_or_else(|| vec![call.req.clone()]);
        let requests =
            requests.iter().map(|request| fill(request, earlier, at)).collect::<Result<Vec<_>, _>>()?;
        caller.call(&call.method, &requests, &metadata).await
    }

    /// The keys of everything that a case could have made.
    async fn present(&self) -> BTreeMap<&'static str, BTreeSet<String>> {
        let mut all = BTreeMap::new();
        for (method, list, key) in LEAVINGS {
            let listed = self.callers.local().ask(method, json!({"output_mask": {}})).await;
            let listed = listed.unwrap_or_default();
            let items = listed[list].as_array().into_iter().flatten();
            all.insert(list, items.map(|item| item[key].to_string()).collect());
        }
        all
    }

    /// Deletes what was not there before the cases, and sets the log level back.
    async fn clean(&self) {
        let present = self.present().await;
        let local = self.callers.local();
        let fresh = |list: &str| -> Vec<Value> {
            let known = self.baseline.get(list);
            let found = present.get(list).into_iter().flatten();
            found
                .filter(|key| known.is_none_or(|known| !known.contains(*key)))
                .filter_map(|key| serde_json::from_str(key).ok())
                .collect()
        };
        let mut calls =
            vec![("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", json!({"ids": fresh("entries")}))];
        for id in fresh("agents") {
            calls.push(("/spire.api.server.agent.v1.Agent/DeleteAgent", json!({"id": id})));
        }
        calls.push((
            "/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship",
            json!({"trust_domains": fresh("federation_relationships")}),
        ));
        calls.push((
            "/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle",
            json!({"trust_domains": fresh("bundles"), "mode": "DISSOCIATE"}),
        ));
        calls.push(("/spire.api.server.logger.v1.Logger/ResetLogLevel", json!({})));
        for (method, request) in calls {
            let is_needless =
                request.as_object().and_then(|fields| fields.values().next()) == Some(&json!([]));
            if !is_needless && let Err(why) = local.ask(method, request).await {
                eprintln!("cannot clean up: {why}");
            }
        }
    }
}

fn judge(
    case: &Case,
    expected: &Expected,
    reply: &Reply,
    numbered: &mut Numbered,
    at: Moment,
) -> Result<(), String> {
    let said = || format!("{} {:?}", reply.code, reply.message.chars().take(300).collect::<String>());
    if reply.code != expected.code {
        return Err(format!("{} instead of {} {:?}", said(), expected.code, expected.message));
    }
    if expected.code == "CONNECTION" {
        return Ok(());
    }
    let is_message_right = match &expected.message_starts {
        Some(start) => reply.message.starts_with(start),
        None => numbered.check(&json!(expected.message), &json!(reply.message), at).is_ok(),
    };
    if !is_message_right {
        let wanted = expected.message_starts.as_ref().unwrap_or(&expected.message);
        return Err(format!("{} instead of {wanted:?}", said()));
    }
    numbered
        .check(&json!(expected.details), &json!(reply.details), at)
        .map_err(|why| format!("details {why}"))?;
    if case.judge.as_deref() == Some("status") {
        return Ok(());
    }
    numbered
        .check(&json!(expected.answers), &json!(reply.answers), at)
        .map_err(|why| format!("answers {why}"))
}

/// Whether the reply refuses where the recording does not refuse in the same words: the call as a
/// whole, or one item of a batch.
fn is_refused(expected: &Expected, reply: &Reply) -> bool {
    if REFUSALS.contains(&reply.code.as_str()) {
        return true;
    }
    let nothing = json!([]);
    let results = |answers: &[Value]| {
        answers.first().and_then(|answer| answer.get("results")).unwrap_or(&nothing).clone()
    };
    let (wanted, found) = (results(&expected.answers), results(&reply.answers));
    let found = found.as_array().into_iter().flatten().enumerate();
    found.into_iter().any(|(index, item)| {
        item["status"] != wanted[index]["status"]
            && item["status"]["code"].as_i64().is_some_and(|code| REFUSAL_NUMBERS.contains(&code))
    })
}

/// `request` with its placeholders filled in.
fn fill(request: &Value, earlier: &[Value], at: Moment) -> Result<Value, String> {
    Ok(match request {
        Value::String(text) => Value::String(fill_text(text, earlier, at)?),
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| fill(item, earlier, at)).collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => {
            let one = |(key, value): (&String, &Value)| Ok((key.clone(), fill(value, earlier, at)?));
            Value::Object(fields.iter().map(one).collect::<Result<_, String>>()?)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => request.clone(),
    })
}

fn fill_text(text: &str, earlier: &[Value], at: Moment) -> Result<String, String> {
    if !text.contains("${") {
        return Ok(text.to_owned());
    }
    let placeholder = Regex::new(r"\$\{([^}]*)\}").expect("the pattern is constant");
    let mut filled = String::new();
    let mut end = 0;
    for captures in placeholder.captures_iter(text) {
        let (whole, word) = (captures.get(0).expect("group 0 always takes part"), &captures[1]);
        filled.push_str(&text[end..whole.start()]);
        end = whole.end();
        if let Some(offset) = word.strip_prefix("now") {
            let offset: i64 = offset.parse().map_err(|_| format!("bad placeholder {word}"))?;
            filled.push_str(&(at.now + offset).to_string());
        } else if let Some((part, times)) =
            word.strip_prefix("repeat:").and_then(|rest| rest.rsplit_once(':'))
        {
            let times = times.parse().map_err(|_| format!("bad placeholder {word}"))?;
            filled.push_str(&part.repeat(times));
        } else {
            let pointer = format!("/{}", word.replace('.', "/"));
            let all = Value::Array(earlier.to_vec());
            // What the answer does not have is empty.
            let found = all.pointer(&pointer).unwrap_or(&Value::Null);
            filled.push_str(&match found {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => found.to_string(),
            });
        }
    }
    filled.push_str(&text[end..]);
    Ok(filled)
}
