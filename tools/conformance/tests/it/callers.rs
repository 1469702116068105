//! Who an agent takes a caller for: processes that end and leave their connection to another, programs
//! that are gone from their place, and namespaces of all kinds.
//!
//! The callers are this very program, told by its environment to be one.
#![expect(clippy::disallowed_methods, reason = "deadlines for foreign processes")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use finial_conformance::{Plane, PlaneConfig, Product, Running, Workload, lure, pause, skip};

/// What tells this program to be a caller, and of which agent.
const SOCKET: &str = "FINIAL_TEST_CALLER";
/// What marks its lines among those of the test harness.
const MARK: &str = "> ";
const BY_UID: &str = "spiffe://example.org/by-uid";

/// A caller: asked by a line on its standard input, it answers by one.
struct Caller {
    child: Child,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Caller {
    /// `program` as the part `part`, after the words of `wrapper`.
    fn start(wrapper: &[&str], program: &Path, part: &str, plane: &Plane) -> Self {
        let part = format!("callers::{part}");
        let own = [program.to_str().unwrap(), "--exact", &part, "--nocapture", "--test-threads=1"];
        let words = [wrapper, &own].concat();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .env(SOCKET, plane.word("asock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let questions = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, questions, answers }
    }

    /// This program, as it is, that answers what it is given.
    fn plain(wrapper: &[&str], plane: &Plane) -> Self {
        Self::start(wrapper, &std::env::current_exe().unwrap(), "caller_that_tells_who_it_is", plane)
    }

    /// What it says next; nothing when it has ended.
    fn says(&mut self) -> Option<String> {
        let lines = self.answers.by_ref().map(Result::unwrap);
        lines.filter_map(|line| line.split_once(MARK).map(|(_, said)| said.to_owned())).next()
    }

    /// Who the agent takes it for.
    fn is(&mut self) -> String {
        writeln!(self.questions, "who").unwrap();
        self.says().expect("an answer")
    }

    /// The same once it is `expected`; entries come a moment after they were made.
    fn await_is(&mut self, expected: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let is = self.is();
            if is == expected {
                return;
            }
            assert!(Instant::now() < deadline, "it is {is}, not {expected}");
            pause();
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn tell(what: &str) {
    println!("\n{MARK}{what}");
}

#[tokio::test]
async fn caller_that_tells_who_it_is() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    for line in std::io::stdin().lines() {
        assert_eq!(line.unwrap(), "who");
        match Workload::at(socket.to_str().unwrap()).ids().await {
            Ok(ids) => tell(&ids.join(" ")),
            Err((code, message)) => tell(&format!("{code} {}", message.lines().next().unwrap_or_default())),
        }
    }
}

/// Asked by a number, it makes so many calls at once, each on a connection of its own, and tells how many of
/// them are answered by each set of identities.
#[tokio::test]
async fn caller_that_asks_many_times_at_once() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    for line in std::io::stdin().lines() {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..line.unwrap().parse().unwrap() {
            let workload = Workload::at(socket.to_str().unwrap());
            calls.spawn(async move { workload.ids().await });
        }
        let mut told = BTreeMap::new();
        for answer in calls.join_all().await {
            *told.entry(answer.map_or_else(|(code, _)| code, |ids| ids.join(" "))).or_insert(0) += 1;
        }
        tell(&format!("{told:?}"));
    }
}

/// Connects, has a process of its own that holds the connection too, and lives until its input ends.
#[test]
fn caller_that_leaves_its_connection() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let connection = UnixStream::connect(socket).unwrap();
    let mut heir = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "callers::caller_that_was_left_a_connection", "--nocapture", "--test-threads=1"])
        .stdin(OwnedFd::from(connection))
        .spawn()
        .unwrap();
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    // It lives on; its input, which this process was given, does not.
    drop(heir.try_wait());
}

#[tokio::test]
async fn caller_that_was_left_a_connection() {
    use std::os::fd::AsFd as _;
    if std::env::var_os(SOCKET).is_none() {
        return;
    }
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let stream = UnixStream::from(stdin);
    // Run by hand, with a terminal for its input, it is nobody.
    if stream.peer_addr().is_err() {
        return;
    }
    stream.set_nonblocking(true).unwrap();
    let workload = Workload::over(tokio::net::UnixStream::from_std(stream).unwrap());
    let (code, message) = workload.follow(|ids, serial| tell(&format!("update {ids:?} {serial}"))).await;
    tell(&format!("end {code} {message}"));
    let again = workload.ids().await;
    tell(&format!("again {}", again.map_or_else(|(code, _)| code, |ids| format!("{ids:?}"))));
}

