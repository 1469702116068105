//! What server and agent measure of themselves, as Prometheus reads it, while every method is called
//! and everything is done once that operators and workloads do.

mod life;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use crate::delegated;
use crate::http::await_ok;
use crate::pki::{Authority, Key, pem};
use crate::plane::{Plane, PlaneConfig, Product, pause};
use crate::wire::{Caller, Connection, Messages, Shown, client_config};
use crate::workload::Workload;

/// The workload here is a delegate too.
const DELEGATES: &str = "authorized_delegates = [\"spiffe://example.org/measured\"]";

/// A page: the names of the labels of each series, by its name.
pub type Page = BTreeMap<String, BTreeSet<BTreeSet<String>>>;

/// A plane whose programs are measured.
#[derive(Debug)]
pub struct Measured {
    /// The plane; `p1` is the port of the server's page, `p2` that of the agent's.
    pub plane: Plane,
    messages: Messages,
    recorded: PathBuf,
    runtime: Runtime,
}

/// A row of the ledger's table of metrics.
#[derive(Clone, Debug)]
pub struct MetricRow {
    /// Whether it is done.
    pub is_done: bool,
    /// The test that shows it, or why it is open.
    pub evidence: String,
    /// `server`, `agent` or `both`.
    pub component: String,
    /// Such as `call`.
    pub kind: String,
    /// The parts of the key, joined by dots.
    pub key: String,
}

impl Measured {
    /// Starts server and agent of `product` with a page for Prometheus each, and `more` lines inside
    /// `telemetry {}` of both.
    ///
    /// # Panics
    /// If they do not start.
    #[must_use]
    pub fn start(product: &Product, recorded: &Path, more: &str) -> Self {
        Self::start_as(product, recorded, PlaneConfig::default(), more)
    }

    /// The same on a plane of this configuration.
    ///
    /// # Panics
    /// If they do not start.
    #[must_use]
    pub fn start_as(product: &Product, recorded: &Path, config: PlaneConfig, more: &str) -> Self {
        let agent_extra = format!("{}\n  {DELEGATES}", config.agent_extra);
        let config = PlaneConfig { agent: true, agent_extra, log: "DEBUG".to_owned(), ..config };
        let mut measured = Self::of(Plane::start(product, &config, &BTreeMap::new()), recorded);
        measured
            .restart_with("server", &format!("Prometheus {{ host = \"127.0.0.1\" port = {{p1}} }}\n{more}"));
        measured
            .restart_with("agent", &format!("Prometheus {{ host = \"127.0.0.1\" port = {{p2}} }}\n{more}"));
        measured
    }

    fn of(plane: Plane, recorded: &Path) -> Self {
        Self {
            plane,
            messages: Messages::load(&recorded.join("api/api.fds")),
            recorded: recorded.to_owned(),
            runtime: Runtime::new().expect("a runtime"),
        }
    }

    /// Has the configuration of `program` end with these lines inside `telemetry {}`.
    fn configure(&self, program: &str, telemetry: &str) {
        let path = self.plane.dir().join(format!("{program}.conf"));
        let text = fs::read_to_string(&path).expect("the configuration");
        let before = text.split("telemetry {").next().unwrap_or_default();
        let text = format!("{before}telemetry {{\n{}\n}}\n", self.plane.fill(telemetry));
        fs::write(&path, text).expect("the configuration can be written");
    }

    /// Starts `program` again with these lines inside its `telemetry {}`.
    ///
    /// # Panics
    /// If it does not end, or does not start.
    pub fn restart_with(&mut self, program: &str, telemetry: &str) {
        self.configure(program, telemetry);
        let running = if program == "server" { self.plane.server() } else { self.plane.agent() };
        let running = running.expect("a running program");
        running.signal("TERM");
        running.wait(Duration::from_secs(30));
        if program == "server" {
            self.plane.start_server_again();
        } else {
            self.plane.start_agent_again();
        }
    }

    /// The page of `server` or `agent`.
    #[must_use]
    pub fn page(&self, program: &str) -> Page {
        let port = self.plane.word(if program == "server" { "p1" } else { "p2" });
        parse(&await_ok(port, "/metrics"))
    }

    /// Calls every method once, and does what operators and workloads do.
    ///
    /// # Panics
    /// If something fails that must not.
    pub fn exercise(&self) {
        self.runtime.block_on(async {
            self.call_every_method().await;
            self.operate().await;
            self.work().await;
        });
    }

