//! The server is away: workloads do not notice, whatever happens to their agent.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use finial_conformance::{Outage, PlaneConfig, Product, Running, await_ok, pause, skip};
use serde_json::Value;

const WEB: &str = "spiffe://example.org/web";
const API: &str = "spiffe://example.org/api";
const OWN: &str = "unix:uid:{uid}";

/// A node with two identities for this process and one for somebody else, its vault written.
fn outage(config: &PlaneConfig) -> Outage {
    let outage = Outage::start(&Product::under_test(), config);
    for (path, selector) in [("/web", OWN), ("/api", OWN), ("/other", "unix:uid:4243")] {
        let _id = outage.create_entry(path, selector);
    }
    outage.await_ids(&[WEB, API]);
    outage
}

fn log_has(outage: &Outage, text: &str) -> bool {
    outage.log().contains(text)
}

/// Looks again and again, for a minute.
fn until(what: &str, outage: &Outage, is_so: impl Fn() -> bool) {
    for _ in 0..2400 {
        if is_so() {
            return;
        }
        pause();
    }
    panic!("{what} does not come true\n{}", outage.log());
}

fn await_log(outage: &Outage, text: &str) {
    until(text, outage, || log_has(outage, text));
}

fn clear_log(outage: &Outage) {
    fs::write(outage.data().with_file_name("agent.log"), "").unwrap();
}

#[test]
fn outage_restarts_serve_the_same_keys_to_the_same_workloads_and_nobody_else() {
    // `cargo xtask soak` asks for more.
    let rounds = std::env::var("FINIAL_OUTAGE_ROUNDS").map_or(6, |rounds| rounds.parse().unwrap());
    let mut outage = outage(&PlaneConfig::default());
    let before = outage.await_ids(&[WEB, API]);
    let token = outage.token("db").unwrap();
    outage.await_vault();
    outage.stop_server();

    let mut times = Vec::new();
    for round in 0..rounds {
        outage.end_agent(if round % 2 == 0 { "KILL" } else { "TERM" });
        let (took, served) = outage.time_start();

        assert_eq!(served, before, "round {round}");
        times.push(took);
    }

    assert_eq!(outage.token("db").unwrap(), token);
    if let Some((code, said)) = outage.as_another_user() {
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("no identity issued"), "{said}");
    }
    times.sort_unstable();
    println!(
        "outage: {rounds} restarts, {:?} in the middle, {:?} at most",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    // On a machine that does much else; `docs/performance.md` has what it is at rest.
    assert!(times[times.len() / 2] < Duration::from_secs(1), "{times:?}");
}

#[test]
fn outage_a_node_of_many_identities_has_them_all_again() {
    let mut outage = Outage::start(&Product::under_test(), &PlaneConfig::default());
    outage.crowd(900);
    let _id = outage.create_entry("/web", OWN);
    let before = outage.await_ids(&[WEB]);
    let all = |outage: &mut Outage| {
        let args = ["agent", "budget", "-socketPath", "{admin}", "-output", "json"];
        let budget: Value = serde_json::from_str(&outage.plane().ok("finial", &args)).unwrap();
        budget["x509_svids"].as_u64().unwrap()
    };
    for _ in 0..2400 {
        if all(&mut outage) == 902 {
            break;
        }
        pause();
    }
    // The larger it is, the longer it waits for more.
    outage.await_vault();
    outage.await_vault();
    outage.stop_server();
    outage.end_agent("KILL");

    let (took, served) = outage.time_start();

    println!("outage: {took:?} with 902 X.509-SVIDs");
    assert_eq!(served, before);
    assert_eq!(all(&mut outage), 902);
    // Each is verified: a tenth of a millisecond where the program is optimised, much more where not.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn outage_is_told_in_health_log_and_metrics() {
    let agent_extra = "";
    let mut outage = outage(&PlaneConfig { agent_extra: agent_extra.to_owned(), ..PlaneConfig::default() });
    let config = outage.data().with_file_name("agent.conf");
    let more = outage.plane().fill(
        "health_checks { listener_enabled = true bind_port = \"{p1}\" }\n\
         telemetry { Prometheus { host = \"127.0.0.1\" port = {p2} } }\n",
    );
    fs::write(&config, fs::read_to_string(&config).unwrap() + &more).unwrap();
    outage.await_vault();
    outage.stop_server();
    outage.end_agent("TERM");
    clear_log(&outage);

    outage.time_start();
    await_log(&outage, "Synchronize failed");

    let (live, ready) = (outage.plane().word("p1").to_owned(), outage.plane().word("p2").to_owned());
    assert!(await_ok(&live, "/ready").contains("sync_err"));
    assert!(await_ok(&live, "/live").contains("sync_err"));
    assert!(log_has(&outage, "Serving from the vault until a server is heard from"));
    let page = await_ok(&ready, "/metrics");
    let age = page.lines().find_map(|line| {
        line.strip_prefix("spire_agent_finial_knowledge_age_seconds")?.rsplit(' ').next()?.parse::<f64>().ok()
    });
    assert!(age.is_some_and(|age| (1.0..600.0).contains(&age)), "{age:?} in {page}");
    let (code, said, _) = outage.plane().run("agent", &["healthcheck", "-socketPath", "{asock}"]);
    assert_eq!((code, said.trim()), (0, "Agent is healthy."));
}

