//! What a server lives through: no file descriptors left, a full disk, a disk that cannot be written,
//! connections that never become any. Others are served, nothing is lost, and it recovers by itself.

#![expect(clippy::disallowed_methods, reason = "foreign processes are waited for")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use finial_conformance::{
    Attack, Noticed, Outage, Plane, PlaneConfig, Product, Served, Siege, half_open, kill_attestations, pause,
    skip,
};

fn start(server_prelude: &str) -> Plane {
    let config = PlaneConfig { server_prelude: server_prelude.to_owned(), ..PlaneConfig::default() };
    Plane::start(&Product::under_test(), &config, &Default::default())
}

fn address(plane: &Plane) -> SocketAddr {
    format!("127.0.0.1:{}", plane.word("port")).parse().unwrap()
}

fn create(plane: &Plane, name: &str) -> Result<(), String> {
    let id = format!("spiffe://{{td}}/{name}");
    let args = ["entry", "create", "-socketPath", "{sock}", "-parentID", "spiffe://{td}/node"];
    let (code, stdout, stderr) =
        plane.run("server", &[&args[..], &["-spiffeID", &id, "-selector", "unix:uid:1"]].concat());
    if code == 0 { Ok(()) } else { Err(format!("{stdout}{stderr}")) }
}

fn count(plane: &Plane) -> usize {
    let shown = plane.ok("server", &["entry", "count", "-socketPath", "{sock}"]);
    shown.split(' ').next().unwrap().parse().unwrap()
}

/// Waits until `is_so`, at most `limit`.
fn within(limit: Duration, what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} takes longer than {limit:?}");
        pause();
    }
}

