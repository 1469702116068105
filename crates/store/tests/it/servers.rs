//! What differs when the database is a server: it is shared, and it can be away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use finial_store::feed::{Federating, Feed, Limits};
use finial_store::{
    Agent, Attestation, Attested, DatabaseType, EntryFilter, JoinToken, Options, Reattest, Store, StoreError,
};
use spiffe::{Bundle, TrustDomain, UnixSecs, X509Authority};
use testkit::database::{Make, Server};

use crate::support::{Home, clock, entry, id, on_each_database, selector};

on_each_database! {
    async fn events_are_pruned_by_age(home: &Home) {
        let store = home.open();
        for path in ["/a", "/b", "/c"] {
            store.create_entry(entry(path, &["a:1"])).await.unwrap();
        }
        home.sql("UPDATE registered_entries_events SET created_at = '2020-01-01 00:00:00' WHERE id < 3;");

        let pruned = store.prune_events(Duration::from_secs(60)).await.unwrap().value;

        assert_eq!(pruned, 2);
        assert_eq!(store.entry_events_since(0).await.unwrap().len(), 1);
    }

    async fn a_turn_reads_what_was_written_meanwhile(home: &Home) {
        let store = home.open();
        let federating: Federating = Arc::new(|_| BTreeSet::new());
        let first = store.follow(Feed::new(Limits::DEFAULT), Arc::clone(&federating), true).await.unwrap();
        let new = store.create_entry(entry("/a", &["a:1"])).await.unwrap().value.stored.entry;
        store.create_agent(agent("/spire/agent/a")).await.unwrap();
        let domain = TrustDomain::parse("a.test").unwrap();
        store.set_bundle(Bundle::empty(domain.clone())).await.unwrap();

        let next = store.follow(first.feed, federating, true).await.unwrap();

        assert_eq!(next.rows.entries.len(), 1);
        assert_eq!(next.rows.entries[0].entry, new);
        assert_eq!(next.rows.agents.len(), 1);
        assert!(matches!(&next.rows.bundles[..], [(found, Some(_))] if *found == domain));
        let sums = next.fingerprint.unwrap();
        assert_eq!((sums.entries, sums.last_row, sums.revisions, sums.agents), (1, 1, 0, 1));
        assert_eq!(store.is_shared(), home.database() != DatabaseType::Sqlite);
    }
}

fn agent(path: &str) -> Agent {
    Agent {
        id: id(path),
        attestation_type: "join_token".to_owned(),
        serial: "1".to_owned(),
        expires_at: UnixSecs(2_000_000_000),
        new_serial: String::new(),
        new_expires_at: UnixSecs(0),
        can_reattest: false,
        agent_version: String::new(),
        selectors: Arc::from([selector("a:b")]),
    }
}

const SERVERS: [DatabaseType; 2] = [DatabaseType::Postgres, DatabaseType::MySql];

