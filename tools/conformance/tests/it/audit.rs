//! The audit log.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use finial_conformance::{Plane, PlaneConfig, Product, audit_lines};
use serde_json::{Map, Value};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

#[test]
fn e04_audit_log_has_a_line_per_call_and_item() {
    let lines = audit_lines(&Product::under_test(), &recorded()).unwrap();

    let created = &lines["entry.v1.Entry/BatchCreateEntry"];
    assert_eq!(created.len(), 2, "{created:?}");
    has(&created[0], &[("entry_id", "measured"), ("spiffe_id", "spiffe://example.org/measured")]);
    for line in lines.values().flatten() {
        has(
            line,
            &[("msg", "API accessed"), ("level", "info"), ("type", "audit"), ("subsystem_name", "api")],
        );
        assert_eq!(line["request_id"].as_str().unwrap().len(), 36);
        match line["authorized_as"].as_str().unwrap() {
            "local" => {
                has(line, &[("authorized_via", "transport")]);
                assert!(
                    line["caller_uid"].is_u64()
                        && line["caller_gid"].is_u64()
                        && line["caller_path"].is_string()
                );
            }
            "agent" => {
                has(line, &[("authorized_via", "datastore")]);
                assert!(line["caller_id"].as_str().unwrap().contains("/spire/agent/join_token/"));
                assert!(line["caller_addr"].as_str().unwrap().starts_with("127.0.0.1:"));
            }
            "nobody" => has(line, &[("authorized_via", "")]),
            other => panic!("authorized as {other}"),
        }
    }
    let refused = lines["entry.v1.Entry/GetEntry"].last().unwrap();
    has(refused, &[("status", "error"), ("status_message", "entry not found"), ("entry_id", "none")]);
    assert_eq!(refused["status_code"], 5);
    let deleted = lines["entry.v1.Entry/BatchDeleteEntry"].last().unwrap();
    has(deleted, &[("status", "error"), ("entry_id", "none")]);
    has(
        &lines["agent.v1.Agent/AttestAgent"][0],
        &[("status", "success"), ("node_attestor_type", "join_token")],
    );
    has(&lines["svid.v1.SVID/NewJWTSVID"][0], &[("audience", "audit"), ("entry_id", "measured")]);
    let signed = &lines["svid.v1.SVID/BatchNewX509SVID"];
    assert!(signed.iter().any(|line| line["entry_id"] == "measured"), "{signed:?}");
}

#[test]
fn the_log_tells_who_called_and_when_authorities_end() {
    let extra = "audit_log_enabled = true\n  log_format = \"json\"".to_owned();
    let config = PlaneConfig { server_extra: extra, ..PlaneConfig::default() };
    let plane = Plane::start(&Product::under_test(), &config, &Default::default());

    let _said = plane.ok("server", &["logger", "set", "-socketPath", "{sock}", "-level", "debug"]);
    let _said = plane.ok("server", &["healthcheck", "-socketPath", "{sock}"]);

    let log = fs::read_to_string(plane.dir().join("server.log")).unwrap();
    let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    let lines: Vec<Map<String, Value>> = lines.collect();
    let line = |message: &str| lines.iter().find(|line| line["msg"] == message).unwrap();
    let told = line("SetLogLevel Called");
    has(told, &[("service", "Logger"), ("method", "SetLogLevel"), ("new_log_level", "debug")]);
    has(told, &[("authorized_as", "local"), ("authorized_via", "transport"), ("subsystem_name", "api")]);
    let audited =
        |method: &str| lines.iter().find(|line| line["msg"] == "API accessed" && line["method"] == method);
    assert_eq!(audited("SetLogLevel").unwrap()["request_id"], told["request_id"]);
    assert!(audited("Check").is_none(), "a health check is told");
    let expiration = line("X509 CA activated")["expiration"].as_str().unwrap();
    assert!(expiration.ends_with('Z') && expiration.contains('T'), "{expiration}");
}

/// What `audit verify` says of these lines, and whether it finds them good.
fn verified(plane: &Plane, lines: &[String]) -> (i32, String) {
    fs::write(plane.dir().join("audited.log"), lines.join("\n") + "\n").unwrap();
    let (code, stdout, stderr) =
        plane.run("finial", &["server", "audit", "verify", "-file", "{dir}/audited.log"]);
    (code, stdout + &stderr)
}

#[test]
fn s04_the_audit_log_is_a_chain_that_tells_what_was_done_to_it() {
    // Only Finial's servers know how.
    if std::env::var_os("SPIRE_BIN").is_some() {
        return;
    }
    for format in ["text", "json"] {
        let extra = format!(
            "audit_log_enabled = true\n  log_format = \"{format}\"\n  \
             experimental {{ finial {{ audit_log_chain = true }} }}"
        );
        let config = PlaneConfig { server_extra: extra, agent: true, ..PlaneConfig::default() };
        let mut plane = Plane::start(&Product::under_test(), &config, &Default::default());
        let create = |plane: &Plane, name: &str| {
            let id = format!("spiffe://{{td}}/{name}");
            let args = ["entry", "create", "-socketPath", "{sock}", "-parentID", "spiffe://{td}/node"];
            let more = ["-spiffeID", &id, "-selector", "unix:uid:1", "-entryID", name];
            let _said = plane.ok("server", &[&args[..], &more].concat());
        };
        (0..5).for_each(|number| create(&plane, &format!("before-{number}")));
        let server = plane.server().unwrap();
        server.signal("KILL");
        server.wait(Duration::from_secs(30));
        plane.start_server_again();
        (0..5).for_each(|number| create(&plane, &format!("after-{number}")));

        let log = fs::read_to_string(plane.dir().join("server.log")).unwrap();
        let lines: Vec<String> = log.lines().map(str::to_owned).collect();
        let (code, said) = verified(&plane, &lines);
        assert_eq!(code, 0, "{format}: {said}");
        assert_eq!(said.matches("A chain begins at line").count(), 1, "{format}: {said}");
        let state = fs::read_to_string(plane.dir().join("server-data/audit-chain")).unwrap();
        let (_, hash) = state.trim_end().split_once(' ').unwrap();
        assert!(said.contains(hash), "{format}: {said} {state}");

        let at = |name: &str| lines.iter().position(|line| line.contains(name)).unwrap();
        let told = |change: &dyn Fn(&mut Vec<String>)| {
            let mut lines = lines.clone();
            change(&mut lines);
            let (code, said) = verified(&plane, &lines);
            assert_eq!(code, 1, "{format}: {said}");
            said
        };
        let (two, four) = (at("before-2"), at("after-4"));
        let said = told(&|lines| lines[two] = lines[two].replace("before-2", "before-7"));
        assert!(said.contains(&format!("line {} was changed", two + 1)), "{said}");
        let said = told(&|lines| drop(lines.remove(two)));
        assert!(said.contains("1 audit lines were left out"), "{said}");
        let said = told(&|lines| lines.insert(four, lines[two].clone()));
        assert!(said.contains(&format!("line {}, number ", four + 1)), "{said}");
        let said = told(&|lines| lines.swap(two, four));
        assert!(said.contains("were left out"), "{said}");
    }
}

fn has(line: &Map<String, Value>, fields: &[(&str, &str)]) {
    for (name, value) in fields {
        assert_eq!(line.get(*name).and_then(Value::as_str), Some(*value), "{name} of {line:?}");
    }
}