fn plane(workload_attestor: &str) -> Plane {
    let config = PlaneConfig {
        agent: true,
        workload_attestor: workload_attestor.to_owned(),
        ..PlaneConfig::default()
    };
    Plane::start(&Product::under_test(), &config, &Default::default())
}

fn add(plane: &Plane, id: &str, selector: &str, more: &[&str]) {
    let entry = ["-parentID", "spiffe://{td}/node", "-spiffeID", id, "-selector", selector];
    let create = ["entry", "create", "-socketPath", "{sock}"];
    let _shown = plane.ok("server", &[&create[..], &entry, more].concat());
}

#[test]
fn w07_who_holds_the_connection_of_a_process_that_has_ended_gets_no_new_svid() {
    let plane = plane("");
    // Dated back by ten seconds, it has half of its life behind it after one, and is renewed.
    add(&plane, BY_UID, "unix:uid:{uid}", &["-x509SVIDTTL", "12"]);
    plane.await_identities(&[BY_UID]);
    let program = std::env::current_exe().unwrap();
    let mut caller = Caller::start(&[], &program, "caller_that_leaves_its_connection", &plane);
    let update = format!("update [{BY_UID:?}] ");
    for _ in 0..2 {
        // As long as it lives the other one sees what it would.
        let said = caller.says().unwrap();
        assert!(said.starts_with(&update), "{said}");
    }

    caller.child.kill().unwrap();
    caller.child.wait().unwrap();
    // What was sent before the end has been sent; then two more are signed, as somebody else is told.
    let before = fresh_serials(&plane, 2);

    let mut said = caller.says().unwrap();
    while said.starts_with(&update) {
        let serial = said.rsplit(' ').next().unwrap().to_owned();
        assert!(!before.contains(&serial), "{said} was signed after the end");
        said = caller.says().unwrap();
    }
    assert!(said.starts_with("end UNAVAILABLE "), "{said}");
    assert_eq!(caller.says().unwrap(), "again UNAVAILABLE");
}

/// The serial numbers of so many SVIDs that are signed from now on.
fn fresh_serials(plane: &Plane, count: usize) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut seen: Vec<String> = Vec::new();
    runtime.block_on(async {
        let (sender, mut serials) = tokio::sync::mpsc::unbounded_channel();
        let workload = Workload::at(plane.word("asock"));
        let following = workload.follow(move |_, serial| drop(sender.send(serial)));
        let counting = async {
            // The first was there before.
            serials.recv().await;
            while seen.len() < count {
                seen.extend(serials.recv().await);
            }
        };
        tokio::select! {
            end = following => panic!("{end:?}"),
            () = counting => {}
        }
    });
    seen
}

#[test]
fn w12_a_program_that_is_gone_from_its_path_is_not_the_one_that_stands_there() {
    let plane = plane("discover_workload_path = true");
    let (program, by_path, by_digest) =
        (plane.dir().join("workload"), "spiffe://example.org/by-path", "spiffe://example.org/by-digest");
    let own = std::env::current_exe().unwrap();
    let place = || drop(fs::hard_link(&own, &program).or_else(|_| fs::copy(&own, &program).map(drop)));
    place();
    let digest = String::from_utf8(Command::new("sha256sum").arg(&program).output().unwrap().stdout).unwrap();
    let path = format!("unix:path:{}", program.display());
    let digest = format!("unix:sha256:{}", digest.split(' ').next().unwrap());
    add(&plane, BY_UID, "unix:uid:{uid}", &[]);
    add(&plane, by_path, &path, &[]);
    add(&plane, by_digest, &digest, &[]);
    let mut caller = Caller::start(&[], &program, "caller_that_tells_who_it_is", &plane);
    caller.await_is(&format!("{by_digest} {by_path} {BY_UID}"));
    let mut swapped = Caller::start(&[], &program, "caller_that_tells_who_it_is", &plane);
    swapped.await_is(&format!("{by_digest} {by_path} {BY_UID}"));

    // What runs is still what it was, but nothing stands at its path, or something else.
    fs::remove_file(&program).unwrap();
    assert_eq!(caller.is(), format!("{by_digest} {BY_UID}"));
    fs::copy("/bin/true", &program).unwrap();
    assert_eq!(swapped.is(), format!("{by_digest} {BY_UID}"));
    // Nor when the same program stands there again: it may have been another in between.
    fs::remove_file(&program).unwrap();
    place();
    assert_eq!(swapped.is(), format!("{by_digest} {BY_UID}"));

    // What lies on an overlay, in a mount namespace of its own, is what it is by its content.
    let (low, top) = (plane.dir().join("low"), plane.dir().join("top"));
    fs::create_dir_all(&low).unwrap();
    fs::create_dir_all(&top).unwrap();
    fs::rename(&program, low.join("workload")).unwrap();
    let overlay = "mount -t tmpfs tmpfs \"$0\"; mkdir \"$0\"/up \"$0\"/work \"$0\"/all; \
                   mount -t overlay overlay -o lowerdir=\"$1\",upperdir=\"$0\"/up,workdir=\"$0\"/work \"$0\"/all; \
                   shift; exec \"$@\"";
    let (low, place) = (low.to_str().unwrap(), top.to_str().unwrap());
    let wrapper = ["unshare", "--mount", "bash", "-e", "-c", overlay, place, low];
    let program = top.join("all/workload");
    let mut layered = Caller::start(&wrapper, &program, "caller_that_tells_who_it_is", &plane);
    layered.await_is(&format!("{by_digest} {BY_UID}"));
}

