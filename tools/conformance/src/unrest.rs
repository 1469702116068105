//! An agent under attack by another user of its machine, and what honest workloads notice of it.
//!
//! The attackers are other processes, of a user without privileges: this very program, told to be one.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::frames::{PREFACE, call, frame};
use crate::plane::{Plane, PlaneConfig, Product, Running};
use crate::siege::{Noticed, ninety_nine};
use crate::workload::Workload;

/// What attackers say, once, when they were held to their limit.
const BITTEN: &str = "held to the limit";

const X509_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
const X509_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchX509Bundles";

/// Who honest workloads are.
const HONEST: &str = "spiffe://example.org/honest";

/// How often a second callers with the same selectors may ask for their SVIDs.
const RATE: u32 = 200;

/// What is done to the agent, for as long as its workloads are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Riot {
    /// More connections than one user may have, again and again.
    Connections,
    /// More streams on each connection than it may have.
    Streams,
    /// Many more attestations at once than one user may have.
    Attestations,
    /// Attestations that take longer than an attestor may: of programs that take minutes to hash.
    SlowAttestations,
    /// More calls in a second than callers with these selectors may make.
    Rate,
}

impl Riot {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Connections, Self::Streams, Self::Attestations, Self::SlowAttestations, Self::Rate];

    /// That of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|riot| format!("{riot:?}") == name)
    }
}

/// An agent, and a workload of root's that calls it.
#[derive(Debug)]
pub struct Unrest {
    plane: Plane,
    runtime: Runtime,
}

impl Unrest {
    /// Starts a server and an agent.
    ///
    /// # Panics
    /// If they do not become healthy.
    #[must_use]
    pub fn prepare(product: &Product) -> Self {
        Self { plane: plane(product), runtime: Runtime::new().expect("a runtime") }
    }

    /// The plane.
    pub const fn plane(&mut self) -> &mut Plane {
        &mut self.plane
    }

    /// What workloads notice while nothing is wrong.
    ///
    /// # Errors
    /// A call fails.
    pub fn quiet(&self, time: Duration) -> Result<Noticed, String> {
        self.runtime.block_on(self.watch(time))
    }

    /// What workloads notice under this attack, by attackers that `part` of this program makes.
    ///
    /// # Errors
    /// A call fails.
    ///
    /// # Panics
    /// If there are no attackers, or they come to no limit.
    pub fn under(
        &self,
        riot: Riot,
        time: Duration,
        part: impl Fn(&mut Command, Riot, &str),
    ) -> Result<Noticed, String> {
        let attackers = start(&self.plane, riot, part);
        let noticed = self.runtime.block_on(self.watch(time));
        drop(attackers);
        noticed
    }

    /// What workloads notice while the same is done to another agent of the machine, which they share with
    /// both: what is left of it under the attack is their agent's own.
    ///
    /// # Errors
    /// A call fails.
    ///
    /// # Panics
    /// If there is no other agent, are no attackers, or they come to no limit.
    pub fn beside(
        &self,
        product: &Product,
        riot: Riot,
        time: Duration,
        part: impl Fn(&mut Command, Riot, &str),
    ) -> Result<Noticed, String> {
        let other = plane(product);
        let attackers = start(&other, riot, part);
        let noticed = self.runtime.block_on(self.watch(time));
        drop(attackers);
        noticed
    }

    /// How long the agent's thread that serves workloads is at work between an honest call on a connection
    /// of its own and the answer, for this one and for others: the mean of so many.
    ///
    /// # Errors
    /// A call fails.
    ///
    /// # Panics
    /// If there is no such thread.
    pub fn quiet_work(&mut self, calls: u32) -> Result<Duration, String> {
        let thread = self.serving_thread();
        self.runtime.block_on(self.work(&thread, calls))
    }

    /// The same under this attack.
    ///
    /// # Errors
    /// A call fails.
    ///
    /// # Panics
    /// If there is no such thread, are no attackers, or they come to no limit.
    pub fn work_under(
        &mut self,
        riot: Riot,
        calls: u32,
        part: impl Fn(&mut Command, Riot, &str),
    ) -> Result<Duration, String> {
        let thread = self.serving_thread();
        let attackers = start(&self.plane, riot, part);
        let work = self.runtime.block_on(self.work(&thread, calls));
        drop(attackers);
        work
    }

    /// Where the system says how long the agent's thread that serves workloads has been at work.
    fn serving_thread(&mut self) -> PathBuf {
        let agent = self.plane.agent().expect("an agent").pid();
        let threads = std::fs::read_dir(format!("/proc/{agent}/task")).expect("the agent's threads");
        let mut threads = threads.map(|thread| thread.expect("a thread").path());
        let serves =
            |thread: &PathBuf| std::fs::read(thread.join("comm")).is_ok_and(|name| name == b"workloads\n");
        threads.find(serves).expect("a thread that serves workloads").join("schedstat")
    }

