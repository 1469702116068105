//! What goes wrong around the programs: they say so in one line and exit with 1, or go on for
//! everybody else; they never make up for it in silence.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use finial_conformance::{
    PREFACE, Plane, PlaneConfig, Product, answers_tls, assault, attacks, dawdlers, oversized, storm,
    tcp_dawdlers,
};

const WORKLOAD: &str = "spiffe://example.org/workload";

fn start(config: &PlaneConfig) -> Plane {
    Plane::start(&Product::under_test(), config, &Default::default())
}

fn with_agent() -> Plane {
    let plane = start(&PlaneConfig { agent: true, ..PlaneConfig::default() });
    let entry = ["-parentID", "spiffe://{td}/node", "-spiffeID", WORKLOAD, "-selector", "unix:uid:{uid}"];
    let _shown = plane.ok("server", &[&["entry", "create", "-socketPath", "{sock}"][..], &entry].concat());
    plane.await_identities(&[WORKLOAD]);
    plane
}

fn stop_server(plane: &mut Plane) {
    let server = plane.server().unwrap();
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(30)), 0);
}

/// Starts the server again, which must fail: what it says of that, from all places.
fn refused(plane: &Plane) -> String {
    let log = plane.dir().join("server.log");
    let before = fs::read_to_string(&log).unwrap_or_default().len();
    let mut run = plane.spawn("server", &["run", "-config", "{dir}/server.conf"]);
    assert_eq!(run.wait(Duration::from_secs(30)), 1);
    let (stdout, stderr) = run.printed();
    let logged = fs::read_to_string(&log).unwrap_or_default();
    format!("{stdout}{stderr}{}", &logged[before.min(logged.len())..])
}

/// That the last line gives this reason, in whole.
fn last_line(said: &str, reason: &str) {
    let last = said.trim_end().lines().next_back().unwrap_or_default();
    assert!(last.to_lowercase().contains(&reason.to_lowercase()), "{reason:?} in {said}");
    assert!(!said.contains("panicked") && !said.contains("goroutine"), "{said}");
}

fn data(plane: &Plane, name: &str) -> std::path::PathBuf {
    plane.dir().join("server-data").join(name)
}

fn authorities(plane: &Plane) -> Vec<String> {
    let shown = plane.ok("server", &["bundle", "show", "-socketPath", "{sock}"]);
    shown.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect()
}

#[test]
fn a_port_in_use_is_told() {
    let mut plane = start(&PlaneConfig::default());
    stop_server(&mut plane);
    let address: SocketAddr = format!("127.0.0.1:{}", plane.word("port")).parse().unwrap();
    let _taken = TcpListener::bind(address).unwrap();

    let said = refused(&plane);

    last_line(&said, "address already in use");
}

#[test]
fn a_database_that_is_none_is_told_and_left_alone() {
    let mut plane = start(&PlaneConfig::default());
    stop_server(&mut plane);
    let path = data(&plane, "datastore.sqlite3");
    for more in ["datastore.sqlite3-wal", "datastore.sqlite3-shm"] {
        fs::remove_file(data(&plane, more)).ok();
    }
    let garbage = "no database ".repeat(1000);
    fs::write(&path, &garbage).unwrap();

    let said = refused(&plane);

    last_line(&said, "file is not a database");
    assert_eq!(fs::read_to_string(&path).unwrap(), garbage);
}

#[test]
fn a_key_file_that_cannot_be_read_is_told_and_left_alone() {
    for (broken, reason) in [
        ("{", "unable to decode keys JSON: "),
        ("{\"keys\":{\"a\":\"!\"}}", "unable to decode key"),
        ("{\"keys\":{\"a\":\"AAAA\"}}", "unable to parse key \\\"a\\\": "),
    ] {
        let mut plane = start(&PlaneConfig::default());
        stop_server(&mut plane);
        let path = data(&plane, "keys.json");
        fs::write(&path, broken).unwrap();

        let said = refused(&plane);

        last_line(&said, reason);
        assert_eq!(fs::read_to_string(&path).unwrap(), broken);
    }
}

