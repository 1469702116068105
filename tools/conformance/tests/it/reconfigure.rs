//! Plugins that are configured by a file of their own: it is read again on SIGUSR1.

use std::fs;
use std::path::Path;

use finial_conformance::{Plane, PlaneConfig, Product, Running, pause};

const BY_PATH: &str = "spiffe://example.org/by-path";

/// Asks a program to read the files again, and waits until its log says so that often.
fn ask(program: &Running, log: &Path, text: &str, times: usize) {
    program.signal("USR1");
    until_said(log, text, times);
}

fn until_said(log: &Path, text: &str, times: usize) {
    for _ in 0..1200 {
        if fs::read_to_string(log).unwrap_or_default().matches(text).count() >= times {
            return;
        }
        pause();
    }
    panic!("{text:?} is not said {times} times: {}", fs::read_to_string(log).unwrap_or_default());
}

#[test]
fn a_workload_attestor_is_configured_anew_when_its_file_changed_and_can_be_used() {
    let config = PlaneConfig {
        workload_attestor: "plugin_data_file = \"{dir}/unix.conf\"".to_owned(),
        ..PlaneConfig::default()
    };
    let mut plane = Plane::start(&Product::under_test(), &config, &Default::default());
    plane.write("{dir}/unix.conf", "discover_workload_path = false");
    plane.join_agent(&config);
    let log = plane.dir().join("agent.log");
    // Who fetches is a program of the product.
    let program = plane.command("agent", &[""]).get_program().to_owned();
    let program = fs::canonicalize(program).unwrap();
    let selector = format!("unix:path:{}", program.display());
    let entry = ["-parentID", "spiffe://{td}/node", "-spiffeID", BY_PATH, "-selector", &selector];
    let _shown = plane.ok("server", &[&["entry", "create", "-socketPath", "{sock}"][..], &entry].concat());
    let fetch = ["api", "fetch", "x509", "-socketPath", "{asock}"];

    ask(plane.agent().unwrap(), &log, "Plugin not reconfigured since the config is unchanged", 1);
    let (code, ..) = plane.run("agent", &fetch);
    assert_ne!(code, 0);

    plane.write("{dir}/unix.conf", "discover_workload_path = true");
    ask(plane.agent().unwrap(), &log, "Plugin reconfigured", 1);
    plane.await_identities(&[BY_PATH]);

    // What cannot be used changes nothing.
    plane.write("{dir}/unix.conf", "discover_workload_path = [");
    ask(plane.agent().unwrap(), &log, "Failed to reconfigure plugin", 1);
    fs::remove_file(plane.dir().join("unix.conf")).unwrap();
    ask(plane.agent().unwrap(), &log, "Failed to reconfigure plugin", 2);
    let shown = plane.ok("agent", &fetch);
    assert!(shown.contains(BY_PATH), "{shown}");
}

#[test]
fn a_node_attestor_of_the_server_is_configured_anew() {
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/keys").canonicalize().unwrap();
    let keys = keys.display();
    let config = PlaneConfig {
        server: false,
        server_plugins: "NodeAttestor \"x509pop\" { plugin_data_file = \"{dir}/x509pop.conf\" }".to_owned(),
        agent_attestor: format!(
            "NodeAttestor \"x509pop\" {{ plugin_data {{ private_key_path = \"{keys}/x509pop-node-1.key\" \
             certificate_path = \"{keys}/x509pop-node-1.pem\" }} }}"
        ),
        ..PlaneConfig::default()
    };
    let mut plane = Plane::start(&Product::under_test(), &config, &Default::default());
    // An authority that did not sign the node's certificate.
    plane.write("{dir}/x509pop.conf", &format!("ca_bundle_path = \"{keys}/bootstrap.pem\""));
    plane.configure_server(&config);
    plane.start_server_again();
    plane.write("{dir}/bootstrap.pem", &plane.ok("server", &["bundle", "show", "-socketPath", "{sock}"]));
    plane.configure_agent(&config, "");
    plane.spawn_agent();
    let [server, agent] = ["server.log", "agent.log"].map(|name| plane.dir().join(name));
    until_said(&agent, "certificate verification failed", 1);

    plane.write("{dir}/x509pop.conf", &format!("ca_bundle_path = \"{keys}/x509pop-ca.pem\""));
    ask(plane.server().unwrap(), &server, "Plugin reconfigured", 1);

    plane.start_agent_again();
}
