//! A node whose server is away: what its agent goes on serving, to whom, and what it leaves on disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::memory::copies_in_memory;
use crate::plane::{Plane, PlaneConfig, Product};
use crate::secrets::{encodings, private_number};
use crate::workload::{Svids, Workload};

/// How long anything may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many streams share a connection: fewer than an agent allows.
const STREAMS: usize = 50;

/// A trust domain with one node, and the workload that this process is.
#[derive(Debug)]
pub struct Outage {
    plane: Plane,
    runtime: Runtime,
}

/// The private keys that a workload was given, by SPIFFE ID and serial number.
#[derive(Clone, PartialEq, Eq)]
pub struct Served(BTreeMap<(String, String), Vec<u8>>);

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl Served {
    /// Those of this SPIFFE ID alone.
    #[must_use]
    pub fn only(&self, id: &str) -> Self {
        Self(
            self.0
                .iter()
                .filter(|((one, _), _)| one == id)
                .map(|(name, key)| (name.clone(), key.clone()))
                .collect(),
        )
    }

    /// The key that a file in PEM holds, under this name.
    ///
    /// # Panics
    /// If it holds none.
    #[must_use]
    pub fn of_pem(name: &str, pem: &str) -> Self {
        let lines = pem.lines().filter(|line| !line.starts_with("-----")).collect::<String>();
        let key = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, lines).expect("a key");
        Self(BTreeMap::from([((name.to_owned(), String::new()), key)]))
    }

    /// Which of them stand in the memory of this process; `None` where nobody may look.
    fn found_in(&self, pid: u32) -> Option<Vec<String>> {
        let numbers: Vec<_> = self.0.values().map(|key| private_number(key)).collect();
        let found = copies_in_memory(pid, &numbers)?;
        let ids = || self.0.keys().map(|(id, _)| id);
        let told = ids()
            .zip(found)
            .flat_map(|(id, copies)| copies.into_iter().map(move |copy| format!("{id}: {}", copy.place)));
        Some(told.collect())
    }

    /// Those that are not among `others`.
    #[must_use]
    pub fn but(&self, others: &Self) -> Self {
        let is_other = |name: &(String, String)| others.0.contains_key(name);
        Self(
            self.0
                .iter()
                .filter(|(name, _)| !is_other(name))
                .map(|(name, key)| (name.clone(), key.clone()))
                .collect(),
        )
    }

    /// These too.
    pub fn add(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The SPIFFE IDs.
    #[must_use]
    pub fn ids(&self) -> Vec<&str> {
        self.0.keys().map(|(id, _)| id.as_str()).collect()
    }
}

impl Outage {
    /// Starts server and agent.
    ///
    /// # Panics
    /// If they do not become healthy.
    #[must_use]
    pub fn start(product: &Product, config: &PlaneConfig) -> Self {
        let has_token = config.agent_attestor.contains("join_token");
        let config = PlaneConfig { agent: has_token, ..config.clone() };
        let mut plane = Plane::start(product, &config, &BTreeMap::new());
        if !has_token {
            let bundle = plane.ok("server", &["bundle", "show", "-socketPath", "{sock}"]);
            plane.write("{dir}/bootstrap.pem", &bundle);
            plane.configure_agent(&config, "");
            plane.start_agent_again();
        }
        Self { plane, runtime: Runtime::new().expect("a runtime") }
    }

    /// The processes.
    pub const fn plane(&mut self) -> &mut Plane {
        &mut self.plane
    }

    /// Makes an entry of the node for whoever has `selector`, and hands back its id.
    ///
    /// # Panics
    /// If the server does not.
    #[must_use]
    pub fn create_entry(&self, path: &str, selector: &str) -> String {
        let id = format!("spiffe://{{td}}{path}");
        let args = ["entry", "create", "-socketPath", "{sock}", "-parentID", "spiffe://{td}/node"];
        let args = [&args[..], &["-spiffeID", &id, "-selector", selector]].concat();
        let shown = self.plane.ok("server", &args);
        let id = shown.lines().find_map(|line| line.strip_prefix("Entry ID")?.split(": ").nth(1));
        id.expect("an entry id").trim().to_owned()
    }

