//! Explanations: what they name, whom they tell, and that what they advise works.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;

use finial_conformance::{Plane, PlaneConfig, Product, pause};
use serde_json::Value;

/// A plane with an agent; nothing where SPIRE's programs are under test, which explain nothing.
fn plane() -> Option<Plane> {
    if std::env::var_os("SPIRE_BIN").is_some() {
        println!("SPIRE's programs explain nothing");
        return None;
    }
    let config = PlaneConfig { agent: true, ..PlaneConfig::default() };
    Some(Plane::start(&Product::finial(), &config, &BTreeMap::new()))
}

fn of_process(plane: &Plane) -> Value {
    let pid = std::process::id().to_string();
    let args = ["agent", "explain", "-socketPath", "{asock}", "-pid", &pid, "-output", "json"];
    serde_json::from_str(&plane.ok("finial", &args)).unwrap()
}

fn by_server(plane: &Plane, agent: &str, selectors: &str) -> Value {
    let args = ["server", "explain", "-socketPath", "{sock}", "-agent", agent, "-selectors", selectors];
    serde_json::from_str(&plane.ok("finial", &[&args[..], &["-output", "json"]].concat())).unwrap()
}

/// Asks until the answer has this reason.
fn until(reason: &str, ask: impl Fn() -> Value) -> Value {
    let mut last = Value::Null;
    for _ in 0..TRIES {
        last = ask();
        if last["reason"] == reason {
            return last;
        }
        pause();
    }
    panic!("not {reason}: {last}");
}

/// Each starts a program and pauses: at least 15 s in all.
const TRIES: usize = 600;

fn selector(values: &Value) -> String {
    format!("{}:{}", values["type"].as_str().unwrap(), values["value"].as_str().unwrap())
}

/// A number of 64 bits, which is text in JSON.
fn number(value: &Value) -> i64 {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn explain_names_what_is_missing_and_its_advice_grants_an_identity() {
    let Some(plane) = plane() else { return };
    let uid = fs::metadata("/proc/self").unwrap().uid();

    // There is one entry: that of the token, which gives the agent its second id.
    let nothing = until("SELECTORS_DIFFER", || of_process(&plane));
    let agent = nothing["agent_id"].as_str().unwrap().to_owned();
    assert_eq!(nothing["is_pushed"], true);
    assert_eq!(nothing["attestors"][0]["name"], "unix");
    assert!(number(&nothing["now"]) - number(&nothing["synced_at"]) < 60);
    let (code, _, refusal) = plane.run("agent", &["api", "fetch", "x509", "-socketPath", "{asock}"]);
    assert!(code != 0 && refusal.contains("no identity issued"), "{refusal}");
    let log = fs::read_to_string(plane.dir().join("agent.log")).unwrap();
    let refused = log.lines().find(|line| line.contains("No identity issued")).unwrap();
    assert!(refused.contains("reason=SELECTORS_DIFFER"), "{refused}");

    let own = format!("unix:uid:{uid}");
    let near = ["-parentID", "spiffe://{td}/node", "-spiffeID", "spiffe://{td}/near", "-selector", &own];
    let near = [&["entry", "create", "-socketPath", "{sock}"], &near[..], &["-selector", "unix:gid:54321"]];
    let _created = plane.ok("server", &near.concat());
    let differ = until("2", || {
        let explained = of_process(&plane);
        serde_json::json!({"reason": explained["entries"].to_string(), "all": explained})
    });
    let differ = &differ["all"];
    assert_eq!(differ["reason"], "SELECTORS_DIFFER");
    assert_eq!(differ["misses"][0]["missing"].as_array().unwrap().len(), 1);
    assert_eq!(selector(&differ["misses"][0]["missing"][0]), "unix:gid:54321");
    let server = by_server(&plane, &agent, &own);
    assert_eq!(server["reason"], "SELECTORS_DIFFER");
    assert_eq!(server["misses"][0]["parents"], serde_json::json!([plane.fill("spiffe://{td}/node"), agent]));
    assert_eq!(server["is_pushed"], true);

    let grant: Vec<&str> =
        differ["grant"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let _created = plane.ok("server", &[&["entry", "create", "-socketPath", "{sock}"], &grant[..]].concat());
    let granted = until("OK", || of_process(&plane));
    assert_eq!(granted["matches"].as_array().unwrap().len(), 1);
    assert!(number(&granted["matches"][0]["svid_expires_at"]) > number(&granted["now"]));
    assert!(granted["grant"].as_array().unwrap().is_empty());
    let has: Vec<String> = granted["selectors"].as_array().unwrap().iter().map(selector).collect();
    let server = by_server(&plane, &agent, &has.join(","));
    assert_eq!((&server["reason"], &server["matches"][0]["parents"][0]), (&"OK".into(), &agent.into()));

    // The same for people.
    let others = ["agent", "explain", "-socketPath", "{asock}", "-selectors", "unix:uid:54321"];
    let pretty = plane.ok("finial", &others);
    assert!(pretty.starts_with("SELECTORS_DIFFER: "), "{pretty}");
    assert!(pretty.contains(&format!("lacks {own}, has unix:uid:54321")), "{pretty}");
    assert!(pretty.contains("finial server entry create -parentID "), "{pretty}");
    let unknown = by_server(&plane, &plane.fill("spiffe://{td}/spire/agent/none"), &own);
    assert_eq!(unknown["reason"], "AGENT_UNKNOWN");
}

#[test]
fn explain_tells_users_of_themselves_alone() {
    let Some(plane) = plane() else { return };
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        println!("only root can be somebody else");
        return;
    }
    fs::set_permissions(plane.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let near = ["entry", "create", "-socketPath", "{sock}", "-parentID", "spiffe://{td}/node"];
    let near = [&near[..], &["-spiffeID", "spiffe://{td}/near", "-selector", "unix:gid:54321"]].concat();
    let _created = plane.ok("server", &near);
    until("SELECTORS_DIFFER", || of_process(&plane));
    let as_nobody = |more: &[&str]| {
        let args = [&["agent", "explain", "-socketPath", "{asock}", "-output", "json"], more].concat();
        let output = plane.command("finial", &args).uid(65534).gid(65534).current_dir("/").output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };

    let (is_ok, own, why) = as_nobody(&[]);
    assert!(is_ok, "{why}");
    let own: Value = serde_json::from_str(&own).unwrap();
    assert_eq!((&own["reason"], &own["misses_withheld"]), (&"SELECTORS_DIFFER".into(), &true.into()));
    assert!(own["misses"].as_array().unwrap().is_empty());
    assert!(own["selectors"].as_array().unwrap().iter().any(|one| selector(one) == "unix:uid:65534"));

    for others in [["-pid", "1"], ["-selectors", "unix:uid:0"]] {
        let (is_ok, _, why) = as_nobody(&others);
        assert!(!is_ok && why.contains("PermissionDenied"), "{why}");
    }
}
