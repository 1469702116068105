//! Data that SPIRE left behind, taken over in place: databases of three schemas, server keys, agent
//! directories.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::outcome::Outcome;
use crate::plane::{Plane, PlaneConfig, Product, Running, pause};
use crate::wire::{Caller, Messages};

const CREATE_ENTRY: &str = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";

/// How long a process may take to start or end.
const LIMIT: Duration = Duration::from_secs(60);

/// What was recorded: databases with the answers on them, keys and agent directories.
#[derive(Debug)]
pub struct Takeover {
    databases: PathBuf,
    servers: PathBuf,
    keys: PathBuf,
    messages: Messages,
}

impl Takeover {
    /// The recordings below `folder`.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    pub fn load(folder: &Path) -> Self {
        Self {
            databases: folder.join("datastore/sqlite"),
            servers: folder.join("datastore"),
            keys: folder.join("keys"),
            messages: Messages::load(&folder.join("api/api.fds")),
        }
    }

    /// Every recorded question to a server on the database `version` (`v23`, `v24`, or empty for the
    /// newest); then the pages.
    ///
    /// # Panics
    /// If a recording cannot be read or the server does not start.
    #[must_use]
    pub fn questions(&self, product: &Product, version: &str) -> Outcome {
        let file =
            if version.is_empty() { "expected.json".to_owned() } else { format!("expected-{version}.json") };
        let mut plane = self.lay(product, version);
        plane.start_server_again();
        self.ask(&plane, &self.databases.join(file))
    }

    /// Every recorded question to a server on a database server of this `make` (`postgres` or `mysql`),
    /// whose database has been filled from the recording; then the pages.
    ///
    /// # Panics
    /// If a recording cannot be read or the server does not start.
    #[must_use]
    pub fn questions_on(&self, product: &Product, make: &str, connection_string: &str) -> Outcome {
        let mut plane = self.lay_on(product, make, connection_string);
        plane.start_server_again();
        self.ask(&plane, &self.servers.join(make).join("expected.json"))
    }

    /// The recorded dump for databases of this `make`.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn dump(&self, make: &str) -> String {
        fs::read_to_string(self.servers.join(make).join("datastore.sql")).expect("the dump")
    }

    /// A plane whose server finds a database on a database server, and the keys that belong to the
    /// recording; nothing runs yet.
    ///
    /// # Panics
    /// If it cannot be laid out.
    #[must_use]
    pub fn lay_on(&self, product: &Product, make: &str, connection_string: &str) -> Plane {
        let datastore = format!("database_type = \"{make}\" connection_string = \"{connection_string}\"");
        let config = PlaneConfig { server: false, datastore, ..Self::config() };
        let plane = Plane::start(product, &config, &BTreeMap::new());
        plane.configure_server(&config);
        let data = plane.dir().join("server-data");
        fs::create_dir_all(&data).expect("the server's folder");
        let keys = self.servers.join(make).join("server-keys.json");
        fs::copy(keys, data.join("keys.json")).expect("the server's keys");
        plane
    }

    fn ask(&self, plane: &Plane, expected: &Path) -> Outcome {
        let expected = fs::read_to_string(expected).expect("the answers");
        let expected: Value = serde_json::from_str(&expected).expect("the answers");
        let mut outcome = Outcome::default();
        let runtime = Runtime::new().expect("a runtime");
        let local = runtime.block_on(async { Caller::local(&self.messages, plane.word("sock")) });
        for case in expected["answers"].as_array().into_iter().flatten() {
            let judged = runtime.block_on(answer(&local, case));
            outcome.add(&format!("{} {}", case["method"], case["request"]), judged);
        }
        for case in expected["pages"].as_array().into_iter().flatten() {
            let judged = runtime.block_on(pages(&local, case));
            outcome.add(&format!("pages of {} {}", case["method"], case["request"]), judged);
        }
        outcome
    }

    /// A database too old to be migrated is refused and left as it is.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn too_old(&self, product: &Product) -> Result<(), String> {
        let plane = self.lay(product, "v22");
        let file = plane.dir().join("server-data/datastore.sqlite3");
        let before = content(&file)?;

        let mut server = plane.spawn("server", &["run", "-config", "{dir}/server.conf"]);
        let code = server.wait(LIMIT);

        let log = fs::read_to_string(plane.dir().join("server.log")).unwrap_or_default();
        let said = format!("{log}{:?}", server.printed());
        if code != 1 {
            return Err(format!("the server exits with {code}: {said}"));
        }
        if !said.contains("migrating from schema version 22 requires a previous SPIRE release") {
            return Err(format!("the server says: {said}"));
        }
        if before == content(&file)? { Ok(()) } else { Err("the database was touched".to_owned()) }
    }

    /// The agent directory `name` (`join_token` or `x509pop-node-1`) resumes without a new token: its
    /// agent is healthy under the identity it had, and gives a workload its SVID.
    ///
    /// # Errors
    /// Says what is wrong.
    ///
    /// # Panics
    /// If server or agent does not start.
    pub fn resumes(&self, product: &Product, name: &str) -> Result<(), String> {
        let mut plane = self.lay(product, "");
        plane.start_server_again();
        let agents = plane.ok("server", &["agent", "list", "-socketPath", "{sock}"]);
        self.lay_agent(&plane, name);
        plane.start_agent_again();

        // The agent learns of the entry when it synchronises next.
        let deadline = Instant::now() + LIMIT;
        loop {
            let fetched = plane.run("agent", &["api", "fetch", "x509", "-socketPath", "{asock}"]);
            if fetched.1.contains("spiffe://example.org/taken-over") {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("the workload gets {fetched:?}"));
            }
            pause();
        }
        let now = plane.ok("server", &["agent", "list", "-socketPath", "{sock}"]);
        let count = |list: &str| list.matches("/spire/agent/").count();
        if count(&now) != count(&agents) {
            return Err(format!("the agents were\n{agents}\nand are\n{now}"));
        }
        Ok(())
    }

    /// The agent directory of a banned agent is refused: its agent ends.
    ///
    /// # Errors
    /// Says what is wrong.
    ///
    /// # Panics
    /// If the server does not start.
    pub fn refuses_banned(&self, product: &Product) -> Result<(), String> {
        let mut plane = self.lay(product, "");
        plane.start_server_again();
        self.lay_agent(&plane, "banned");
        let mut agent = plane.spawn("agent", &["run", "-config", "{dir}/agent.conf"]);
        let code = end_of(&mut agent)?;
        let log = fs::read_to_string(plane.dir().join("agent.log")).unwrap_or_default();
        if code == 0 || !log.to_lowercase().contains("banned") {
            return Err(format!("the agent exits with {code}: {log}{:?}", agent.printed()));
        }
        Ok(())
    }

    /// A plane whose server finds the database `version` and the server's keys; nothing runs yet.
    pub(crate) fn lay(&self, product: &Product, version: &str) -> Plane {
        let config = PlaneConfig { server: false, ..Self::config() };
        let plane = Plane::start(product, &config, &BTreeMap::new());
        plane.configure_server(&config);
        let data = plane.dir().join("server-data");
        fs::create_dir_all(&data).expect("the server's folder");
        fs::copy(self.keys.join("server-keys.json"), data.join("keys.json")).expect("the server's keys");
        let file = data.join("datastore.sqlite3");
        if version.is_empty() {
            fs::copy(self.databases.join("datastore.sqlite3"), &file).expect("the database");
        } else {
            let sql = fs::read_to_string(self.databases.join(format!("{version}.sql"))).expect("SQL");
            let database = Connection::open(&file).expect("a new database");
            database.execute_batch(&sql).expect("the recorded SQL");
        }
        plane
    }

    /// The agent directory `name`, an agent configuration without a token, and an entry for this
    /// process below the agent.
    fn lay_agent(&self, plane: &Plane, name: &str) {
        let from = self.keys.join(format!("agent-{name}"));
        let data = plane.dir().join("agent-data");
        fs::create_dir_all(&data).expect("the agent's folder");
        for file in ["agent-data.json", "keys.json"] {
            fs::copy(from.join(file), data.join(file)).expect("the agent's state");
        }
        fs::copy(self.keys.join("bootstrap.pem"), plane.dir().join("bootstrap.pem")).expect("the bundle");
        let mut config = Self::config();
        if name.starts_with("x509pop") {
            let keys = self.keys.display();
            config.agent_attestor = format!(
                r#"NodeAttestor "x509pop" {{ plugin_data {{ private_key_path = "{keys}/{}.key" certificate_path = "{keys}/{}.pem" }} }}"#,
                name, name
            );
        }
        plane.configure_agent(&config, "");
        let runtime = Runtime::new().expect("a runtime");
        let id = |path: &str| json!({"trust_domain": "example.org", "path": path});
        // Below the alias of one agent and of the other.
        let entries: Vec<Value> = ["/node", "/racks/1"]
            .iter()
            .map(|parent| {
                json!({
                    "parent_id": id(parent),
                    "spiffe_id": id("/taken-over"),
                    "selectors": [{"type": "unix", "value": format!("uid:{}", plane.word("uid"))}],
                })
            })
            .collect();
        let created = runtime.block_on(async {
            let local = Caller::local(&self.messages, plane.word("sock"));
            local.ask(CREATE_ENTRY, json!({"entries": entries})).await
        });
        created.expect("the entry of the workload is taken");
    }

    fn config() -> PlaneConfig {
        PlaneConfig {
            // As the recording server had it: nothing of this runs out before 2036.
            server_extra: "ca_ttl = \"87600h\"\n  agent_ttl = \"87600h\"".to_owned(),
            ..PlaneConfig::default()
        }
    }
}