/// The processor time that a process has used, in hundredths of a second.
fn used(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn r10_without_file_descriptors_a_server_waits_and_goes_on() {
    let mut plane = start("ulimit -n 64");
    let pid = plane.server().unwrap().pid();
    let address = address(&plane);

    // More connections than it has descriptors, held.
    let held: Vec<TcpStream> = (0..200).filter_map(|_| TcpStream::connect(address).ok()).collect();
    assert!(held.len() >= 64, "only {} connections", held.len());
    let before = used(pid);
    std::thread::sleep(Duration::from_secs(2));
    let spent = used(pid) - before;
    assert!(plane.server().unwrap().is_running());
    assert!(spent < 20, "it used {spent} hundredths of a second in two");

    drop(held);
    within(Duration::from_secs(5), "to be served again", || {
        plane.run("server", &["entry", "count", "-socketPath", "{sock}"]).0 == 0
    });
    create(&plane, "after").unwrap();
    assert_eq!(count(&plane), 1);
}

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

/// A number that `cargo xtask soak` makes larger.
fn asked(name: &str, usually: u64) -> u64 {
    std::env::var(name).map_or(usually, |text| text.parse().unwrap())
}

/// How long callers are watched; at all seriously, and held to figures, in `cargo xtask soak` alone, where
/// nothing else runs on the machine.
fn watched() -> (Duration, bool) {
    let seconds = asked("FINIAL_SIEGE_SECONDS", 0);
    if seconds == 0 { (Duration::from_millis(700), false) } else { (Duration::from_secs(seconds), true) }
}

fn tell(what: &str, quiet: Noticed, noticed: Noticed) {
    println!(
        "{what}: {} calls, 99 of 100 within {:?} (quiet {:?}), on fresh connections {:?} (quiet {:?})",
        noticed.calls, noticed.open, quiet.open, noticed.fresh, quiet.fresh
    );
}

/// No worse than `times` what it was, give or take what a machine of two processors does by itself.
fn is_within(noticed: Duration, quiet: Duration, times: u32) -> bool {
    noticed <= quiet * times + Duration::from_millis(2)
}

#[test]
fn r03_half_open_connections_from_many_addresses_hold_up_nobody() {
    let plane = start("");
    let address = address(&plane);
    let from = |number: u8| IpAddr::V4(Ipv4Addr::new(127, 0, 7, number));

    // From 64 addresses: one part says nothing, one stops in the middle of its greeting.
    let mut held = Vec::new();
    for number in 0..64 {
        held.extend(half_open(from(number), address, 16, b""));
        held.extend(half_open(from(number), address, 16, &[22, 3, 1, 2, 0, 1, 0]));
    }

    let mut plane = plane;
    plane.join_agent(&PlaneConfig::default());
    create(&plane, "meanwhile").unwrap();
    assert_eq!(count(&plane), 2, "the entry, and the agent's alias");
    assert_eq!(held.len(), 2048);
}

#[test]
fn r03_a_crowd_of_half_open_connections_is_hardly_noticed() {
    let crowd = usize::try_from(asked("FINIAL_HALF_OPEN", 1000)).unwrap();
    let (time, is_strict) = watched();
    let siege = Siege::lay(&Product::under_test(), &recorded(), "");
    let beside = siege.beside_a_crowd(crowd, time).unwrap();

    let noticed = siege.under(Attack::HalfOpen(crowd), time).unwrap();
    let recovery = siege.recovery().unwrap();

    tell(&format!("{crowd} half open"), beside, noticed);
    println!("somebody new is served {recovery:?} after it");
    if is_strict {
        assert!(is_within(noticed.open, beside.open, 2), "{beside:?} became {noticed:?}");
        assert!(recovery <= Duration::from_secs(1), "{recovery:?}");
    }
}

#[test]
fn r00_under_each_attack_honest_calls_are_answered() {
    let (time, is_strict) = watched();
    let mut siege = Siege::lay(&Product::under_test(), &recorded(), "");
    let quiet = siege.quiet(time).unwrap();
    let attacks = [
        Attack::HalfOpen(1000),
        Attack::Anonymous,
        Attack::Resets,
        Attack::Attestations,
        Attack::Unread,
        Attack::Frames,
    ];

    for attack in attacks {
        let noticed = siege.under(attack, time).unwrap_or_else(|why| panic!("{attack:?}: {why}"));
        tell(&format!("{attack:?}"), quiet, noticed);
        if is_strict {
            // The machine that both share is not the server's to defend.
            let quiet = if let Attack::HalfOpen(count) = attack {
                siege.beside_a_crowd(count, time).unwrap()
            } else {
                quiet
            };
            let is_borne = is_within(noticed.open, quiet.open, 5) && is_within(noticed.fresh, quiet.fresh, 5);
            assert!(is_borne, "{attack:?}: {quiet:?} became {noticed:?}");
        }
    }
    assert!(siege.plane().server().unwrap().is_running());

    let siege = Siege::lay(&Product::under_test(), &recorded(), "ulimit -n 128");
    let quiet = siege.quiet(time).unwrap();
    let noticed = siege.under(Attack::Descriptors, time);
    // Who has a connection already is served; nobody new is.
    if let Ok(noticed) = noticed {
        tell("Descriptors", quiet, noticed);
    }
    siege.recovery().unwrap();
}

#[test]
fn j03_a_killed_server_leaves_a_good_token_or_a_whole_agent() {
    let rounds = usize::try_from(asked("FINIAL_TOKEN_ROUNDS", 3)).unwrap();

    let spent = kill_attestations(&Product::under_test(), &recorded(), rounds).unwrap();

    println!("{spent:?} in {rounds} rounds");
    assert!(spent.acknowledged >= rounds && spent.good >= rounds, "{spent:?}");
    assert_eq!(spent.acknowledged + spent.unheard + spent.good, 64 * rounds);
}

/// Names the network that nothing leads out of to the process in it.
const ALONE: &str = "FINIAL_ALONE";

/// Not a test by itself: what the next one does where no network is but that within the machine.
#[test]
fn child_without_a_network() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let out = || {
        let snmp = fs::read_to_string("/proc/self/net/snmp").unwrap();
        let of = |protocol: &str, name: &str| {
            let mut lines = snmp.lines().filter(|line| line.starts_with(&format!("{protocol}:")));
            let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
            let at = names.split(' ').position(|found| found == name).unwrap();
            values.split(' ').nth(at).unwrap().parse::<u64>().unwrap()
        };
        // What found no way out, and what was sent but by TCP within the machine: names that are looked up.
        (of("Ip", "OutNoRoutes"), of("Udp", "OutDatagrams"))
    };
    assert_eq!(out(), (0, 0));
    let config = PlaneConfig {
        server_extra: "federation { bundle_endpoint { address = \"127.0.0.1\" port = {p3} } }".to_owned(),
        agent: true,
        ..PlaneConfig::default()
    };

    let plane = Plane::start(&Product::under_test(), &config, &Default::default());
    create(&plane, "alone").unwrap();
    // Long enough for what is done at the start and every second.
    std::thread::sleep(Duration::from_secs(3));
    plane.await_healthy("server");
    plane.await_healthy("agent");

    assert_eq!(out(), (0, 0), "somebody was called who is in no configuration");
    // It would have been seen.
    TcpStream::connect("192.0.2.1:80").unwrap_err();
    assert!(out().0 > 0);
    println!("nobody was called");
}

#[test]
fn c06_nobody_is_called_who_is_in_no_configuration() {
    let child = "hardship::child_without_a_network";
    let script = "ip link set lo up && exec \"$@\"";
    let mut shell = Command::new("unshare");
    shell.args(["--net", "bash", "-e", "-c", script, "bash"]).arg(std::env::current_exe().unwrap());
    let output = shell.args(["--exact", child, "--nocapture"]).env(ALONE, "1").output().unwrap();

    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if said.contains("unshare failed") {
        return skip("calls at the start", "this process may make no network of its own");
    }
    assert!(output.status.success() && said.contains("nobody was called"), "{said}");
}

