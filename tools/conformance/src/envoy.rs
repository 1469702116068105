//! Two Envoys that know each other by SPIFFE ids alone, their certificates and bundles being the
//! agent's.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::get;
use crate::live::Stage;
use crate::plane::{Plane, PlaneConfig, Product, Running, pause};
use crate::wire::Messages;

/// What the service behind the Envoy at the back answers.
const GREETING: &str = "hello from the back";

/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many certificates of each Envoy are waited for.
const CERTIFICATES: usize = 3;

/// Envoys that are served by an agent.
#[derive(Debug)]
pub struct Envoys {
    messages: Messages,
}

/// What was seen of them.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// How many connections were made, all of which were answered.
    pub connections: usize,
    /// How many certificates both had together.
    pub certificates: usize,
}

/// Where they listen.
struct Ports {
    /// To the back, whose id is checked.
    through: String,
    /// To the back, with another id expected of it.
    to_another: String,
    /// To a door of the back that lets only somebody else in.
    refused: String,
    back: String,
    back_for_another: String,
    service: String,
    front_admin: String,
    back_admin: String,
}

impl Envoys {
    /// Knows the server's API by the descriptors below `recorded`.
    #[must_use]
    pub fn load(recorded: &Path) -> Self {
        Self { messages: Messages::load(&recorded.join("api/api.fds")) }
    }

    /// One Envoy connects to the other while both are given new certificates again and again: each
    /// connection is answered. With the wrong id at either end none is.
    ///
    /// # Errors
    /// Says what went another way.
    ///
    /// # Panics
    /// If the programs do not start.
    pub fn play(&self, product: &Product, envoy: &Path) -> Result<Seen, String> {
        let config = PlaneConfig {
            workload_attestor: "discover_workload_path = true workload_size_limit = -1".to_owned(),
            ..PlaneConfig::default()
        };
        let stage = Stage::with(product, &self.messages, config)?;
        let service = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let held = crate::ports::Ports::hold(7);
        let ports = Ports::of(&held, &service);
        // It ends with the process.
        std::thread::spawn(move || greet(&service));
        for (id, settings) in [("front", front(&stage.plane, &ports)), ("back", back(&stage.plane, &ports))] {
            let program = stage.plane.dir().join(format!("{id}-envoy"));
            // Two paths, so that they are two workloads.
            fs::hard_link(envoy, &program)
                .or_else(|_| fs::copy(envoy, &program).map(drop))
                .map_err(|error| error.to_string())?;
            let selector = json!({"type": "unix", "value": format!("path:{}", program.display())});
            let entry = json!({"selectors": [selector], "x509_svid_ttl": 20});
            stage.run(stage.create(id, &format!("/{id}"), entry))?;
            stage.plane.write(&format!("{{dir}}/{id}.json"), &settings.to_string());
        }
        let _front = start(&stage.plane, "front");
        let mut back = start(&stage.plane, "back");

        let deadline = Instant::now() + PATIENCE;
        while greeting(&ports.through) != GREETING {
            if Instant::now() > deadline || !back.is_running() {
                return Err(format!("no connection: {:?}", back.printed()));
            }
            pause();
        }
        self.watch(&ports)
    }

    /// Connects until both have had enough certificates.
    fn watch(&self, ports: &Ports) -> Result<Seen, String> {
        let (mut connections, mut front, mut back) = (0, BTreeSet::new(), BTreeSet::new());
        let deadline = Instant::now() + 3 * PATIENCE;
        while front.len() < CERTIFICATES || back.len() < CERTIFICATES {
            if Instant::now() > deadline {
                return Err(format!("too few certificates: {front:?} and {back:?}"));
            }
            front.extend(serials(&ports.front_admin, "/front")?);
            back.extend(serials(&ports.back_admin, "/back")?);
            let answered = greeting(&ports.through);
            if answered != GREETING {
                return Err(format!("connection {connections} is answered {answered:?}"));
            }
            connections += 1;
            for wrong in [&ports.to_another, &ports.refused] {
                let answered = greeting(wrong);
                if !answered.is_empty() {
                    return Err(format!("the wrong id is answered {answered:?}"));
                }
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        Ok(Seen { connections, certificates: front.len() + back.len() })
    }
}

impl Ports {
    /// Those that are `held`, and one where `service` listens.
    fn of(held: &crate::ports::Ports, service: &TcpListener) -> Self {
        let mut ports = held.iter().map(|port| port.to_string());
        let [through, to_another, refused, back, back_for_another, front_admin, back_admin] =
            [(); 7].map(|()| ports.next().expect("seven ports"));
        let service = service.local_addr().expect("a bound port").port().to_string();
        Self { through, to_another, refused, back, back_for_another, service, front_admin, back_admin }
    }
}

fn start(plane: &Plane, name: &str) -> Running {
    let mut command = std::process::Command::new(plane.dir().join(format!("{name}-envoy")));
    command.arg("--config-path").arg(plane.dir().join(format!("{name}.json")));
    command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]).env_clear();
    Running::start(&mut command)
}

