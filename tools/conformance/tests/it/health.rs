//! Whether server and agent are well, over HTTP.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use finial_conformance::{Plane, PlaneConfig, Product, await_ok, get};
use serde_json::Value;

/// Turns the listener of a program on, and starts it again.
fn listening(plane: &mut Plane, program: &str, port: &str) {
    let path = plane.dir().join(format!("{program}.conf"));
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str(&format!(
        "health_checks {{\n  listener_enabled = true\n  bind_address = \"[127.0.0.1]\"\n  bind_port = \"{port}\"\n  \
         live_path = \"/alive\"\n  ready_path = \"/prepared\"\n}}\n"
    ));
    fs::write(&path, text).unwrap();
    let running = if program == "server" { plane.server() } else { plane.agent() }.unwrap();
    running.signal("TERM");
    assert_eq!(running.wait(Duration::from_secs(30)), 0);
    if program == "server" {
        plane.start_server_again();
    } else {
        plane.start_agent_again();
    }
}

#[test]
fn health_is_told_over_http() {
    let config = PlaneConfig { agent: true, ..PlaneConfig::default() };
    let mut plane = Plane::start(&Product::under_test(), &config, &Default::default());
    let (server, agent) = (plane.word("p1").to_owned(), plane.word("p2").to_owned());
    assert_eq!(get(&server, "/live"), None, "nobody asked for a listener");

    listening(&mut plane, "server", &server);
    listening(&mut plane, "agent", &agent);

    for (port, check) in [(&server, "server"), (&agent, "agent")] {
        for path in ["/prepared", "/alive"] {
            let body = await_ok(port, path);
            let report: Value = serde_json::from_str(&body).unwrap();
            let report = report.as_object().unwrap();
            assert!(report.contains_key(check), "{body}");
            let is_well = |trouble: &Value| trouble.as_object().is_some_and(|trouble| trouble.is_empty());
            assert!(report.values().all(is_well), "{body}");
            assert!(body.ends_with("}\n"));
        }
        assert_eq!(get(port, "/live"), Some((404, "404 page not found\n".to_owned())));
    }
}

#[test]
fn health_port_in_use_stops_nobody() {
    let config = PlaneConfig { agent: true, ..PlaneConfig::default() };
    let mut plane = Plane::start(&Product::under_test(), &config, &Default::default());
    let port = plane.word("p1").to_owned();
    let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let _taken = TcpListener::bind(address).unwrap();

    for program in ["server", "agent"] {
        listening(&mut plane, program, &port);

        let said = fs::read_to_string(plane.dir().join(format!("{program}.log"))).unwrap();
        assert!(said.contains("Error serving health checks"), "{said}");
    }
}

#[test]
fn health_is_not_hurt_by_signals_that_ask_for_something() {
    let config = PlaneConfig { agent: true, ..PlaneConfig::default() };
    let mut plane = Plane::start(&Product::under_test(), &config, &Default::default());

    for program in ["server", "agent"] {
        let running = if program == "server" { plane.server() } else { plane.agent() }.unwrap();
        running.signal("USR1");
        running.signal("USR2");
        plane.await_healthy(program);
        let running = if program == "server" { plane.server() } else { plane.agent() }.unwrap();
        assert!(running.is_running());
    }
}
