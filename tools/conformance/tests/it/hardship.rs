//! What a server lives through: no file descriptors left, a full disk, a disk that cannot be written,
//! connections that never become any. Others are served, nothing is lost, and it recovers by itself.

#![expect(clippy::disallowed_methods, reason = "foreign processes are waited for")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use finial_conformance::{Plane, PlaneConfig, Product, half_open, pause};

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
