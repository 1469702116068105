//! A running plane seen by a workload that holds its streams open: rotation, changing entries, a new
//! authority, restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::plane::{Plane, PlaneConfig, Product};
use crate::wire::{Caller, Messages};
use crate::workload::{Svid, Svids, Workload};

const CREATE: &str = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
const UPDATE: &str = "/spire.api.server.entry.v1.Entry/BatchUpdateEntry";
const DELETE: &str = "/spire.api.server.entry.v1.Entry/BatchDeleteEntry";

/// How long a change may take to reach a workload: some rounds of an agent's synchronisation.
pub(crate) const REACH: Duration = Duration::from_secs(40);

/// The audience of all tokens here.
const AUDIENCE: &str = "live";

/// What happens to workloads while they look.
#[derive(Debug)]
pub struct Live {
    messages: Messages,
}

impl Live {
    /// Knows the API by the descriptors below `recorded`.
    #[must_use]
    pub fn load(recorded: &Path) -> Self {
        Self { messages: Messages::load(&recorded.join("api/api.fds")) }
    }

    /// An open stream sees an SVID with a short life renewed, three times over, never expired.
    ///
    /// # Errors
    /// Says what the workload saw instead.
    pub fn rotation(&self, product: &Product) -> Result<(), String> {
        let stage = Stage::set(product, &self.messages, "")?;
        stage.run(async {
            stage.create("short", "/short", json!({"x509_svid_ttl": 20})).await?;
            let mut stream = stage.stream_with(&["/short"]).await?;
            let mut serials = BTreeSet::new();
            while serials.len() < 4 {
                let svids = update(&mut stream).await?;
                serials.extend(svids.iter().map(Svid::serial));
            }
            Ok(())
        })
    }

