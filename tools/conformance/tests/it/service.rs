//! Programs under a service manager, and programs that become their successors, by the protocols that
//! systemd speaks: a datagram socket for notifications, descriptors for sockets.

#![expect(clippy::disallowed_methods, reason = "foreign processes are waited for")]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use finial_conformance::{Plane, PlaneConfig, Product, Running, Workload, pause, skip};

const WORKLOAD: &str = "spiffe://example.org/workload";
const OTHER: &str = "spiffe://example.org/other";

/// Server and agent with an entry for this process.
fn plane() -> Plane {
    let config = PlaneConfig { agent: true, ..PlaneConfig::default() };
    let plane = Plane::start(&Product::under_test(), &config, &Default::default());
    let entry = ["-parentID", "spiffe://{td}/node", "-spiffeID", WORKLOAD, "-selector", "unix:uid:{uid}"];
    let _shown = plane.ok("server", &[&["entry", "create", "-socketPath", "{sock}"][..], &entry].concat());
    plane.await_identities(&[WORKLOAD]);
    plane
}

/// A service manager's end of the notifications.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self(socket)
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("a notification within 30 s");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// The first notification with this in it; what comes before it.
    fn until(&self, wanted: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let next = self.next();
            if next.lines().any(|line| line.starts_with(wanted)) {
                return before;
            }
            before.push(next);
        }
    }
}

fn stop(plane: &mut Plane) {
    let agent = plane.agent().unwrap();
    agent.signal("TERM");
    assert_eq!(agent.wait(Duration::from_secs(30)), 0);
}

/// The agent's command line in a session of its own, as a service has it: without a terminal.
fn as_service(plane: &Plane, program: &str) -> Command {
    let command = plane.command(program, &["run", "-config", &format!("{{dir}}/{program}.conf")]);
    let mut service = Command::new("setsid");
    let script = format!("exec -a spire-{program} \"$@\"");
    service.args(["bash", "-c", &script, "bash"]).arg(command.get_program()).args(command.get_args());
    service.current_dir(plane.cwd()).env_clear();
    service.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    service
}

#[test]
fn service_manager_is_told_ready_alive_and_stopping() {
    let mut plane = plane();
    stop(&mut plane);
    for name in ["path", "abstract"] {
        let path = plane.dir().join("notify");
        let manager = if name == "path" {
            Manager::at(&path)
        } else {
            let address =
                <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
                    path.as_os_str().as_encoded_bytes(),
                );
            let socket = UnixDatagram::bind_addr(&address.unwrap()).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            Manager(socket)
        };
        let shown = if name == "path" { path.display().to_string() } else { format!("@{}", path.display()) };
        let mut service = as_service(&plane, "agent");
        service.env("NOTIFY_SOCKET", shown).env("WATCHDOG_USEC", "400000");

        let mut running = Running::start(&mut service);
        manager.until("READY=1");
        plane.await_identities(&[WORKLOAD]);
        let ready = Instant::now();
        for _ in 0..5 {
            manager.until("WATCHDOG=1");
        }
        assert!(ready.elapsed() < Duration::from_secs(20), "five signs of life took {:?}", ready.elapsed());
        running.signal("TERM");
        manager.until("STOPPING=1");
        assert_eq!(running.wait(Duration::from_secs(30)), 0);
        fs::remove_file(&path).ok();
    }
}

#[test]
fn service_at_rest_gives_its_code_back() {
    let mut plane = plane();
    let server = plane.server().unwrap().pid();
    let agent = plane.agent().unwrap().pid();
    // In kilobytes.
    let mapped = |pid: u32| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };

    for pid in [server, agent] {
        let (mut most, begun) = (mapped(pid), Instant::now());
        while mapped(pid) > most / 2 {
            assert!(begun.elapsed() < Duration::from_secs(60), "{most} kB, and {} now", mapped(pid));
            pause();
            most = most.max(mapped(pid));
        }
    }
    // What was given back is there when it is run.
    plane.await_identities(&[WORKLOAD]);
}