/// Everything a database holds as text. Its bytes would not do: switching to a write-ahead log alone
/// changes two of the header.
fn content(file: &Path) -> Result<Vec<String>, String> {
    let read = || -> Result<Vec<String>, rusqlite::Error> {
        let database = Connection::open(file)?;
        let listed = |sql: &str| -> Result<Vec<String>, rusqlite::Error> {
            let mut statement = database.prepare(sql)?;
            let width = statement.column_count();
            let row = |row: &rusqlite::Row<'_>| -> Result<String, rusqlite::Error> {
                let cells = (0..width).map(|index| row.get_ref(index).map(|cell| format!("{cell:?}")));
                Ok(cells.collect::<Result<Vec<_>, _>>()?.join("|"))
            };
            statement.query_map([], row)?.collect()
        };
        let mut content = listed("select type, name, sql from sqlite_master order by name")?;
        let mut tables = database.prepare("select name from sqlite_master where type = 'table'")?;
        let names: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for name in names {
            content.push(name.clone());
            content.extend(listed(&format!("select * from \"{name}\" order by rowid"))?);
        }
        Ok(content)
    };
    read().map_err(|error| format!("cannot read {}: {error}", file.display()))
}

fn end_of(process: &mut Running) -> Result<i32, String> {
    let deadline = Instant::now() + LIMIT;
    while process.is_running() {
        if Instant::now() > deadline {
            return Err(format!("it still runs: {:?}", process.printed()));
        }
        pause();
    }
    Ok(process.wait(LIMIT))
}