#[test]
fn without_its_keys_a_server_keeps_the_trust_in_the_old_authority() {
    let mut plane = start(&PlaneConfig::default());
    let before = authorities(&plane);
    assert_eq!(before.len(), 1);
    stop_server(&mut plane);
    fs::remove_file(data(&plane, "keys.json")).unwrap();
    let log = plane.dir().join("server.log");
    fs::remove_file(&log).unwrap();

    plane.start_server_again();

    let after = authorities(&plane);
    assert_eq!(after.len(), 2);
    assert!(after.contains(&before[0]));
    let logged = fs::read_to_string(log).unwrap();
    assert!(logged.contains("X509 CA prepared"), "{logged}");
    // SPIRE makes new authorities without a word of what it lacks.
    if std::env::var_os("SPIRE_BIN").is_none() {
        let warned = logged.lines().any(|line| {
            line.contains("level=warning") && line.contains("The key manager holds the key of no authority")
        });
        assert!(warned, "{logged}");
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_told() {
    let plane = start(&PlaneConfig { server: false, ..PlaneConfig::default() });
    plane.write("{dir}/broken.conf", "server { trust_domain = ");
    for program in ["server", "agent"] {
        for config in ["{dir}/missing.conf", "{dir}", "{dir}/broken.conf"] {
            let mut run = plane.spawn(program, &["run", "-config", config]);

            assert_eq!(run.wait(Duration::from_secs(30)), 1, "{program} {config}");
            let (stdout, stderr) = run.printed();
            let said = format!("{stdout}{stderr}");
            assert_eq!(said.trim().lines().count(), 1, "{program} {config}: {said}");
        }
    }
}

/// Removes whatever is at a path.
fn clear(path: &Path) {
    fs::remove_file(path).or_else(|_| fs::remove_dir(path)).ok();
}

#[test]
fn w19_only_a_socket_that_nobody_answers_on_makes_way_for_the_agents() {
    let mut plane = with_agent();
    let agent = plane.agent().unwrap();
    agent.signal("TERM");
    agent.wait(Duration::from_secs(30));
    let socket = Path::new(plane.word("asock")).to_owned();
    let (file, other) = (plane.dir().join("precious"), plane.dir().join("other.sock"));
    fs::write(&file, "data").unwrap();
    let _listening = UnixListener::bind(&other).unwrap();
    let plants: [(&str, &dyn Fn()); 5] = [
        ("a file", &|| fs::write(&socket, "data").unwrap()),
        ("a folder", &|| fs::create_dir(&socket).unwrap()),
        ("a link to a file", &|| symlink(&file, &socket).unwrap()),
        ("a link to a socket", &|| symlink(&other, &socket).unwrap()),
        ("a link to nothing", &|| symlink("/nowhere/at/all", &socket).unwrap()),
    ];

    for (name, plant) in plants {
        plant();
        let before = fs::symlink_metadata(&socket).unwrap();
        plane.spawn_agent();
        assert_eq!(plane.agent().unwrap().wait(Duration::from_secs(30)), 1, "{name}");
        let log = fs::read_to_string(plane.dir().join("agent.log")).unwrap();
        let last = log.trim_end().lines().next_back().unwrap();
        assert!(last.contains("it exists and is no socket"), "{name}: {last}");
        let after = fs::symlink_metadata(&socket).unwrap();
        assert_eq!((before.ino(), before.mode(), before.len()), (after.ino(), after.mode(), after.len()));
        clear(&socket);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "data");

    // What an agent that was killed left behind; of a socket in use the agent keeps away.
    drop(UnixListener::bind(&socket).unwrap());
    plane.start_agent_again();
    plane.await_identities(&[WORKLOAD]);
    let mut second = plane.spawn("agent", &["run", "-config", "{dir}/agent.conf"]);
    assert_eq!(second.wait(Duration::from_secs(30)), 1);
    plane.await_identities(&[WORKLOAD]);
}

#[test]
fn w19_anybody_may_connect_to_the_agent_and_nobody_take_its_place() {
    let mut plane = with_agent();
    let socket = Path::new(plane.word("asock")).to_owned();
    let folder = socket.parent().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&socket), mode(folder)), (0o777, 0o755));
    let warned = |plane: &Plane| {
        let log = fs::read_to_string(plane.dir().join("agent.log")).unwrap();
        log.matches("Everybody may write to the folder of a socket").count()
    };
    let restart = |plane: &mut Plane, mode: u32| {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
        let agent = plane.agent().unwrap();
        agent.signal("TERM");
        agent.wait(Duration::from_secs(30));
        plane.start_agent_again();
    };
    assert_eq!(warned(&plane), 0);

    // A folder that was there stays as it is; that others could put a socket there is told.
    restart(&mut plane, 0o1777);
    assert_eq!(warned(&plane), 0);
    restart(&mut plane, 0o777);
    assert_eq!((warned(&plane), mode(folder)), (1, 0o777));
}

#[test]
fn x07_hostile_frames_end_no_more_than_their_connection() {
    let mut plane = with_agent();
    let pid = plane.agent().unwrap().pid();
    let socket = Path::new(plane.word("asock")).to_owned();

    for (name, bytes) in attacks() {
        assault(&socket, &bytes);

        let (code, stdout, stderr) = plane.run("agent", &["api", "fetch", "x509", "-socketPath", "{asock}"]);
        assert_eq!(code, 0, "after {name}: {stdout}{stderr}");
        assert!(stdout.contains(WORKLOAD), "after {name}: {stdout}");
    }

    assert!(plane.agent().unwrap().is_running());
    let used = resident(pid);
    assert!(used < 256 << 20, "the agent uses {used} bytes");
}

