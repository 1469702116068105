//! A server killed while many write: nothing that it acknowledged is lost, nothing is left by half.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::Barrier;

use crate::plane::{Plane, PlaneConfig, Product};
use crate::wire::{Caller, Messages};

const CREATE: &str = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
const COUNT: &str = "/spire.api.server.entry.v1.Entry/CountEntries";
const LIST: &str = "/spire.api.server.entry.v1.Entry/ListEntries";
const BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";

/// How many write at once.
const WRITERS: usize = 64;

/// Rows that must not exist: entries without both selectors, without their name, without their event,
/// and parts of entries that are not there.
const HALVES: [&str; 5] = [
    "select entry_id from registered_entries e where 2 != \
     (select count(*) from selectors s where s.registered_entry_id = e.id)",
    "select entry_id from registered_entries e where 1 != \
     (select count(*) from dns_names d where d.registered_entry_id = e.id)",
    "select entry_id from registered_entries e where not exists \
     (select 1 from registered_entries_events v where v.entry_id = e.entry_id)",
    "select registered_entry_id from selectors where registered_entry_id not in \
     (select id from registered_entries)",
    "select entry_id from registered_entries_events where entry_id not in \
     (select entry_id from registered_entries)",
];

/// Reads rows of one column from a plane's datastore.
pub type Query<'a> = dyn Fn(&Plane, &str) -> Result<String, String> + 'a;

/// Rounds of writing and killing.
#[derive(Debug)]
pub struct Kills {
    messages: Messages,
}

impl Kills {
    /// Knows the API by the descriptors below `recorded`.
    #[must_use]
    pub fn load(recorded: &Path) -> Self {
        Self { messages: Messages::load(&recorded.join("api/api.fds")) }
    }

    /// Kills a server `rounds` times under 64 writers. After each start all that was acknowledged must
    /// be there whole; in the end the server must still be the authority it was. Hands back how many
    /// writes were acknowledged.
    ///
    /// # Errors
    /// Says what is lost or left by half.
    ///
    /// # Panics
    /// If the server does not start again.
    pub fn play(
        &self,
        product: &Product,
        config: &PlaneConfig,
        query: &Query<'_>,
        rounds: u64,
    ) -> Result<usize, String> {
        let runtime = Runtime::new().map_err(|error| error.to_string())?;
        let mut plane = Plane::start(product, config, &BTreeMap::new());
        let authorities = runtime.block_on(self.authorities(&plane))?;
        let mut acknowledged: BTreeSet<String> = BTreeSet::new();
        for round in 0..rounds {
            // Sooner and later into the storm, never the same.
            let enough = usize::try_from(32 + (round * 37) % 192).unwrap_or(usize::MAX);
            let written = runtime.block_on(self.storm(&mut plane, round, enough))?;
            plane.server().ok_or("no server")?.wait(Duration::from_secs(30));
            plane.start_server_again();
            check_rows(query, &plane, &written).map_err(|why| format!("round {round}: {why}"))?;
            acknowledged.extend(written);
        }
        let listed = runtime.block_on(self.listed(&plane))?;
        if let Some(lost) = acknowledged.difference(&listed).next() {
            return Err(format!("{lost} is not listed"));
        }
        let now = runtime.block_on(self.authorities(&plane))?;
        if now != authorities {
            return Err(format!("the authorities were {authorities:?} and are {now:?}"));
        }
        Ok(acknowledged.len())
    }