    /// An empty request to every method that is served on a socket here. Most are refused, which
    /// counts too.
    async fn call_every_method(&self) {
        let methods = fs::read_to_string(self.recorded.join("ledger/methods.tsv")).expect("the ledger");
        let local = Connection::local(self.plane.word("sock"));
        let (public, admin) =
            (Connection::local(self.plane.word("asock")), Connection::local(self.plane.word("admin")));
        let header = [("workload.spiffe.io".to_owned(), "true".to_owned())];
        for row in methods.lines().filter(|row| row.starts_with("done")) {
            let method = row.split('\t').nth(2).unwrap_or_default();
            let is_agents = method.starts_with("/spire.agent") || method.starts_with("/spire.api.agent");
            let sockets: &[&Connection] = match method {
                _ if method.starts_with("/spire.api.server") => &[&local],
                _ if method.starts_with("/grpc.health") => &[&local, &public],
                _ if method.starts_with("/SpiffeWorkloadAPI") => &[&public],
                _ if is_agents => &[&admin],
                _ => &[],
            };
            for socket in sockets {
                // A stream may have no end, so its first answer is enough.
                let first = async {
                    if let Ok(mut stream) = socket.open(method, vec![Bytes::new()], &header).await {
                        drop(stream.message().await);
                    }
                };
                tokio::time::timeout(Duration::from_secs(5), first).await.ok();
            }
        }
        for method in ["StreamSecrets", "DeltaSecrets", "FetchSecrets"] {
            let method = format!("/envoy.service.secret.v3.SecretDiscoveryService/{method}");
            public.exchange(&method, vec![Bytes::new()], &[]).await.expect("an end");
        }
    }

    async fn operate(&self) {
        let local = Caller::local(&self.messages, self.plane.word("sock"));
        for (method, request) in operations(self.plane.word("td"), self.plane.word("uid")) {
            local.ask(method, request).await.unwrap_or_else(|why| panic!("{method}: {why}"));
        }
        self.replace_authorities(&local).await;
    }

    /// The authorities are replaced by hand, and the old ones withdrawn.
    async fn replace_authorities(&self, local: &Caller) {
        const SERVICE: &str = "/spire.api.server.localauthority.v1.LocalAuthority";
        for family in ["X509", "JWT"] {
            let ask = async |verb: &str, request: Value| {
                let method = format!("{SERVICE}/{verb}");
                local.ask(&method, request).await.unwrap_or_else(|why| panic!("{method}: {why}"))
            };
            let state = ask(&format!("Get{family}AuthorityState"), json!({})).await;
            let old = state["active"]["authority_id"].clone();
            let prepared = ask(&format!("Prepare{family}Authority"), json!({})).await;
            let new = prepared["prepared_authority"]["authority_id"].clone();
            for (verb, id) in [("Activate", new), ("Taint", old.clone()), ("Revoke", old)] {
                ask(&format!("{verb}{family}Authority"), json!({"authority_id": id})).await;
            }
        }
    }