    /// Makes so many entries of the node for somebody else.
    ///
    /// # Panics
    /// If the server does not.
    pub fn crowd(&self, count: usize) {
        let entry = |number: usize| {
            serde_json::json!({
                "spiffe_id": self.plane.fill(&format!("spiffe://{{td}}/crowd/{number}")),
                "parent_id": self.plane.fill("spiffe://{td}/node"),
                "selectors": [{"type": "unix", "value": "uid:4243"}],
            })
        };
        let entries: Vec<_> = (0..count).map(entry).collect();
        let data = self.plane.dir().join("crowd.json");
        fs::write(&data, serde_json::json!({"entries": entries}).to_string()).expect("a file of the plane");
        let _said = self
            .plane
            .ok("server", &["entry", "create", "-socketPath", "{sock}", "-data", "{dir}/crowd.json"]);
    }

    /// Makes the nodes that have `selector` `/node`.
    ///
    /// # Panics
    /// If the server does not.
    pub fn create_node(&self, selector: &str) {
        let args = ["entry", "create", "-socketPath", "{sock}", "-node", "-spiffeID", "spiffe://{td}/node"];
        let _said = self.plane.ok("server", &[&args[..], &["-selector", selector]].concat());
    }

    /// Opens so many streams of this process's X.509-SVIDs, each with its first answer.
    ///
    /// # Panics
    /// If one is refused.
    #[must_use]
    pub fn open_streams(&self, count: usize) -> Vec<Svids> {
        self.runtime.block_on(async {
            let mut workload = Workload::at(self.plane.word("asock"));
            let mut streams = Vec::with_capacity(count);
            for number in 0..count {
                if number % STREAMS == 0 {
                    workload = Workload::at(self.plane.word("asock"));
                }
                let mut stream = workload.svids().await.expect("a stream");
                stream.next().await.expect("a first answer");
                streams.push(stream);
            }
            streams
        })
    }

    /// How many of the streams bring this identity within `limit`.
    ///
    /// # Errors
    /// One of them ends, or brings it too late.
    pub fn until_streams_see(&self, streams: Vec<Svids>, id: &str, limit: Duration) -> Result<usize, String> {
        let seen = async {
            let mut count = 0;
            for mut stream in streams {
                loop {
                    let svids = stream.next().await.map_err(|(code, said)| format!("{code}: {said}"))?;
                    if svids.iter().any(|svid| svid.id == id) {
                        break;
                    }
                }
                count += 1;
            }
            Ok(count)
        };
        self.runtime
            .block_on(async { timeout(limit, seen).await.unwrap_or_else(|_| Err("too late".to_owned())) })
    }

    /// What this process is given now; a refusal is its code and message.
    ///
    /// # Errors
    /// The refusal, or that there was no answer within `limit`.
    pub fn serve(&self, limit: Duration) -> Result<Served, (String, String)> {
        self.runtime.block_on(async {
            let workload = Workload::at(self.plane.word("asock"));
            let first = async { workload.svids().await?.next().await };
            match timeout(limit, first).await {
                Ok(svids) => {
                    let svids = svids?.into_iter();
                    Ok(Served(svids.map(|svid| ((svid.id.clone(), svid.serial()), svid.key)).collect()))
                }
                Err(_) => Err(("TIMEOUT".to_owned(), String::new())),
            }
        })
    }

    /// A token of this process for `audience`.
    ///
    /// # Errors
    /// The refusal.
    pub fn token(&self, audience: &str) -> Result<String, (String, String)> {
        self.runtime.block_on(async { Workload::at(self.plane.word("asock")).token(audience).await })
    }

    /// Waits until this process is given exactly these identities.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn await_ids(&self, ids: &[&str]) -> Served {
        let deadline = Instant::now() + PATIENCE;
        let mut ids: Vec<String> = ids.iter().map(|id| self.plane.fill(id)).collect();
        ids.sort_unstable();
        loop {
            let served = self.serve(Duration::from_secs(5));
            if let Ok(served) = &served
                && served.ids() == ids
            {
                return served.clone();
            }
            if ids.is_empty() && served.as_ref().is_err_and(|(code, _)| code == "PERMISSION_DENIED") {
                return Served(BTreeMap::new());
            }
            assert!(Instant::now() < deadline, "{served:?} instead of {ids:?}\n{}", self.log());
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// Waits until what the agent knows now is in the vault: changes wait for others for a second.
    ///
    /// # Panics
    /// If there is no vault.
    pub fn await_vault(&self) {
        std::thread::park_timeout(Duration::from_secs(3));
        assert!(self.vault().exists(), "there is no vault\n{}", self.log());
    }

    /// The agent's data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.plane.dir().join("agent-data")
    }

