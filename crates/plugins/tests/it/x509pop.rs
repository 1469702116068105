//! `x509pop`: the agent's half against the server's, and recorded certificates.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use plugin::catalog::{load_agent, load_server};
use plugin::{
    AgentNodeAttestor, AgentStream, Attested, Challenger, Code, Host, PluginError, ServerNodeAttestor,
};
use plugins::tables;
use runtime::clock::ManualClock;
use serde_json::{Value, json};
use spiffe::UnixSecs;
use spiffe::x509::{Certificate, pem_blocks};
use tokio::sync::mpsc;

use crate::{block, trust_domain};

const EC: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../conformance/wire-exchanges/attest-x509pop-ec.json"
));
const RSA: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../conformance/wire-exchanges/attest-x509pop-rsa.json"
));

/// A node's files, and the time at which its certificate was valid.
struct Node {
    directory: tempfile::TempDir,
    recorded: Value,
    now: SystemTime,
}

impl Node {
    fn new(recorded: &str) -> Self {
        let recorded: Value = serde_json::from_str(recorded).unwrap();
        let directory = tempfile::tempdir().unwrap();
        for (file, field) in [("ca", "ca_certificate"), ("leaf", "certificate"), ("key", "private_key")] {
            std::fs::write(directory.path().join(file), recorded[field].as_str().unwrap()).unwrap();
        }
        let leaf = recorded["certificate"].as_str().unwrap();
        let leaf = Certificate::parse(&pem_blocks(leaf.as_bytes(), "CERTIFICATE").unwrap()[0]).unwrap();
        let now = leaf.not_before().plus(60).to_system_time();
        Self { directory, recorded, now }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn payload(&self) -> Bytes {
        let message = &self.recorded["calls"][0]["messages"][0]["decoded"]["params"]["data"]["payload"];
        let recorded: Vec<u8> =
            base64::Engine::decode(&base64::prelude::BASE64_STANDARD, message.as_str().unwrap()).unwrap();
        recorded.into()
    }

    fn agent_id(&self) -> String {
        let answer = &self.recorded["calls"][0]["messages"][3]["decoded"]["result"]["svid"]["id"];
        format!("spiffe://example.org{}", answer["path"].as_str().unwrap())
    }

    async fn server(&self, extra: Value) -> Result<Arc<dyn ServerNodeAttestor>, String> {
        let mut data = json!({"ca_bundle_path": self.path("ca")});
        data.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let host = Host { clock: Arc::new(ManualClock::new(self.now)), ..Host::bare() };
        let blocks = [block("KeyManager", "memory", ""), block("NodeAttestor", "x509pop", &data.to_string())];
        let loaded = load_server(&blocks, tables::SERVER, &trust_domain(), &host).await;
        let loaded = loaded.map_err(|error| error.to_string())?;
        Ok(Arc::clone(&loaded.node_attestors["x509pop"]))
    }

    async fn agent(&self) -> Arc<dyn AgentNodeAttestor> {
        agent(&self.path("leaf"), &self.path("key")).await.unwrap()
    }
}

async fn agent(leaf: &Path, key: &Path) -> Result<Arc<dyn AgentNodeAttestor>, String> {
    let data = json!({"certificate_path": leaf, "private_key_path": key}).to_string();
    let blocks = [
        block("KeyManager", "memory", ""),
        block("NodeAttestor", "x509pop", &data),
        block("WorkloadAttestor", "unix", ""),
    ];
    let loaded = load_agent(&blocks, tables::AGENT, &trust_domain(), &Host::bare()).await;
    loaded.map(|plugins| plugins.node_attestor).map_err(|error| error.to_string())
}

/// The server's end of a stream.
struct ServerEnd {
    challenges: mpsc::Sender<Option<Bytes>>,
    responses: mpsc::Receiver<Bytes>,
    address: Option<IpAddr>,
}

#[async_trait]
impl Challenger for ServerEnd {
    async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes, PluginError> {
        self.challenges.send(Some(challenge)).await.unwrap();
        self.responses.recv().await.ok_or_else(|| PluginError::new(Code::Cancelled, "stream closed"))
    }

    fn client_address(&self) -> Option<IpAddr> {
        self.address
    }
}

/// The agent's end.
struct AgentEnd {
    sent: mpsc::Sender<Bytes>,
    challenges: mpsc::Receiver<Option<Bytes>>,
}

#[async_trait]
impl AgentStream for AgentEnd {
    async fn send_payload(&mut self, payload: Bytes) -> Result<Option<Bytes>, PluginError> {
        self.sent.send(payload).await.unwrap();
        Ok(self.challenges.recv().await.unwrap())
    }