#[test]
fn w12_what_cannot_be_hashed_has_no_selectors_of_that_attestor() {
    // Larger than the agent, which attests itself to see whether it can; what it is longer by is a hole.
    const SIZE: u64 = 512 << 20;
    for (limit, expected) in [(SIZE, BY_UID), (SIZE - 1, "UNAVAILABLE workload attestation failed")] {
        let plane = plane(&format!("discover_workload_path = true workload_size_limit = {limit}"));
        let program = readable(&plane);
        fs::OpenOptions::new().write(true).open(&program).unwrap().set_len(SIZE).unwrap();
        add(&plane, BY_UID, "unix:uid:{uid}", &[]);
        Caller::start(&[], &program, "caller_that_tells_who_it_is", &plane).await_is(expected);
    }
}

/// How many bytes a process has read, and for how long it has run, in hundredths of a second.
fn read_and_run(pid: u32) -> (u64, u64) {
    let counters = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let read = counters.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (read, fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
}

/// A program of a gigabyte, most of it a hole, that 200 callers run: hashed once, and anew when it may have
/// become another.
#[test]
fn w13_a_large_program_is_hashed_once_however_many_call_and_again_when_it_changed() {
    const SIZE: u64 = 1 << 30;
    let mut plane = plane("discover_workload_path = true");
    let program = readable(&plane);
    fs::OpenOptions::new().write(true).open(&program).unwrap().set_len(SIZE).unwrap();
    let sum = Command::new("sha256sum").arg(&program).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap().split(' ').next().unwrap().to_owned();
    add(&plane, BY_UID, "unix:uid:{uid}", &[]);
    add(&plane, "spiffe://example.org/by-digest", &format!("unix:sha256:{sum}"), &[]);
    plane.await_identities(&[BY_UID]);
    // A file that was changed a moment ago may be changed again without a trace.
    std::thread::sleep(Duration::from_secs(3));
    let pid = plane.agent().unwrap().pid();
    let mut caller = Caller::start(&[], &program, "caller_that_asks_many_times_at_once", &plane);
    let mut ask = |count: usize, expected: &str| {
        let before = read_and_run(pid);
        writeln!(caller.questions, "{count}").unwrap();
        assert_eq!(caller.says().unwrap(), format!("{{{expected:?}: {count}}}"));
        let after = read_and_run(pid);
        (after.0 - before.0, after.1 - before.1)
    };
    let both = "spiffe://example.org/by-digest spiffe://example.org/by-uid";

    let (read, run) = ask(200, both);
    println!("200 callers: {read} bytes read, {run} hundredths of a second");
    assert!((SIZE..SIZE + SIZE / 2).contains(&read), "{read} bytes read for one program of {SIZE}");
    assert!(ask(50, both).0 < SIZE / 2, "it is remembered");

    // The same bytes with another date: they may be others.
    fs::File::options().read(true).open(&program).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let (read, alone) = ask(1, both);
    assert!(read >= SIZE, "{read} bytes read");
    // By processor time too: 200 callers cost no more than two.
    assert!(run <= 2 * alone + 100, "{run} hundredths of a second for 200, {alone} for one");
}

#[test]
fn w13_no_limit_is_none_and_one_below_none_hashes_nothing() {
    let by_digest = "spiffe://example.org/by-digest";
    for (limit, expected) in [("0", format!("{by_digest} {BY_UID}")), ("-1", BY_UID.to_owned())] {
        let plane = plane(&format!("discover_workload_path = true workload_size_limit = {limit}"));
        let program = readable(&plane);
        let sum = Command::new("sha256sum").arg(&program).output().unwrap().stdout;
        let sum = String::from_utf8(sum).unwrap();
        add(&plane, by_digest, &format!("unix:sha256:{}", sum.split(' ').next().unwrap()), &[]);
        add(&plane, BY_UID, "unix:uid:{uid}", &[]);
        plane.await_identities(&[BY_UID]);

        Caller::start(&[], &program, "caller_that_tells_who_it_is", &plane).await_is(&expected);
    }
}

/// An agent that may not look into other users' processes: their program has no link that it can read.
#[test]
fn w12_a_program_that_may_not_be_looked_at_has_no_path() {
    for (attestor, expected) in [
        ("", "spiffe://example.org/other"),
        ("discover_workload_path = true", "UNAVAILABLE workload attestation failed"),
    ] {
        let config = PlaneConfig { workload_attestor: attestor.to_owned(), ..PlaneConfig::default() };
        let plane = Plane::start(&Product::under_test(), &config, &Default::default());
        let agent = wrapped(&plane, &config, &["setpriv", "--bounding-set=-sys_ptrace"]);
        add(&plane, "spiffe://example.org/other", "unix:uid:65534", &[]);
        open_to_all(&plane);

        let mut caller = Caller::start(&NOBODY, &readable(&plane), "caller_that_tells_who_it_is", &plane);

        caller.await_is(expected);
        drop(agent);
    }
}

/// With no more than the units of `deploy/systemd` leave them: the server with nothing that it may write
/// besides its folder.
#[test]
fn c04_a_server_needs_no_capability_and_an_agent_what_its_unit_says() {
    let no_more_than = |unit: &str| {
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd");
        let unit = fs::read_to_string(units.join(unit)).unwrap();
        let said = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
        let kept = said.split_whitespace().map(|name| format!(",+{}", name[4..].to_lowercase()));
        format!("--bounding-set=-all{}", kept.collect::<String>())
    };
    let server_prelude = format!(
        "mount --make-rprivate /\nmount --bind {{dir}} {{dir}}\nmount -o remount,bind,ro /\n\
         set -- setpriv {} --no-new-privs bash -c 'exec -a spire-server \"$@\"' bash \"$@\"",
        no_more_than("finial-server.service")
    );
    let workload_attestor = "discover_workload_path = true".to_owned();
    let config = PlaneConfig { server_prelude, workload_attestor, ..PlaneConfig::default() };
    let mut plane = Plane::start(&Product::under_test(), &config, &Default::default());
    let agent =
        wrapped(&plane, &config, &["setpriv", &no_more_than("finial-agent.service"), "--no-new-privs"]);
    open_to_all(&plane);
    let program = readable(&plane);
    let sum = String::from_utf8(Command::new("sha256sum").arg(&program).output().unwrap().stdout).unwrap();
    let digest = format!("unix:sha256:{}", sum.split(' ').next().unwrap());
    let path = format!("unix:path:{}", program.display());
    add(&plane, "spiffe://example.org/other", "unix:uid:65534", &["-selector", &path, "-selector", &digest]);

    Caller::start(&NOBODY, &program, "caller_that_tells_who_it_is", &plane)
        .await_is("spiffe://example.org/other");

    let effective = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap().count_ones()
    };
    assert_eq!(effective(plane.server().unwrap().pid()), 0);
    assert_eq!(effective(agent.pid()), 2);
}

