//! SPIRE's programs beside Finial's: clusters of both, and data that goes from one to the other and
//! back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tonic::body::Body;

use crate::live::Stage;
use crate::plane::{Plane, PlaneConfig, Product};
use crate::wire::{Caller, Connection, Messages};

const SET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle";
const CREATE_ENTRY: &str = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
const CREATE_TOKEN: &str = "/spire.api.server.agent.v1.Agent/CreateJoinToken";
const CREATE_RELATIONSHIP: &str =
    "/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship";

/// What both servers are asked about the same database.
const QUESTIONS: [&str; 8] = [
    "/spire.api.server.entry.v1.Entry/ListEntries",
    "/spire.api.server.entry.v1.Entry/CountEntries",
    "/spire.api.server.agent.v1.Agent/ListAgents",
    "/spire.api.server.agent.v1.Agent/CountAgents",
    "/spire.api.server.bundle.v1.Bundle/GetBundle",
    "/spire.api.server.bundle.v1.Bundle/ListFederatedBundles",
    "/spire.api.server.bundle.v1.Bundle/CountBundles",
    "/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships",
];

/// Method, path and headers of a request.
type Knock = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Requests that are no calls.
const NO_CALLS: [Knock; 22] = [
    ("POST", "/a.B/c", &[GRPC]),
    ("POST", "/a.B/c?d=e", &[GRPC]),
    ("POST", "/a/b?c/d", &[GRPC]),
    ("POST", "/", &[GRPC]),
    ("POST", "//", &[GRPC]),
    ("POST", "/a.B/c", &[("content-type", "application/grpc+proto")]),
    ("POST", "/a.B/c", &[("content-type", "application/grpc;charset=utf-8")]),
    ("POST", "/a.B/c", &[]),
    ("POST", "/a.B/c", &[("content-type", "application/grpc-web")]),
    ("POST", "/a.B/c", &[("content-type", "text/plain; charset=\"utf-8\"")]),
    ("GET", "/a.B/c", &[GRPC]),
    ("GET", "/a.B/c", &[]),
    ("POST", "/a.B/c", &[GRPC, ("grpc-timeout", "")]),
    ("POST", "/a.B/c", &[GRPC, ("grpc-timeout", "5X")]),
    ("POST", "/a.B/c", &[GRPC, ("grpc-timeout", "-5S")]),
    ("POST", "/a.B/c", &[GRPC, ("grpc-timeout", "1.5S")]),
    ("POST", "/a.B/c", &[GRPC, ("grpc-timeout", "123456789S")]),
    ("POST", "/a.B/c", &[GRPC, ("grpc-timeout", "5S"), ("grpc-timeout", "0S")]),
    ("POST", "/a.B/c", &[GRPC, ("a-bin", "ab,cd")]),
    ("POST", "/a.B/c", &[GRPC, ("a-bin", "YQ==YQ==")]),
    ("POST", "/a.B/c", &[GRPC, ("a-bin", "!"), ("grpc-timeout", "x")]),
    ("POST", "/a.B/c", &[GRPC, ("host", "a"), ("host", "b")]),
];

const GRPC: (&str, &str) = ("content-type", "application/grpc");

/// Finial and SPIRE on one machine.
#[derive(Debug)]
pub struct Crossing {
    messages: Messages,
    finial: Product,
    spire: Product,
}

impl Crossing {
    /// Both products, if `SPIRE_BIN` names the folder of SPIRE's programs.
    #[must_use]
    pub fn of_both(recorded: &Path) -> Option<Self> {
        let dir = PathBuf::from(std::env::var_os("SPIRE_BIN")?);
        Some(Self {
            messages: Messages::load(&recorded.join("api/api.fds")),
            finial: Product::finial(),
            spire: Product::spire(&dir),
        })
    }

    /// Finial's programs alone.
    #[must_use]
    pub const fn finial(&self) -> &Product {
        &self.finial
    }

