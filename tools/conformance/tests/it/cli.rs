//! Command lines: every recorded step, played on real processes.
//!
//! `conformance/cli/floor.tsv` holds, per file, the number of steps and the most that may fail; fewer
//! steps or more failures fail the test.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use finial_conformance::{Plane, PlaneConfig, Product, Scenario};

use crate::config::{finial, said};

fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/cli")
}

/// Plays one file and holds the outcome against its floor.
fn check(name: &str) {
    let floor = fs::read_to_string(home().join("floor.tsv")).unwrap();
    let limits: Vec<usize> = floor
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .find(|cells| cells[0] == name)
        .map(|cells| cells[1..].iter().map(|cell| cell.parse().unwrap()).collect())
        .unwrap_or_else(|| panic!("floor.tsv has no line for {name}"));

    let scenario = Scenario::load(&home().join(format!("{name}.json")));
    let verdict = scenario.play(&Product::under_test());

    for (number, why) in &verdict.failed {
        println!("{name} step {number}: {why}");
    }
    println!(
        "{name}: {} steps run, {} passed, {} open",
        scenario.len(),
        verdict.passed,
        verdict.failed.len()
    );
    assert!(scenario.len() >= limits[0], "{name} has lost steps");
    assert!(verdict.failed.len() <= limits[1], "{} steps fail, {} may", verdict.failed.len(), limits[1]);
}

#[test]
fn cli_agents() {
    check("core/agents");
}

#[test]
fn cli_api_fetch() {
    check("core/api-fetch");
}

#[test]
fn cli_bundle() {
    check("core/bundle");
}

#[test]
fn cli_config_flags() {
    check("core/config-flags");
}

#[test]
fn cli_config_hcl() {
    check("core/config-hcl");
}

#[test]
fn cli_config_server() {
    check("core/config-server");
}

#[test]
fn cli_config_server_plugins() {
    check("core/config-server-plugins");
}

#[test]
fn cli_entry_create() {
    check("core/entry-create");
}

#[test]
fn cli_entry_data() {
    check("core/entry-data");
}

#[test]
fn cli_entry_show() {
    check("core/entry-show");
}

#[test]
fn cli_entry_update_delete() {
    check("core/entry-update-delete");
}

#[test]
fn cli_global() {
    check("core/global");
}

#[test]
fn cli_instance() {
    check("core/instance");
}

#[test]
fn cli_mint() {
    check("core/mint");
}

#[test]
fn cli_mint_nojwt() {
    check("core/mint-nojwt");
}

#[test]
fn cli_mint_settings() {
    check("core/mint-settings");
}

#[test]
fn cli_more() {
    check("core/more");
}

#[test]
fn cli_run_server() {
    check("core/run-server");
}

#[test]
fn cli_sockets() {
    check("core/sockets");
}

#[test]
fn cli_token() {
    check("core/token");
}

#[test]
fn cli_agent_config() {
    check("agent/config-agent");
}

#[test]
fn cli_agent_config_flags() {
    check("agent/config-agent-flags");
}

#[test]
fn cli_agent_healthcheck() {
    check("agent/healthcheck");
}

#[test]
fn cli_agent_instance() {
    check("agent/instance");
}

#[test]
fn cli_agent_more() {
    check("agent/more");
}

#[test]
fn cli_agent_more_admin() {
    check("agent/more-admin");
}

#[test]
fn cli_agent_run() {
    check("agent/run");
}

#[test]
fn cli_server_agents_admin() {
    check("server/agents-admin");
}

#[test]
fn cli_server_bundle_set_delete() {
    check("server/bundle-set-delete");
}

#[test]
fn cli_server_federation() {
    check("server/federation");
}

#[test]
fn cli_server_federation_refresh() {
    check("server/federation-refresh");
}

#[test]
fn cli_server_instance() {
    check("server/instance");
}

#[test]
fn cli_server_localauthority_jwt() {
    check("server/localauthority-jwt");
}

#[test]
fn cli_server_localauthority_x509() {
    check("server/localauthority-x509");
}

#[test]
fn cli_server_logger() {
    check("server/logger");
}

#[test]
fn cli_server_more() {
    check("server/more");
}

#[test]
fn cli_server_upstream_none() {
    check("server/upstream-none");
}

#[test]
fn cli_server_upstreamauthority() {
    check("server/upstreamauthority");
}

#[test]
fn cli_server_wit() {
    check("server/wit");
}

#[test]
fn cli_server_wit_off() {
    check("server/wit-off");
}

#[test]
fn cli_agent_api() {
    check("agent/api");
}

#[test]
fn cli_agent_debug() {
    check("agent/debug");
}

#[test]
fn cli_agent_logger() {
    check("agent/logger");
}

