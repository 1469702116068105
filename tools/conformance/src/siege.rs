//! A server under attack, and what honest callers notice of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use crate::frames::{PREFACE, attacks, call, frame, half_open};
use crate::plane::{Plane, PlaneConfig, Product};
use crate::storm::storm;
use crate::wire::{Caller, Messages, Shown, client_config};

const COUNT: &str = "/spire.api.server.entry.v1.Entry/CountEntries";
const ATTEST: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";
const ADMIN: &str = "spiffe://example.org/admin";

/// The addresses of this machine that attackers come from.
const ADDRESSES: u8 = 64;

/// What is done to the server, for as long as its callers are watched.
#[derive(Clone, Copy, Debug)]
pub enum Attack {
    /// So many connections from 64 addresses that never become any, again and again.
    HalfOpen(usize),
    /// Connections without a certificate from one address, more than it may have.
    Anonymous,
    /// Calls that are taken back as they are made.
    Resets,
    /// Attestations with tokens that nobody made, from one address.
    Attestations,
    /// Calls whose answers nobody reads.
    Unread,
    /// Frames of chance.
    Frames,
    /// More connections than the server has descriptors for.
    Descriptors,
}

/// What honest callers saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Noticed {
    /// Calls that were made; all were answered.
    pub calls: usize,
    /// Of a hundred calls on a connection that is open, ninety-nine took no longer.
    pub open: Duration,
    /// The same with a connection of their own.
    pub fresh: Duration,
}

/// A server, and an administrator who calls it over TLS.
pub struct Siege {
    plane: Plane,
    messages: Messages,
    admin: Arc<Shown>,
    runtime: Runtime,
}

impl std::fmt::Debug for Siege {
    /// Without the administrator's key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Siege").field("plane", &self.plane).finish_non_exhaustive()
    }
}