const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// Lets others into the plane's folder, as they come into `/run`.
fn open_to_all(plane: &Plane) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(plane.dir(), fs::Permissions::from_mode(0o755)).unwrap();
}

/// This program where others may run it.
fn readable(plane: &Plane) -> std::path::PathBuf {
    let program = plane.dir().join("caller");
    if !program.exists() {
        // By another process: what a fork of this one holds open for writing cannot be run.
        let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&program).status();
        assert!(copied.unwrap().success());
    }
    program
}

/// The plane's agent, started after the words of `wrapper`, once it serves.
fn wrapped(plane: &Plane, config: &PlaneConfig, wrapper: &[&str]) -> Running {
    let generate = ["token", "generate", "-spiffeID", "spiffe://{td}/node", "-socketPath", "{sock}"];
    let token = plane.ok("server", &generate);
    let token = token.lines().find_map(|line| line.strip_prefix("Token: ")).unwrap();
    plane.write("{dir}/bootstrap.pem", &plane.ok("server", &["bundle", "show", "-socketPath", "{sock}"]));
    plane.configure_agent(config, token);
    let inner = plane.command("agent", &["run", "-config", "{dir}/agent.conf"]);
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).args(["bash", "-c", r#"exec -a spire-agent "$@""#, "bash"]);
    command.arg(inner.get_program()).args(inner.get_args()).current_dir(plane.cwd()).env_clear();
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let agent = Running::start(&mut command);
    let log = plane.dir().join("agent.log");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fs::read_to_string(&log).unwrap_or_default().contains("Node attestation was successful") {
        assert!(Instant::now() < deadline, "the agent does not serve: {:?}", agent.printed());
        pause();
    }
    agent
}

#[test]
fn callers_in_namespaces_below_the_agents_are_who_they_are_outside() {
    let plane = plane("");
    let (root, other) = ("spiffe://example.org/root", "spiffe://example.org/other");
    add(&plane, root, "unix:uid:0", &[]);
    add(&plane, other, "unix:uid:65534", &[]);
    open_to_all(&plane);
    let program = readable(&plane);
    let is = |wrapper: &[&str], expected: &str| {
        Caller::start(wrapper, &program, "caller_that_tells_who_it_is", &plane).await_is(expected);
    };
    is(&[], root);
    is(&NOBODY, other);

    is(&["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"], root);
    is(
        &["unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "--ipc", "--uts", "--cgroup"],
        root,
    );
    // Root there is nobody here, whatever else is its own too.
    let alone = ["unshare", "--user", "--map-root-user"];
    is(&[&NOBODY[..], &alone].concat(), other);
    let container = [&NOBODY[..], &alone, &["--pid", "--fork", "--kill-child", "--mount", "--net"]].concat();
    is(&container, other);
}

#[test]
fn callers_that_the_agent_cannot_see_are_refused_and_others_are_served() {
    let config = PlaneConfig { log: "DEBUG".to_owned(), ..PlaneConfig::default() };
    let plane = Plane::start(&Product::under_test(), &config, &Default::default());
    let namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let agent = wrapped(&plane, &config, &namespace);
    add(&plane, BY_UID, "unix:uid:{uid}", &[]);
    let first = fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.pid())).unwrap();

    // In the agent's namespace.
    let enter = ["nsenter", "--pid", "--mount", "--target", first.trim()];
    Caller::plain(&enter, &plane).await_is(BY_UID);
    // Outside of it.
    let outside = Caller::plain(&[], &plane).is();

    // Its connection is closed before it has said anything.
    assert!(!outside.contains("spiffe://"), "{outside}");
    let log = fs::read_to_string(plane.dir().join("agent.log")).unwrap();
    assert!(log.contains("could not resolve caller information"), "{log}");
    Caller::plain(&enter, &plane).await_is(BY_UID);
}