    /// SPIRE's programs alone.
    #[must_use]
    pub const fn spire(&self) -> &Product {
        &self.spire
    }

    /// Finial's server with SPIRE's agent.
    #[must_use]
    pub fn spire_agent(&self) -> Product {
        Product::mixed(&self.finial, &self.spire)
    }

    /// SPIRE's server with Finial's agent.
    #[must_use]
    pub fn finial_agent(&self) -> Product {
        Product::mixed(&self.spire, &self.finial)
    }

    /// The two products, Finial first.
    #[must_use]
    pub const fn products(&self) -> [&Product; 2] {
        [&self.finial, &self.spire]
    }

    /// A database and keys made by Finial's server are served by SPIRE's, which adds to them, and then
    /// by Finial's again: each answers as the one before, under the same authorities.
    ///
    /// # Errors
    /// Says where the answers differ.
    ///
    /// # Panics
    /// If a server does not start.
    pub fn database(&self) -> Result<(), String> {
        let runtime = Runtime::new().map_err(|error| error.to_string())?;
        let mut plane = Plane::start(&self.finial, &PlaneConfig::default(), &BTreeMap::new());
        runtime.block_on(self.furnish(&plane, "finial"))?;
        for (number, product) in [&self.spire, &self.finial].into_iter().enumerate() {
            let before = runtime.block_on(self.answers(&plane))?;
            let server = plane.server().ok_or("no server")?;
            server.signal("TERM");
            server.wait(Duration::from_secs(30));
            plane.set_product(product);
            plane.start_server_again();
            let after = runtime.block_on(self.answers(&plane))?;
            for ((method, before), (_, after)) in before.iter().zip(&after) {
                if before != after {
                    return Err(format!("hand-over {number}: {method} was\n{before}\nand is\n{after}"));
                }
            }
            runtime.block_on(self.furnish(&plane, &format!("hand-over-{number}")))?;
        }
        Ok(())
    }

    /// A data folder goes from Finial's agent to SPIRE's and back, on the server of `server`, without
    /// a new token and under the same identity.
    ///
    /// # Errors
    /// Says what was lost.
    ///
    /// # Panics
    /// If server or agent does not start.
    pub fn agent_folder(&self, server: Server) -> Result<(), String> {
        let server = match server {
            Server::Finial => &self.finial,
            Server::Spire => &self.spire,
        };
        let mut stage = Stage::set(&Product::mixed(server, &self.finial), &self.messages, "")?;
        stage.run(async {
            stage.create("kept", "/kept", json!({})).await?;
            stage.stream_with(&["/kept"]).await.map(drop)
        })?;
        for product in [&self.spire, &self.finial] {
            let agent = stage.plane.agent().ok_or("no agent")?;
            agent.signal("TERM");
            agent.wait(Duration::from_secs(30));
            stage.plane.set_product(&Product::mixed(server, product));
            stage.plane.start_agent_again();
            stage.run(async { stage.stream_with(&["/kept"]).await.map(drop) })?;
        }
        let agents = stage.plane.ok("server", &["agent", "count", "-socketPath", "{sock}"]);
        if agents.trim() == "1 attested agent" { Ok(()) } else { Err(format!("there are {agents}")) }
    }