    /// An open stream sees an entry added, changed and removed; without any entry left it is refused.
    ///
    /// # Errors
    /// Says what the workload saw instead.
    pub fn entries(&self, product: &Product) -> Result<(), String> {
        let stage = Stage::set(product, &self.messages, "")?;
        stage.run(async {
            stage.create("first", "/first", json!({})).await?;
            let mut stream = stage.stream_with(&["/first"]).await?;

            stage.create("second", "/second", json!({})).await?;
            seen(&mut stream, &["/first", "/second"], |_| true).await?;

            let changed = json!({"entries": [{"id": "second", "dns_names": ["changed.test"]}],
                "input_mask": {"dns_names": true}});
            stage.local.ask(UPDATE, changed).await?;
            let has_name = |svid: &Svid| svid.dns_names() == ["changed.test"];
            seen(&mut stream, &["/first", "/second"], |svids| svids.iter().any(has_name)).await?;

            stage.local.ask(DELETE, json!({"ids": ["second"]})).await?;
            seen(&mut stream, &["/first"], |_| true).await?;

            stage.local.ask(DELETE, json!({"ids": ["first"]})).await?;
            loop {
                match timeout(REACH, stream.next()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err((code, message)))
                        if code == "PERMISSION_DENIED" && message == "no identity issued" =>
                    {
                        return Ok(());
                    }
                    other => return Err(format!("the stream ends with {other:?}")),
                }
            }
        })
    }

    /// With the next sync an hour away an open stream sees entries come, change and go within moments;
    /// so it does after the server was restarted, softly and by force.
    ///
    /// # Errors
    /// Says what the workload saw instead.
    pub fn pushes(&self, product: &Product) -> Result<(), String> {
        let agent_extra = "experimental { sync_interval = \"1h\" }".to_owned();
        let config = PlaneConfig { agent_extra, ..PlaneConfig::default() };
        let mut stage = Stage::with(product, &self.messages, config)?;
        let mut stream = stage.run(async {
            stage.create("first", "/first", json!({})).await?;
            let mut stream = stage.stream_with(&["/first"]).await?;
            for round in 0..5 {
                let (name, path) = (format!("e{round}"), format!("/e{round}"));
                stage.create(&name, &path, json!({})).await?;
                seen(&mut stream, &["/first", &path], |_| true).await?;
                let dns = format!("{name}.test");
                let changed = json!({"entries": [{"id": name, "dns_names": [dns]}],
                    "input_mask": {"dns_names": true}});
                stage.local.ask(UPDATE, changed).await?;
                let has_name = |svid: &Svid| svid.dns_names() == [dns.as_str()];
                seen(&mut stream, &["/first", &path], |svids| svids.iter().any(has_name)).await?;
                stage.local.ask(DELETE, json!({"ids": [name]})).await?;
                seen(&mut stream, &["/first"], |_| true).await?;
            }
            Ok(stream)
        })?;
        for signal in ["TERM", "KILL"] {
            let server = stage.plane.server().ok_or("no server")?;
            server.signal(signal);
            server.wait(Duration::from_secs(30));
            stage.plane.start_server_again();
            let name = format!("after-{}", signal.to_lowercase());
            let path = format!("/{name}");
            stage.run(async {
                stage.create(&name, &path, json!({})).await?;
                seen(&mut stream, &["/first", &path], |_| true).await?;
                stage.local.ask(DELETE, json!({"ids": [name]})).await?;
                seen(&mut stream, &["/first"], |_| true).await
            })?;
        }
        Ok(())
    }

    /// A workload gets the bundle that its SVID comes with, and no WIT-SVIDs.
    ///
    /// # Errors
    /// Says what it got instead.
    pub fn bundles(&self, product: &Product) -> Result<(), String> {
        let stage = Stage::set(product, &self.messages, "")?;
        stage.run(async {
            stage.create("steady", "/steady", json!({})).await?;
            drop(stage.stream_with(&["/steady"]).await?);
            let mut stream = stage.workload.svids().await.map_err(|why| format!("{why:?}"))?;
            let svids = update(&mut stream).await?;
            let bundle: Vec<u8> = svids.iter().flat_map(|svid| svid.bundle.concat()).collect();

            let bundles = stage.workload.x509_bundles().await.map_err(|why| format!("{why:?}"))?;
            let refused = stage.workload.wit_refusals().await;

            let own = format!("spiffe://{}", stage.plane.word("td"));
            if bundles.len() != 1 || bundles.get(&own) != Some(&bundle) {
                return Err(format!("bundles of {:?}", bundles.keys()));
            }
            let unimplemented = Some("UNIMPLEMENTED".to_owned());
            if refused == [unimplemented.clone(), unimplemented] {
                Ok(())
            } else {
                Err(format!("{refused:?}"))
            }
        })
    }

    /// While the authorities with a short life are replaced, every SVID and token that a workload gets
    /// is valid by what it has at that moment, and so is each one it got before until that expires.
    ///
    /// # Errors
    /// Says what failed to validate.
    pub fn authorities(&self, product: &Product) -> Result<(), String> {
        let extra = "ca_ttl = \"80s\"\n  default_x509_svid_ttl = \"15s\"\n  default_jwt_svid_ttl = \"15s\"";
        let stage = Stage::set(product, &self.messages, extra)?;
        stage.run(async {
            stage.create("steady", "/steady", json!({})).await?;
            let mut stream = stage.stream_with(&["/steady"]).await?;
            let (mut issuers, mut keys) = (BTreeSet::new(), BTreeSet::new());
            let mut held: Vec<Svid> = Vec::new();
            let mut checked = 0;
            let deadline = Instant::now() + Duration::from_secs(240);
            while issuers.len() < 2 || keys.len() < 2 {
                if Instant::now() > deadline {
                    return Err(format!("in 240 s: issuers {issuers:?}, keys {keys:?}"));
                }
                if let Ok(next) = timeout(Duration::from_millis(500), stream.next()).await {
                    let svids = next.map_err(|why| format!("the stream ends with {why:?}"))?;
                    let bundle = svids.first().map(|svid| svid.bundle.clone()).unwrap_or_default();
                    // What peers still hold must be valid by the newest bundle.
                    held.retain(Svid::is_fresh);
                    for old in &held {
                        old.verify(&bundle)?;
                    }
                    issuers.extend(svids.iter().map(Svid::issuer));
                    checked += svids.len() + held.len();
                    held.extend(svids);
                }
                let token = stage.workload.token(AUDIENCE).await;
                let token = token.map_err(|why| format!("no token: {why:?}"))?;
                let validated = stage.workload.validate(AUDIENCE, &token).await;
                validated.map_err(|why| format!("{token} is refused: {why:?}"))?;
                keys.extend(token.split('.').next().map(str::to_owned));
                checked += 1;
            }
            eprintln!("{checked} validations across a new authority, none failed");
            Ok(())
        })
    }

    /// A workload keeps its identity while agent and server are restarted, softly and by force, and
    /// what changed meanwhile reaches it afterwards.
    ///
    /// # Errors
    /// Says what it lost.
    pub fn restarts(&self, product: &Product) -> Result<(), String> {
        let mut stage = Stage::set(product, &self.messages, "")?;
        let mut stream = stage.run(async {
            stage.create("first", "/first", json!({})).await?;
            stage.stream_with(&["/first"]).await
        })?;

        for signal in ["TERM", "KILL"] {
            let server = stage.plane.server().ok_or("no server")?;
            server.signal(signal);
            server.wait(Duration::from_secs(30));
            // The agent serves on without a server.
            stage.run(async { stage.stream_with(&["/first"]).await.map(drop) })?;
            stage.plane.start_server_again();
            let name = format!("after-{}", signal.to_lowercase());
            let path = format!("/{name}");
            stage.run(async {
                stage.create(&name, &path, json!({})).await?;
                seen(&mut stream, &["/first", &path], |_| true).await?;
                stage.local.ask(DELETE, json!({"ids": [name]})).await?;
                seen(&mut stream, &["/first"], |_| true).await
            })?;
        }

        for signal in ["TERM", "KILL"] {
            let agent = stage.plane.agent().ok_or("no agent")?;
            agent.signal(signal);
            agent.wait(Duration::from_secs(30));
            // The join token of its configuration is spent: only what it kept lets it in again.
            stage.plane.start_agent_again();
            stage.run(async { stage.stream_with(&["/first"]).await.map(drop) })?;
        }
        let agents = stage.plane.ok("server", &["agent", "count", "-socketPath", "{sock}"]);
        if agents.trim() == "1 attested agent" { Ok(()) } else { Err(format!("there are {agents}")) }
    }
}

