//! `finial bench` against a server and an agent: what it reports must add up, and it must leave nothing
//! behind. How fast anything is is not looked at.

use std::process::{Command, Stdio};
use std::time::Duration;

use finial_conformance::{Plane, PlaneConfig, Product, Running};
use serde_json::Value;

/// A plane whose server takes calls as often as they come.
fn plane(product: &Product, agent: bool) -> Plane {
    let config = PlaneConfig { agent, ..PlaneConfig::default() };
    Plane::start(product, &config, &Default::default())
}

/// `finial bench` on a plane.
fn bench(plane: &Plane, args: &[&str]) -> Command {
    let common = ["-socketPath", "{sock}", "-output", "json"];
    let with_address = ["-serverAddress", "127.0.0.1:{port}"];
    let [command, own @ ..] = args else { panic!("no command") };
    let local = ["seed", "mint", "entry", "verify", "propagate", "workload"].contains(command);
    let mut words = vec!["bench", command];
    words.extend(common);
    if !local {
        words.extend(with_address);
    }
    // Of a flag that comes twice the last counts.
    words.extend(own);
    let words: Vec<String> = words.iter().map(|word| plane.fill(word)).collect();
    Product::finial().command("finial", &words)
}

fn report(plane: &Plane, args: &[&str]) -> Value {
    let output = bench(plane, args).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}"));
    check(args, &report);
    report
}

/// What holds of every report.
fn check(args: &[&str], report: &Value) {
    assert_eq!(report["command"], args[0]);
    assert!(report["machine"]["cores"].as_u64().unwrap() >= 1, "{report}");
    assert!(report["target"]["pid"].as_u64().unwrap() > 1, "{report}");
    assert_ne!(report["target"]["version"], "of unknown version", "{report}");
    let calibration = &report["calibration"];
    let [check, sign, budget] =
        ["csr_check_us", "signature_us", "budget_us"].map(|name| calibration[name].as_f64().unwrap());
    assert!((budget - 1.25 * (check + sign)).abs() < 0.001 && check > 0.0 && sign > 0.0, "{calibration}");
    let phases = report["phases"].as_array().unwrap();
    assert!(!phases.is_empty(), "{report}");
    for phase in phases {
        let number = |name: &str| phase[name].as_f64().unwrap_or_else(|| panic!("{name}: {phase}"));
        let is_checked = number("checked") >= 1.0 || number("items") == 0.0;
        assert!(number("calls") >= 1.0 && is_checked, "{phase}");
        assert_eq!(number("failures"), 0.0, "{phase}");
        let rate = number("items") / number("seconds");
        assert!((number("rate") - rate).abs() <= rate * 0.01 || args[0] == "storm", "{phase}");
        let latency = &phase["latency"];
        if latency.is_object() {
            let steps =
                ["least", "p50", "p90", "p99", "p999", "most"].map(|name| latency[name].as_f64().unwrap());
            assert!(steps.is_sorted() && (steps[0] > 0.0 || args[0] == "storm"), "{phase}");
        }
    }
}

fn items(report: &Value, name: &str) -> u64 {
    let phases = report["phases"].as_array().unwrap();
    let phase = phases.iter().find(|phase| phase["name"].as_str().unwrap().starts_with(name));
    phase.unwrap_or_else(|| panic!("no phase {name}: {report}"))["items"].as_u64().unwrap()
}

fn left_behind(plane: &Plane) -> [String; 2] {
    ["entry", "agent"]
        .map(|what| plane.ok("server", &[what, "count", "-socketPath", "{sock}"]).trim().to_owned())
}

