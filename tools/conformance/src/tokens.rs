//! A server killed while agents attest: a join token is used up by an agent that is there whole, or it is
//! still good.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::kill::query_file;
use crate::pki::Key;
use crate::plane::{Plane, PlaneConfig, Product};
use crate::wire::{Caller, Messages};

const ATTEST: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";
const TOKEN: &str = "/spire.api.server.agent.v1.Agent/CreateJoinToken";

/// Agents that attest at a time, and tokens in a round.
const ABREAST: usize = 16;
const TOKENS: usize = 64;

/// Rows that must not exist: agents without their selector or their event, and selectors of nobody.
const HALVES: [&str; 3] = [
    "select spiffe_id from attested_node_entries n where 1 != \
     (select count(*) from node_resolver_map_entries s where s.spiffe_id = n.spiffe_id)",
    "select spiffe_id from attested_node_entries n where not exists \
     (select 1 from attested_node_entries_events e where e.spiffe_id = n.spiffe_id)",
    "select spiffe_id from node_resolver_map_entries where spiffe_id not in \
     (select spiffe_id from attested_node_entries)",
];

/// What became of the tokens of all rounds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Their agents were told so.
    pub acknowledged: usize,
    /// Their agents are there, though nobody was told.
    pub unheard: usize,
    /// They were still good, and were used afterwards.
    pub good: usize,
}

/// Kills a server `rounds` times while agents attest with join tokens.
///
/// # Errors
/// Says which token is lost, or what is there by half.
///
/// # Panics
/// If the server does not start again.
pub fn kill_attestations(product: &Product, recorded: &Path, rounds: usize) -> Result<Spent, String> {
    let messages = Messages::load(&recorded.join("api/api.fds"));
    let runtime = Runtime::new().map_err(|error| error.to_string())?;
    let extra = "ratelimit { attestation = false } experimental { agent_spiffe_id_as_selector = true }";
    let config = PlaneConfig { server_extra: extra.to_owned(), ..PlaneConfig::default() };
    let _within = runtime.enter();
    let mut plane = Plane::start(product, &config, &BTreeMap::new());
    let mut spent = Spent::default();
    for round in 0..rounds {
        let tokens: Vec<String> = (0..TOKENS).map(|number| format!("token-{round}-{number}")).collect();
        // Sooner and later, never the same.
        let enough = 1 + (round * 13) % (TOKENS - ABREAST);
        let acknowledged = runtime.block_on(storm(&messages, &mut plane, &tokens, enough))?;
        plane.server().ok_or("no server")?.wait(Duration::from_secs(30));
        plane.start_server_again();

        let rows = |sql: &str| query_file(&plane, sql);
        let left: BTreeSet<String> =
            rows("select token from join_tokens")?.lines().map(str::to_owned).collect();
        let agents: BTreeSet<String> =
            rows("select spiffe_id from attested_node_entries")?.lines().map(str::to_owned).collect();
        for halves in HALVES {
            if let Some(row) = rows(halves)?.lines().next() {
                return Err(format!("round {round}: {row} is left by half: {halves}"));
            }
        }
        let caller = Caller::tls(&messages, plane.word("port"), None);
        for token in &tokens {
            let agent = format!("spiffe://{}/spire/agent/join_token/{token}", plane.word("td"));
            match (left.contains(token), agents.contains(&agent)) {
                (true, true) => return Err(format!("{token} was used and is still there")),
                (false, false) => return Err(format!("{token} is gone and attested nobody")),
                (true, false) if acknowledged.contains(token) => {
                    return Err(format!("{token}: its agent was attested and is gone"));
                }
                (true, false) => {
                    runtime.block_on(attest(&caller, token))?;
                    spent.good += 1;
                }
                (false, true) if acknowledged.contains(token) => spent.acknowledged += 1,
                (false, true) => spent.unheard += 1,
            }
        }
    }
    Ok(spent)
}

/// Makes the tokens, has agents attest with them, and kills the server once `enough` have.
async fn storm(
    messages: &Messages,
    plane: &mut Plane,
    tokens: &[String],
    enough: usize,
) -> Result<BTreeSet<String>, String> {
    let local = Caller::local(messages, plane.word("sock"));
    for token in tokens {
        local.ask(TOKEN, json!({"ttl": 600, "token": token})).await?;
    }
    let acknowledged: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let mut agents = tokio::task::JoinSet::new();
    for part in tokens.chunks(tokens.len().div_ceil(ABREAST)) {
        let caller = Caller::tls(messages, plane.word("port"), None);
        let (part, acknowledged) = (part.to_vec(), Arc::clone(&acknowledged));
        agents.spawn(async move {
            for token in part {
                if attest(&caller, &token).await.is_err() {
                    // Killed in the middle of it.
                    return;
                }
                acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(token);
            }
        });
    }
    let known = || acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone();
    while known().len() < enough {
        if agents.is_empty() {
            return Err("nobody attests".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    plane.server().ok_or("no server")?.signal("KILL");
    while let Some(ended) = agents.join_next().await {
        ended.map_err(|error| error.to_string())?;
    }
    Ok(known())
}

async fn attest(caller: &Caller, token: &str) -> Result<Value, String> {
    let request = Key::generate().request("spiffe://example.org/agent");
    let params = json!({"params": {
        "data": {"type": "join_token", "payload": BASE64_STANDARD.encode(token)},
        "params": {"csr": BASE64_STANDARD.encode(request)},
    }});
    caller.ask(ATTEST, params).await
}