#[test]
fn service_takes_the_sockets_that_were_made_for_it() {
    let mut plane = plane();
    stop(&mut plane);
    let (socket, port) = (plane.fill("{asock}"), plane.word("p3").to_owned());
    let command = as_service(&plane, "agent");
    // It makes the sockets, waits for a client, and becomes the program then. The second is one that the
    // configuration does not name.
    let mut activated = Command::new("systemd-socket-activate");
    activated.args(["-l", &socket, "-l", &format!("127.0.0.1:{port}")]);
    activated.arg(command.get_program()).args(command.get_args()).current_dir(plane.cwd());
    let mut running = Running::start(&mut activated);

    // The first client waits for the whole start.
    let deadline = Instant::now() + Duration::from_secs(30);
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "nobody listens: {:?}", running.printed());
        pause();
    }
    plane.await_identities(&[WORKLOAD]);

    let is_told = || {
        let log = fs::read_to_string(plane.dir().join("agent.log")).unwrap();
        let mut lines = log.lines().filter(|line| line.contains(&port));
        lines.any(|line| line.contains("A socket was passed that the configuration does not name"))
    };
    while !is_told() {
        assert!(Instant::now() < deadline, "the other socket is not named");
        pause();
    }
    running.signal("TERM");
    assert_eq!(running.wait(Duration::from_secs(30)), 0);
    assert!(fs::exists(&socket).unwrap(), "the socket belongs to who made it");
}

/// Asks for a token. A request that the connection could not take any more, as it was being closed, was
/// never sent: gRPC's own libraries send it by another without a word, and so does this.
fn call(runtime: &tokio::runtime::Runtime, workload: &Workload) {
    let unsent = "operation was canceled";
    for _ in 0..3 {
        match runtime.block_on(workload.token("upgrade")) {
            Ok(_) => return,
            Err((code, message)) => assert!(message.starts_with(unsent), "{code} {message}"),
        }
    }
    panic!("no connection takes the request");
}

#[test]
fn upgrade_fails_no_call_and_keeps_the_process() {
    let mut plane = plane();
    stop(&mut plane);
    let notify = plane.dir().join("notify");
    let manager = Manager::at(&notify);
    let running = Running::start(as_service(&plane, "agent").env("NOTIFY_SOCKET", &notify));
    manager.until("READY=1");
    plane.await_identities(&[WORKLOAD]);

    // Clients that call all the time, each call by a connection of its own or by one that lasts.
    let (stopped, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|number| {
            let (stopped, calls, socket) = (Arc::clone(&stopped), Arc::clone(&calls), plane.fill("{asock}"));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let _entered = runtime.enter();
                let mut workload = Workload::at(&socket);
                while !stopped.load(Ordering::Relaxed) {
                    if number % 2 == 0 {
                        workload = Workload::at(&socket);
                    }
                    call(&runtime, &workload);
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();

    // `cargo xtask soak` asks for more.
    let rounds: usize = std::env::var("FINIAL_UPGRADES").map_or(5, |rounds| rounds.parse().unwrap());
    for _ in 0..rounds {
        let before = calls.load(Ordering::Relaxed);
        running.signal("HUP");
        let reloading = manager.until("RELOADING=1");
        assert!(reloading.iter().all(|said| !said.contains("STOPPING")), "{reloading:?}");
        let between = manager.until("READY=1");
        assert!(between.iter().all(|said| !said.contains("STOPPING")), "{between:?}");
        let deadline = Instant::now() + Duration::from_secs(30);
        while calls.load(Ordering::Relaxed) < before + 8 {
            assert!(Instant::now() < deadline, "calls do not go on");
            pause();
        }
    }
    stopped.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.join().expect("no call failed");
    }

    // Removed only by the last, since it was made by the first.
    running.signal("TERM");
    let mut running = running;
    assert_eq!(running.wait(Duration::from_secs(30)), 0);
    assert!(!fs::exists(plane.fill("{asock}")).unwrap());
    println!("{rounds} upgrades, {} calls, none failed", calls.load(Ordering::Relaxed));
}

#[test]
fn upgrade_of_a_server_keeps_its_port_and_refuses_what_it_cannot_read() {
    let mut plane = plane();
    let server = plane.server().unwrap();
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(30)), 0);
    let notify = plane.dir().join("notify");
    let manager = Manager::at(&notify);
    let mut running = Running::start(as_service(&plane, "server").env("NOTIFY_SOCKET", &notify));
    manager.until("READY=1");

    running.signal("HUP");
    manager.until("RELOADING=1");
    manager.until("READY=1");
    plane.await_healthy("server");
    assert!(plane.ok("server", &["entry", "show", "-socketPath", "{sock}"]).contains(WORKLOAD));

    plane.write("{dir}/server.conf", "server { trust_domain = ");
    running.signal("HUP");
    let deadline = Instant::now() + Duration::from_secs(30);
    let log = || fs::read_to_string(plane.dir().join("server.log")).unwrap();
    while !log().contains("Upgrade refused") {
        assert!(Instant::now() < deadline, "{}", log());
        pause();
    }
    assert!(running.is_running());
    plane.await_healthy("server");
}

