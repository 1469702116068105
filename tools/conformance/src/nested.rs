//! Servers below servers: one trust domain on several levels, each with a server and an agent of its own,
//! and this process as a workload on every level.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::forced::command;
use crate::plane::{Plane, PlaneConfig, Product};
use crate::workload::{Svid, Svids, Workload};

/// How long something may take to go through all levels: each looks up every five seconds, and so does
/// its agent.
const REACH: Duration = Duration::from_secs(90);
/// How long one look at a stream takes.
const GLANCE: Duration = Duration::from_millis(50);
/// How long a server may take to end.
const FAREWELL: Duration = Duration::from_secs(30);
/// The audience of all tokens here.
const AUDIENCE: &str = "nested";

/// A chain of servers, the root first.
pub struct Nested {
    levels: Vec<Level>,
    runtime: Runtime,
}

struct Level {
    plane: Plane,
    workload: Workload,
    /// The identity of this process there.
    id: String,
}

/// What the workloads of all levels hold, and the judge of it.
struct Watch {
    streams: Vec<Svids>,
    held: Vec<Svid>,
    checks: usize,
}

impl Nested {
    /// Starts one level per product: each server is signed by the one above.
    ///
    /// # Errors
    /// If the runtime does not start.
    ///
    /// # Panics
    /// If a server or agent does not become healthy.
    pub fn start(products: &[&Product]) -> Result<Self, String> {
        let runtime = Runtime::new().map_err(|error| error.to_string())?;
        let mut levels: Vec<Level> = Vec::new();
        for (number, product) in products.iter().enumerate() {
            let server_plugins = levels.last().map_or_else(String::new, |above| {
                let (port, socket) = (above.plane.word("port"), above.plane.word("asock"));
                format!(
                    "UpstreamAuthority \"spire\" {{ plugin_data {{ server_address = \"127.0.0.1\" \
                     server_port = \"{port}\" workload_api_socket = \"{socket}\" }} }}"
                )
            });
            let config = PlaneConfig { server_plugins, agent: true, ..PlaneConfig::default() };
            let plane = Plane::start(product, &config, &BTreeMap::new());
            let id = plane.fill(&format!("spiffe://{{td}}/level-{number}"));
            let mut create =
                vec!["entry", "create", "-socketPath", "{sock}", "-parentID", "spiffe://{td}/node"];
            create.extend(["-spiffeID", &id, "-selector", "unix:uid:{uid}"]);
            // The server below is a workload here, of the same user as this process.
            if number + 1 < products.len() {
                create.push("-downstream");
            }
            let _shown = plane.ok("server", &create);
            plane.await_identities(&[&id]);
            let workload = {
                let _entered = runtime.enter();
                Workload::at(plane.word("asock"))
            };
            levels.push(Level { plane, workload, id });
        }
        Ok(Self { levels, runtime })
    }

    /// SVIDs carry the authorities between them and the root, and every level verifies those of every
    /// other level; so it does with tokens.
    ///
    /// # Errors
    /// Says which level refuses which.
    pub fn verify_each_other(&self) -> Result<(), String> {
        self.runtime.block_on(async {
            let watch = Watch::begin(&self.levels).await?;
            watch.judge()?;
            for (number, svid) in watch.held.iter().enumerate() {
                if svid.chain.len() != number + 1 {
                    return Err(format!(
                        "{} has {} certificates on level {number}",
                        svid.id,
                        svid.chain.len()
                    ));
                }
            }
            for from in &self.levels {
                for at in &self.levels {
                    Self::validate(from, at).await?;
                }
            }
            Ok(())
        })
    }

    /// A token of one level is valid on another, as soon as its key has come there.
    async fn validate(from: &Level, at: &Level) -> Result<(), String> {
        let deadline = Instant::now() + REACH;
        loop {
            let token = from.workload.token(AUDIENCE).await;
            let token = token.map_err(|why| format!("no token of {}: {why:?}", from.id))?;
            match at.workload.validate(AUDIENCE, &token).await {
                Ok(valid) if valid.spiffe_id == from.id => return Ok(()),
                other if Instant::now() > deadline => {
                    return Err(format!("{} sees the token of {} as {other:?}", at.id, from.id));
                }
                _ => tokio::time::sleep(Duration::from_millis(250)).await,
            }
        }
    }

    /// The root is replaced and the old one tainted, then revoked: the workloads of all levels go over to
    /// the new one, and at no time is one of them refused by another.
    ///
    /// # Errors
    /// Says what was refused, or did not happen in time.
    pub fn replace_root(&self) -> Result<(), String> {
        let root = &self.levels.first().ok_or("no levels")?.plane;
        self.runtime.block_on(async {
            let mut watch = Watch::begin(&self.levels).await?;
            let old = command(root, "x509", "show", "active", None)?;

            let new = command(root, "x509", "prepare", "prepared_authority", None)?;
            watch.until("both roots are everywhere", |svid| svid.bundle.len() == 2).await?;
            let two = watch.held.first().map(|svid| svid.bundle.clone()).unwrap_or_default();
            command(root, "x509", "activate", "activated_authority", Some(&new))?;
            command(root, "x509", "taint", "tainted_authority", Some(&old))?;
            let tainted = Instant::now();
            // What the old root signed is not verified by the other one alone.
            let first = watch.held.first().cloned().ok_or("no levels")?;
            let sound: Vec<_> =
                two.into_iter().filter(|der| first.verify(std::slice::from_ref(der)).is_err()).collect();
            for number in 0..self.levels.len() {
                watch
                    .until_level(number, "the new root is above it", |svid| svid.verify(&sound).is_ok())
                    .await?;
                eprintln!("level {number} is below the new root {:?} after the taint", tainted.elapsed());
            }

            command(root, "x509", "revoke", "revoked_authority", Some(&old))?;
            watch.until("the old root is gone", |svid| svid.bundle == sound).await?;
            eprintln!("{} validations across the levels, none failed", watch.checks);
            Ok(())
        })
    }