    /// Writes from all sides, kills once `enough` writes are acknowledged and more are under way, and
    /// hands back what was acknowledged.
    async fn storm(&self, plane: &mut Plane, round: u64, enough: usize) -> Result<Vec<String>, String> {
        let acknowledged: Arc<Mutex<Vec<String>>> = Arc::default();
        let connected = Arc::new(Barrier::new(WRITERS + 1));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let caller = Caller::local(&self.messages, plane.word("sock"));
            let acknowledged = Arc::clone(&acknowledged);
            let connected = Arc::clone(&connected);
            let trust_domain = plane.word("td").to_owned();
            writers.spawn(async move {
                let reached = caller.ask(COUNT, json!({})).await;
                connected.wait().await;
                reached?;
                for number in 0.. {
                    let id = format!("r{round}-w{writer}-n{number}");
                    let entry = json!({
                        "id": id,
                        "parent_id": {"trust_domain": trust_domain, "path": "/node"},
                        "spiffe_id": {"trust_domain": trust_domain, "path": format!("/{id}")},
                        "selectors": [{"type": "kill", "value": "a"}, {"type": "kill", "value": id}],
                        "dns_names": ["killed.test"],
                    });
                    // Killed in the middle of this: nobody knows, so nothing is claimed.
                    let Ok(answer) = caller.ask(CREATE, json!({"entries": [entry]})).await else { break };
                    if answer["results"][0]["entry"]["id"] == *id {
                        acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(id);
                    } else {
                        return Err(format!("entry {id} is refused: {answer}"));
                    }
                }
                Ok(())
            });
        }
        connected.wait().await;
        let deadline = Instant::now() + Duration::from_secs(20);
        while acknowledged.lock().unwrap_or_else(PoisonError::into_inner).len() < enough {
            if Instant::now() > deadline {
                return Err(format!("{enough} writes are not acknowledged in 20 s"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        plane.server().ok_or("no server")?.signal("KILL");
        while let Some(ended) = writers.join_next().await {
            ended.map_err(|error| error.to_string())??;
        }
        let written = acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(written)
    }

    async fn listed(&self, plane: &Plane) -> Result<BTreeSet<String>, String> {
        let caller = Caller::local(&self.messages, plane.word("sock"));
        let (mut ids, mut token) = (BTreeSet::new(), String::new());
        loop {
            let request = json!({"page_size": 1000, "page_token": token, "output_mask": {}});
            let page = caller.ask(LIST, request).await?;
            let entries = page["entries"].as_array().into_iter().flatten();
            ids.extend(entries.filter_map(|entry| entry["id"].as_str()).map(str::to_owned));
            page["next_page_token"].as_str().unwrap_or_default().clone_into(&mut token);
            if token.is_empty() {
                return Ok(ids);
            }
        }
    }

    async fn authorities(&self, plane: &Plane) -> Result<Vec<String>, String> {
        let caller = Caller::local(&self.messages, plane.word("sock"));
        let bundle = caller.ask(BUNDLE, json!({})).await?;
        let all = |list: &str, key: &str| -> Vec<String> {
            let authorities = bundle[list].as_array().into_iter().flatten();
            authorities.map(|authority| authority[key].to_string()).collect()
        };
        Ok([all("x509_authorities", "asn1"), all("jwt_authorities", "key_id")].concat())
    }
}

/// What the rows say: all that was acknowledged, and nothing by half.
fn check_rows(query: &Query<'_>, plane: &Plane, written: &[String]) -> Result<(), String> {
    let rows = |sql: &str| query(plane, sql).map_err(|error| format!("{sql}: {error}"));
    let stored = rows("select entry_id from registered_entries")?;
    let stored: BTreeSet<&str> = stored.lines().collect();
    if let Some(lost) = written.iter().find(|id| !stored.contains(id.as_str())) {
        return Err(format!("{lost} was acknowledged and is lost"));
    }
    for halves in HALVES {
        if let Some(row) = rows(halves)?.lines().next() {
            return Err(format!("{row} is left by half: {halves}"));
        }
    }
    Ok(())
}

/// Reads rows of one column from the file of a plane whose datastore is `SQLite`, and looks whether it is
/// sound.
///
/// # Errors
/// Says what is wrong with the file.
pub fn query_file(plane: &Plane, sql: &str) -> Result<String, String> {
    let file = plane.dir().join("server-data/datastore.sqlite3");
    let read = || -> Result<String, rusqlite::Error> {
        let database = Connection::open_with_flags(&file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        database.busy_timeout(Duration::from_secs(10))?;
        let integrity: String = database.query_row("pragma quick_check", [], |row| row.get(0))?;
        if integrity != "ok" {
            return Ok(format!("the database is damaged: {integrity}\n"));
        }
        let mut statement = database.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut text = String::new();
        while let Some(row) = rows.next()? {
            text.push_str(&match row.get_ref(0)? {
                ValueRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                other @ (ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_)) => {
                    format!("{other:?}")
                }
            });
            text.push('\n');
        }
        Ok(text)
    };
    read().map_err(|error| format!("cannot read {}: {error}", file.display()))
}