    /// Requests that are no calls are refused by Finial's sockets as by SPIRE's.
    ///
    /// # Errors
    /// Says where the refusals differ.
    ///
    /// # Panics
    /// If a server or agent does not start.
    pub fn refusals(&self) -> Result<(), String> {
        let mut told = Vec::new();
        for product in self.products() {
            let stage = Stage::set(product, &self.messages, "")?;
            let refusals = stage.run(async {
                let mut refusals = Vec::new();
                for socket in ["sock", "asock"] {
                    let connection = Connection::local(stage.plane.word(socket));
                    for (method, path, headers) in NO_CALLS {
                        let mut request = http::Request::builder().method(method).uri(path);
                        for (name, value) in headers {
                            request = request.header(*name, *value);
                        }
                        let request = request.body(Body::empty()).map_err(|error| error.to_string())?;
                        let refusal = connection.knock(request).await;
                        let refusal =
                            refusal.map_err(|error| format!("{method} {path} {headers:?}: {error}"))?;
                        refusals.push(format!("{socket} {method} {path} {headers:?}: {refusal}"));
                    }
                }
                Ok::<_, String>(refusals)
            })?;
            told.push(refusals);
        }
        match told.as_slice() {
            [finial, spire] if finial != spire => {
                let pairs = finial.iter().zip(spire).filter(|(finial, spire)| finial != spire);
                let pairs = pairs.map(|(finial, spire)| format!("{finial}\ninstead of\n{spire}"));
                Err(pairs.collect::<Vec<_>>().join("\n"))
            }
            _ => Ok(()),
        }
    }

    async fn answers(&self, plane: &Plane) -> Result<Vec<(&'static str, Value)>, String> {
        let local = Caller::local(&self.messages, plane.word("sock"));
        let mut answers = Vec::new();
        for method in QUESTIONS {
            answers.push((method, local.ask(method, json!({})).await?));
        }
        Ok(answers)
    }

    /// Adds something of every kind, named after `maker`.
    async fn furnish(&self, plane: &Plane, maker: &str) -> Result<(), String> {
        let local = Caller::local(&self.messages, plane.word("sock"));
        let id = |path: &str| json!({"trust_domain": plane.word("td"), "path": path});
        let federated = format!("{maker}.test");
        let own = local.ask("/spire.api.server.bundle.v1.Bundle/GetBundle", json!({})).await?;
        let bundle = json!({
            "trust_domain": federated,
            "x509_authorities": own["x509_authorities"],
            "jwt_authorities": own["jwt_authorities"],
            "refresh_hint": "300",
            "sequence_number": "7",
        });
        local.ask(SET_BUNDLE, json!({"bundle": [bundle]})).await?;
        let relationship = json!({
            "trust_domain": format!("far-{maker}.test"),
            "bundle_endpoint_url": "https://127.0.0.1:1/",
            "https_spiffe": {"endpoint_spiffe_id": format!("spiffe://far-{maker}.test/endpoint")},
        });
        local.ask(CREATE_RELATIONSHIP, json!({"federation_relationships": [relationship]})).await?;
        let entries = json!({"entries": [
            {
                "id": format!("{maker}-plain"),
                "parent_id": id("/node"),
                "spiffe_id": id(&format!("/{maker}/plain")),
                "selectors": [{"type": "unix", "value": "uid:1"}],
            },
            {
                "id": format!("{maker}-full"),
                "parent_id": id("/node"),
                "spiffe_id": id(&format!("/{maker}/full")),
                "selectors": [{"type": "k8s", "value": "ns:b"}, {"type": "unix", "value": "gid:2"}],
                "x509_svid_ttl": 600,
                "jwt_svid_ttl": 60,
                "federates_with": [federated],
                "admin": true,
                "downstream": true,
                "expires_at": "4000000000",
                "dns_names": ["z.test", "a.test"],
                "hint": maker,
                "additional_attributes": {"jwt_svid_include_jti": true},
            },
        ]});
        let created = local.ask(CREATE_ENTRY, entries).await?;
        let token = json!({"ttl": 600, "token": maker, "agent_id": id(&format!("/{maker}/alias"))});
        local.ask(CREATE_TOKEN, token).await?;
        let results = created["results"].as_array().into_iter().flatten();
        let refused = results.map(|result| &result["status"]).find(|status| !status["code"].is_null());
        refused.map_or(Ok(()), |status| Err(format!("an entry is refused: {status}")))
    }
}

/// Whose server it is.
#[derive(Clone, Copy, Debug)]
pub enum Server {
    /// Finial's.
    Finial,
    /// SPIRE's.
    Spire,
}