    async fn send_response(&mut self, response: Bytes) -> Result<Option<Bytes>, PluginError> {
        self.sent.send(response).await.unwrap();
        Ok(self.challenges.recv().await.unwrap())
    }
}

/// Runs both halves against each other.
async fn attest(
    server: &dyn ServerNodeAttestor,
    agent: &dyn AgentNodeAttestor,
    address: Option<IpAddr>,
) -> Result<Attested, PluginError> {
    let (to_server, mut responses) = mpsc::channel(1);
    let (challenges, to_agent) = mpsc::channel(1);
    let mut agent_end = AgentEnd { sent: to_server, challenges: to_agent };
    let serving = async {
        let payload = responses.recv().await.unwrap();
        let done = challenges.clone();
        let mut end = ServerEnd { challenges, responses, address };
        let verdict = server.attest(payload, &mut end).await;
        done.send(None).await.unwrap();
        verdict
    };
    let (verdict, agent) = tokio::join!(serving, agent.attest(&mut agent_end));
    agent.unwrap();
    verdict
}

/// An agent that gives the same answer to whatever it is asked.
struct Answer(&'static str);

#[async_trait]
impl Challenger for Answer {
    async fn challenge(&mut self, _: Bytes) -> Result<Bytes, PluginError> {
        Ok(self.0.into())
    }

    fn client_address(&self) -> Option<IpAddr> {
        None
    }
}

async fn check_refused(server: &dyn ServerNodeAttestor, payload: Bytes, code: Code, why: &str) {
    let error = server.attest(payload, &mut Answer("{}")).await.unwrap_err();
    assert_eq!(error.code, code, "{}", error.message);
    assert!(error.message.starts_with(&format!("nodeattestor(x509pop): {why}")), "{}", error.message);
}

#[tokio::test]
async fn a_node_with_the_key_of_its_certificate_is_attested() {
    for recorded in [EC, RSA] {
        let node = Node::new(recorded);
        let server = node.server(json!({})).await.unwrap();

        let attested = attest(&*server, &*node.agent().await, None).await.unwrap();

        assert_eq!(attested.agent_id, node.agent_id());
        assert!(attested.can_reattest);
        let selectors: Vec<_> = attested.selectors.iter().map(ToString::to_string).collect();
        assert_eq!(selectors.len(), 4);
        assert!(selectors[0].starts_with("x509pop:subject:cn:node-"));
        assert!(selectors[1].starts_with("x509pop:ca:fingerprint:"));
        assert!(selectors[2].starts_with("x509pop:serialnumber:"));
        assert_eq!(selectors[3], "x509pop:san:rack:7");
    }
}

#[tokio::test]
async fn agent_paths_follow_the_template() {
    let node = Node::new(EC);
    let path = |template: &str| json!({"agent_path_template": template});

    let server = node.server(path("/nodes/{{ .URISanSelectors.rack }}/{{ .Subject.CommonName }}")).await;
    let attested = attest(&*server.unwrap(), &*node.agent().await, None).await.unwrap();
    assert_eq!(attested.agent_id, "spiffe://example.org/spire/agent/nodes/7/node-ec");

    let server = node.server(path("/{{ .URISanSelectors.shelf }}")).await;
    let error = attest(&*server.unwrap(), &*node.agent().await, None).await.unwrap_err();
    assert_eq!(error.message, "nodeattestor(x509pop): failed to make spiffe id: no entry for key \"shelf\"");

    let server = node.server(path("/../server")).await;
    let error = attest(&*server.unwrap(), &*node.agent().await, None).await.unwrap_err();
    assert!(error.message.contains("path cannot contain dot segments"), "{}", error.message);
}

#[tokio::test]
async fn what_proves_nothing_is_refused() {
    let node = Node::new(EC);
    let server = node.server(json!({})).await.unwrap();
    let invalid = Code::InvalidArgument;
    let denied = Code::PermissionDenied;

    let error = server.attest(Bytes::new(), &mut Answer("{}")).await.unwrap_err();
    assert_eq!(error.message, "payload cannot be empty");
    check_refused(&*server, "nonsense".into(), invalid, "failed to unmarshal data: ").await;
    check_refused(&*server, "{}".into(), invalid, "no certificate to attest").await;
    check_refused(&*server, "{\"certificates\":[\"AAAA\"]}".into(), invalid, "unable to parse leaf").await;
    let six = "{\"certificates\":[\"AA==\",\"AA==\",\"AA==\",\"AA==\",\"AA==\",\"AA==\"]}";
    check_refused(&*server, six.into(), invalid, "too many intermediate certificates").await;
    check_refused(
        &*server,
        node.payload(),
        denied,
        "challenge response verification failed: expecting ECDSA",
    )
    .await;

    let small = Node::new(RSA).server(json!({"max_rsa_key_size": 1024})).await.unwrap();
    check_refused(&*small, Node::new(RSA).payload(), invalid, "leaf certificate key size too large").await;

    let mut late = Node::new(EC);
    late.now = UnixSecs::from(late.now).plus(30 * 86_400).to_system_time();
    let late = late.server(json!({})).await.unwrap();
    check_refused(&*late, node.payload(), denied, "certificate verification failed: x509: ").await;
}

#[tokio::test]
async fn n04_an_answer_is_good_for_one_challenge_only() {
    let node = Node::new(EC);
    let server = node.server(json!({})).await.unwrap();
    let message = &node.recorded["calls"][0]["messages"][2]["decoded"]["challenge_response"];
    let recorded = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, message.as_str().unwrap());
    let recorded: &'static str = String::from_utf8(recorded.unwrap()).unwrap().leak();

    let error = server.attest(node.payload(), &mut Answer(recorded)).await.unwrap_err();

    assert_eq!(error.code, Code::PermissionDenied);
    assert_eq!(
        error.message,
        "nodeattestor(x509pop): challenge response verification failed: ECDSA signature verify failed"
    );
}

#[tokio::test]
async fn the_address_of_a_node_must_be_in_its_certificate_if_wanted() {
    let node = Node::new(EC);
    let server = node.server(json!({"verify_client_ip": true})).await.unwrap();
    let agent = node.agent().await;

    let error = attest(&*server, &*agent, Some([192, 0, 2, 7].into())).await.unwrap_err();
    assert_eq!(
        error.message,
        "nodeattestor(x509pop): client IP 192.0.2.7 does not match any certificate IP SAN"
    );
    let error = attest(&*server, &*agent, None).await.unwrap_err();
    assert_eq!(error.message, "nodeattestor(x509pop): client IP not available for verification");
}

#[tokio::test]
async fn configurations_that_cannot_work_are_refused() {
    let node = Node::new(EC);
    let refused = async |extra: Value| node.server(extra).await.err().unwrap();
    let prefix = "failed to configure plugin \"x509pop\": rpc error: code = InvalidArgument desc = ";

    assert_eq!(
        refused(json!({"ca_bundle_path": ""})).await,
        format!("{prefix}one of ca_bundle_path or ca_bundle_paths must be configured")
    );
    assert_eq!(
        refused(json!({"ca_bundle_paths": ["x"]})).await,
        format!("{prefix}only one of ca_bundle_path or ca_bundle_paths can be configured, not both")
    );
    assert_eq!(
        refused(json!({"mode": "spiffe"})).await,
        format!("{prefix}you can not use ca_bundle_path or ca_bundle_paths in spiffe mode")
    );
    assert_eq!(
        refused(json!({"mode": "x"})).await,
        format!("{prefix}mode can only be either spiffe or external_pki")
    );
    assert_eq!(
        refused(json!({"max_intermediates": 0})).await,
        format!("{prefix}max_intermediates must be greater than 0")
    );
    assert_eq!(
        refused(json!({"ca_bundle_path": "/nonexistent/ca"})).await,
        format!(
            "{prefix}unable to load trust bundle \"/nonexistent/ca\": open /nonexistent/ca: no such file or directory"
        )
    );
    assert!(
        refused(json!({"agent_path_template": "/{{ nope }}"}))
            .await
            .starts_with(&format!("{prefix}failed to parse agent svid template: \"/{{{{ nope }}}}\""))
    );

    let other = Node::new(RSA);
    let mismatch = agent(&node.path("leaf"), &other.path("key")).await.err().unwrap();
    assert_eq!(
        mismatch,
        format!("{prefix}unable to load keypair: tls: private key does not match public key")
    );
    let missing = agent(&node.path("leaf"), Path::new("")).await.err().unwrap();
    assert_eq!(missing, format!("{prefix}private_key_path is required"));
}
