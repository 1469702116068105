//! The server comes back: later than the agent's own SVID holds, with other authorities, under many
//! streams, or as another of several. What can heal heals, and what cannot is told.

use std::fs;
use std::path::Path;
use std::time::Duration;

use finial_conformance::{Outage, Plane, PlaneConfig, Product, pause, skip};

const WEB: &str = "spiffe://example.org/web";
const OWN: &str = "unix:uid:{uid}";

fn until(what: &str, outage: &Outage, mut is_so: impl FnMut(&Outage) -> bool) {
    for _ in 0..2400 {
        if is_so(outage) {
            return;
        }
        pause();
    }
    panic!("{what} does not come true\n{}", outage.log());
}

fn until_logged(outage: &Outage, text: &str) {
    until(text, outage, |outage| outage.log().contains(text));
}

fn clear_log(outage: &Outage) {
    fs::write(outage.data().with_file_name("agent.log"), "").unwrap();
}

fn change_config(outage: &Outage, from: &str, to: &str) {
    let config = outage.data().with_file_name("agent.conf");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains(from), "{from:?} in {text}");
    fs::write(&config, text.replacen(from, to, 1)).unwrap();
}

/// Nodes that attest by a certificate, again and again; all of them are `/node`.
fn with_certificates(config: PlaneConfig) -> PlaneConfig {
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/keys").canonicalize().unwrap();
    let keys = keys.display();
    PlaneConfig {
        server_plugins: format!(
            "NodeAttestor \"x509pop\" {{ plugin_data {{ ca_bundle_path = \"{keys}/x509pop-ca.pem\" }} }}"
        ),
        agent_attestor: format!(
            "NodeAttestor \"x509pop\" {{ plugin_data {{ private_key_path = \"{keys}/x509pop-node-1.key\" \
             certificate_path = \"{keys}/x509pop-node-1.pem\" }} }}"
        ),
        ..config
    }
}

fn start(config: &PlaneConfig) -> Outage {
    let outage = Outage::start(&Product::under_test(), config);
    if config.agent_attestor.contains("x509pop") {
        outage.create_node("x509pop:subject:cn:node-1");
    }
    let _id = outage.create_entry("/web", OWN);
    outage
}

fn short_lived() -> PlaneConfig {
    PlaneConfig { server_extra: "agent_ttl = \"20s\"".to_owned(), ..PlaneConfig::default() }
}

/// The agent's own SVID runs out without a server; workloads go on, also after a restart.
fn outlive_own_svid(outage: &mut Outage) {
    let before = outage.await_ids(&[WEB]);
    outage.await_vault();
    outage.stop_server();
    clear_log(outage);

    until_logged(outage, "The agent's own SVID has expired; serving what still holds");
    assert_eq!(outage.serve(Duration::from_secs(5)).unwrap(), before);
    outage.end_agent("KILL");
    let (_, again) = outage.time_start();
    assert_eq!(again, before);
    clear_log(outage);
}

#[test]
fn recovery_a_node_that_may_attests_anew_when_its_svid_ran_out() {
    let config = with_certificates(short_lived());
    let mut outage = start(&config);
    outlive_own_svid(&mut outage);

    outage.plane().start_server_again();

    until_logged(&outage, "Successfully reattested node");
    let _id = outage.create_entry("/late", OWN);
    outage.await_ids(&[WEB, "spiffe://example.org/late"]);
}

#[test]
fn recovery_a_node_that_may_not_says_what_to_do_and_takes_a_new_token() {
    let mut outage = start(&short_lived());
    outlive_own_svid(&mut outage);

    outage.plane().start_server_again();

    until_logged(&outage, "this attestation holds once");
    assert!(outage.serve(Duration::from_secs(5)).is_ok());
    let args = ["token", "generate", "-spiffeID", "spiffe://{td}/node", "-socketPath", "{sock}"];
    let said = outage.plane().ok("server", &args);
    let token = said.lines().find_map(|line| line.strip_prefix("Token: ")).unwrap().to_owned();
    outage.end_agent("TERM");
    let config = fs::read_to_string(outage.data().with_file_name("agent.conf")).unwrap();
    let old = config.lines().find(|line| line.contains("join_token = ")).unwrap();
    change_config(&outage, old, &format!("  join_token = \"{token}\""));
    outage.time_start();
    until_logged(&outage, "Successfully reattested node");
    let _id = outage.create_entry("/late", OWN);
    outage.await_ids(&[WEB, "spiffe://example.org/late"]);
}