    /// The sealed file.
    #[must_use]
    pub fn vault(&self) -> PathBuf {
        self.data().join("vault")
    }

    /// The agent's log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.plane.dir().join("agent.log")).unwrap_or_default()
    }

    /// Ends the server.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop_server(&mut self) {
        let server = self.plane.server().expect("a server");
        server.signal("KILL");
        server.wait(PATIENCE);
    }

    /// Ends the agent by this signal.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end_agent(&mut self, signal: &str) {
        let agent = self.plane.agent().expect("an agent");
        agent.signal(signal);
        agent.wait(PATIENCE);
    }

    /// Starts the agent, and says how long it took until this process had its keys.
    ///
    /// # Panics
    /// If the agent ends, or gives none within a minute.
    pub fn time_start(&mut self) -> (Duration, Served) {
        self.time_start_with(&[])
    }

    /// The same with more in the agent's environment.
    ///
    /// # Panics
    /// As [`Self::time_start`].
    pub fn time_start_with(&mut self, env: &[(&str, &Path)]) -> (Duration, Served) {
        let started = Instant::now();
        self.plane.spawn_agent_with(env);
        let socket = Path::new(self.plane.word("asock")).to_owned();
        loop {
            if std::os::unix::net::UnixStream::connect(&socket).is_ok()
                && let Ok(served) = self.serve(PATIENCE)
            {
                return (started.elapsed(), served);
            }
            let is_hopeless =
                started.elapsed() > PATIENCE || !self.plane.agent().expect("an agent").is_running();
            assert!(!is_hopeless, "the agent serves nobody\n{}", self.log());
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// What another user of this machine is told, if this process may act as one.
    #[must_use]
    pub fn as_another_user(&self) -> Option<(i32, String)> {
        if self.plane.word("uid") != "0" {
            return None;
        }
        let open = fs::Permissions::from_mode(0o711);
        fs::set_permissions(self.plane.dir(), open).expect("the folder of the plane");
        let args = ["api", "fetch", "x509", "-socketPath", "{asock}"];
        let output = self.plane.command("agent", &args).uid(4242).gid(4242).current_dir("/").output();
        let output = output.expect("the program can be started");
        let said = [output.stdout, output.stderr].concat();
        Some((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
    }

    /// The private numbers of these keys that stand in the agent's memory, by SPIFFE ID; `None` where this
    /// process may not look.
    ///
    /// # Panics
    /// If there is no agent.
    pub fn found_in_memory(&mut self, served: &Served) -> Option<Vec<String>> {
        let pid = self.plane.agent().expect("an agent").pid();
        served.found_in(pid)
    }

    /// The same in the server's memory.
    ///
    /// # Panics
    /// If there is no server.
    pub fn found_in_the_servers_memory(&mut self, served: &Served) -> Option<Vec<String>> {
        let pid = self.plane.server().expect("a server").pid();
        served.found_in(pid)
    }

    /// Secrets that stand in clear in a file of the agent's data directory, in whatever encoding: which,
    /// in which, in what file. The agent's own key is not among them: SPIRE stores it there too.
    ///
    /// # Panics
    /// If the directory cannot be read.
    #[must_use]
    pub fn found_in_clear(&self, served: &Served, token: &str) -> Vec<String> {
        let mut secrets = vec![("token", token.as_bytes().to_vec())];
        secrets.push(("signature", token.rsplit('.').next().unwrap_or_default().as_bytes().to_vec()));
        for key in served.0.values() {
            secrets.push(("key", key.clone()));
            secrets.push(("number of a key", private_number(key).to_vec()));
        }
        let mut found = Vec::new();
        for file in fs::read_dir(self.data()).expect("the data directory") {
            let path = file.expect("a file").path();
            let text = fs::read(&path).expect("a file that can be read");
            for (name, secret) in &secrets {
                for (encoding, needle) in encodings(secret) {
                    if text.windows(needle.len()).any(|window| window == needle) {
                        found.push(format!("{name}, {encoding}, in {}", path.display()));
                    }
                }
            }
        }
        found
    }
}