#[test]
fn k09_keys_of_workloads_are_made_where_they_are_used() {
    let mut outage = Outage::start(&Product::under_test(), &PlaneConfig::default());
    let _web = outage.create_entry("/web", "unix:uid:{uid}");
    let served = outage.await_ids(&["spiffe://example.org/web"]);
    let mint =
        ["x509", "mint", "-socketPath", "{sock}", "-spiffeID", "spiffe://{td}/minted", "-write", "{dir}"];
    let _said = outage.plane().ok("server", &mint);
    let file = outage.plane().dir().join("key.pem");
    let minted = Served::of_pem("minted", &fs::read_to_string(&file).unwrap());

    let Some(at_agent) = outage.found_in_memory(&served) else {
        return skip("keys in memory", "this process may not read another's memory");
    };

    assert!(!at_agent.is_empty(), "the agent has what it serves");
    for keys in [&served, &minted] {
        assert_eq!(outage.found_in_the_servers_memory(keys), Some(Vec::new()));
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn k04_a_full_disk_refuses_writes_and_loses_nothing() {
    let mut plane = start("mkdir -p {dir}/server-data; mount -t tmpfs -o size=4m none {dir}/server-data");
    create(&plane, "before").unwrap();
    // The disk is seen by the server alone.
    let pid = plane.server().unwrap().pid();
    let disk = PathBuf::from(format!("/proc/{pid}/root{}/server-data", plane.dir().display()));
    let filler = disk.join("filler");
    fs::write(&filler, vec![0; 16 << 20]).unwrap_err();

    // What is allocated already may take a few more.
    let mut written = 1;
    let refusal = loop {
        match create(&plane, &format!("until-full-{written}")) {
            Ok(()) => written += 1,
            Err(refusal) => break refusal,
        }
        assert!(written < 2000, "the disk is never full");
    };
    assert!(refusal.contains("full"), "{refusal}");
    assert_eq!(count(&plane), written, "reads go on");

    fs::remove_file(&filler).unwrap();
    within(Duration::from_secs(5), "to be written again", || create(&plane, "after").is_ok());
    assert_eq!(count(&plane), written + 1);
    assert!(plane.server().unwrap().is_running());
}

#[test]
fn a_folder_that_cannot_be_written_is_told_and_left_alone() {
    let mut plane = start("");
    create(&plane, "before").unwrap();
    plane.server().unwrap().signal("TERM");
    assert_eq!(plane.server().unwrap().wait(Duration::from_secs(30)), 0);
    let script = plane.fill(
        "mount --bind {dir}/server-data {dir}/server-data; mount -o remount,bind,ro {dir}/server-data; \
         exec -a spire-server \"$@\"",
    );
    let server = plane.command("server", &["run", "-config", "{dir}/server.conf"]);

    let mut shell = Command::new("unshare");
    shell.args(["--mount", "bash", "-e", "-c", &script, "bash"]).arg(server.get_program());
    let output = shell.args(server.get_args()).current_dir(plane.cwd()).output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    let log = fs::read_to_string(plane.dir().join("server.log")).unwrap();
    let last = log.trim_end().lines().next_back().unwrap();
    assert!(last.to_lowercase().contains("read-only") || last.contains("readonly"), "{last}");
    plane.start_server_again();
    assert_eq!(count(&plane), 1);
}

#[test]
fn c03_the_program_is_hardened() {
    let product = Product::under_test();
    let program = product.command("server", &["run".to_owned()]).get_program().to_owned();
    let read = |what: &str| {
        let output = Command::new("readelf").args(["-W", what]).arg(&program).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };

    let (header, segments, dynamic) = (read("-h"), read("-l"), read("-d"));

    assert!(header.contains("DYN (Position-Independent Executable file)"), "{header}");
    assert!(segments.contains("GNU_RELRO"), "{segments}");
    let stack = segments.lines().find(|line| line.contains("GNU_STACK")).unwrap();
    assert!(stack.contains(" RW ") && !stack.contains("RWE"), "{stack}");
    assert!(dynamic.contains("BIND_NOW") || dynamic.contains("NOW"), "{dynamic}");
    assert!(!dynamic.contains("RPATH") && !dynamic.contains("RUNPATH"), "{dynamic}");
}

#[test]
fn t01_tls_is_1_2_or_newer_with_authenticated_encryption() {
    let plane = start("");
    let client = |more: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &address(&plane).to_string(), "-brief"]).args(more);
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    // Without its own floor, so that what refuses is the server.
    let weak = ["-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"];

    for (version, protocol) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let said = client(&[version, "-alpn", "h2"]);
        assert!(said.contains(&format!("Protocol version: {protocol}")), "{said}");
    }
    for version in ["-tls1", "-tls1_1"] {
        let said = client(&[&[version][..], &weak].concat());
        assert!(!said.contains("CONNECTION ESTABLISHED"), "{version}: {said}");
    }
    for ciphers in ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA256", "aNULL"] {
        let said = client(&["-tls1_2", "-cipher", &format!("{ciphers}:@SECLEVEL=0")]);
        assert!(!said.contains("CONNECTION ESTABLISHED"), "{ciphers}: {said}");
    }
}