#[test]
fn outage_a_deleted_entry_does_not_return() {
    let outage = Outage::start(&Product::under_test(), &PlaneConfig::default());
    let mut outage = outage;
    let _web = outage.create_entry("/web", OWN);
    let api = outage.create_entry("/api", OWN);
    outage.await_ids(&[WEB, API]);
    outage.await_vault();
    let older = fs::read(outage.vault()).unwrap();

    let _said = outage.plane().ok("server", &["entry", "delete", "-entryID", &api, "-socketPath", "{sock}"]);
    outage.await_ids(&[WEB]);
    // What is gone is written at once; this is more than it takes.
    std::thread::park_timeout(Duration::from_millis(300));
    outage.end_agent("KILL");
    outage.stop_server();
    let (_, served) = outage.time_start();
    assert_eq!(served.ids(), [WEB]);

    // Nor does it with a copy of before.
    outage.end_agent("KILL");
    fs::write(outage.vault(), older).unwrap();
    clear_log(&outage);
    outage.plane().spawn_agent();
    await_log(&outage, "it is stale");
    assert_eq!(outage.serve(Duration::from_secs(2)).unwrap_err().0, "TIMEOUT");
}

#[test]
fn outage_a_vault_that_is_not_sound_is_refused_and_made_anew() {
    let mut outage = outage(&PlaneConfig::default());
    let before = outage.await_ids(&[WEB, API]);
    outage.await_vault();
    outage.end_agent("TERM");
    let (vault, key) = (outage.vault(), outage.data().join("vault.key"));
    let (sound, sound_key) = (fs::read(&vault).unwrap(), fs::read(&key).unwrap());
    let flip = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        bytes
    };
    let middle = sound.len() / 2;
    let cases: [(&str, Vec<u8>, Vec<u8>); 6] = [
        ("cut off", sound[..middle].to_vec(), sound_key.clone()),
        ("no vault, or the beginning of one", Vec::new(), sound_key.clone()),
        ("tampered with", flip(middle), sound_key.clone()),
        ("which this version does not know", flip(8), sound_key.clone()),
        ("its key file is damaged", sound.clone(), sound_key[1..].to_vec()),
        ("tampered with", sound.clone(), [&sound_key[..20], &[7; 28]].concat()),
    ];
    for (why, bytes, key_bytes) in cases {
        for (path, bytes) in [(&vault, bytes), (&key, key_bytes)] {
            fs::write(path, bytes).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        clear_log(&outage);

        let (_, served) = outage.time_start();

        // The server is there: the agent asks it, and makes keys anew.
        assert_eq!(served.ids(), before.ids(), "{why}");
        assert_ne!(served, before, "{why}");
        let told: Vec<String> = outage
            .log()
            .lines()
            .filter(|line| line.contains("The vault is not used"))
            .map(str::to_owned)
            .collect();
        assert!(told.len() == 1 && told[0].contains(why), "{why}: {told:?}");
        outage.await_vault();
        outage.end_agent("TERM");
        clear_log(&outage);
        let (_, again) = outage.time_start();
        assert_eq!(again, served, "{why}");
        outage.end_agent("TERM");
    }
}

