//! Servers that share a database: two of Finial's, and one of Finial's beside one of SPIRE's.
//!
//! Without `PostgreSQL` or `MariaDB` on this machine the checks on them count as skipped.
#![expect(clippy::disallowed_methods, reason = "deadlines for foreign processes")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use finial_conformance::{Crossing, Pair, Plane, PlaneConfig, Product, Workload, skip};
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