impl Siege {
    /// Starts a server, after a shell has done what `prelude` says.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn lay(product: &Product, recorded: &Path, prelude: &str) -> Self {
        let config = PlaneConfig {
            server_extra: format!("admin_ids = [\"{ADMIN}\"]"),
            server_prelude: prelude.to_owned(),
            ..PlaneConfig::default()
        };
        let plane = Plane::start(product, &config, &BTreeMap::new());
        let messages = Messages::load(&recorded.join("api/api.fds"));
        let runtime = Runtime::new().expect("a runtime");
        let admin =
            runtime.block_on(async { Caller::local(&messages, plane.word("sock")).mint(ADMIN).await });
        let admin = Arc::new(admin.expect("an SVID"));
        Self { plane, messages, admin, runtime }
    }

    /// The plane.
    pub const fn plane(&mut self) -> &mut Plane {
        &mut self.plane
    }

    /// What callers notice while nothing is wrong.
    ///
    /// # Errors
    /// A call fails.
    pub fn quiet(&self, time: Duration) -> Result<Noticed, String> {
        self.runtime.block_on(self.watch(time, true))
    }

    /// What callers notice while connections like these are made to somebody else on this machine, which
    /// they share with them: what is left of it under [`Attack::HalfOpen`] is the server's own.
    ///
    /// # Errors
    /// A call fails.
    ///
    /// # Panics
    /// If nobody else can be.
    pub fn beside_a_crowd(&self, count: usize, time: Duration) -> Result<Noticed, String> {
        let bystander = Runtime::new().expect("a runtime");
        let address = bystander.block_on(async {
            let listener = tokio::net::TcpSocket::new_v4().expect("a socket");
            listener.bind(([127, 0, 0, 1], 0).into()).expect("a port");
            let listener = listener.listen(4096).expect("a port");
            let address = listener.local_addr().expect("an address");
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
                    });
                }
            });
            address
        });
        let stop = Arc::new(AtomicBool::new(false));
        let attackers = again(&stop, move || drop(crowd(address, count)));
        let noticed = self.runtime.block_on(self.watch(time, true));
        stop.store(true, Ordering::Relaxed);
        attackers.join().map_err(|_| "the crowd ended in a panic")?;
        bystander.shutdown_background();
        noticed
    }

    /// What callers notice under this attack.
    ///
    /// # Errors
    /// A call fails.
    pub fn under(&self, attack: Attack, time: Duration) -> Result<Noticed, String> {
        let stop = Arc::new(AtomicBool::new(false));
        let attackers = self.attack(attack, &stop);
        let with_fresh = !matches!(attack, Attack::Descriptors);
        let noticed = self.runtime.block_on(async {
            // An open connection is there before there is no descriptor for it.
            self.watch(time, with_fresh).await
        });
        stop.store(true, Ordering::Relaxed);
        for attacker in attackers {
            attacker.join().map_err(|_| format!("{attack:?} ended in a panic"))?;
        }
        noticed
    }

    /// How long it takes, from now on, until somebody new is served.
    ///
    /// # Errors
    /// Nobody is within 20 s.
    pub fn recovery(&self) -> Result<Duration, String> {
        let begun = Instant::now();
        self.runtime.block_on(async {
            while begun.elapsed() < Duration::from_secs(20) {
                let caller = Caller::tls(&self.messages, self.plane.word("port"), Some(&self.admin));
                if caller.ask(COUNT, json!({})).await.is_ok() {
                    return Ok(begun.elapsed());
                }
            }
            Err("nobody new is served within 20 s".to_owned())
        })
    }

    /// Calls, for so long, on an open connection, and if wanted on fresh ones.
    async fn watch(&self, time: Duration, with_fresh: bool) -> Result<Noticed, String> {
        let caller = Caller::tls(&self.messages, self.plane.word("port"), Some(&self.admin));
        caller.ask(COUNT, json!({})).await?;
        let (mut open, mut fresh) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            let begun = Instant::now();
            caller.ask(COUNT, json!({})).await.map_err(|why| format!("on an open connection: {why}"))?;
            open.push(begun.elapsed());
            if with_fresh {
                let begun = Instant::now();
                let caller = Caller::tls(&self.messages, self.plane.word("port"), Some(&self.admin));
                caller.ask(COUNT, json!({})).await.map_err(|why| format!("on a fresh connection: {why}"))?;
                fresh.push(begun.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let calls = open.len() + fresh.len();
        Ok(Noticed { calls, open: ninety_nine(open), fresh: ninety_nine(fresh) })
    }

    fn attack(&self, attack: Attack, stop: &Arc<AtomicBool>) -> Vec<std::thread::JoinHandle<()>> {
        let port = self.plane.word("port").to_owned();
        let address: SocketAddr = format!("127.0.0.1:{port}").parse().expect("an address");
        let again = |act: Box<dyn Fn() + Send>| vec![again(stop, act)];
        match attack {
            Attack::HalfOpen(count) => again(Box::new(move || drop(crowd(address, count)))),
            Attack::Descriptors => {
                let held = crowd(address, 400);
                let stop = Arc::clone(stop);
                vec![std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        crate::plane::pause();
                    }
                    drop(held);
                })]
            }
            Attack::Anonymous => again(Box::new(move || {
                let preface = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
                spoken(&port, 300, &preface, Duration::from_millis(200));
            })),
            Attack::Resets => again(Box::new(move || {
                let resets = attacks().into_iter().find(|(name, _)| *name == "calls taken back at once");
                let (_, bytes) = resets.expect("that attack");
                spoken(&port, 4, &bytes, Duration::ZERO);
            })),
            Attack::Unread => again(Box::new(move || {
                spoken(&port, 50, &unread_calls(), Duration::from_millis(500));
            })),
            Attack::Frames => {
                let seed = std::sync::atomic::AtomicU64::new(1);
                again(Box::new(move || {
                    let seed = seed.fetch_add(1, Ordering::Relaxed);
                    let runtime = Runtime::new().expect("a runtime");
                    drop(runtime.block_on(storm(&port, seed << 32, 64)));
                }))
            }
            Attack::Attestations => {
                let messages = self.messages.clone();
                again(Box::new(move || {
                    let runtime = Runtime::new().expect("a runtime");
                    runtime.block_on(async {
                        let caller = Caller::tls(&messages, &port, None);
                        let params = json!({"params": {
                            "data": {"type": "join_token", "payload": BASE64_STANDARD.encode("nobody's")},
                            "params": {"csr": BASE64_STANDARD.encode("none")},
                        }});
                        let mut calls = tokio::task::JoinSet::new();
                        for _ in 0..64 {
                            let (caller, params) = (caller.clone(), params.clone());
                            calls.spawn(async move { drop(caller.call(ATTEST, &[params], &[]).await) });
                        }
                        // Most of them wait for their turn; they are taken back.
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    });
                }))
            }
        }
    }
}

