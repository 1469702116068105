//! What is measured of work that is hours apart.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use config::{PrometheusConfig, PruneAgents};
use runtime::clock::{Clock, ManualClock, SystemClock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{HOUR, Place};

/// The series that pruning makes, without `spire_server_`; those of calls have another one for times.
const CALLS: [&str; 11] = [
    "registration_entry_manager_prune",
    "node_manager_prune",
    "ca_manager_bundle_prune",
    "datastore_bundle_prune",
    "datastore_join_token_prune",
    "datastore_node_prune",
    "datastore_node_event_prune",
    "datastore_registration_entry_prune",
    "datastore_registration_entry_event_prune",
    "datastore_ca_journal_prune",
    "entry_cache_reload",
];

#[tokio::test]
async fn pruning_is_measured() {
    let mut place = Place::new();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let page = PrometheusConfig { host: "127.0.0.1".to_owned(), port: free.port(), tls: None };
    place.config.telemetry.prometheus = Some(page);
    place.config.prune_agents = Some(PruneAgents { expired_for: HOUR, batch_size: 10, tofu: true });
    let clock = ManualClock::new(SystemClock.now());
    let server = place.start_at(Arc::new(clock.clone())).await;
    let mut wanted: BTreeSet<String> =
        CALLS.iter().flat_map(|call| [call.to_string(), format!("{call}_elapsed_time_count")]).collect();
    // The first authority is gone from the bundle a day after its end.
    wanted.insert("ca_manager_bundle_pruned".to_owned());

    for _ in 0..10_000 {
        let page = read(free).await;
        wanted.retain(|name| !page.lines().any(|line| is_of(line, name)));
        if wanted.is_empty() {
            break;
        }
        clock.advance(HOUR);
    }

    assert_eq!(wanted, BTreeSet::new());
    server.stop().await;
}

fn is_of(line: &str, name: &str) -> bool {
    let rest = line.strip_prefix("spire_server_").and_then(|line| line.strip_prefix(name));
    rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
}

/// The page; empty while nobody serves it.
async fn read(address: SocketAddr) -> String {
    let mut page = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(address).await {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        stream.read_to_end(&mut page).await.unwrap();
    }
    String::from_utf8(page).unwrap()
}
