//! Servers whose datastore is a database server: `PostgreSQL`, and `MariaDB` as MySQL.
#![expect(clippy::disallowed_methods, reason = "deadlines for foreign processes")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use finial_conformance::{
    DatabaseSecrets, Kills, Minted, Plane, PlaneConfig, Ports, Product, Takeover, copies_in_memory, get,
    pause, skip,
};
use testkit::database::{Database, Make, Secrets, Server};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

const fn name(make: Make) -> &'static str {
    match make {
        Make::Postgres => "postgres",
        Make::MariaDb => "mysql",
    }
}

fn config(make: Make, database: &Database<'_>) -> PlaneConfig {
    let (kind, string) = (name(make), database.connection_string());
    PlaneConfig {
        datastore: format!("database_type = \"{kind}\" connection_string = \"{string}\""),
        ..PlaneConfig::default()
    }
}

fn check_questions(make: Make) {
    let Some(server) = Server::shared(make) else { return };
    let database = server.database().unwrap();
    let takeover = Takeover::load(&recorded());
    database.run(&takeover.dump(name(make))).unwrap();

    let outcome = takeover.questions_on(&Product::under_test(), name(make), &database.connection_string());

    outcome.hold(&recorded().join("datastore"), &format!("questions-{}", name(make)));
}

#[test]
fn takeover_database_postgres() {
    check_questions(Make::Postgres);
}

#[test]
fn takeover_database_mysql() {
    check_questions(Make::MariaDb);
}

const LIMIT: Duration = Duration::from_secs(30);

/// Asks until it is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} takes more than {} s", LIMIT.as_secs());
        pause();
    }
}

fn create(plane: &Plane, path: &str) -> (i32, String, String) {
    let id = format!("spiffe://{{td}}{path}");
    let parent = ["-parentID", "spiffe://{td}/node", "-selector", "unix:uid:{uid}", "-spiffeID", &id];
    plane.run("server", &[&["entry", "create", "-socketPath", "{sock}"][..], &parent].concat())
}