#[test]
fn g02_the_log_names_no_selectors_but_those_that_it_may() {
    // At its debug level SPIRE's agent names all.
    if std::env::var_os("SPIRE_BIN").is_some() {
        return;
    }
    let config = PlaneConfig {
        agent: true,
        agent_extra: "log_selectors = [\"unix:uid\"]".to_owned(),
        workload_attestor: "discover_workload_path = true".to_owned(),
        log: "DEBUG".to_owned(),
        ..PlaneConfig::default()
    };
    let plane = Plane::start(&Product::under_test(), &config, &Default::default());
    let program = readable(&plane);
    let mut caller = Caller::start(&[], &program, "caller_that_tells_who_it_is", &plane);

    // Refused, and served then.
    assert_eq!(caller.is(), "PERMISSION_DENIED no identity issued");
    add(&plane, BY_UID, &format!("unix:path:{}", program.display()), &[]);
    caller.await_is(BY_UID);

    let log = fs::read_to_string(plane.dir().join("agent.log")).unwrap();
    assert!(log.contains("unix:uid:") && log.contains("PID attested to have selectors"), "{log}");
    for hidden in [program.to_str().unwrap(), "sha256:", "gid:"] {
        assert!(!log.contains(hidden), "{hidden} in {log}");
    }
}