/// One database, opened as often as there are servers.
fn servers(home: &Home, count: usize) -> Vec<Store> {
    std::thread::scope(|scope| {
        let opening: Vec<_> = (0..count).map(|_| scope.spawn(|| home.open())).collect();
        opening.into_iter().map(|opened| opened.join().unwrap()).collect()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn j01_a_token_is_used_once_whoever_races_for_it() {
    // `cargo xtask soak` asks for more.
    let rounds: usize = std::env::var("FINIAL_RACE_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    for database in SERVERS {
        let Some(home) = Home::new(database) else { continue };
        // All of them find the database empty.
        let servers = servers(&home, 3);
        let mut used = 0;
        for round in 0..rounds {
            let text = format!("token{round}");
            let token = JoinToken { token: text.clone(), expires_at: UnixSecs(2_000_000_000) };
            servers[0].create_join_token(token, None).await.unwrap();
            let mut tasks = tokio::task::JoinSet::new();
            for (number, server) in servers.iter().cycle().take(32).enumerate() {
                let attestation = Attestation {
                    agent: agent(&format!("/spire/agent/join_token/{round}-{number}")),
                    reattest: Reattest::Refused,
                    join_token: Some(text.clone()),
                };
                let server = server.clone();
                tasks.spawn(async move { server.attest_agent(attestation).await.unwrap().value });
            }
            let outcomes = tasks.join_all().await;
            used += outcomes.iter().filter(|outcome| matches!(outcome, Attested::Done(_))).count();
        }

        assert_eq!(used, rounds, "{database:?}");
        assert_eq!(servers[1].load_agents().await.unwrap().len(), rounds, "{database:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn n03_of_many_that_attest_one_node_for_the_first_time_one_does() {
    let rounds: usize = std::env::var("FINIAL_RACE_ROUNDS").map_or(10, |rounds| rounds.parse().unwrap());
    for database in [DatabaseType::Sqlite, DatabaseType::Postgres, DatabaseType::MySql] {
        let Some(home) = Home::new(database) else { continue };
        // A file is one process's alone.
        let servers = servers(&home, if database == DatabaseType::Sqlite { 1 } else { 2 });
        for round in 0..rounds {
            let path = format!("/spire/agent/aws_iid/{round}");
            let first = || Attestation { agent: agent(&path), reattest: Reattest::Refused, join_token: None };
            let mut tasks = tokio::task::JoinSet::new();
            for server in servers.iter().cycle().take(64) {
                let (server, attestation) = (server.clone(), first());
                tasks.spawn(async move { server.attest_agent(attestation).await.unwrap().value });
            }
            let outcomes = tasks.join_all().await;
            let done = outcomes.iter().filter(|outcome| matches!(outcome, Attested::Done(_))).count();
            let known = outcomes.iter().filter(|outcome| **outcome == Attested::Exists).count();
            assert_eq!((done, known), (1, 63), "{database:?}: {outcomes:?}");

            // Nor a second time later, until it is evicted.
            let last = servers.last().unwrap();
            assert_eq!(last.attest_agent(first()).await.unwrap().value, Attested::Exists);
            if round == 0 {
                servers[0].delete_agent(id(&path)).await.unwrap();
                assert!(matches!(last.attest_agent(first()).await.unwrap().value, Attested::Done(_)));
            }
        }
        assert_eq!(servers[0].load_agents().await.unwrap().len(), rounds);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn servers_that_write_the_same_rows_all_get_through() {
    for database in SERVERS {
        let Some(home) = Home::new(database) else { continue };
        let servers = servers(&home, 3);
        let mut tasks = tokio::task::JoinSet::new();
        for (number, server) in servers.iter().enumerate() {
            for round in 0..20 {
                let server = server.clone();
                tasks.spawn(async move {
                    let mut bundle = Bundle::empty(TrustDomain::parse("a.test").unwrap());
                    let der: Arc<[u8]> = Arc::from([u8::try_from(number).unwrap(), round]);
                    bundle.x509_authorities.push(X509Authority { der, tainted: false });
                    server.append_bundle(bundle).await.unwrap();
                    let attestation = Attestation {
                        agent: agent(&format!("/spire/agent/{}", round % 5)),
                        reattest: Reattest::Allowed,
                        join_token: None,
                    };
                    server.attest_agent(attestation).await.unwrap();
                    let path = format!("/w{number}-{round}");
                    server.create_entry(entry(&path, &["a:1", "b:2"])).await.unwrap();
                });
            }
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }

        let bundle = servers[0].fetch_bundle(TrustDomain::parse("a.test").unwrap()).await.unwrap().unwrap();
        assert_eq!(bundle.x509_authorities.len(), 60, "{database:?}");
        assert_eq!(bundle.sequence_number, 59, "{database:?}");
        assert_eq!(servers[1].load_agents().await.unwrap().len(), 5, "{database:?}");
        assert_eq!(servers[2].count_entries(EntryFilter::default()).await.unwrap(), 60, "{database:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_told_at_once_and_found_again() {
    for (make, database) in [(Make::Postgres, DatabaseType::Postgres), (Make::MariaDb, DatabaseType::MySql)] {
        let Some(server) = Server::start(make) else { continue };
        let made = server.database().unwrap();
        let options = Options { database, ..Options::new(made.connection_string(), clock()) };
        let store = Store::open(&options).unwrap();
        store.create_entry(entry("/before", &["a:1"])).await.unwrap();
        store.load_entries().await.unwrap();

        server.down().unwrap();
        let started = tokio::time::Instant::now();
        let read = store.load_entries().await.unwrap_err();
        let written = store.create_entry(entry("/during", &["a:1"])).await.unwrap_err();
        let took = started.elapsed();
        let opened = Store::open(&options).unwrap_err();

        assert!(matches!(read, StoreError::Unavailable(_)), "{read:?}");
        assert!(matches!(written, StoreError::Unavailable(_)), "{written:?}");
        assert!(matches!(opened, StoreError::Unavailable(_)), "{opened:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");

        server.up().unwrap();
        let started = tokio::time::Instant::now();
        while store.create_entry(entry("/after", &["a:1"])).await.is_err() {
            assert!(started.elapsed() < Duration::from_secs(5), "{make:?} is back, and not found");
            tokio::task::yield_now().await;
        }
        assert_eq!(store.load_entries().await.unwrap().len(), 2);
    }
}

#[test]
fn s05_passwords_are_in_no_error() {
    for (database, string) in [
        (DatabaseType::Postgres, "host=/nowhere user=me password=pw7 dbname=d"),
        (DatabaseType::MySql, "me:pw7@unix(/nowhere/socket)/d?parseTime=true"),
    ] {
        let options = Options { database, ..Options::new(string, clock()) };

        let error = Store::open(&options).unwrap_err();

        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        let text = format!("{error} {error:?} {options:?}");
        assert!(text.contains("/nowhere") && !text.contains("pw7"), "{text}");
    }
}
