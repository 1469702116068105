//! The audit log.

use std::path::{Path, PathBuf};

use finial_conformance::{Product, audit_lines};
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

fn has(line: &Map<String, Value>, fields: &[(&str, &str)]) {
    for (name, value) in fields {
        assert_eq!(line.get(*name).and_then(Value::as_str), Some(*value), "{name} of {line:?}");
    }
}
