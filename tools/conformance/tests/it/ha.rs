//! Servers that share a database: two of Finial's, and one of Finial's beside one of SPIRE's.
//!
//! Without `PostgreSQL` or `MariaDB` on this machine the checks on them count as skipped.
#![expect(clippy::disallowed_methods, reason = "deadlines for foreign processes")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use finial_conformance::{Crossing, Pair, Plane, PlaneConfig, Product, Workload, skip};
use serde_json::Value;
use testkit::database::{Database, Make, Server};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

fn settings(make: Make, database: &Database<'_>) -> String {
    let kind = match make {
        Make::Postgres => "postgres",
        Make::MariaDb => "mysql",
    };
    format!(r#"database_type = "{kind}" connection_string = "{}""#, database.connection_string())
}

/// A new database of a server that all checks share.
fn on(make: Make, check: impl FnOnce(&Database<'_>)) {
    match Server::shared(make) {
        Some(server) => check(&server.database().unwrap()),
        None => skip("ha", &format!("{make:?} is not installed")),
    }
}

/// Everything that must hold between the two servers.
fn check_all(pair: &Pair) {
    for (what, outcome) in [
        ("entries", pair.entries()),
        ("tokens", pair.tokens()),
        ("agents", pair.agents()),
        ("bundles", pair.bundles()),
        ("authorities", pair.authorities()),
    ] {
        if let Err(why) = outcome {
            panic!("{what}: {why}");
        }
    }
}

fn two_of_finial(make: Make) {
    on(make, |database| {
        let finial = Product::finial();
        check_all(&Pair::start(&recorded(), [&finial, &finial], &settings(make, database), true));
    });
}

fn beside_spire(make: Make) {
    match Crossing::of_both(&recorded()) {
        Some(both) => on(make, |database| {
            check_all(&Pair::start(&recorded(), both.products(), &settings(make, database), false));
        }),
        None => println!("SPIRE_BIN is not set: SPIRE is not here to be compared with"),
    }
}

#[test]
fn a07_ha_what_one_server_does_holds_on_the_other_on_postgres() {
    two_of_finial(Make::Postgres);
}

#[test]
fn a07_ha_what_one_server_does_holds_on_the_other_on_mariadb() {
    two_of_finial(Make::MariaDb);
}

#[test]
fn oracle_ha_what_one_server_does_holds_on_the_other_on_postgres() {
    beside_spire(Make::Postgres);
}

#[test]
fn oracle_ha_what_one_server_does_holds_on_the_other_on_mariadb() {
    beside_spire(Make::MariaDb);
}

#[test]
fn ha_at_rest_two_servers_make_four_transactions_a_second() {
    on(Make::Postgres, |database| {
        let finial = Product::finial();
        let settings = settings(Make::Postgres, database);
        let mut pair = Pair::start(&recorded(), [&finial, &finial], &settings, true);
        pair.join_agents();
        let transactions = || -> u64 {
            let sql = "SELECT pg_stat_clear_snapshot(); SELECT xact_commit + xact_rollback \
                       FROM pg_stat_database WHERE datname = current_database();";
            database.run(sql).unwrap().trim().parse().unwrap()
        };
        // An idle connection tells PostgreSQL's statistics of its last transactions only after ten
        // seconds: until then those of the start would be counted.
        std::thread::park_timeout(Duration::from_secs(15));

        let (before, began) = (transactions(), Instant::now());
        std::thread::park_timeout(Duration::from_secs(20));
        let (after, took) = (transactions(), began.elapsed().as_secs_f64());

        let rate = (after - before) as f64 / took;
        println!("two servers with an agent each, at rest: {rate:.2} transactions a second");
        assert!(rate <= 4.0, "{rate} transactions a second");
    });
}

/// Two servers, and an agent of the second: from the creation of an entry at the first to its X.509-SVID on
/// a stream of the agent's that was open, in milliseconds: half of the times, and nearly all.
fn reached(here: &Plane, there: &Plane, count: &str) -> (f64, f64) {
    let (socket, parent) = (there.word("asock"), "spiffe://example.org/node");
    let args = ["bench", "propagate", "-socketPath", "{sock}", "-agentSocketPath", socket];
    let own = ["-parentID", parent, "-count", count, "-output", "json"];
    let report: Value = serde_json::from_str(&here.ok("finial", &[&args[..], &own].concat())).unwrap();
    let figure = |name: &str| report["phases"][0]["latency"][name].as_f64().unwrap();
    (figure("p50"), figure("p99"))
}

fn two_servers(database: &Database<'_>, extra: &str) -> [Plane; 2] {
    let config = PlaneConfig {
        datastore: settings(Make::Postgres, database),
        server_extra: extra.to_owned(),
        log: "DEBUG".to_owned(),
        ..PlaneConfig::default()
    };
    let [here, mut there] = [(); 2].map(|()| Plane::start(&Product::finial(), &config, &BTreeMap::new()));
    there.join_agent(&config);
    [here, there]
}

#[test]
fn ha_an_entry_of_one_server_reaches_a_workload_behind_the_other_at_once() {
    on(Make::Postgres, |database| {
        let [here, there] = two_servers(database, "");
        // An entry that is made right after a poll waits for the next: a second.
        let check = |when: &str| {
            let (p50, p99) = reached(&here, &there, "20");
            println!("{when}: {p50:.1} ms, {p99:.1} ms");
            assert!(p50 < 700.0, "{when}: {p50} ms");
        };
        let (p50, p99) = reached(&there, &there, "20");
        println!("made at the agent's own server: {p50:.1} ms, {p99:.1} ms");
        check("at first");

        let listeners = "FROM pg_stat_activity WHERE datname = current_database() \
                         AND query LIKE 'LISTEN \"finial_changes\"%';";
        let killed = database.run(&format!("SELECT pg_terminate_backend(pid) {listeners}")).unwrap();
        assert_eq!(killed, "t\nt\n");
        let said = |text: &str| {
            let log = std::fs::read_to_string(there.dir().join("server.log")).unwrap();
            log.lines().filter(|line| line.contains(text)).count()
        };
        let patience = Instant::now() + Duration::from_secs(30);
        while said("Notified of other servers' changes again") == 0 {
            assert!(Instant::now() < patience, "the second server does not listen again");
            std::thread::park_timeout(Duration::from_millis(100));
        }
        check("after the listening connections were killed");
        assert_eq!(
            said("otified of other servers' changes"),
            2,
            "each change of the connection's is told once"
        );
    });
}

#[test]
fn ha_without_notifications_an_entry_reaches_the_other_server_within_seconds() {
    on(Make::Postgres, |database| {
        let [here, there] =
            two_servers(database, "experimental { finial { database_notifications = false } }");

        let (p50, p99) = reached(&here, &there, "5");

        println!("by polling: {p50:.1} ms, {p99:.1} ms");
        assert!((700.0..5000.0).contains(&p50), "{p50} ms");
        let listeners = database.run(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' \
                                      AND datname = current_database();",
        );
        assert_eq!(listeners.unwrap().trim(), "0");
    });
}

/// An agent whose server is killed goes on at the other one: its workloads' streams stay open, and are
/// told what is new there.
#[test]
fn ha_an_agent_goes_on_at_the_other_server_when_its_own_is_killed() {
    on(Make::Postgres, |database| {
        let config = PlaneConfig { datastore: settings(Make::Postgres, database), ..PlaneConfig::default() };
        let finial = Product::under_test();
        let [mut here, mut there] = [(); 2].map(|()| Plane::start(&finial, &config, &BTreeMap::new()));
        let further = format!("127.0.0.1:{}", there.word("port"));
        here.join_agent(&PlaneConfig {
            agent_extra: format!("experimental {{ finial {{ server_addresses = [\"{further}\"] }} }}"),
            ..config
        });
        let add = |server: &Plane, name: &str| {
            let id = format!("spiffe://example.org/{name}");
            let entry = ["-parentID", "spiffe://{td}/node", "-spiffeID", &id, "-selector", "unix:uid:{uid}"];
            let _shown =
                server.ok("server", &[&["entry", "create", "-socketPath", "{sock}"][..], &entry].concat());
            id
        };
        // Made at the other server, and at once asked for by a caller that has no identity yet.
        let first = add(&there, "first");
        let shown = here.ok("agent", &["api", "fetch", "x509", "-socketPath", "{asock}"]);
        assert!(shown.contains(&first), "{shown}");
        here.await_identities(&[&first]);
        let (sender, updates) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _entered = runtime.enter();
        let workload = Workload::at(here.word("asock"));
        let following =
            runtime.spawn(async move { workload.follow(move |ids, _| drop(sender.send(ids))).await });
        let patience = Duration::from_secs(60);
        let await_id = |id: &String| {
            while !updates.recv_timeout(patience).expect("the stream goes on").contains(id) {}
        };
        await_id(&first);

        // There, and back again.
        for name in ["second", "third", "fourth"] {
            let killed = Instant::now();
            let server = here.server().unwrap();
            server.signal("KILL");
            server.wait(patience);
            let late = add(&there, name);
            await_id(&late);
            println!("an entry made after the end of the agent's server took {:?}", killed.elapsed());
            here.start_server_again();
            std::mem::swap(&mut here, &mut there);
        }
        assert!(!following.is_finished());
        following.abort();
    });
}