/// The server comes back with authorities, entries and agents of another trust domain's making.
fn replace_server(outage: &mut Outage) {
    outage.stop_server();
    let data = outage.data().with_file_name("server-data");
    fs::remove_dir_all(&data).unwrap();
    fs::create_dir(&data).unwrap();
    clear_log(outage);
    outage.plane().start_server_again();
}

/// The agent goes on with what it has, also after a restart, and says what an operator can do.
fn check_disbelief(config: &PlaneConfig) {
    let mut outage = start(config);
    let before = outage.await_ids(&[WEB]);
    outage.await_vault();
    let trusted = fs::read(outage.data().join("agent-data.json")).unwrap();

    replace_server(&mut outage);

    until_logged(&outage, "leads to no authority of the trust bundle; serving what still holds");
    assert!(outage.log().contains("remove agent-data.json"), "{}", outage.log());
    assert_eq!(outage.serve(Duration::from_secs(5)).unwrap(), before);
    outage.end_agent("KILL");
    let (_, again) = outage.time_start();
    assert_eq!(again, before);
    std::thread::park_timeout(Duration::from_secs(2));
    assert!(outage.plane().agent().unwrap().is_running());
    assert!(!outage.log().contains("rebootstrapping"), "{}", outage.log());
    let stored = fs::read(outage.data().join("agent-data.json")).unwrap();
    assert_eq!(stored, trusted, "the bundle and what else it knows of its server stay");
}

#[test]
fn recovery_a15_a_server_of_other_authorities_is_not_believed_and_workloads_go_on() {
    check_disbelief(&PlaneConfig::default());
}

/// Nor where the delay is over and the node could attest anew: only `never` counts.
#[test]
fn recovery_a15_a_node_that_is_never_to_bootstrap_anew_does_not() {
    let extra = "rebootstrap_mode = \"never\"\n  rebootstrap_delay = \"1s\"";
    let config = PlaneConfig { agent_extra: extra.to_owned(), ..PlaneConfig::default() };
    check_disbelief(&config);
    check_disbelief(&with_certificates(config));
}

/// A node whose attestation holds once can never do what `always` asks for, and is told at the start;
/// with `auto` it goes on without.
#[test]
fn recovery_a15_a_node_that_attests_once_bootstraps_anew_in_no_mode() {
    let config = |mode: &str| PlaneConfig {
        agent_extra: format!("rebootstrap_mode = \"{mode}\"\n  rebootstrap_delay = \"1s\""),
        ..PlaneConfig::default()
    };
    let mut plane = Plane::start(&Product::under_test(), &PlaneConfig::default(), &Default::default());
    let args = ["token", "generate", "-spiffeID", "spiffe://{td}/node", "-socketPath", "{sock}"];
    let said = plane.ok("server", &args);
    let token = said.lines().find_map(|line| line.strip_prefix("Token: ")).unwrap().to_owned();
    plane.write("{dir}/bootstrap.pem", &plane.ok("server", &["bundle", "show", "-socketPath", "{sock}"]));
    plane.configure_agent(&config("always"), &token);
    plane.spawn_agent();
    assert_eq!(plane.agent().unwrap().wait(Duration::from_secs(60)), 1);
    let log = fs::read_to_string(plane.dir().join("agent.log")).unwrap();
    assert!(log.contains("you have requested rebootstrap support but"), "{log}");

    check_disbelief(&config("auto"));
}

#[test]
fn recovery_a15_a_node_that_may_bootstraps_anew_with_a_server_of_other_authorities() {
    for mode in ["auto", "always"] {
        check_belief(mode);
    }
}

fn check_belief(mode: &str) {
    let extra = format!("rebootstrap_mode = \"{mode}\"\n  rebootstrap_delay = \"3s\"");
    let config = PlaneConfig { agent_extra: extra, ..PlaneConfig::default() };
    let mut outage = start(&with_certificates(config));
    let before = outage.await_ids(&[WEB]);
    outage.await_vault();
    replace_server(&mut outage);
    outage.create_node("x509pop:subject:cn:node-1");
    let _id = outage.create_entry("/web", OWN);
    let bundle = outage.plane().ok("server", &["bundle", "show", "-socketPath", "{sock}"]);
    outage.plane().write("{dir}/bootstrap.pem", &bundle);

    // It serves what it has until the delay is over, then ends for whoever starts it again.
    assert_eq!(outage.plane().agent().unwrap().wait(Duration::from_secs(60)), 1);
    assert!(outage.log().contains("shutting down for rebootstrapping"), "{}", outage.log());
    assert!(!outage.vault().exists() && !outage.data().join("vault.key").exists());

    outage.plane().start_agent_again();
    let after = outage.await_ids(&[WEB]);
    assert_ne!(after, before);
}