#[test]
fn x07_hostile_frames_do_the_server_no_harm() {
    let mut plane = start(&PlaneConfig::default());
    let socket = Path::new(plane.word("sock")).to_owned();

    for (name, bytes) in attacks() {
        assault(&socket, &bytes);

        let (code, stdout, stderr) = plane.run("server", &["bundle", "show", "-socketPath", "{sock}"]);
        assert_eq!(code, 0, "after {name}: {stdout}{stderr}");
    }

    assert!(plane.server().unwrap().is_running());
}

#[test]
fn x07_frames_of_chance_do_the_server_no_harm() {
    let number = |name: &str, usually: u64| std::env::var(name).map_or(usually, |text| text.parse().unwrap());
    // `cargo xtask soak` asks for more, with another seed each time.
    let (rounds, seed) = (number("FINIAL_FRAME_ROUNDS", 400), number("FINIAL_FRAME_SEED", 1));
    let mut plane = start(&PlaneConfig::default());
    let pid = plane.server().unwrap().pid();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let port = plane.word("port").to_owned();

    let mut before = 0;
    for part in 0..4 {
        runtime.block_on(storm(&port, seed.wrapping_add(part << 40), rounds / 4)).unwrap();

        assert!(plane.server().unwrap().is_running(), "seed {seed}");
        let (code, stdout, stderr) = plane.run("server", &["bundle", "show", "-socketPath", "{sock}"]);
        assert_eq!(code, 0, "seed {seed}: {stdout}{stderr}");
        let used = resident(pid);
        println!("{} connections, {used} bytes in use", (part + 1) * rounds / 4);
        // What a first part needs stays for the next; it does not grow with them.
        assert!(part == 0 || used < before + (48 << 20), "seed {seed}: {before} bytes became {used}");
        before = used;
    }

    // It is served to newcomers, by TLS too, and nothing panicked.
    plane.join_agent(&PlaneConfig::default());
    let log = fs::read_to_string(plane.dir().join("server.log")).unwrap();
    assert!(!log.contains("panicked"), "seed {seed}: {log}");
    assert!(resident(pid) < 256 << 20);
}

#[test]
fn clients_that_dawdle_hold_up_nobody() {
    let mut plane = start(&PlaneConfig::default());
    let address: SocketAddr = format!("127.0.0.1:{}", plane.word("port")).parse().unwrap();
    let silent = tcp_dawdlers(address, 300, b"");
    // The beginning of a TLS record that never ends.
    let halting = tcp_dawdlers(address, 300, &[22, 3, 1, 2, 0, 1, 0]);

    // It attests over that port.
    plane.join_agent(&PlaneConfig::default());

    let socket = Path::new(plane.word("asock")).to_owned();
    let silent_workloads = dawdlers(&socket, 100, b"");
    let halting_workloads = dawdlers(&socket, 100, &PREFACE[..20]);
    let greeted_workloads = dawdlers(&socket, 100, PREFACE);
    plane.await_healthy("agent");
    plane.await_healthy("server");
    drop((silent, halting, silent_workloads, halting_workloads, greeted_workloads));
}

#[test]
fn t07_proxies_are_believed_from_trusted_networks_alone() {
    let header = b"PROXY TCP4 198.51.100.7 192.0.2.2 4711 443\r\n";
    let version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\xc0\0\x02\x02\x12\x67\x01\xbb";
    for (networks, is_trusted) in [("127.0.0.0/8\", \"::1/128", true), ("192.0.2.0/24", false)] {
        let server_extra = format!("proxy_protocol_trusted_cidrs = [\"{networks}\"]");
        let plane = start(&PlaneConfig { server_extra, ..PlaneConfig::default() });
        let address: SocketAddr = format!("127.0.0.1:{}", plane.word("port")).parse().unwrap();

        assert!(answers_tls(address, b""), "no header is needed");
        assert_eq!(answers_tls(address, header), is_trusted);
        assert_eq!(answers_tls(address, version_2), is_trusted);
        assert!(!answers_tls(address, b"PROXY TCP9 198.51.100.7 192.0.2.2 4711 443\r\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_a_message_that_is_too_large_is_refused_as_such() {
    let plane = with_agent();

    let (code, message) = oversized(plane.word("asock"), 5 << 20).await;
    let (smaller, _) = oversized(plane.word("asock"), 3 << 20).await;

    assert_eq!(code, "RESOURCE_EXHAUSTED");
    assert!(message.starts_with("grpc: received message larger than max ("), "{message}");
    assert_eq!(smaller, "INVALID_ARGUMENT");
}

/// The memory that a process has in use.
fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}