async fn answer(local: &Caller, case: &Value) -> Result<(), String> {
    let method = case["method"].as_str().unwrap_or_default();
    let reply = local.call(method, &[case["request"].clone()], &[]).await?;
    let wanted = &case["response"];
    if let Some(code) = wanted.get("code") {
        let is_same = reply.code == *code && wanted["message"] == *reply.message;
        return if is_same { Ok(()) } else { Err(format!("{} {:?}", reply.code, reply.message)) };
    }
    let found = reply.answers.first().ok_or_else(|| format!("{} {:?}", reply.code, reply.message))?;
    difference(wanted, found, "").map_or(Ok(()), Err)
}

async fn pages(local: &Caller, case: &Value) -> Result<(), String> {
    let method = case["method"].as_str().unwrap_or_default();
    let field = case["field"].as_str().unwrap_or_default();
    let mut request = case["request"].clone();
    for (number, page) in case["pages"].as_array().into_iter().flatten().enumerate() {
        let found = local.ask(method, request.clone()).await?;
        let key = |item: &Value| item.get("id").or_else(|| item.get("trust_domain")).cloned();
        let items: Vec<Value> = found[field].as_array().into_iter().flatten().filter_map(key).collect();
        let token = found["next_page_token"].as_str().unwrap_or_default();
        if page["items"] != json!(items) || page["token"] != token {
            return Err(format!("page {number} is {items:?} {token:?} instead of {page}"));
        }
        request["page_token"] = json!(token);
    }
    Ok(())
}

/// Where the first difference is, and what it is.
fn difference(wanted: &Value, found: &Value, place: &str) -> Option<String> {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            let excess = found.keys().find(|name| !wanted.contains_key(*name));
            if let Some(name) = excess {
                return Some(format!("{place}.{name} is too many: {}", found[name]));
            }
            let is_agent = wanted.contains_key("attestation_type");
            wanted.iter().find_map(|(name, wanted)| {
                let found = found.get(name).unwrap_or(&Value::Null);
                let place = format!("{place}.{name}");
                if is_agent && name == "selectors" {
                    return any_order(wanted, found, &place);
                }
                difference(wanted, found, &place)
            })
        }
        // SPIRE has these in any order on database servers.
        (Value::Array(_), Value::Array(_)) if place.ends_with(".federates_with") || place == ".bundles" => {
            any_order(wanted, found, place)
        }
        (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => {
            let pairs = wanted.iter().zip(found).enumerate();
            pairs
                .into_iter()
                .find_map(|(index, (wanted, found))| difference(wanted, found, &format!("{place}.{index}")))
        }
        _ if wanted == found => None,
        _ => {
            let short = |value: &Value| value.to_string().chars().take(300).collect::<String>();
            Some(format!("{place}: {} instead of {}", short(found), short(wanted)))
        }
    }
}

/// What differs between two lists whatever their order.
fn any_order(wanted: &Value, found: &Value, place: &str) -> Option<String> {
    let sorted = |list: &Value| {
        let mut items: Vec<String> = list.as_array().into_iter().flatten().map(Value::to_string).collect();
        items.sort();
        items
    };
    (sorted(wanted) != sorted(found)).then(|| format!("{place}: {found} instead of {wanted}"))
}