fn check_away(make: Make) {
    let Some(server) = Server::start(make) else { return };
    let database = server.database().unwrap();
    let config = PlaneConfig { agent: true, ..config(make, &database) };
    let plane = Plane::start(&Product::under_test(), &config, &BTreeMap::new());
    assert_eq!(create(&plane, "/before").0, 0);
    plane.await_identities(&["spiffe://example.org/before"]);

    server.down().unwrap();
    let asked = Instant::now();
    let (code, _, said) = create(&plane, "/during");
    let took = asked.elapsed();
    let minted = plane.run(
        "server",
        &["jwt", "mint", "-socketPath", "{sock}", "-spiffeID", "spiffe://{td}/m", "-audience", "a"],
    );
    plane.await_identities(&["spiffe://example.org/before"]);
    assert_ne!(code, 0);
    assert!(said.contains("is away") || said.contains("connection lost"), "{said}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(minted.0, 0, "{minted:?}");

    server.up().unwrap();
    let back = Instant::now();
    until("a write to a database that is back", || create(&plane, "/after").0 == 0);
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    plane.await_identities(&["spiffe://example.org/before", "spiffe://example.org/after"]);
}

#[test]
fn a_postgres_that_is_away_is_told_and_found_again() {
    check_away(Make::Postgres);
}

#[test]
fn a_mysql_that_is_away_is_told_and_found_again() {
    check_away(Make::MariaDb);
}

/// Who may call cannot be found out: nobody is let in, and nobody is told that they may not.
fn check_judged_without(make: Make) {
    const STATUS: &str = "/spire.api.server.agent.v1.Agent/PostStatus";
    const COUNT: &str = "/spire.api.server.entry.v1.Entry/CountEntries";
    let Some(server) = Server::start(make) else { return };
    let database = server.database().unwrap();
    let plane = Plane::start(&Product::under_test(), &config(make, &database), &BTreeMap::new());
    let admin = ["-parentID", "spiffe://{td}/node", "-spiffeID", "spiffe://{td}/admin", "-selector", "a:b"];
    let _said =
        plane.ok("server", &[&["entry", "create", "-socketPath", "{sock}", "-admin"][..], &admin].concat());
    let stranger = Minted::of(&plane, &recorded(), "spiffe://example.org/stranger");
    let admin = Minted::of(&plane, &recorded(), "spiffe://example.org/admin");
    let refused = |code: &str, reasons: &[&str]| {
        let (found, message, details) = stranger.call(STATUS);
        assert_eq!((found.as_str(), details.as_slice()), (code, &*strings(reasons)), "{message}");
        message
    };
    let denied = format!("authorization denied for method {STATUS}");
    assert_eq!(refused("PERMISSION_DENIED", &["AGENT_NOT_ATTESTED"]), denied);
    assert_eq!(admin.call(COUNT).0, "OK");

    server.down().unwrap();
    let told = refused("INTERNAL", &[]);
    let (code, message, details) = admin.call(COUNT);

    assert!(told.starts_with("unable to look up agent information: "), "{told}");
    // By what is known of it an administrator might be none any more.
    assert!(code != "OK" && code != "PERMISSION_DENIED" && details.is_empty(), "{code} {message}");
    server.up().unwrap();
    until("an answer from a database that is back", || admin.call(COUNT).0 == "OK");
    assert_eq!(refused("PERMISSION_DENIED", &["AGENT_NOT_ATTESTED"]), denied);
}

/// The password of the database is kept once, to connect with: what reading the configuration and
/// connecting, by all threads that do, leave behind is zero.
fn check_password_is_kept_once(make: Make) {
    let Some(server) = Server::start(make) else { return };
    let database = server.database().unwrap();
    let password = format!("of-{}-alone", database.name());
    let string = database.guarded_connection_string(&password).unwrap();
    let datastore = format!("database_type = \"{}\" connection_string = \"{string}\"", name(make));
    let config = PlaneConfig { datastore, ..PlaneConfig::default() };
    let mut plane = Plane::start(&Product::under_test(), &config, &BTreeMap::new());
    let pid = plane.server().unwrap().pid();
    let copies = || Some(copies_in_memory(pid, &[password.as_bytes()])?.remove(0));
    let check = |when: &str| {
        // Listening to other servers begins by itself.
        std::thread::park_timeout(Duration::from_secs(5));
        let found = copies().expect("a running server");
        assert_eq!(found.len(), 1, "{when}: {found:#?}");
    };
    if copies().is_none() {
        return skip("a password in memory", "this process may not read another's memory");
    }
    assert_eq!(create(&plane, "/before").0, 0);
    check("after the start");

    server.down().unwrap();
    assert_ne!(create(&plane, "/during").0, 0);
    server.up().unwrap();
    until("a write to a database that is back", || create(&plane, "/after").0 == 0);

    check("after the database was away");
}

#[test]
fn k07_the_password_of_a_postgres_is_in_the_servers_memory_once() {
    check_password_is_kept_once(Make::Postgres);
}

#[test]
fn k07_the_password_of_a_mysql_is_in_the_servers_memory_once() {
    check_password_is_kept_once(Make::MariaDb);
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn m04_without_postgres_nobody_is_let_in_and_nobody_denied() {
    check_judged_without(Make::Postgres);
}

#[test]
fn m04_without_mysql_nobody_is_let_in_and_nobody_denied() {
    check_judged_without(Make::MariaDb);
}

fn check_start_without(make: Make) {
    let Some(server) = Server::start(make) else { return };
    let database = server.database().unwrap();
    server.down().unwrap();
    let config = PlaneConfig { server: false, ..config(make, &database) };
    let plane = Plane::start(&Product::under_test(), &config, &BTreeMap::new());
    plane.configure_server(&config);
    let listening =
        "health_checks { listener_enabled = true bind_address = \"127.0.0.1\" bind_port = \"{p1}\" }";
    let text = std::fs::read_to_string(plane.dir().join("server.conf")).unwrap();
    plane.write("{dir}/server.conf", &format!("{text}{listening}\n"));

    let mut waiting = plane.spawn("server", &["run", "-config", "{dir}/server.conf"]);
    let log = plane.dir().join("server.log");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    until("a word about the datastore", || said().contains("Waiting for the datastore"));
    let (code, ..) = plane.run("server", &["healthcheck", "-socketPath", "{sock}"]);
    let (live, ready) = (get(plane.word("p1"), "/live").unwrap(), get(plane.word("p1"), "/ready").unwrap());
    assert_eq!((live.0, ready.0), (200, 500), "{live:?} {ready:?}");
    assert!(ready.1.starts_with("{\"catalog.datastore\":{\"open_err\":\""), "{ready:?}");
    server.up().unwrap();
    until("the start", || plane.run("server", &["healthcheck", "-socketPath", "{sock}"]).0 == 0);
    until("ready", || get(plane.word("p1"), "/ready").is_some_and(|(code, _)| code == 200));
    waiting.signal("TERM");
    let ended = waiting.wait(LIMIT);

    assert_ne!(code, 0);
    assert_eq!(ended, 0);
    server.down().unwrap();
    let mut again = plane.spawn("server", &["run", "-config", "{dir}/server.conf"]);
    let before = said().matches("Waiting for the datastore").count();
    until("a word about the datastore", || said().matches("Waiting for the datastore").count() > before);
    again.signal("TERM");
    assert_eq!(again.wait(LIMIT), 0, "a server that waits can be told to stop");
}

#[test]
fn a_server_waits_for_its_postgres() {
    check_start_without(Make::Postgres);
}

#[test]
fn a_server_waits_for_its_mysql() {
    check_start_without(Make::MariaDb);
}

/// Kills the server under writers; what it acknowledged must be in the database, and nothing by half.
fn check_kills(make: Make) {
    let Some(server) = Server::shared(make) else { return };
    let database = server.database().unwrap();
    let query = |_: &Plane, sql: &str| database.run(sql).map_err(|error| error.to_string());
    // `cargo xtask soak` asks for more.
    let rounds = std::env::var("FINIAL_KILL_ROUNDS").map_or(5, |rounds| rounds.parse().unwrap());
    let (product, config) = (Product::under_test(), config(make, &database));

    let acknowledged = Kills::load(&recorded()).play(&product, &config, &query, rounds).unwrap();

    println!("kills: {make:?}, {rounds} rounds, {acknowledged} acknowledged writes, none lost");
    assert!(acknowledged > 0, "nobody wrote anything");
}

#[test]
fn k04_kills_lose_no_acknowledged_write_on_postgres() {
    check_kills(Make::Postgres);
}

#[test]
fn k04_kills_lose_no_acknowledged_write_on_mysql() {
    check_kills(Make::MariaDb);
}

/// How a connection over TLS is asked for, with this root and, if asked for, a client's certificate.
fn secure(make: Make, port: u16, database: &Database<'_>, root: &str, shown: bool) -> String {
    let name = database.name();
    match make {
        Make::Postgres => {
            let client = if shown { "sslcert={dir}/cwd/client.pem sslkey={dir}/cwd/client.key" } else { "" };
            format!(
                "database_type = \"postgres\" connection_string = \"host=127.0.0.1 port={port} user=spire \
                 dbname={name} sslmode=verify-full sslrootcert={{dir}}/cwd/{root} {client}\""
            )
        }
        Make::MariaDb => {
            let client = if shown {
                "client_cert_path = \"{dir}/cwd/client.pem\" client_key_path = \"{dir}/cwd/client.key\""
            } else {
                ""
            };
            format!(
                "database_type = \"mysql\" connection_string = \"tls@tcp(127.0.0.1:{port})/{name}?parseTime=true\" \
                 root_ca_path = \"{{dir}}/cwd/{root}\" {client}"
            )
        }
    }
}

fn check_secure(make: Make) {
    let secrets = DatabaseSecrets::new();
    let [certificate, key] = &secrets.server;
    let ports = Ports::hold(1);
    let port = ports.iter().next().unwrap();
    let Some(server) = Server::start_secure(make, Secrets { root: &secrets.root, certificate, key, port })
    else {
        return;
    };
    let database = server.database().unwrap();
    if make == Make::MariaDb {
        let name = database.name();
        database
            .run(&format!(
                "CREATE USER tls@'%' REQUIRE X509; GRANT ALL ON {name}.* TO tls@'%'; FLUSH PRIVILEGES;"
            ))
            .unwrap();
    }
    let files: BTreeMap<String, String> = [
        ("root.pem", &secrets.root),
        ("stranger.pem", &secrets.stranger),
        ("client.pem", &secrets.client[0]),
        ("client.key", &secrets.client[1]),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text.clone()))
    .collect();

    let good =
        PlaneConfig { datastore: secure(make, port, &database, "root.pem", true), ..PlaneConfig::default() };
    let plane = Plane::start(&Product::under_test(), &good, &files);
    assert_eq!(create(&plane, "/secure").0, 0);
    if make == Make::Postgres {
        let sql = "SELECT bool_and(ssl), bool_or(query LIKE 'LISTEN %') FROM pg_stat_ssl \
                   JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL;";
        until("all connections are secure, also the one that listens", || {
            database.run(sql).unwrap() == "t\tt\n"
        });
    }
    drop(plane);

    for (root, shown) in [("stranger.pem", true), ("root.pem", false)] {
        let bad = PlaneConfig {
            server: false,
            datastore: secure(make, port, &database, root, shown),
            ..PlaneConfig::default()
        };
        let plane = Plane::start(&Product::under_test(), &bad, &files);
        plane.configure_server(&bad);
        let mut refused = plane.spawn("server", &["run", "-config", "{dir}/server.conf"]);
        let code = refused.wait(LIMIT);
        let log = std::fs::read_to_string(plane.dir().join("server.log")).unwrap_or_default();
        let said = format!("{:?}{log}", refused.printed());
        assert_ne!(code, 0, "{root} {shown}: {said}");
        let is_told = said.contains("certificate") || (!shown && said.contains("Access denied"));
        assert!(is_told, "{root} {shown}: {said}");
    }
}

#[test]
fn a_postgres_is_known_by_its_certificate_and_shown_one() {
    check_secure(Make::Postgres);
}

#[test]
fn a_mysql_is_known_by_its_certificate_and_shown_one() {
    check_secure(Make::MariaDb);
}

#[test]
fn s06_a_server_begins_with_what_its_replica_has_and_decides_by_the_primary_alone() {
    let Some(server) = Server::start(Make::Postgres) else { return };
    let database = server.database().unwrap();
    let replica = server.replica().unwrap();
    let copy = replica.copy_of(&database);
    let mut config = PlaneConfig { agent: true, ..config(Make::Postgres, &database) };
    config.datastore.push_str(&format!(" ro_connection_string = \"{}\"", copy.connection_string()));
    let mut plane = Plane::start(&Product::under_test(), &config, &BTreeMap::new());
    let log = plane.dir().join("server.log");
    let said = |what: &str| std::fs::read_to_string(&log).unwrap_or_default().matches(what).count();
    let restart = |plane: &mut Plane| {
        let running = plane.server().unwrap();
        running.signal("TERM");
        running.wait(LIMIT);
        plane.start_server_again();
    };
    let shown = |plane: &Plane| plane.ok("server", &["entry", "show", "-socketPath", "{sock}"]);
    assert_eq!(create(&plane, "/first").0, 0);
    let count = "SELECT count(*) FROM registered_entries WHERE spiffe_id LIKE '%/first';";
    until("the copy", || copy.run(count).is_ok_and(|rows| rows == "1\n"));
    let before = said("were read from the replica");

    restart(&mut plane);
    assert_eq!(said("were read from the replica"), before + 1);
    assert!(shown(&plane).contains("/first"));

    // A replica that is behind: what came since is read from the primary database.
    copy.run("SELECT pg_wal_replay_pause();").unwrap();
    assert_eq!(create(&plane, "/second").0, 0);
    restart(&mut plane);
    assert_eq!(said("were read from the replica"), before + 2);
    let entries = shown(&plane);
    assert!(entries.contains("/first") && entries.contains("/second"), "{entries}");
    assert_eq!(copy.run(&count.replace("first", "second")).unwrap(), "0\n");
    plane.await_identities(&["spiffe://example.org/first", "spiffe://example.org/second"]);

    // What decides who is let in comes from there too, while the replica still says otherwise: an agent that
    // is banned is let in no more, and a token that the replica never had is good once.
    let agent = copy.run("SELECT spiffe_id FROM attested_node_entries;").unwrap().trim().to_owned();
    let _said = plane.ok("server", &["agent", "ban", "-spiffeID", &agent, "-socketPath", "{sock}"]);
    restart(&mut plane);
    assert_eq!(said("were read from the replica"), before + 3);
    plane.agent().unwrap().wait(LIMIT);
    let unbanned = "SELECT count(*) FROM attested_node_entries WHERE serial_number <> '';";
    assert_eq!(copy.run(unbanned).unwrap(), "1\n", "the replica knows of no ban");
    let token = plane.ok("server", &["token", "generate", "-socketPath", "{sock}"]);
    let token = token.lines().find_map(|line| line.strip_prefix("Token: ")).unwrap().to_owned();
    std::fs::remove_dir_all(plane.dir().join("agent-data")).unwrap();
    plane.configure_agent(&config, &token);
    plane.start_agent_again();
    assert_eq!(copy.run("SELECT count(*) FROM join_tokens;").unwrap(), "0\n");
    assert_eq!(database.run("SELECT count(*) FROM join_tokens;").unwrap(), "0\n", "it is used up");

    // Without its replica a server starts all the same.
    replica.down().unwrap();
    restart(&mut plane);
    assert_eq!(said("The replica cannot be opened"), 1);
    assert!(shown(&plane).contains("/second"));
}