    async fn work(&self, thread: &Path, calls: u32) -> Result<Duration, String> {
        let at_work = || {
            let figures = std::fs::read_to_string(thread).expect("figures of a thread");
            let nanoseconds = figures.split(' ').next().and_then(|figure| figure.parse().ok());
            Duration::from_nanos(nanoseconds.expect("nanoseconds"))
        };
        let before = at_work();
        for _ in 0..calls {
            ask(&Workload::at(self.plane.word("asock"))).await?;
        }
        Ok((at_work() - before) / calls)
    }

    /// Calls, for so long, on an open connection and on fresh ones.
    async fn watch(&self, time: Duration) -> Result<Noticed, String> {
        let socket = self.plane.word("asock");
        let kept = Workload::at(socket);
        ask(&kept).await?;
        let (mut open, mut fresh) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            let begun = Instant::now();
            ask(&kept).await.map_err(|why| format!("on an open connection: {why}"))?;
            open.push(begun.elapsed());
            let begun = Instant::now();
            ask(&Workload::at(socket)).await.map_err(|why| format!("on a fresh connection: {why}"))?;
            fresh.push(begun.elapsed());
            // Two calls in that time are well below the limit.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let calls = open.len() + fresh.len();
        Ok(Noticed { calls, open: ninety_nine(open), fresh: ninety_nine(fresh) })
    }
}

/// A server, and an agent that everybody on the machine can reach.
fn plane(product: &Product) -> Plane {
    let config = PlaneConfig {
        agent: true,
        agent_extra: format!("experimental {{ ratelimit {{ fetch_x509_svid = {RATE} }} }}"),
        workload_attestor: "discover_workload_path = true".to_owned(),
        ..PlaneConfig::default()
    };
    let plane = Plane::start(product, &config, &BTreeMap::new());
    for (id, selector) in [(HONEST, "unix:uid:{uid}"), ("spiffe://{td}/other", "unix:uid:65534")] {
        let entry = ["-parentID", "spiffe://{td}/node", "-spiffeID", id, "-selector", selector];
        let create = ["entry", "create", "-socketPath", "{sock}"];
        let _said = plane.ok("server", &[&create[..], &entry].concat());
    }
    plane.await_identities(&[HONEST]);
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(plane.dir(), open).expect("the folder of the plane");
    plane
}

/// Starts attackers of the agent of `plane` and waits until they are at it.
fn start(plane: &Plane, riot: Riot, part: impl Fn(&mut Command, Riot, &str)) -> Vec<Running> {
    let attackers = attackers(plane, riot, part);
    if riot == Riot::SlowAttestations {
        // Half a minute until the first is over.
        std::thread::park_timeout(Duration::from_millis(500));
    } else {
        attackers.iter().for_each(|attacker| attacker.await_said(BITTEN));
    }
    attackers
}

fn attackers(plane: &Plane, riot: Riot, part: impl Fn(&mut Command, Riot, &str)) -> Vec<Running> {
    let own = std::env::current_exe().expect("this program");
    // Each with a program of its own, where that takes long to hash.
    let (count, size) = if riot == Riot::SlowAttestations { (4, Some(1_u64 << 38)) } else { (1, None) };
    let start = |number: usize| {
        let program: PathBuf = plane.dir().join(format!("attacker-{riot:?}-{number}"));
        // By another process: what a fork of this one holds open for writing cannot be run.
        let copied = Command::new("cp").arg(&own).arg(&program).status();
        assert!(copied.expect("cp can be run").success(), "room for a program");
        if let Some(size) = size {
            let grown = Command::new("truncate").arg(format!("--size={size}")).arg(&program).status();
            assert!(grown.expect("truncate can be run").success(), "a program with a hole");
        }
        let mut command = Command::new("prlimit");
        command.arg("--nofile=8192").args(["setpriv", "--reuid=65534", "--regid=65534"]);
        command.arg("--clear-groups").arg(program);
        part(&mut command, riot, plane.word("asock"));
        Running::start(command.current_dir("/"))
    };
    (0..count).map(start).collect()
}