    /// A workload of this user gets its SVIDs and a token.
    async fn work(&self) {
        let workload = Workload::at(self.plane.word("asock"));
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let got = async {
                workload.svids().await?.next().await?;
                let uid = format!("uid:{}", self.plane.word("uid"));
                delegated::has_svid(self.plane.word("admin"), &uid).await?;
                let token = workload.token("metrics").await?;
                workload.validate("metrics", &token).await.map(drop)
            };
            match got.await {
                Ok(()) => return,
                Err(why) => assert!(Instant::now() < deadline, "no SVID for this workload: {why:?}"),
            }
            pause();
        }
    }

    /// What the page of `program` is over TLS, to who shows an SVID with this path, or nothing.
    ///
    /// # Errors
    /// The reader is refused.
    ///
    /// # Panics
    /// If the SVID cannot be had.
    pub fn secure_page(&self, program: &str, path: Option<&str>) -> Result<String, String> {
        self.runtime.block_on(async {
            let shown = match path {
                Some(path) => Some(self.mint(path).await),
                None => None,
            };
            let port = self.plane.word(if program == "server" { "p1" } else { "p2" });
            let asked = get_secure(port, shown.as_ref());
            let asked = tokio::time::timeout(Duration::from_secs(20), asked).await;
            asked.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())
        })
    }

    /// Has the page of `program` read over TLS with a certificate from files, by readers that an authority
    /// in a file has signed: what those get, and what one of another authority, and one without any.
    ///
    /// # Panics
    /// If the program does not start.
    pub fn pages_by_authority(&mut self, program: &str) -> [Result<String, String>; 3] {
        let (known, stranger) = (Authority::of("readers.test"), Authority::of("readers.test"));
        self.plane.write("{dir}/readers.pem", &pem("CERTIFICATE", &known.certificate));
        let own = self.recorded.join("config").canonicalize().expect("a certificate");
        let own = own.display();
        let port = if program == "server" { "{p1}" } else { "{p2}" };
        self.restart_with(
            program,
            &format!(
                "Prometheus {{ host = \"127.0.0.1\" port = {port} tls {{ cert_file = \"{own}/cert.pem\" \
                 key_file = \"{own}/key.pem\" client_ca_file = \"{{dir}}/readers.pem\" }} }}"
            ),
        );
        let shown = |authority: &Authority| {
            let key = Key::generate();
            let chain = vec![authority.certify(&key, "spiffe://readers.test/prometheus")];
            Some(Shown { chain, key: key.pkcs8() })
        };
        let port = self.plane.word(if program == "server" { "p1" } else { "p2" });
        [shown(&known), shown(&stranger), None].map(|shown| {
            self.runtime.block_on(async {
                let asked = tokio::time::timeout(Duration::from_secs(20), get_secure(port, shown.as_ref()));
                let asked = asked.await.map_err(|_| "no answer".to_owned())?;
                asked.map_err(|error| error.to_string())
            })
        })
    }

    async fn mint(&self, path: &str) -> Shown {
        let local = Caller::local(&self.messages, self.plane.word("sock"));
        local.mint(&format!("spiffe://{}{path}", self.plane.word("td"))).await.expect("an SVID")
    }

    /// Waits until all these stand in the log of `program`.
    ///
    /// # Panics
    /// If they do not within 20 s.
    pub fn await_logged(&self, program: &str, wanted: &[String]) {
        let log = self.plane.dir().join(format!("{program}.log"));
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = fs::read_to_string(&log).expect("a log");
            let Some(missing) = wanted.iter().find(|wanted| !text.contains(wanted.as_str())) else { return };
            assert!(Instant::now() < deadline, "the {program} does not log {missing}");
            pause();
        }
    }

    /// Waits until the page of `program` has this series.
    ///
    /// # Panics
    /// If it has not within 30 s.
    pub fn await_series(&self, program: &str, name: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.page(program).contains_key(name) {
            assert!(Instant::now() < deadline, "{name} is not on the page of the {program}");
            pause();
        }
    }

    /// Waits until the one series of this name on the page of `program` has this value.
    ///
    /// # Panics
    /// If it has not within 30 s.
    pub fn await_value(&self, program: &str, name: &str, value: &str) {
        let port = self.plane.word(if program == "server" { "p1" } else { "p2" });
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let page = await_ok(port, "/metrics");
            let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            if line.rsplit(' ').next() == Some(value) {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is not {value}: {line}");
            pause();
        }
    }
}

/// Asks over TLS.
async fn get_secure(port: &str, shown: Option<&Shown>) -> std::io::Result<String> {
    let mut config = client_config(shown, rustls::ALL_VERSIONS);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A receiver of packets, and its port.
///
/// # Panics
/// If there is no free port.
#[must_use]
pub fn receiver() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time limit");
    let port = socket.local_addr().expect("a bound port").port();
    (socket, port)
}

/// What comes until `is_enough` of it.
///
/// # Panics
/// If it is not enough within 30 s.
pub fn received(socket: &UdpSocket, is_enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let (mut all, mut packet) = (Vec::new(), vec![0; 1 << 16]);
    while !is_enough(&all) {
        assert!(Instant::now() < deadline, "only {} came", String::from_utf8_lossy(&all));
        if let Ok(length) = socket.recv(&mut packet) {
            all.extend_from_slice(&packet[..length]);
        }
    }
    all
}

/// The rows of the table of metrics.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn metric_rows(recorded: &Path) -> Vec<MetricRow> {
    let text = fs::read_to_string(recorded.join("ledger/telemetry.tsv")).expect("the ledger");
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('\t').collect();
        MetricRow {
            is_done: cells[0] == "done",
            evidence: cells[1].to_owned(),
            component: cells[2].to_owned(),
            kind: cells[3].to_owned(),
            key: cells[4].to_owned(),
        }
    };
    text.lines().skip(1).map(row).collect()
}

