//! Bytes that a real agent sent to a real server, sent again: what comes back must be of the same
//! shape, and refusals must carry the very bytes that tell an agent what to do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tonic::Status;

use crate::api::Callers;
use crate::describe;
use crate::outcome::Outcome;
use crate::plane::{Plane, PlaneConfig, Product};
use crate::takeover::Takeover;
use crate::wire::{Caller, Messages, Shown, code_of};

const AGENT: &str = "/spire.api.server.agent.v1.Agent/";
const ENTRY: &str = "/spire.api.server.entry.v1.Entry/";
const SET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle";

/// Who was refused in a recording: the name there, the caller here, and how long certificates live.
const REFUSED: [(&str, &str, &str); 6] = [
    ("AGENT_NOT_ACTIVE", "stale", "1h"),
    ("AGENT_BANNED", "banned", "1h"),
    ("AGENT_NOT_ATTESTED", "evicted", "1h"),
    ("AGENT_EXPIRED", "expired", "4s"),
    ("not an agent", "anonymous", "1h"),
    ("workload method refused to agents", "agent", "1h"),
];

/// The recorded exchanges.
#[derive(Debug)]
pub struct Exchanges {
    recorded: PathBuf,
    messages: Messages,
}

/// One recorded call.
struct Call {
    method: String,
    requests: Vec<Bytes>,
    responses: Vec<Bytes>,
}

impl Exchanges {
    /// The recordings below `recorded`.
    #[must_use]
    pub fn load(recorded: &Path) -> Self {
        Self { recorded: recorded.to_owned(), messages: Messages::load(&recorded.join("api/api.fds")) }
    }

    /// All calls of an agent's first minute, in order.
    ///
    /// # Panics
    /// If the server does not start.
    #[must_use]
    pub fn first_minute(&self, product: &Product) -> Outcome {
        let calls = calls(&self.read("agent-join_token.json"));
        let (plane, runtime) = start(product, "1h");
        let mut outcome = Outcome::default();
        let played = runtime.block_on(self.play_first_minute(&plane, &calls, &mut outcome));
        if let Err(why) = played {
            outcome.add("the world", Err(why));
        }
        outcome
    }

    /// A synchronisation by revisions that takes more than one page each way.
    ///
    /// # Errors
    /// Says where the answers differ.
    ///
    /// # Panics
    /// If the server does not start.
    pub fn pages(&self, product: &Product) -> Result<(), String> {
        let call = calls(&self.read("sync-503-entries.json")).remove(0);
        let (plane, runtime) = start(product, "1h");
        runtime.block_on(async {
            let recorded = self.decode(&call.method, &call.responses)?;
            let callers = Callers::prepare(&self.messages, &plane, &["agent".to_owned()]).await?;
            let parent = "/spire/agent/join_token/world-agent";
            let mut entries = entries_of(&recorded, parent);
            // They are listed in the order in which they were made.
            let listed = recorded.iter().filter_map(|answer| answer["entry_revisions"].as_array());
            let order: Vec<&Value> = listed.flatten().map(|revision| &revision["id"]).collect();
            entries.sort_by_key(|entry| order.iter().position(|id| **id == entry["id"]));
            let agent = callers.get("agent")?;
            self.create(callers.local(), &entries).await?;
            self.await_entries(agent, entries.len()).await?;

            let (answers, status) = agent.exchange(&call.method, call.requests.clone()).await?;
            if status.code() != tonic::Code::Ok {
                return Err(format!("{} {:?}", code_of(&status), status.message()));
            }
            let answers = self.decode(&call.method, &answers)?;
            compare(&recorded, &answers)
        })
    }