#[test]
fn upgrade_that_is_under_way_keeps_no_server_from_stopping() {
    let mut plane = plane();
    stop(&mut plane);
    let server = plane.server().unwrap();
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(30)), 0);

    // While the successor judges the configuration, while this one drains, and while the other begins.
    for milliseconds in [0, 2, 5, 10, 15, 20, 30, 50, 100] {
        let mut running = Running::start(&mut as_service(&plane, "server"));
        plane.await_healthy("server");
        running.signal("HUP");
        std::thread::park_timeout(Duration::from_millis(milliseconds));
        running.signal("TERM");

        // The signal itself ends a program that has not asked for it yet.
        let ended = running.wait(Duration::from_secs(30));
        assert!([0, -15].contains(&ended), "{ended} after {milliseconds} ms");
    }
}

#[test]
fn service_units_are_understood_and_confined() {
    let folder = tempfile::tempdir().unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd");
    let program = Product::under_test().command("server", &["run".to_owned()]).get_program().to_owned();
    let mut services = Vec::new();
    for unit in fs::read_dir(units).unwrap() {
        let path = unit.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let copy = folder.path().join(path.file_name().unwrap());
        fs::write(&copy, text.replace("/usr/local/bin/finial", &program.to_string_lossy())).unwrap();
        services.push(copy);
    }
    assert_eq!(services.len(), 3);
    let analyze = |args: &[&str], unit: &Path| {
        let mut command = Command::new("systemd-analyze");
        command.args(args).arg(unit).env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()));
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };

    for unit in &services {
        let (is_good, said) = analyze(&["verify", "--man=no"], unit);
        let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("finial")).collect();
        assert!(is_good && of_ours.is_empty(), "{said}");
    }
    // The lower, the less may a program do that was taken over.
    for (name, most) in [("finial-server.service", "20"), ("finial-agent.service", "40")] {
        let threshold = format!("--threshold={most}");
        let unit = folder.path().join(name);
        let (is_good, said) = analyze(&["security", "--offline=true", &threshold], &unit);
        assert!(is_good, "{said}");
    }
}

/// System calls by the name of their set, `@default` for one, which may have other sets in it.
struct Calls(HashMap<String, Vec<String>>);