/// What the agent opens and whom it calls, as the kernel sees it, while a workload names places of its
/// choice wherever there is room for a text.
#[test]
fn w18_no_place_that_a_workload_names_is_gone_to() {
    // What SPIRE's agent opens for itself is not listed here.
    if std::env::var_os("SPIRE_BIN").is_some() {
        return;
    }
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        return skip("w18", "strace is not installed");
    }
    let mut plane = plane("");
    add(&plane, BY_UID, "unix:uid:{uid}", &[]);
    plane.await_identities(&[BY_UID]);
    let dir = plane.dir().join("lure");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "secret").unwrap();
    let socket = dir.join("socket");
    let local = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let far = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let far_port = far.local_addr().unwrap().port();
    let (dir, socket) = (dir.display(), socket.display());
    let places = [
        format!("{dir}/file"),
        format!("../../../../../../..{dir}/file"),
        format!("file://{dir}/file"),
        format!("unix://{socket}"),
        format!("unix:{socket}"),
        format!("http://127.0.0.1:{far_port}/lure"),
        format!("spiffe://127.0.0.1:{far_port}/lure"),
        format!("127.0.0.1:{far_port}"),
        "https://lure.example.org/keys".to_owned(),
        "spiffe://lure.example.org/lure".to_owned(),
        "lure.example.org".to_owned(),
    ];
    let trace = plane.dir().join("trace");
    let pid = plane.agent().unwrap().pid().to_string();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-s", "4096", "-e", "trace=%file,connect,bind,sendto,sendmsg,sendmmsg", "-o"]);
    let mut tracing = Running::start(strace.arg(&trace).args(["-p", &pid]));
    tracing.await_said("attached");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let codes = runtime.block_on(lure(plane.word("asock"), &places));
    // The agent does what it does anyway, too.
    add(&plane, "spiffe://example.org/late", "unix:uid:{uid}", &[]);
    plane.await_identities(&["spiffe://example.org/late"]);
    tracing.signal("INT");
    tracing.wait(Duration::from_secs(30));

    println!("{codes:?}");
    assert!(codes["OK"] > 0 && codes["INVALID_ARGUMENT"] > 0, "{codes:?}");
    let trace = fs::read_to_string(&trace).unwrap();
    let program = format!("\"/proc/{}/exe\"", std::process::id());
    assert!(trace.contains(&program), "the trace shows nothing of attestation: {trace}");
    let (data, port) = (plane.dir().join("agent-data"), plane.word("port"));
    let odd: Vec<&str> = trace.lines().filter(|call| !is_own_affair(call, &data, port)).collect();
    assert!(odd.is_empty(), "{}", odd.join("\n"));
    for is_called in [
        local.set_nonblocking(true).and_then(|()| local.accept().map(drop)),
        far.set_nonblocking(true).and_then(|()| far.accept().map(drop)),
    ] {
        assert_eq!(is_called.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// Whether this call of the kernel is one that the agent makes for itself: about `/proc`, the accounts of
/// this machine, its own folder, or its server.
fn is_own_affair(call: &str, data: &Path, server_port: &str) -> bool {
    // The rest of a call stands apart from its beginning where another came between.
    let Some((name, arguments)) = call.split_once('(').filter(|_| !call.contains("<... ")) else {
        return true;
    };
    let name = name.rsplit(' ').next().unwrap_or_default();
    let quoted = |text: &str| text.split('"').nth(1).unwrap_or_default().to_owned();
    match name {
        // To whom the connection is says the call that made it.
        "sendto" | "sendmsg" | "sendmmsg" => !call.contains("sa_family="),
        "connect" | "bind" => {
            call.contains(&format!("sin_port=htons({server_port})")) && call.contains("127.0.0.1")
        }
        _ => {
            let path = quoted(arguments);
            let of_process = arguments.split('>').next().is_some_and(|folder| folder.contains("</proc/"));
            let is_known = |place: &str| path == place || path.starts_with(&format!("{place}/"));
            of_process && matches!(path.as_str(), "" | "status" | "stat" | "exe" | "cgroup")
                || Path::new(&path).starts_with(data)
                || ["/proc", "/etc/passwd", "/etc/group"].into_iter().any(is_known)
        }
    }
}