/// The names that a row has on the page of `program`.
#[must_use]
pub fn names_of(row: &MetricRow, program: &str) -> Vec<String> {
    // What stands for each limited method is shown by one of them.
    let key = row.key.replace("<same key parts as rpc>", "svid.v1.svid.batch_new_x509svid");
    let name = format!("spire_{program}_{}", key.replace(['.', '-'], "_"));
    if row.kind == "call" { vec![name.clone(), format!("{name}_elapsed_time")] } else { vec![name] }
}

/// The series of a page.
fn parse(text: &str) -> Page {
    let mut page = Page::new();
    let mut kinds = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_default();
            kinds.insert(name.to_owned(), kind.to_owned());
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let series = line.rsplit_once(' ').unwrap_or_default().0;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let base = ["_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
        let is_summary = |name: &str| kinds.get(name).is_some_and(|kind| kind == "summary");
        let name = base.filter(|base| is_summary(base)).unwrap_or(name);
        let labels = labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once('='));
        let labels = labels.map(|(name, _)| name.to_owned()).filter(|name| name != "quantile").collect();
        page.entry(name.to_owned()).or_default().insert(labels);
    }
    page
}

/// What an operator does by the API, each of which succeeds.
pub(crate) fn operations(trust_domain: &str, uid: &str) -> Vec<(&'static str, Value)> {
    let id = |path: &str| json!({"trust_domain": trust_domain, "path": path});
    let entry = json!({
        "id": "measured", "parent_id": id("/node"), "spiffe_id": id("/measured"),
        "selectors": [{"type": "unix", "value": format!("uid:{uid}")}],
    });
    let spare = json!({
        "id": "spare", "parent_id": id("/nobody"), "spiffe_id": id("/spare"),
        "selectors": [{"type": "unix", "value": "uid:1"}],
    });
    let foreign = |name: &str| json!({"trust_domain": name, "x509_authorities": [], "sequence_number": 1});
    let relationship = json!({
        "trust_domain": "foreign.test", "bundle_endpoint_url": "https://foreign.test/bundle", "https_web": {},
    });
    vec![
        ("/spire.api.server.entry.v1.Entry/BatchCreateEntry", json!({"entries": [entry, spare]})),
        (
            "/spire.api.server.entry.v1.Entry/BatchUpdateEntry",
            json!({"entries": [{"id": "spare", "hint": "h"}], "input_mask": {"hint": true}}),
        ),
        ("/spire.api.server.entry.v1.Entry/GetEntry", json!({"id": "spare"})),
        ("/spire.api.server.entry.v1.Entry/ListEntries", json!({})),
        (
            "/spire.api.server.entry.v1.Entry/ListEntries",
            json!({"filter": {"by_selectors": {"selectors": [{"type": "unix", "value": "uid:1"}], "match": 0}}}),
        ),
        (
            "/spire.api.server.entry.v1.Entry/CountEntries",
            json!({"filter": {"by_selectors": {"selectors": [{"type": "unix", "value": "uid:1"}], "match": 0}}}),
        ),
        ("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", json!({"ids": ["spare"]})),
        ("/spire.api.server.agent.v1.Agent/ListAgents", json!({})),
        ("/spire.api.server.agent.v1.Agent/CountAgents", json!({})),
        ("/spire.api.server.agent.v1.Agent/CreateJoinToken", json!({"ttl": 60})),
        (
            "/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle",
            json!({"bundle": [foreign("a.test"), foreign("b.test")]}),
        ),
        (
            "/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle",
            json!({"bundle": [foreign("a.test")]}),
        ),
        (
            "/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle",
            json!({"bundle": [foreign("b.test")]}),
        ),
        ("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", json!({})),
        ("/spire.api.server.bundle.v1.Bundle/CountBundles", json!({})),
        (
            "/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle",
            json!({"trust_domains": ["b.test"]}),
        ),
        (
            "/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship",
            json!({"federation_relationships": [relationship]}),
        ),
        (
            "/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship",
            json!({"federation_relationships": [relationship]}),
        ),
        ("/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships", json!({})),
        (
            "/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship",
            json!({"trust_domain": "foreign.test"}),
        ),
        (
            "/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship",
            json!({"trust_domains": ["foreign.test"]}),
        ),
        ("/spire.api.server.svid.v1.SVID/MintJWTSVID", json!({"id": id("/minted"), "audience": ["metrics"]})),
    ]
}