impl Calls {
    fn known() -> Self {
        let output = Command::new("systemd-analyze").arg("syscall-filter").output().unwrap();
        let mut sets: HashMap<String, Vec<String>> = HashMap::new();
        let mut set = String::new();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            match line.trim() {
                "" => {}
                member if member.starts_with('#') => {}
                member if line.starts_with(' ') => {
                    sets.entry(set.clone()).or_default().push(member.to_owned())
                }
                name => name.clone_into(&mut set),
            }
        }
        Self(sets)
    }

    /// A call itself, or all that are in a set.
    fn of(&self, name: &str) -> HashSet<String> {
        match self.0.get(name) {
            Some(members) => members.iter().flat_map(|member| self.of(member)).collect(),
            None => HashSet::from([name.to_owned()]),
        }
    }

    /// What a unit lets its program call, systemd.exec(5).
    fn allowed_by(&self, unit: &str) -> HashSet<String> {
        let mut allowed = self.of("@default");
        for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
            let is_denied = filter.starts_with('~');
            for call in filter.trim_start_matches('~').split(' ').flat_map(|name| self.of(name)) {
                if is_denied {
                    allowed.remove(&call);
                } else {
                    allowed.insert(call);
                }
            }
        }
        allowed
    }
}

/// The names of the calls in what `strace` wrote.
fn called(trace: &str) -> HashSet<String> {
    let name = |line: &str| {
        let (_, call) = line.split_once(char::is_whitespace)?;
        let (name, _) = call.trim_start().split_once('(')?;
        let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        is_name(name).then(|| name.to_owned())
    };
    trace.lines().filter_map(name).collect()
}

/// A filter of system calls ends a program that makes another one. No filter can be set here as systemd does,
/// so what the programs call is looked at.
#[test]
fn service_units_let_the_programs_call_what_they_call() {
    // What SPIRE's programs call is not their concern.
    if std::env::var_os("SPIRE_BIN").is_some() {
        return;
    }
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        return skip("service units", "strace is not installed");
    }
    let mut plane = plane();
    stop(&mut plane);
    let server = plane.server().unwrap();
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(30)), 0);

    let mut programs = Vec::new();
    for program in ["server", "agent"] {
        let service = as_service(&plane, program);
        let trace = plane.dir().join(format!("{program}.trace"));
        // Beside it, so that signals go to the program.
        let mut strace = Command::new("strace");
        strace.args(["-D", "-f", "-o"]).arg(&trace).arg(service.get_program()).args(service.get_args());
        strace.current_dir(plane.cwd()).env_clear();
        strace.envs(service.get_envs().filter_map(|(name, value)| Some((name, value?))));
        programs.push((program, trace, Running::start(&mut strace)));
        plane.await_healthy(program);
    }
    let entry = ["-parentID", "spiffe://{td}/node", "-spiffeID", OTHER, "-selector", "unix:uid:{uid}"];
    let _shown = plane.ok("server", &[&["entry", "create", "-socketPath", "{sock}"][..], &entry].concat());
    plane.await_identities(&[WORKLOAD, OTHER]);
    let _token = plane.ok("agent", &["api", "fetch", "jwt", "-audience", "db", "-socketPath", "{asock}"]);
    for (program, trace, running) in &programs {
        let started = || fs::read_to_string(trace).unwrap().matches("execve(").count();
        let (before, deadline) = (started(), Instant::now() + Duration::from_secs(30));
        running.signal("HUP");
        // First the one that judges the configuration.
        while started() < before + 2 {
            assert!(Instant::now() < deadline, "the {program} has no successor");
            pause();
        }
        plane.await_healthy(program);
    }
    plane.await_identities(&[WORKLOAD, OTHER]);

    let calls = Calls::known();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd");
    for (program, trace, running) in programs.iter_mut().rev() {
        running.signal("TERM");
        assert_eq!(running.wait(Duration::from_secs(30)), 0);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !fs::read_to_string(&*trace).unwrap().trim_end().ends_with("+++ exited with 0 +++") {
            assert!(Instant::now() < deadline, "the trace does not end");
            pause();
        }
        let unit = fs::read_to_string(units.join(format!("finial-{program}.service"))).unwrap();
        let called = called(&fs::read_to_string(&*trace).unwrap());
        assert!(called.contains("epoll_wait") && called.contains("accept4"), "{called:?}");
        let allowed = calls.allowed_by(&unit);
        let refused: Vec<&String> = called.difference(&allowed).collect();
        assert!(refused.is_empty(), "the unit of the {program} ends it for {refused:?}");
    }
}