/// The service: greets each who says a byte.
fn greet(listener: &TcpListener) {
    for stream in listener.incoming() {
        let greeted = stream.and_then(|mut stream| {
            stream.read_exact(&mut [0])?;
            stream.write_all(GREETING.as_bytes())
        });
        // Those that were not let in say nothing.
        drop(greeted);
    }
}

/// What comes from this port until the end.
fn greeting(port: &str) -> String {
    let mut text = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(format!("127.0.0.1:{port}")) {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        // A connection that is reset has said what it says.
        drop(stream.write_all(b"?").and_then(|()| stream.read_to_end(&mut text)));
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The serial numbers of the certificates with this path that the Envoy holds now.
fn serials(admin: &str, path: &str) -> Result<Vec<String>, String> {
    let (_, page) = get(admin, "/certs").ok_or("Envoy does not answer")?;
    let start = page.find('{').ok_or("no certificates")?;
    let end = page.rfind('}').ok_or("no certificates")?;
    let page: Value = serde_json::from_str(&page[start..=end]).map_err(|error| error.to_string())?;
    let own = page["certificates"].as_array().into_iter().flatten();
    let own = own.filter_map(|one| one["cert_chain"].as_array()).flatten();
    let own = own.filter(|one| one["subject_alt_names"].to_string().contains(&format!("{path}\"")));
    Ok(own.map(|one| one["serial_number"].to_string()).collect())
}

fn front(plane: &Plane, ports: &Ports) -> Value {
    let listeners =
        [("through", &ports.through), ("to_another", &ports.to_another), ("refused", &ports.refused)];
    let clusters = [
        upstream("through", &ports.back, "spiffe://example.org/back"),
        upstream("to_another", &ports.back, "spiffe://example.org/front"),
        upstream("refused", &ports.back_for_another, "spiffe://example.org/back"),
        agent(plane),
    ];
    let listener = |(name, port): (&str, &String)| json!({"name": name, "address": address(port), "filter_chains": [{"filters": [forward(name)]}]});
    bootstrap("front", &ports.front_admin, &listeners.map(listener), &clusters)
}

fn back(plane: &Plane, ports: &Ports) -> Value {
    let listeners = [
        downstream(&ports.back, "spiffe://example.org/front", "ROOTCA"),
        downstream(&ports.back_for_another, "spiffe://example.org/back", "ALL"),
    ];
    let service = json!({
        "name": "service",
        "connect_timeout": "5s",
        "load_assignment": endpoints("service", &address(&ports.service)),
    });
    bootstrap("back", &ports.back_admin, &listeners, &[agent(plane), service])
}

/// Hands everything on to a cluster.
fn forward(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster,
            "cluster": cluster,
        },
    })
}

fn bootstrap(id: &str, admin: &str, listeners: &[Value], clusters: &[Value]) -> Value {
    json!({
        "node": {"id": id, "cluster": "conformance"},
        "admin": {"address": address(admin)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn address(port: &str) -> Value {
    let port: u16 = port.parse().expect("a port");
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn endpoints(name: &str, address: &Value) -> Value {
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]})
}

/// The agent, which speaks HTTP/2 on its socket.
fn agent(plane: &Plane) -> Value {
    json!({
        "name": "agent",
        "connect_timeout": "5s",
        "load_assignment": endpoints("agent", &json!({"pipe": {"path": plane.word("asock")}})),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
    })
}

/// The back, of which this id is expected.
fn upstream(name: &str, port: &str, id: &str) -> Value {
    json!({
        "name": name,
        "connect_timeout": "5s",
        "load_assignment": endpoints(name, &address(port)),
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": tls(id, "ROOTCA"),
                // A resumed session would keep the peer it was made with.
                "max_session_keys": 0,
            },
        },
    })
}

/// A door for who has this id.
fn downstream(port: &str, id: &str, bundle: &str) -> Value {
    json!({
        "name": port,
        "address": address(port),
        "filter_chains": [{
            "filters": [forward("service")],
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "require_client_certificate": true,
                    "disable_stateless_session_resumption": true,
                    "disable_stateful_session_resumption": true,
                    "common_tls_context": tls(id, bundle),
                },
            },
        }],
    })
}

/// The own certificate, and who is accepted: whoever has this id by the bundles of this name.
fn tls(id: &str, bundle: &str) -> Value {
    let secret = |name: &str| {
        json!({
            "name": name,
            "sds_config": {
                "resource_api_version": "V3",
                "api_config_source": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}],
                },
            },
        })
    };
    json!({
        "tls_certificate_sds_secret_configs": [secret("default")],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": id}}],
            },
            "validation_context_sds_secret_config": secret(bundle),
        },
    })
}
