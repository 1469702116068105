//! Policies of the operator's own in place of the default one.

use std::path::{Path, PathBuf};

use finial_conformance::{Judged, Product, refused_policy};
use serde_json::{Value, json};

/// Methods are open as lists say; entries are made below a path alone; one request is known by heart.
const POLICY: &str = r#"package spire

result := {
    "allow": open_to("anybody"),
    "allow_if_admin": false,
    "allow_if_local": local,
    "allow_if_downstream": open_to("downstream"),
    "allow_if_agent": open_to("agents"),
} if input.full_method != data.unsure

open_to(whom) := input.full_method in data.open[whom]

default local := false
local if open_to("local")
local if {
    input.full_method == "/spire.api.server.entry.v1.Entry/BatchCreateEntry"
    every entry in input.req.entries { regex.match(data.below, entry.spiffe_id.path) }
}
local if {
    input.full_method == data.known.method
    input.req == data.known.request
}
"#;

const SERVER: &str = "/spire.api.server";

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

fn of(methods: &[&str]) -> Vec<String> {
    methods.iter().map(|method| format!("{SERVER}.{method}")).collect()
}

/// Everything that a request can hold, as the policy must see it.
fn known() -> (Value, Value) {
    let id = json!({"trust_domain": "example.org", "path": "/a"});
    let sent = json!({
        "filter": {
            "by_spiffe_id": id, "by_parent_id": {"trust_domain": "example.org", "path": "/p"},
            "by_selectors": {"selectors": [{"type": "a", "value": "b:c"}], "match": 3},
            "by_hint": "", "by_downstream": false,
        },
        "output_mask": {"spiffe_id": true, "hint": false},
        "page_size": 7,
    });
    let seen = json!({
        "filter": {
            "by_spiffe_id": id, "by_parent_id": {"trust_domain": "example.org", "path": "/p"},
            "by_selectors": {"selectors": [{"type": "a", "value": "b:c"}], "match": 3},
            "by_hint": {}, "by_downstream": {},
        },
        "output_mask": {"spiffe_id": true},
        "page_size": 7,
    });
    (sent, seen)
}

fn data(known: &Value) -> Value {
    let mut local = of(&["agent.v1.Agent/CreateJoinToken"]);
    local.push("/grpc.health.v1.Health/Check".to_owned());
    let agents = of(&[
        "agent.v1.Agent/PostStatus",
        "agent.v1.Agent/RenewAgent",
        "bundle.v1.Bundle/GetFederatedBundle",
        "entry.v1.Entry/GetAuthorizedEntries",
        "entry.v1.Entry/SyncAuthorizedEntries",
        "svid.v1.SVID/BatchNewX509SVID",
        "svid.v1.SVID/NewJWTSVID",
    ]);
    let anybody = of(&["agent.v1.Agent/AttestAgent", "bundle.v1.Bundle/GetBundle"]);
    json!({
        "open": {"anybody": anybody, "agents": agents, "downstream": [], "local": local},
        "below": "^/team/",
        "unsure": format!("{SERVER}.agent.v1.Agent/CountAgents"),
        "known": {"method": format!("{SERVER}.entry.v1.Entry/ListEntries"), "request": known},
    })
}

#[test]
fn e07_a_policy_decides_who_may_call_what_with_which_request() {
    let (sent, seen) = known();
    let judged = Judged::start(&Product::under_test(), &recorded(), POLICY, &data(&seen));
    let local = |method: &str, request| judged.call(true, &format!("{SERVER}.{method}"), request);
    let code = |method: &str, request| local(method, request).0;
    let denied = |method: &str| {
        ("PERMISSION_DENIED".to_owned(), format!("authorization denied for method {SERVER}.{method}"))
    };

    let create = "entry.v1.Entry/BatchCreateEntry";
    assert_eq!(code(create, judged.entry("/team/web")), "OK");
    assert_eq!(local(create, judged.entry("/other/web")), denied(create));
    // What the default policy opens to the socket is closed where this one does not.
    assert_eq!(local("agent.v1.Agent/ListAgents", json!({})), denied("agent.v1.Agent/ListAgents"));
    assert_eq!(local("svid.v1.SVID/BatchNewX509SVID", json!({})), denied("svid.v1.SVID/BatchNewX509SVID"));
    // The request is seen as it was sent.
    assert_eq!(code("entry.v1.Entry/ListEntries", sent), "OK");
    assert_eq!(code("entry.v1.Entry/ListEntries", json!({"page_size": 7})), "PERMISSION_DENIED");
    // Without an answer nothing is open, and the caller is told of the fault.
    let unsure = local("agent.v1.Agent/CountAgents", json!({}));
    assert_eq!(unsure, ("UNKNOWN".to_owned(), "policy: no matching policies found".to_owned()));
    // Over TLS: what is open to anybody, and to nobody else without a certificate.
    let remote = |method: &str| judged.call(false, &format!("{SERVER}.{method}"), json!({})).0;
    assert_eq!(remote("bundle.v1.Bundle/GetBundle"), "OK");
    assert_eq!(remote("agent.v1.Agent/CreateJoinToken"), "PERMISSION_DENIED");
    assert_eq!(remote("entry.v1.Entry/GetAuthorizedEntries"), "PERMISSION_DENIED");
    // Agents do their work.
    judged.plane.await_identities(&["spiffe://{td}/team/web"]);
}

#[test]
fn a_policy_that_cannot_judge_keeps_the_server_from_starting() {
    let data = data(&json!({})).to_string();
    for (rego, data) in [
        ("package spire\nresult := {", data.as_str()),
        ("package spire\nresult := {\"allow\": true}", &data),
        ("package elsewhere\nresult := {\"allow\": true}", &data),
        (POLICY, "[]"),
    ] {
        let (failed, said) = refused_policy(&Product::under_test(), rego, data);

        assert!(failed && said.contains("unable to obtain authpolicy engine"), "{rego}: {said}");
    }
}