async fn ask(workload: &Workload) -> Result<(), String> {
    let asked = tokio::time::timeout(Duration::from_secs(20), workload.ids()).await;
    match asked.map_err(|_| "no answer".to_owned())? {
        Ok(ids) if ids == [HONEST] => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Attacks the agent on `socket`, until it is killed.
///
/// # Panics
/// If nobody listens there.
pub fn attack_agent(riot: Riot, socket: &Path) {
    let bitten = std::sync::Once::new();
    let bite = || bitten.call_once(|| eprintln!("{BITTEN}"));
    loop {
        match riot {
            Riot::Connections => {
                let greeting = [PREFACE, &frame(4, 0, 0, &[])].concat();
                let mut held: Vec<UnixStream> = Vec::new();
                for _ in 0..1500 {
                    let Ok(mut stream) = UnixStream::connect(socket) else { continue };
                    stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a time limit");
                    // Whoever has too many is hung up on instead of being greeted.
                    if stream.write_all(&greeting).is_err() || stream.read_exact(&mut [0; 9]).is_err() {
                        bite();
                    } else {
                        held.push(stream);
                    }
                }
            }
            Riot::Streams => {
                let mut connections: Vec<_> = (0..20)
                    .map(|_| ask_at_once(socket, X509_SVID, 250))
                    .collect::<Result<_, _>>()
                    .unwrap_or_default();
                for connection in &mut connections {
                    if refused_streams(connection) > 0 {
                        bite();
                    }
                }
            }
            // The first time with a client that can tell why it is refused.
            Riot::Rate if !bitten.is_completed() => {
                if ask_with_clients(socket).iter().any(|said| said.contains("rate limit exceeded")) {
                    bite();
                }
            }
            Riot::Attestations | Riot::Rate => {
                let method = if riot == Riot::Rate { X509_SVID } else { X509_BUNDLES };
                let mut connections: Vec<_> = (0..20)
                    .map(|_| ask_at_once(socket, method, 99))
                    .collect::<Result<_, _>>()
                    .unwrap_or_default();
                // Those above the number that are attested at once wait for their turn: that bites by itself.
                bite();
                connections.iter_mut().for_each(|connection| await_answers(connection, 99));
            }
            Riot::SlowAttestations => {
                let _refused = ask_with_clients(socket);
                bite();
            }
        }
    }
}

/// A thousand calls at once, by proper clients; what those are told that are refused.
fn ask_with_clients(socket: &Path) -> Vec<String> {
    let calls = async {
        let mut calls = tokio::task::JoinSet::new();
        for connection in 0..20 {
            let workload = Workload::at(&socket.display().to_string());
            for _ in 0..if connection == 0 { 99 } else { 50 } {
                let workload = workload.clone();
                calls.spawn(async move { workload.ids().await });
            }
        }
        calls.join_all().await
    };
    let answers = Runtime::new().expect("a runtime").block_on(calls);
    answers.into_iter().filter_map(|answer| answer.err().map(|(_, said)| said)).collect()
}

/// A connection on which this was called so often at once.
fn ask_at_once(socket: &Path, method: &str, count: u32) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    // The settings of the agent are known as soon as they are said to be.
    let mut bytes = [PREFACE, &frame(4, 0, 0, &[])].concat();
    stream.write_all(&bytes)?;
    await_settings(&mut stream)?;
    // Room for all answers.
    bytes = [frame(4, 1, 0, &[]), frame(8, 0, 0, &(1_u32 << 30).to_be_bytes())].concat();
    let fields = [("content-type", "application/grpc"), ("te", "trailers"), ("workload.spiffe.io", "true")];
    for number in 0..count {
        bytes.extend(call(2 * number + 1, method, &fields));
    }
    stream.write_all(&bytes)?;
    Ok(stream)
}

/// Reads the settings of an agent; how many streams at once they allow.
fn await_settings(stream: &mut UnixStream) -> std::io::Result<Option<u32>> {
    loop {
        let (kind, flags, _, payload) = read_frame(stream)?;
        if kind == 4 && flags & 1 == 0 {
            let mut settings = payload.chunks_exact(6);
            let allowed = settings.find(|setting| setting[..2] == [0, 3]);
            return Ok(
                allowed.map(|setting| u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]))
            );
        }
    }
}

/// Waits until so many calls have an answer, or the agent has fallen silent.
fn await_answers(stream: &mut UnixStream, calls: u32) {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const END_STREAM: u8 = 1;
    stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a time limit");
    let mut answered = 0;
    while answered < calls {
        match read_frame(stream) {
            Ok((DATA, ..)) => answered += 1,
            Ok((HEADERS, flags, ..)) if flags & END_STREAM != 0 => answered += 1,
            Ok(_) => {}
            Err(_) => break,
        }
    }
}

/// How many of its streams the agent refuses, as far as it says so before it falls silent.
fn refused_streams(stream: &mut UnixStream) -> usize {
    const RESET: u8 = 3;
    let mut refused = 0;
    while let Ok((kind, _, _, payload)) = read_frame(stream) {
        // For the reason that gRPC's clients take for one to ask again: REFUSED_STREAM.
        refused += usize::from(kind == RESET && payload == [0, 0, 0, 7]);
    }
    refused
}

fn read_frame(stream: &mut UnixStream) -> std::io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
    stream.read_exact(&mut payload)?;
    Ok((kind, flags, u32::from_be_bytes([s0, s1, s2, s3]), payload))
}

/// How many streams at once an agent says that a connection may have, and how many of `count` it refuses.
///
/// # Panics
/// If the agent does not speak HTTP/2.
#[must_use]
pub fn streams_allowed(socket: &Path, count: u32) -> (Option<u32>, usize) {
    let mut greeted = UnixStream::connect(socket).expect("somebody listens");
    greeted.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).expect("a greeting");
    let allowed = await_settings(&mut greeted).expect("settings");
    let mut asked = ask_at_once(socket, X509_SVID, count).expect("calls");
    (allowed, refused_streams(&mut asked))
}
