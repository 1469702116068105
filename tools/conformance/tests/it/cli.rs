//! Command lines: every recorded step, played on real processes.
//!
//! `conformance/cli/floor.tsv` holds, per file, the number of steps and the most that may fail; fewer
//! steps or more failures fail the test.

use std::fs;
use std::path::{Path, PathBuf};

use finial_conformance::{Product, Scenario};

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

macro_rules! scenarios {
    ($($test:ident: $file:literal,)*) => {
        $(#[test] fn $test() { check($file); })*
    };
}

scenarios! {
    cli_agents: "core/agents",
    cli_api_fetch: "core/api-fetch",
    cli_bundle: "core/bundle",
    cli_config_flags: "core/config-flags",
    cli_config_hcl: "core/config-hcl",
    cli_config_server: "core/config-server",
    cli_config_server_plugins: "core/config-server-plugins",
    cli_entry_create: "core/entry-create",
    cli_entry_data: "core/entry-data",
    cli_entry_show: "core/entry-show",
    cli_entry_update_delete: "core/entry-update-delete",
    cli_global: "core/global",
    cli_instance: "core/instance",
    cli_mint: "core/mint",
    cli_mint_nojwt: "core/mint-nojwt",
    cli_mint_settings: "core/mint-settings",
    cli_more: "core/more",
    cli_run_server: "core/run-server",
    cli_sockets: "core/sockets",
    cli_token: "core/token",
    cli_agent_config: "agent/config-agent",
    cli_agent_config_flags: "agent/config-agent-flags",
    cli_agent_healthcheck: "agent/healthcheck",
    cli_agent_instance: "agent/instance",
    cli_agent_more: "agent/more",
    cli_agent_more_admin: "agent/more-admin",
    cli_agent_run: "agent/run",
    cli_server_agents_admin: "server/agents-admin",
    cli_server_bundle_set_delete: "server/bundle-set-delete",
    cli_server_federation: "server/federation",
    cli_server_federation_refresh: "server/federation-refresh",
    cli_server_instance: "server/instance",
    cli_server_localauthority_jwt: "server/localauthority-jwt",
    cli_server_localauthority_x509: "server/localauthority-x509",
    cli_server_logger: "server/logger",
    cli_server_more: "server/more",
    cli_server_upstream_none: "server/upstream-none",
    cli_server_upstreamauthority: "server/upstreamauthority",
    cli_server_wit: "server/wit",
    cli_server_wit_off: "server/wit-off",
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