#[test]
fn cli_a_watch_outlives_refusals_and_the_agent() {
    let config = PlaneConfig { agent: true, ..PlaneConfig::default() };
    let mut plane = Plane::start(&Product::under_test(), &config, &Default::default());

    let mut watch = plane.spawn("agent", &["api", "watch", "-socketPath", "{asock}"]);
    watch.await_said("no identity issued\n");
    let agent = plane.agent().unwrap();
    agent.signal("TERM");
    assert_eq!(agent.wait(Duration::from_secs(30)), 0);
    watch.await_said(": connect: ");
    plane.start_agent_again();
    let selector = plane.fill("unix:uid:{uid}");
    let entry =
        ["-parentID", "spiffe://{td}/node", "-spiffeID", "spiffe://{td}/late", "-socketPath", "{sock}"];
    let _entry =
        plane.ok("server", &[&["entry", "create", "-selector", &selector], entry.as_slice()].concat());
    plane.await_identities(&["spiffe://{td}/late"]);

    watch.await_printed("spiffe://example.org/late\n");
    watch.signal("INT");
    assert_eq!(watch.wait(Duration::from_secs(30)), 1);
}

/// What is wrong with a command line or a document is said before any server is asked, in known words.
#[test]
fn refusals_that_need_no_server_are_worded_as_known() {
    let entry = |member: &str| format!(r#"{{"entries":[{{{member}}}]}}"#);
    let ids = r#""spiffe_id":"spiffe://a.test/a","parent_id":"spiffe://a.test/b""#;
    for (line, input, said) in [
        ("entry create -data -", "{,}", "invalid character ',' looking for beginning of object key string"),
        ("entry update -data -", "", "unexpected end of JSON input"),
        (
            "entry create -data -",
            "[]",
            "json: cannot unmarshal array into Go value of type common.RegistrationEntries",
        ),
        (
            "entry create -data -",
            &entry(r#""spiffe_id":1"#),
            "json: cannot unmarshal number into Go struct field RegistrationEntry.entries.spiffe_id of type string",
        ),
        (
            "entry create -data -",
            &entry(&format!(r#"{ids},"federates_with":["A.test"]"#)),
            "invalid federated trust domain: trust domain characters are limited to lowercase letters, numbers, \
             dots, dashes, and underscores",
        ),
        (
            "entry delete -file -",
            "[]",
            "json: cannot unmarshal array into Go value of type entryv1.BatchDeleteEntryRequest",
        ),
        ("federation create -data -", "{", "failed to parse JSON: unexpected end of JSON input"),
        (
            "federation create -data -",
            r#"{"FEDERATIONRELATIONSHIPS":[{"TRUSTDOMAIN":"a.test"}]}"#,
            "could not parse item 0: bundle endpoint URL is required",
        ),
        (
            "federation create -trustDomain= -trustDomainBundleFormat pem -data -",
            r#"{"federationRelationships":[{}]}"#,
            "could not parse item 0: trust domain is required",
        ),
        (
            "entry update -entryID e -selector a:b -spiffeID x -parentID spiffe://A",
            "",
            "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
        ),
        ("agent list -matchSelectorsOn x -selector y", "", "unsupported match behavior"),
        (
            "entry count -parentID \u{7f}",
            "",
            r#"error parsing parent ID "\x7f": scheme is missing or invalid"#,
        ),
        ("entry count -matchSelectorsOn x -selector y", "", "match behavior \"x\" unknown"),
        (
            "agent list -expiresBefore 2030-01-01",
            "",
            "date is not valid: parsing time \"2030-01-01\" as \"2006-01-02 15:04:05 -0700 -07\": cannot parse \"\" as \"15\"",
        ),
        (
            "x509 mint -spiffeID spiffe://a.test/a -dns \u{e9}",
            "",
            "unable to generate CSR: x509: \"\u{e9}\" cannot be encoded as an IA5String",
        ),
        (
            "bundle set -id b.test",
            "-----BEGIN X-----\nAA==\n-----END X-----\n",
            "unable to parse bundle data: expected block type \"CERTIFICATE\"; got \"X\"",
        ),
        ("bundle set -format= -id b.test", "", "unable to parse bundle data: no PEM blocks"),
        (
            "bundle set -format spiffe -id b.test",
            "[",
            "unable to parse to spiffe bundle: spiffebundle: unable to parse JWKS: unexpected end of JSON input",
        ),
        (
            "bundle set -format spiffe -id B",
            "",
            "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
        ),
    ] {
        assert_eq!(told(line, input), (1, format!("Error: {said}\n")), "{line}");
    }
}

/// Usage texts call a few commands by another name; `-h` with a value is help that was asked for.
#[test]
fn usage_texts_follow_what_is_wrong() {
    for (line, first) in [
        ("token generate -ttl x", "invalid value \"x\" for flag -ttl: parse error\nUsage of generate:\n"),
        ("entry count -h=false", "Usage of entry count:\n"),
    ] {
        let (code, text) = told(line, "");

        assert_eq!(code, 1, "{line}");
        assert!(text.starts_with(first), "{line}: {text}");
    }
}

/// Runs a command of the server's; the exit code and what it says.
fn told(line: &str, input: &str) -> (i32, String) {
    let mut child = finial()
        .arg("server")
        .args(line.split(' '))
        .args(["-socketPath", "/nonexistent/api.sock"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Not every command reads it.
    let _written = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), said(&output))
}