/// Does this on a thread of its own, over and over.
fn again(stop: &Arc<AtomicBool>, act: impl Fn() + Send + 'static) -> std::thread::JoinHandle<()> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        give_way();
        while !stop.load(Ordering::Relaxed) {
            act();
        }
    })
}

/// Has this thread, and those it starts, take of this machine's processors what nobody else wants. Attackers
/// of a server have machines of their own.
fn give_way() {
    let thread = std::fs::read_link("/proc/thread-self").expect("the number of this thread");
    let number = thread.file_name().expect("the number of this thread");
    let given = std::process::Command::new("renice").args(["-n", "19", "-p"]).arg(number).output();
    assert!(given.is_ok_and(|given| given.status.success()), "renice is there");
}

/// Connections from 64 addresses, some silent, some in the middle of a greeting.
fn crowd(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::with_capacity(count);
    let each = count.div_ceil(usize::from(ADDRESSES));
    for number in 0..ADDRESSES {
        let from = IpAddr::V4(Ipv4Addr::new(127, 0, 7, number));
        let bytes: &[u8] = if number % 2 == 0 { b"" } else { &[22, 3, 1, 2, 0, 1, 0] };
        held.extend(half_open(from, address, each, bytes));
    }
    held
}

/// Connections over TLS without a certificate that say this, kept for a while.
fn spoken(port: &str, count: usize, bytes: &[u8], keep: Duration) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let connector = TlsConnector::from(Arc::new(client_config(None, rustls::DEFAULT_VERSIONS)));
        let port: u16 = port.parse().expect("a port");
        let mut held = Vec::new();
        for _ in 0..count {
            let Ok(stream) = attacker(port).await else { continue };
            let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
            let Ok(mut stream) = connector.connect(name, stream).await else { continue };
            let told = stream.write_all(bytes);
            // The server may hang up, or take no more.
            drop(tokio::time::timeout(Duration::from_secs(2), told).await);
            held.push(stream);
        }
        tokio::time::sleep(keep).await;
    });
}

/// A connection from an address that is no honest caller's: what one address may have is its own matter.
async fn attacker(port: u16) -> std::io::Result<tokio::net::TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(([127, 9, 9, 9], 0).into())?;
    socket.connect(([127, 0, 0, 1], port).into()).await
}

/// Calls of a method with an answer, over a connection that lets none of it through.
fn unread_calls() -> Vec<u8> {
    // The window of each call is 0.
    let mut bytes = [PREFACE, &frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    for number in 0..100 {
        bytes.extend(call(2 * number + 1, "/spire.api.server.bundle.v1.Bundle/GetBundle", &fields));
    }
    bytes
}

/// Of a hundred of these times, ninety-nine are no longer.
pub(crate) fn ninety_nine(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let at = (times.len() * 99).div_ceil(100).saturating_sub(1);
    times.get(at).copied().unwrap_or_default()
}