#[test]
fn outage_a_copied_vault_opens_nowhere_else() {
    let mut outage = outage(&PlaneConfig::default());
    outage.await_vault();
    outage.stop_server();
    outage.end_agent("TERM");
    let (data, copy) = (outage.data(), outage.data().with_file_name("copy"));
    fs::create_dir(&copy).unwrap();
    for name in ["vault", "vault.key", "agent-data.json", "keys.json"] {
        fs::copy(data.join(name), copy.join(name)).unwrap();
    }
    let config = data.with_file_name("agent.conf");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("/agent-data\"", "/copy\"")).unwrap();
    clear_log(&outage);

    outage.plane().spawn_agent();

    await_log(&outage, "sealed for another agent, machine, directory");
    assert_eq!(outage.serve(Duration::from_secs(2)).unwrap_err().0, "TIMEOUT");
}

#[test]
fn k01_outage_nothing_secret_is_on_disk_in_clear() {
    let outage = outage(&PlaneConfig::default());
    let served = outage.await_ids(&[WEB, API]);
    let token = outage.token("db").unwrap();
    outage.await_vault();

    assert_eq!(outage.found_in_clear(&served, &token), Vec::<String>::new());
    for name in ["vault", "vault.key"] {
        let mode = fs::metadata(outage.data().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
}

#[test]
fn outage_without_a_vault_nothing_is_kept() {
    let mut outage = outage(&PlaneConfig::default());
    outage.await_vault();
    outage.end_agent("TERM");
    let config = outage.data().with_file_name("agent.conf");
    let text = fs::read_to_string(&config).unwrap();
    let off = "experimental { finial { vault = false } }\n  trust_domain";
    fs::write(&config, text.replacen("trust_domain", off, 1)).unwrap();

    outage.time_start();

    outage.end_agent("TERM");
    assert!(!outage.vault().exists() && !outage.data().join("vault.key").exists());
}

#[test]
fn a08_outage_a_banned_agent_takes_its_vault_along() {
    let mut outage = outage(&PlaneConfig::default());
    outage.await_vault();
    let shown = outage.plane().ok("server", &["agent", "list", "-socketPath", "{sock}"]);
    let id =
        shown.lines().find_map(|line| line.strip_prefix("SPIFFE ID")?.split(": ").nth(1)).unwrap().trim();

    let _said = outage.plane().ok("server", &["agent", "ban", "-spiffeID", id, "-socketPath", "{sock}"]);

    assert_eq!(outage.plane().agent().unwrap().wait(Duration::from_secs(60)), 1);
    assert!(!outage.vault().exists() && !outage.data().join("vault.key").exists());
}

#[test]
fn outage_callers_are_held_until_there_is_something_to_serve() {
    let extra = "experimental { finial { vault = false held_callers = 1 hold_timeout = \"20s\" } }";
    let config = PlaneConfig { agent_extra: extra.to_owned(), ..PlaneConfig::default() };
    let mut outage = outage(&config);
    outage.end_agent("TERM");
    outage.stop_server();

    outage.plane().spawn_agent();
    let socket = outage.plane().word("asock").to_owned();
    until("the socket", &outage, || std::path::Path::new(&socket).exists());
    // One is held for longer than this one waits; the next is too many.
    let mut held =
        outage.plane().spawn("agent", &["api", "fetch", "x509", "-timeout", "60s", "-socketPath", "{asock}"]);
    std::thread::park_timeout(Duration::from_secs(1));
    let refused = outage.serve(Duration::from_secs(10)).unwrap_err();
    assert_eq!(
        refused,
        ("UNAVAILABLE".to_owned(), "the agent has nothing to serve yet, and too many wait".to_owned())
    );
    let (code, _, said) = outage.plane().run("agent", &["healthcheck", "-socketPath", "{asock}"]);
    assert_eq!(code, 1, "{said}");

    outage.plane().start_server_again();
    assert_eq!(held.wait(Duration::from_secs(60)), 0, "{:?}", held.printed());
    assert!(held.printed().0.contains(WEB), "{:?}", held.printed());
}

#[test]
fn outage_callers_are_held_only_so_long() {
    let extra = "experimental { finial { vault = false hold_timeout = \"1s\" } }";
    let mut outage = outage(&PlaneConfig { agent_extra: extra.to_owned(), ..PlaneConfig::default() });
    outage.end_agent("TERM");
    outage.stop_server();
    outage.plane().spawn_agent();
    let socket = outage.plane().word("asock").to_owned();
    until("the socket", &outage, || std::os::unix::net::UnixStream::connect(&socket).is_ok());

    let refused = outage.serve(Duration::from_secs(30)).unwrap_err();

    assert_eq!(refused, ("UNAVAILABLE".to_owned(), "the agent has nothing to serve yet".to_owned()));
}

#[test]
fn outage_the_budget_is_told_by_a_running_agent_and_from_what_it_stored() {
    let mut outage = outage(&PlaneConfig::default());
    let _token = outage.token("db").unwrap();
    outage.await_vault();

    let asked =
        outage.plane().ok("finial", &["agent", "budget", "-socketPath", "{admin}", "-output", "json"]);
    let pretty = outage.plane().ok("finial", &["agent", "budget", "-socketPath", "{admin}"]);
    outage.end_agent("KILL");
    outage.stop_server();
    let read =
        outage.plane().ok("finial", &["agent", "budget", "-dataDir", "{dir}/agent-data", "-output", "json"]);

    let (asked, mut read): (Value, Value) =
        (serde_json::from_str(&asked).unwrap(), serde_json::from_str(&read).unwrap());
    let number = |name: &str| asked[name].as_str().unwrap().parse::<i64>().unwrap();
    let now = number("now");
    assert!((3000..3700).contains(&(number("agent_expires_at") - now)), "{asked}");
    assert!((1500..1700).contains(&number("at_worst")), "{asked}");
    assert!(asked["first"]["spiffe_id"].as_str().unwrap().starts_with("spiffe://example.org/"), "{asked}");
    assert_eq!((asked["x509_svids"].as_u64(), asked["jwt_svids"].as_u64()), (Some(4), Some(2)), "{asked}");
    assert_eq!(asked["bundles"][0]["trust_domain"], "example.org");
    for name in ["now", "synced_at"] {
        read[name] = asked[name].clone();
    }
    assert_eq!(read, asked);
    for line in
        ["Without a server from now on", "First X.509-SVID of a workload", "loses nothing: the vault has it"]
    {
        assert!(pretty.contains(line), "{pretty}");
    }
    let (code, _, said) = outage.plane().run("finial", &["agent", "budget", "-dataDir", "{dir}/missing"]);
    assert!(code == 1 && said.contains("there is no directory"), "{said}");
}

#[test]
fn outage_a_credential_of_the_service_manager_is_needed_where_it_was_used() {
    let mut outage = outage(&PlaneConfig::default());
    outage.end_agent("TERM");
    let credentials = outage.data().with_file_name("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("finial-vault-key"), [7; 32]).unwrap();
    let env = [("CREDENTIALS_DIRECTORY", credentials.as_path())];
    clear_log(&outage);
    // What was sealed without it does not open with it.
    let (_, before) = outage.time_start_with(&env);
    assert!(
        log_has(&outage, "sealed for another agent, machine, directory or credential"),
        "{}",
        outage.log()
    );
    outage.await_vault();
    outage.stop_server();
    outage.end_agent("KILL");

    let (_, again) = outage.time_start_with(&env);
    assert_eq!(again, before);
    outage.end_agent("KILL");
    clear_log(&outage);
    outage.plane().spawn_agent();

    await_log(&outage, "sealed for another agent, machine, directory or credential");
    assert_eq!(outage.serve(Duration::from_secs(2)).unwrap_err().0, "TIMEOUT");
}

#[test]
fn k07_the_key_of_a_deleted_entry_leaves_the_agents_memory() {
    let mut outage = Outage::start(&Product::under_test(), &PlaneConfig::default());
    let _web = outage.create_entry("/web", OWN);
    let api = outage.create_entry("/api", OWN);
    let served = outage.await_ids(&[WEB, API]);
    outage.await_vault();
    let Some(present) = outage.found_in_memory(&served) else {
        return skip("keys in memory", "this process may not read another's memory");
    };
    assert!(present.iter().any(|found| found.starts_with(API)), "{present:?}");

    let _said = outage.plane().ok("server", &["entry", "delete", "-entryID", &api, "-socketPath", "{sock}"]);
    outage.await_ids(&[WEB]);
    std::thread::park_timeout(Duration::from_secs(5));

    assert_eq!(outage.found_in_memory(&served.only(API)), Some(Vec::new()));
    assert_ne!(outage.found_in_memory(&served.only(WEB)), Some(Vec::new()));
}

#[test]
fn k07_keys_that_were_rotated_leave_the_agents_memory() {
    const ROUNDS: usize = 20;
    let mut outage = Outage::start(&Product::under_test(), &PlaneConfig::default());
    // Dated back by ten seconds, it has half of its life behind it after one, and is renewed.
    let args = ["entry", "create", "-socketPath", "{sock}", "-parentID", "spiffe://{td}/node"];
    let more = ["-spiffeID", WEB, "-selector", OWN, "-x509SVIDTTL", "12"];
    let _said = outage.plane().ok("server", &[&args[..], &more].concat());
    let mut before = outage.await_ids(&[WEB]);
    if outage.found_in_memory(&before).is_none() {
        return skip("keys in memory", "this process may not read another's memory");
    }
    while before.count() < ROUNDS {
        before.add(outage.serve(Duration::from_secs(5)).unwrap());
        pause();
    }
    let mut now = outage.serve(Duration::from_secs(5)).unwrap();
    while now.but(&before).count() == 0 {
        now = outage.serve(Duration::from_secs(5)).unwrap();
        pause();
    }

    // The last of them was replaced just now.
    std::thread::park_timeout(Duration::from_secs(5));

    assert_eq!(outage.found_in_memory(&before), Some(Vec::new()));
}

/// A vault that was carried to another machine, with its key and everything else of the agent: what tells
/// the machines apart is `/etc/machine-id`, which the agent sees in a mount namespace of its own.
#[test]
fn outage_a_vault_opens_on_its_machine_alone() {
    let mut outage = outage(&PlaneConfig::default());
    let before = outage.await_ids(&[WEB, API]);
    outage.await_vault();
    outage.stop_server();
    outage.end_agent("TERM");
    let run = |outage: &mut Outage, id: &str| {
        let file = outage.data().with_file_name("machine-id");
        fs::write(&file, id).unwrap();
        let plane = outage.plane();
        let agent = plane.command("agent", &["run", "-config", "{dir}/agent.conf"]);
        let mut shell = std::process::Command::new("unshare");
        let script = "mount --bind \"$0\" /etc/machine-id; exec -a spire-agent \"$@\"";
        shell.args(["--mount", "bash", "-e", "-c", script]).arg(&file).arg(agent.get_program());
        shell.args(agent.get_args()).current_dir(plane.cwd()).env_clear();
        shell.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Running::start(&mut shell)
    };

    // The same, for comparison.
    let own = fs::read_to_string("/etc/machine-id").unwrap();
    let mut here = run(&mut outage, &own);
    assert_eq!(outage.await_ids(&[WEB, API]), before);
    here.signal("TERM");
    here.wait(Duration::from_secs(30));
    clear_log(&outage);
    let there = run(&mut outage, "0123456789abcdef0123456789abcdef\n");

    await_log(&outage, "sealed for another agent, machine, directory or credential");
    assert!(outage.serve(Duration::from_secs(1)).is_err());
    drop(there);
}
