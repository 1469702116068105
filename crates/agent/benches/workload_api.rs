//! What one answer of the Workload API costs the agent: CPU of the thread that serves, over a real
//! socket, with the `unix` attestor. The client runs on another thread and is not counted.
#![expect(clippy::unwrap_used, reason = "a benchmark may fail loudly")]

extern crate finial_agent as agent;

#[path = "../tests/it/authority.rs"]
mod authority;
#[path = "../tests/it/config.rs"]
mod config;
#[expect(dead_code, reason = "tests use more of it")]
#[path = "../tests/it/signer.rs"]
mod signer;
#[expect(dead_code, reason = "tests use more of it")]
#[path = "../tests/it/world.rs"]
mod world;

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use client::{Address, WorkloadApi};
use criterion::{Criterion, criterion_group, criterion_main};
use plugin::{Host, PluginConfig};
use spiffe::TrustDomain;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use world::{World, entry};

/// An agent on a thread of its own.
struct Served {
    socket: PathBuf,
    thread: String,
    stop: CancellationToken,
}

impl Served {
    fn start() -> Self {
        let (tell, told) = mpsc::channel();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        thread::spawn(move || {
            runtime().block_on(async {
                let name = fs::read_link("/proc/thread-self").unwrap();
                let unix = plugins::tables::AGENT.workload_attestors.first().unwrap();
                let config = PluginConfig {
                    name: unix.name.to_owned(),
                    trust_domain: TrustDomain::parse("example.org").unwrap(),
                    data: String::new(),
                };
                let attestor = (unix.load)(config, Host::bare()).await.unwrap();
                let world = World::attested_by(vec![attestor], |_| {}).await;
                let own = format!("uid:{}", fs_uid());
                world.serve(&[entry("a", "/a", &[&own])]).await;
                tell.send((world.socket(), format!("/proc/{}/schedstat", name.display()))).unwrap();
                stopped.cancelled().await;
            });
        });
        let (socket, thread) = told.recv().unwrap();
        Self { socket, thread, stop }
    }

    fn client(&self) -> WorkloadApi {
        WorkloadApi::at(Address::unix(&self.socket)).unwrap()
    }

    /// How long its thread has been running.
    fn cpu(&self) -> Duration {
        let text = fs::read_to_string(&self.thread).unwrap();
        Duration::from_nanos(
            text.split_ascii_whitespace().next().and_then(|number| number.parse().ok()).unwrap(),
        )
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn fs_uid() -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap())
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn workload_api(criterion: &mut Criterion) {
    let served = Served::start();
    let runtime = runtime();
    let audience = ["audience".to_owned()];
    let mut group = criterion.benchmark_group("workload_api");
    let mut measure = |name: &str, call: &dyn Fn()| {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let before = served.cpu();
                (0..times).for_each(|_| call());
                served.cpu() - before
            });
        });
    };

    measure("first X.509-SVID on a new connection", &|| {
        runtime.block_on(async { served.client().x509_svids().await.unwrap() });
    });
    let client = runtime.block_on(async { served.client() });
    measure("X.509-SVID on an open connection", &|| {
        runtime.block_on(client.x509_svids()).unwrap();
    });
    measure("JWT-SVID from the cache", &|| {
        runtime.block_on(client.jwt_svids(&audience, None)).unwrap();
    });
    measure("X.509 bundles on an open connection", &|| {
        runtime.block_on(client.x509_bundles()).unwrap();
    });
    group.finish();
}

criterion_group!(benches, workload_api);
criterion_main!(benches);