/// A plane with an agent, this process as its workload.
pub(crate) struct Stage {
    /// The plane.
    pub(crate) plane: Plane,
    pub(crate) local: Caller,
    pub(crate) workload: Workload,
    runtime: Runtime,
}

impl Stage {
    /// Starts server and agent with `extra` lines in the server's configuration.
    pub(crate) fn set(product: &Product, messages: &Messages, extra: &str) -> Result<Self, String> {
        let config = PlaneConfig { server_extra: extra.to_owned(), ..PlaneConfig::default() };
        Self::with(product, messages, config)
    }

    /// Starts server and agent on a plane that deviates as `config` says.
    pub(crate) fn with(product: &Product, messages: &Messages, config: PlaneConfig) -> Result<Self, String> {
        let plane = Plane::start(product, &PlaneConfig { agent: true, ..config }, &BTreeMap::new());
        let runtime = Runtime::new().map_err(|error| error.to_string())?;
        let (local, workload) = {
            let _entered = runtime.enter();
            (Caller::local(messages, plane.word("sock")), Workload::at(plane.word("asock")))
        };
        Ok(Self { plane, local, workload, runtime })
    }

    /// Runs `work` to its end.
    pub(crate) fn run<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        self.runtime.block_on(work)
    }

    /// Adds an entry for this process with the given path and further fields.
    pub(crate) async fn create(&self, id: &str, path: &str, more: Value) -> Result<(), String> {
        let trust_domain = self.plane.word("td");
        let mut entry = json!({
            "id": id,
            "parent_id": {"trust_domain": trust_domain, "path": "/node"},
            "spiffe_id": {"trust_domain": trust_domain, "path": path},
            "selectors": [{"type": "unix", "value": format!("uid:{}", self.plane.word("uid"))}],
        });
        if let (Some(entry), Value::Object(more)) = (entry.as_object_mut(), more) {
            entry.extend(more);
        }
        // A server that was just started again drops the old connection at the first call.
        let mut created = self.local.ask(CREATE, json!({"entries": [entry]})).await;
        if created.is_err() {
            created = self.local.ask(CREATE, json!({"entries": [entry]})).await;
        }
        let created = created?;
        let status = &created["results"][0]["status"];
        if status["code"].is_null() { Ok(()) } else { Err(format!("entry {id}: {status}")) }
    }

    /// A stream that has just shown exactly the SVIDs of `paths`; tries again while there are others.
    pub(crate) async fn stream_with(&self, paths: &[&str]) -> Result<Svids, String> {
        let wanted: BTreeSet<String> = paths.iter().map(ToString::to_string).collect();
        let deadline = Instant::now() + REACH;
        loop {
            let attempt = async {
                let mut stream = self.workload.svids().await?;
                let svids = stream.next().await?;
                Ok::<_, (String, String)>((stream, svids))
            };
            let attempt = timeout(REACH, attempt).await;
            let attempt = attempt.map_err(|_| "a new stream says nothing".to_owned())?;
            let shown = match attempt {
                Ok((stream, svids)) if paths_of(&svids) == wanted => return Ok(stream),
                Ok((_, svids)) => format!("{:?}", paths_of(&svids)),
                Err(why) => format!("{why:?}"),
            };
            if Instant::now() > deadline {
                return Err(format!("a new stream shows {shown} instead of {wanted:?}"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn update(stream: &mut Svids) -> Result<Vec<Svid>, String> {
    let next = timeout(REACH, stream.next()).await;
    let next = next.map_err(|_| format!("no update within {REACH:?}"))?;
    next.map_err(|why| format!("the stream ends with {why:?}"))
}

/// Waits until the stream shows exactly the SVIDs of `paths` and `holds` is true of them.
pub(crate) async fn seen(
    stream: &mut Svids,
    paths: &[&str],
    holds: impl Fn(&[Svid]) -> bool,
) -> Result<(), String> {
    let wanted: BTreeSet<String> = paths.iter().map(ToString::to_string).collect();
    loop {
        let svids = update(stream).await.map_err(|why| format!("{why}, waiting for {wanted:?}"))?;
        if paths_of(&svids) == wanted && holds(&svids) {
            return Ok(());
        }
    }
}

fn paths_of(svids: &[Svid]) -> BTreeSet<String> {
    let path = |svid: &Svid| svid.id.splitn(4, '/').nth(3).map(|path| format!("/{path}"));
    svids.iter().filter_map(path).collect()
}