    /// A JWT key of the lowest server is revoked there, while the one above still publishes it: it is not
    /// taken from above again, neither after a restart nor by a server that lost its keys.
    ///
    /// # Errors
    /// Says when it came back, or what did not happen in time.
    pub fn revoke_key_below(&mut self) -> Result<(), String> {
        let [.., above, below] = &mut *self.levels else { return Err("no server below another".to_owned()) };
        let (above, below) = (&above.plane, &mut below.plane);
        let old = command(below, "jwt", "show", "active", None)?;
        let new = command(below, "jwt", "prepare", "prepared_authority", None)?;
        command(below, "jwt", "activate", "activated_authority", Some(&new))?;
        command(below, "jwt", "taint", "tainted_authority", Some(&old))?;
        command(below, "jwt", "revoke", "revoked_authority", Some(&old))?;
        for when in ["after the revocation", "after a restart", "after the loss of its keys"] {
            let fresh = command(above, "jwt", "prepare", "prepared_authority", None)?;
            let deadline = Instant::now() + REACH;
            loop {
                let known = jwt_keys(below)?;
                if known.contains(&old) {
                    return Err(format!("{when} {old} is back"));
                }
                if known.contains(&fresh) {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(format!("{when} {fresh} does not come from above"));
                }
                std::thread::park_timeout(GLANCE);
            }
            if !jwt_keys(above)?.contains(&old) {
                return Err(format!("{when} {old} is gone above too"));
            }
            let server = below.server().ok_or("no server")?;
            server.signal("TERM");
            server.wait(FAREWELL);
            if when == "after a restart" {
                let keys = below.dir().join("server-data/keys.json");
                std::fs::remove_file(keys).map_err(|error| error.to_string())?;
            }
            below.start_server_again();
        }
        Ok(())
    }
}

/// The ids of the JWT keys in the bundle of a server.
fn jwt_keys(plane: &Plane) -> Result<Vec<String>, String> {
    let shown = plane.ok("server", &["bundle", "show", "-format", "spiffe", "-socketPath", "{sock}"]);
    let shown: Value = serde_json::from_str(&shown).map_err(|error| format!("{shown}: {error}"))?;
    let keys = shown["keys"].as_array().into_iter().flatten();
    let ids = keys.filter(|key| key["use"] == "jwt-svid").filter_map(|key| key["kid"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

impl Watch {
    /// Opens a stream on every level and takes its first answer.
    async fn begin(levels: &[Level]) -> Result<Self, String> {
        let (mut streams, mut held) = (Vec::new(), Vec::new());
        for level in levels {
            let mut stream = level.workload.svids().await.map_err(|why| format!("{}: {why:?}", level.id))?;
            let svids = timeout(REACH, stream.next()).await;
            let svids = svids.map_err(|_| format!("{} gets no SVID", level.id))?;
            let svids = svids.map_err(|why| format!("{}: {why:?}", level.id))?;
            held.push(svids.into_iter().find(|svid| svid.id == level.id).ok_or("another identity")?);
            streams.push(stream);
        }
        Ok(Self { streams, held, checks: 0 })
    }

    /// Every SVID must be valid by every bundle, whoever holds it.
    fn judge(&self) -> Result<usize, String> {
        for bundle in self.held.iter().map(|svid| &svid.bundle) {
            for svid in &self.held {
                svid.verify(bundle)?;
            }
        }
        Ok(self.held.len() * self.held.len())
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Svid) -> bool) -> Result<(), String> {
        for number in 0..self.held.len() {
            self.until_level(number, what, &holds).await?;
        }
        Ok(())
    }

    /// Follows all streams until `holds` is true of one level.
    async fn until_level(
        &mut self,
        number: usize,
        what: &str,
        holds: impl Fn(&Svid) -> bool,
    ) -> Result<(), String> {
        let deadline = Instant::now() + REACH;
        while !self.held.get(number).is_some_and(&holds) {
            if Instant::now() > deadline {
                return Err(format!("level {number}: not within {REACH:?}: {what}"));
            }
            for (stream, held) in self.streams.iter_mut().zip(&mut self.held) {
                let Ok(next) = timeout(GLANCE, stream.next()).await else { continue };
                let svids = next.map_err(|why| format!("the stream of {} ends with {why:?}", held.id))?;
                let own = svids.into_iter().find(|svid| svid.id == held.id);
                *held = own.ok_or("the identity is gone")?;
            }
            self.checks += self.judge()?;
        }
        Ok(())
    }
}