    /// Each recorded refusal of an agent, its details byte by byte.
    ///
    /// # Panics
    /// If a server does not start.
    #[must_use]
    pub fn refusals(&self, product: &Product) -> Outcome {
        let denials = self.read("denials.json");
        let denials = &denials["denials"];
        let mut outcome = Outcome::default();
        for ttl in ["1h", "4s"] {
            let here = REFUSED.iter().filter(|(_, _, lives)| *lives == ttl);
            let names = here.clone().map(|(_, caller, _)| (*caller).to_owned());
            // Whoever shows no certificate is always there.
            let names: Vec<String> = names.filter(|name| name != "anonymous").collect();
            let (plane, runtime) = start(product, ttl);
            let callers = runtime.block_on(async {
                let callers = Callers::prepare(&self.messages, &plane, &names).await?;
                if ttl == "4s" {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
                Ok::<_, String>(callers)
            });
            for (reason, caller, _) in here {
                let judged = runtime.block_on(async {
                    let callers = callers.as_ref().map_err(Clone::clone)?;
                    refused(callers.get(caller)?, &denials[*reason]).await
                });
                outcome.add(reason, judged);
            }
        }
        let reason = "AGENT_MUST_REATTEST";
        outcome.add(reason, self.must_reattest(product, &denials[reason]));
        outcome
    }

    /// An agent that can attest again may not renew: the x509pop agent of the recorded database.
    fn must_reattest(&self, product: &Product, recorded: &Value) -> Result<(), String> {
        let mut plane = Takeover::load(&self.recorded).lay(product, "");
        plane.start_server_again();
        let folder = self.recorded.join("keys/agent-x509pop-node-1");
        let read = |file: &str| -> Result<Value, String> {
            let text = fs::read_to_string(folder.join(file)).map_err(|error| error.to_string())?;
            serde_json::from_str(&text).map_err(|error| error.to_string())
        };
        let (data, keys) = (read("agent-data.json")?, read("keys.json")?);
        let decode = |value: &Value| {
            STANDARD.decode(value.as_str().unwrap_or_default()).map_err(|error| error.to_string())
        };
        let pem = decode(&data["svid"][0])?;
        let chain = CertificateDer::pem_slice_iter(&pem).map(|der| der.map(|der| der.to_vec()));
        let shown = Shown {
            chain: chain.collect::<Result<_, _>>().map_err(|error| error.to_string())?,
            key: decode(&keys["keys"]["agent-svid-A"])?,
        };
        let runtime = Runtime::new().map_err(|error| error.to_string())?;
        runtime.block_on(async {
            let agent = Caller::tls(&self.messages, plane.word("port"), Some(&shown));
            refused(&agent, recorded).await
        })
    }

    async fn play_first_minute(
        &self,
        plane: &Plane,
        calls: &[Call],
        outcome: &mut Outcome,
    ) -> Result<(), String> {
        let callers = Callers::prepare(&self.messages, plane, &[]).await?;
        let local = callers.local();
        let attest = calls.first().ok_or("nothing is recorded")?;
        let attested = self.decode(&attest.method, &attest.responses)?;
        let path = attested[0]["result"]["svid"]["id"]["path"].as_str().unwrap_or_default();
        let token = path.rsplit('/').next().unwrap_or_default();
        let alias = json!({"trust_domain": plane.word("td"), "path": "/node"});
        let make_token = json!({"ttl": 600, "token": token, "agent_id": alias});
        local.ask(&format!("{AGENT}CreateJoinToken"), make_token).await?;
        outcome.add("AttestAgent", self.again(callers.get("anonymous")?, attest).await);

        // The recorded key is the recorded agent's secret: the same agent comes back with a new one.
        let id = json!({"id": {"trust_domain": plane.word("td"), "path": path}});
        local.ask(&format!("{AGENT}DeleteAgent"), id).await?;
        let made = local.ask(&format!("{ENTRY}ListEntries"), json!({"output_mask": {}})).await?;
        let made: Vec<Value> =
            made["entries"].as_array().into_iter().flatten().map(|entry| entry["id"].clone()).collect();
        local.ask(&format!("{ENTRY}BatchDeleteEntry"), json!({"ids": made})).await?;
        let agent = callers.attest(&self.messages, plane, token).await?;

        let mut is_furnished = false;
        for call in calls.iter().skip(1) {
            let name = call.method.rsplit('/').next().unwrap_or_default();
            if name == "SyncAuthorizedEntries" && !call.responses.iter().all(Bytes::is_empty) && !is_furnished
            {
                let recorded = self.decode(&call.method, &call.responses)?;
                let foreign = calls.iter().find(|call| call.method.ends_with("/GetFederatedBundle"));
                let foreign = foreign.ok_or("no foreign bundle is recorded")?;
                let foreign = self.decode(&foreign.method, &foreign.responses)?;
                local.ask(SET_BUNDLE, json!({"bundle": foreign})).await?;
                let mut entries = entries_of(&recorded, "/node");
                if let Some(alias) = entries.first_mut() {
                    alias["parent_id"]["path"] = json!(path);
                }
                if let Some(web) = entries.get_mut(1) {
                    web["dns_names"] = json!(["web.test"]);
                }
                self.create(local, &entries).await?;
                self.await_entries(&agent, entries.len()).await?;
                is_furnished = true;
            }
            outcome.add(name, self.again(&agent, call).await);
        }
        Ok(())
    }

    /// Sends the recorded requests again and compares what comes back with what came then.
    async fn again(&self, caller: &Caller, call: &Call) -> Result<(), String> {
        let (answers, status) = caller.exchange(&call.method, call.requests.clone()).await?;
        if status.code() != tonic::Code::Ok {
            return Err(format!("{} {:?}", code_of(&status), status.message()));
        }
        compare(&self.decode(&call.method, &call.responses)?, &self.decode(&call.method, &answers)?)
    }

    async fn create(&self, local: &Caller, entries: &[Value]) -> Result<(), String> {
        let created = local.ask(&format!("{ENTRY}BatchCreateEntry"), json!({"entries": entries})).await?;
        let mut results = created["results"].as_array().into_iter().flatten();
        let refused = results.find(|result| !result["status"]["code"].is_null());
        refused.map_or(Ok(()), |result| Err(format!("an entry is refused: {result}")))
    }

    async fn await_entries(&self, agent: &Caller, count: usize) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let mask = json!({"output_mask": {}});
            let seen = agent.ask(&format!("{ENTRY}GetAuthorizedEntries"), mask).await?;
            let seen = seen["entries"].as_array().map_or(0, Vec::len);
            if seen == count {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("the agent sees {seen} entries, not {count}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn decode(&self, method: &str, responses: &[Bytes]) -> Result<Vec<Value>, String> {
        responses.iter().map(|bytes| self.messages.response(method, bytes.clone())).collect()
    }

    fn read(&self, file: &str) -> Value {
        let path = self.recorded.join("wire-exchanges").join(file);
        let text = fs::read_to_string(path).expect("a recording can be read");
        serde_json::from_str(&text).expect("a recording is JSON")
    }
}

fn start(product: &Product, agent_ttl: &str) -> (Plane, Runtime) {
    let config = PlaneConfig {
        server_extra: format!(
            "agent_ttl = \"{agent_ttl}\"\n  ratelimit {{ attestation = false }}\n  \
             experimental {{ cache_reload_interval = \"1s\" }}"
        ),
        ..PlaneConfig::default()
    };
    let plane = Plane::start(product, &config, &BTreeMap::new());
    (plane, Runtime::new().expect("a runtime"))
}

fn calls(recording: &Value) -> Vec<Call> {
    let bytes =
        |base64: &Value| Bytes::from(STANDARD.decode(base64.as_str().unwrap_or_default()).expect("base64"));
    let one = |call: &Value| {
        let messages = call["messages"].as_array().cloned().unwrap_or_default();
        let side = |side: &str| messages.iter().filter_map(|message| message.get(side)).map(bytes).collect();
        Call {
            method: call["method"].as_str().unwrap_or_default().to_owned(),
            requests: side("request"),
            responses: side("response"),
        }
    };
    recording["calls"].as_array().into_iter().flatten().map(one).collect()
}

/// The entries that a recorded synchronisation showed whole, below `parent`.
fn entries_of(recorded: &[Value], parent: &str) -> Vec<Value> {
    let shown = recorded.iter().filter_map(|answer| answer["entries"].as_array()).flatten();
    let below = |entry: &Value| {
        let mut entry = entry.clone();
        entry["parent_id"] = json!({"trust_domain": entry["spiffe_id"]["trust_domain"], "path": parent});
        if let Some(fields) = entry.as_object_mut() {
            fields.retain(|name, _| name != "created_at" && name != "revision_number");
        }
        entry
    };
    shown.map(below).collect()
}

async fn refused(caller: &Caller, recorded: &Value) -> Result<(), String> {
    let method = recorded["method"].as_str().unwrap_or_default();
    let request = recorded["messages"][0]["request"].as_str().unwrap_or_default();
    let request = Bytes::from(STANDARD.decode(request).map_err(|error| error.to_string())?);
    let (_, status): (_, Status) = caller.exchange(method, vec![request]).await?;
    let wanted = &recorded["status"];
    let details = wanted["grpc_status_details_bin"].as_str().unwrap_or_default();
    let found = STANDARD.encode(status.details());
    if wanted["code"] != *code_of(&status) || wanted["message"] != *status.message() || details != found {
        return Err(format!("{} {:?} {found} instead of {wanted}", code_of(&status), status.message()));
    }
    Ok(())
}

fn compare(recorded: &[Value], answers: &[Value]) -> Result<(), String> {
    let shapes = |answers: &[Value]| Value::Array(answers.iter().map(|answer| shape("", answer)).collect());
    let (wanted, found) = (shapes(recorded), shapes(answers));
    if wanted == found { Ok(()) } else { Err(format!("\n{found}\ninstead of\n{wanted}")) }
}

/// What stays of a value from one run to the next: instants and keys are only there, certificates and
/// tokens are described without what is theirs alone.
fn shape(name: &str, value: &Value) -> Value {
    const OWN: [&str; 12] = [
        "created_at",
        "expires_at",
        "issued_at",
        "key_id",
        "public_key",
        "serial",
        "not_before",
        "not_after",
        "aki",
        "exp",
        "iat",
        "kid",
    ];
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), shape(name, value)));
            Value::Object(fields.collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| shape(name, item)).collect()),
        _ if OWN.contains(&name) => json!("<own>"),
        Value::String(text) if name == "cert_chain" || name == "asn1" => {
            let mut certificate = describe::certificate(text).unwrap_or_else(|| json!("no certificate"));
            if name == "asn1"
                && let Some(extensions) = certificate["ext"].as_object_mut()
            {
                extensions.remove("ski");
            }
            shape("", &certificate)
        }
        Value::String(text) if name == "token" => {
            shape("", &describe::token(text).unwrap_or_else(|| json!("no token")))
        }
        // A serial number that is part of a name.
        Value::String(text) if text.contains("2.5.4.5=") => {
            json!(text.split(',').skip(1).collect::<Vec<_>>())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}