/// All commands that need a server only.
fn serve(product: &Product) {
    let plane = plane(product, false);
    let short = ["-agents", "3", "-callers", "2", "-duration", "400ms", "-checkEvery", "10"];
    let with = |own: &[&'static str]| -> Vec<&str> { own.iter().chain(&short).copied().collect() };

    let signed = report(&plane, &with(&["x509", "-batch", "1,20"]));
    assert!(items(&signed, "X.509-SVIDs, 20 a call") >= 20, "{signed}");
    assert_eq!(signed["phases"][0]["budget_us"], signed["calibration"]["budget_us"]);
    report(&plane, &with(&["jwt"]));
    report(&plane, &["mint", "-callers", "2", "-duration", "300ms", "-checkEvery", "10"]);
    let joined = report(&plane, &["attest", "-count", "7", "-callers", "3", "-checkEvery", "2"]);
    assert_eq!((items(&joined, "attestations"), &joined["phases"][0]["checked"]), (7, &Value::from(4)));
    let written = report(&plane, &["entry", "-entries", "30", "-callers", "4", "-checkEvery", "10"]);
    for what in ["created", "changed", "deleted"] {
        assert_eq!(items(&written, &format!("entries {what} one by one")), 30);
    }
    let synced = report(&plane, &with(&["sync", "-entries", "3,520", "-count", "2"]));
    assert_eq!(items(&synced, "first sync of 520 entries"), 2);
    let idle = report(&plane, &with(&["idle", "-entries", "2", "-interval", "100ms"]));
    assert_eq!(idle["memory"][0]["count"], 3);
    report(&plane, &with(&["soak", "-entries", "5", "-rate", "50"]));

    assert_eq!(left_behind(&plane), ["0 registration entries", "0 attested agents"]);
}

/// What stays is read back, and one lost entry is noticed.
fn read_back(product: &Product) {
    let plane = plane(product, false);

    let seeded = report(&plane, &["seed", "-entries", "1501", "-parents", "7", "-batch", "500"]);
    assert_eq!((items(&seeded, "entries seeded"), &seeded["memory"][0]["count"]), (1501, &Value::from(1501)));
    report(&plane, &["seed", "-entries", "1501", "-parents", "7"]);
    let read = report(&plane, &["verify", "-entries", "1501", "-parents", "7"]);
    assert_eq!(items(&read, "entries read"), 1501);

    let shown = plane.ok(
        "server",
        &["entry", "show", "-spiffeID", "spiffe://{td}/bench/seed/77", "-socketPath", "{sock}"],
    );
    let id =
        shown.lines().find_map(|line| line.strip_prefix("Entry ID")).unwrap().trim_start_matches([' ', ':']);
    let _deleted = plane.ok("server", &["entry", "delete", "-entryID", id, "-socketPath", "{sock}"]);
    let output = bench(&plane, &["verify"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("void") && stderr.contains("77 is lost"), "{stderr}");
}

/// All commands that need an agent.
fn work(product: &Product) {
    let plane = plane(product, true);
    let agent = ["-agentSocketPath", "{asock}", "-parentID", "spiffe://{td}/node"];
    let with = |own: &[&'static str]| -> Vec<&str> { own.iter().chain(&agent).copied().collect() };

    let seen = report(&plane, &with(&["propagate", "-count", "2"]));
    assert_eq!(items(&seen, "entry created"), 2);
    let asked = report(
        &plane,
        &with(&[
            "workload",
            "-streams",
            "5",
            "-connections",
            "2",
            "-rotations",
            "3",
            "-agentAdminSocketPath",
            "{admin}",
            "-entries",
            "7",
            "-callers",
            "2",
            "-duration",
            "300ms",
        ]),
    );
    assert_eq!(items(&asked, "entry changed to X.509-SVID on each stream"), 15);
    assert_eq!(items(&asked, "X.509-SVID on the first stream to each other"), 12);
    assert_eq!((&asked["memory"][0]["count"], &asked["memory"][1]["count"]), (&5.into(), &7.into()));

    let [entries, agents] = left_behind(&plane);
    assert_eq!((entries.as_str(), agents.as_str()), ("1 registration entry", "1 attested agent"));
}

/// All agents come back to a server that was restarted.
fn come_back(product: &Product) {
    let mut plane = plane(product, false);
    let mut storm = bench(&plane, &["storm", "-agents", "5", "-entries", "2"]);

    let mut running = Running::start(&mut storm);
    running.await_said("restart the server now");
    plane.server().unwrap().signal("TERM");
    plane.server().unwrap().wait(Duration::from_secs(30));
    plane.start_server_again();
    let code = running.wait(Duration::from_secs(90));

    let (stdout, stderr) = running.printed();
    assert_eq!(code, 0, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    check(&["storm"], &report);
    assert_eq!(items(&report, "first answer to agent synced"), 5);
    assert_eq!(left_behind(&plane), ["0 registration entries", "0 attested agents"]);
}

#[test]
fn bench_reports_of_servers_add_up() {
    serve(&Product::under_test());
}

#[test]
fn bench_tells_each_agent_what_concerns_it_and_no_other() {
    if std::env::var_os("SPIRE_BIN").is_some() {
        println!("SPIRE's servers do not push");
        return;
    }
    let plane = plane(&Product::finial(), false);

    // A push to another agent would void the run.
    let told = report(&plane, &["watch", "-agents", "6", "-entries", "3", "-count", "12"]);

    assert_eq!(items(&told, "entry created to push, one of 6 agents"), 12);
    assert_eq!(told["memory"][0]["count"], 6);
    assert_eq!(left_behind(&plane), ["0 registration entries", "0 attested agents"]);
}

#[test]
fn bench_reads_back_what_it_seeded() {
    read_back(&Product::under_test());
}

#[test]
fn bench_reports_of_agents_add_up() {
    work(&Product::under_test());
}

#[test]
fn bench_agents_come_back_after_a_restart() {
    come_back(&Product::under_test());
}

#[test]
fn bench_compares_two_servers() {
    let (first, second) = (plane(&Product::under_test(), false), plane(&Product::finial(), false));
    let own = ["compare", "-agents", "2", "-entries", "10", "-batch", "5", "-callers", "2", "-count", "3"];
    let (socket, address) = (second.fill("{sock}"), second.fill("127.0.0.1:{port}"));
    let more = [
        "-duration",
        "200ms",
        "-interval",
        "50ms",
        "-otherSocketPath",
        &socket,
        "-otherServerAddress",
        &address,
    ];
    let args: Vec<&str> = own.iter().chain(&more).copied().collect();

    let output = bench(&first, &args).output().unwrap();

    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let comparison: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [left, right] = ["first", "second"].map(|side| comparison[side].as_array().unwrap().clone());
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(&right) {
        let command = left["command"].as_str().unwrap();
        check(&[command], left);
        check(&[command], right);
        assert_ne!(left["target"]["pid"], right["target"]["pid"]);
    }
}

#[test]
fn bench_says_what_is_wrong_in_one_line() {
    let plane = plane(&Product::under_test(), false);
    let cases: [(&[&str], &str); 6] = [
        (&["x509", "-serverAddress", "192.0.2.1:8081"], "-remote"),
        (&["x509", "-batch", "501"], "-batch 501"),
        (&["mint", "-callers", "0"], "-callers"),
        (&["mint", "-rate", "-1"], "-rate"),
        (&["propagate"], "-agentSocketPath"),
        (&["mint", "-pid", "999999999"], "999999999"),
    ];
    for (args, expected) in cases {
        let output = bench(&plane, args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{args:?}: {stderr}");
        let last = stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("Error: ") && last.contains(expected), "{args:?}: {stderr}");
    }

    let output = Product::finial()
        .command("finial", &["bench", "mint", "-socketPath", "/nonexistent/api.sock"].map(str::to_owned))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("Error: cannot connect to /nonexistent/api.sock"), "{stderr}");
}