#[test]
fn recovery_a_server_that_comes_back_breaks_no_stream() {
    let mut outage = start(&PlaneConfig::default());
    outage.await_ids(&[WEB]);
    // `cargo xtask soak` asks for more.
    let count = std::env::var("FINIAL_OUTAGE_STREAMS").map_or(200, |count| count.parse().unwrap());
    let streams = outage.open_streams(count);

    outage.stop_server();
    std::thread::park_timeout(Duration::from_secs(2));
    outage.plane().start_server_again();
    let _id = outage.create_entry("/late", OWN);

    let seen = outage.until_streams_see(streams, "spiffe://example.org/late", Duration::from_secs(60));
    assert_eq!(seen, Ok(count));
}

#[test]
fn recovery_of_several_servers_one_that_answers_is_called() {
    let extra = "experimental { finial { server_addresses = [\"127.0.0.1:{port}\"] } }";
    let mut outage = start(&PlaneConfig { agent_extra: extra.to_owned(), ..PlaneConfig::default() });
    outage.await_ids(&[WEB]);
    outage.end_agent("TERM");
    // Nobody listens there.
    let (port, dead) = (outage.plane().word("port").to_owned(), outage.plane().word("p3").to_owned());
    change_config(&outage, &format!("server_port = \"{port}\""), &format!("server_port = \"{dead}\""));
    for name in ["agent-data.json", "keys.json", "vault", "vault.key"] {
        fs::remove_file(outage.data().join(name)).unwrap();
    }
    let args = ["token", "generate", "-spiffeID", "spiffe://{td}/node", "-socketPath", "{sock}"];
    let said = outage.plane().ok("server", &args);
    let token = said.lines().find_map(|line| line.strip_prefix("Token: ")).unwrap().to_owned();
    let config = fs::read_to_string(outage.data().with_file_name("agent.conf")).unwrap();
    let old = config.lines().find(|line| line.contains("join_token = ")).unwrap();
    change_config(&outage, old, &format!("  join_token = \"{token}\""));
    clear_log(&outage);

    let (took, _) = outage.time_start();

    until_logged(&outage, "A server is in trouble; trying another");
    outage.await_ids(&[WEB]);
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// A library of Debian's that lies about the time of day.
const FAKE_TIME: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// The agent's clock is set by `jump` while it runs, and it starts with it; then the clock is put right.
fn jump(jump: &str) {
    let Some(library) = FAKE_TIME.iter().map(Path::new).find(|path| path.exists()) else {
        return skip("clock jumps", "there is no libfaketime");
    };
    let mut outage = start(&PlaneConfig::default());
    outage.await_ids(&[WEB]);
    outage.await_vault();
    outage.end_agent("TERM");
    let time = outage.data().with_file_name("time");
    let set = |offset: &str| fs::write(&time, offset).unwrap();
    let env = [
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", time.as_path()),
        ("FAKETIME_NO_CACHE", Path::new("1")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", Path::new("1")),
        ("DONT_FAKE_MONOTONIC", Path::new("1")),
    ];
    set("+0");
    outage.time_start_with(&env);

    // While it runs, long enough for it to notice.
    set(jump);
    std::thread::park_timeout(Duration::from_secs(12));
    assert!(outage.plane().agent().unwrap().is_running(), "{}", outage.log());
    set("+0");
    let _id = outage.create_entry("/late", OWN);
    outage.await_ids(&[WEB, "spiffe://example.org/late"]);

    // From the start on.
    outage.await_vault();
    outage.end_agent("KILL");
    set(jump);
    outage.plane().spawn_agent_with(&env);
    std::thread::park_timeout(Duration::from_secs(12));
    assert!(outage.plane().agent().unwrap().is_running(), "{}", outage.log());
    set("+0");
    outage.await_ids(&[WEB, "spiffe://example.org/late"]);
    let _id = outage.create_entry("/later", OWN);
    outage.await_ids(&[WEB, "spiffe://example.org/late", "spiffe://example.org/later"]);
}

#[test]
fn recovery_from_a_clock_that_ran_a_day_ahead() {
    jump("+1d");
}

#[test]
fn recovery_from_a_clock_that_ran_a_day_behind() {
    jump("-1d");
}
