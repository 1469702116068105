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
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::{
    Attribute, Certificate, Issuer, Name, Role, Serial, Validity, X509Template, assemble, pem_blocks, to_pem,
};
use spiffe::{SpiffeId, UnixSecs};
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
        let leaf = Certificate::parse(&pem_blocks(leaf.as_bytes(), "CERTIFICATE")[0]).unwrap();
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

/// A CA of these tests, and nodes below it whose names are whatever they say.
struct Fleet {
    key: PrivateKey,
    certificate: Certificate,
    directory: tempfile::TempDir,
    now: SystemTime,
}

impl Fleet {
    fn new() -> Self {
        let now = Host::bare().clock.now();
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let certificate = signed("fleet", &key, None, now, Role::Ca, 3600);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca"), to_pem("CERTIFICATE", certificate.der())).unwrap();
        Self { key, certificate, directory, now }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    async fn server(&self, template: &str) -> Arc<dyn ServerNodeAttestor> {
        let data = json!({"ca_bundle_path": self.path("ca"), "agent_path_template": template}).to_string();
        let host = Host { clock: Arc::new(ManualClock::new(self.now)), ..Host::bare() };
        let blocks = [block("KeyManager", "memory", ""), block("NodeAttestor", "x509pop", &data)];
        let loaded = load_server(&blocks, tables::SERVER, &trust_domain(), &host).await.unwrap();
        Arc::clone(&loaded.node_attestors["x509pop"])
    }

    /// A certificate for a node of this name, and its key.
    fn node(&self, name: &str, role: Role, seconds: i64) -> (Certificate, PrivateKey) {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        (signed(name, &key, Some((&self.certificate, &self.key)), self.now, role, seconds), key)
    }

    async fn attest_as(&self, server: &dyn ServerNodeAttestor, name: &str) -> Result<Attested, PluginError> {
        let (certificate, key) = self.node(name, Role::Svid, 3600);
        std::fs::write(self.path("leaf"), to_pem("CERTIFICATE", certificate.der())).unwrap();
        std::fs::write(self.path("key"), to_pem("PRIVATE KEY", &key.to_pkcs8().unwrap())).unwrap();
        let agent = agent(&self.path("leaf"), &self.path("key")).await.unwrap();
        attest(server, &*agent, None).await
    }
}

fn signed(
    name: &str,
    key: &PrivateKey,
    above: Option<(&Certificate, &PrivateKey)>,
    now: SystemTime,
    role: Role,
    seconds: i64,
) -> Certificate {
    let now = UnixSecs::from(now);
    let attributes = [(Attribute::CommonName, name)];
    let subject = Name::new(if name.is_empty() { &[] } else { &attributes });
    let template = X509Template {
        serial: Serial::from_be_bytes(&[7]),
        subject: subject.clone(),
        validity: Validity { not_before: now.plus(-7200), not_after: now.plus(seconds) },
        public_key: key.public().clone(),
        id: SpiffeId::parse("spiffe://example.org/fleet").unwrap(),
        dns_names: Vec::new(),
        role,
    };
    let (issuer, signing) = match above {
        None => (Issuer { name: subject, key_id: None }, key),
        Some((certificate, signing)) => {
            let key_id = certificate.subject_key_id().map(<[u8]>::to_vec);
            (Issuer { name: certificate.subject().clone(), key_id }, signing)
        }
    };
    let tbs = template.tbs(&issuer, signing.sig_alg().unwrap());
    let signature = signing.sign(tbs.alg(), tbs.as_bytes()).unwrap();
    Certificate::parse(assemble(&tbs, &signature).as_bytes()).unwrap()
}

#[tokio::test]
async fn n02_what_a_node_calls_itself_is_refused_and_never_put_right() {
    let fleet = Fleet::new();
    let server = fleet.server("/x509pop/{{ .Subject.CommonName }}").await;

    for good in ["node-1", "rack_7.node", "a/b"] {
        let attested = fleet.attest_as(&*server, good).await.unwrap();
        assert_eq!(attested.agent_id, format!("spiffe://example.org/spire/agent/x509pop/{good}"));
    }
    for bad in [
        "",
        ".",
        "..",
        "../server",
        "a/..",
        "a/../b",
        "a/./b",
        "a//b",
        "/a",
        "a/",
        "/",
        "%2e%2e",
        "a%2fb",
        "n\u{f6}de",
        "\u{212a}",
        "a b",
        "a\tb",
        "a\\b",
        "a:b",
        "a?b",
        "a#b",
        "a@b",
        "a+b",
        "\u{2024}\u{2024}",
    ] {
        let refused = fleet.attest_as(&*server, bad).await.unwrap_err();
        assert!(refused.message.contains("failed to make spiffe id"), "{bad:?}: {}", refused.message);
    }
    // Whatever is around it.
    for template in ["/x509pop/{{ .Subject.CommonName }}/node", "/x509pop/v1.{{ .Subject.CommonName }}"] {
        let server = fleet.server(template).await;
        fleet.attest_as(&*server, "../../server").await.unwrap_err();
        fleet.attest_as(&*server, "%2e/").await.unwrap_err();
    }
}

/// Each of the server's node attestors has its negative corpus: `x509pop` here, `join_token` with the
/// server, whose matter it is (`server::n07_what_is_no_join_token_attests_nobody`).
#[tokio::test]
async fn n07_payloads_and_answers_that_are_wrong_attest_nobody() {
    let names: Vec<_> = tables::SERVER.node_attestors.iter().map(|attestor| attestor.name).collect();
    assert_eq!(names, ["join_token", "x509pop"], "a new node attestor needs a corpus of its own");
    let (fleet, stranger) = (Fleet::new(), Fleet::new());
    let server = fleet.server("/x509pop/{{ .Subject.CommonName }}").await;
    let base64 = |der: &[u8]| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, der);
    let payload = |certificates: &[&Certificate]| {
        let certificates: Vec<_> = certificates.iter().map(|certificate| base64(certificate.der())).collect();
        json!({"certificates": certificates}).to_string().into_bytes()
    };
    let (good, _) = fleet.node("node", Role::Svid, 3600);
    let (expired, _) = fleet.node("node", Role::Svid, -60);
    let (foreign, _) = stranger.node("node", Role::Svid, 3600);
    // Says that it is from the fleet, and is signed by somebody else.
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let forged = signed("node", &key, Some((&fleet.certificate, &stranger.key)), fleet.now, Role::Svid, 3600);
    // One byte of it is another: of its name, its key, its signature.
    let flipped = |from_end: usize| {
        let mut der = good.der().to_vec();
        let at = der.len() - from_end;
        der[at] ^= 1;
        json!({"certificates": [base64(&der)]}).to_string().into_bytes()
    };
    let text = |text: &str| text.as_bytes().to_vec();
    let repeated = format!("{{\"certificates\":[{0}],\"certificates\":[{0}]}}", json!(base64(good.der())));
    let nested = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let whole = payload(&[&good]);

    let payloads: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("no JSON", text("nonsense")),
        ("another kind of JSON", text("[]")),
        ("a number", text("7")),
        ("null", text("null")),
        ("no field", text("{}")),
        ("no certificates", text("{\"certificates\":[]}")),
        ("null for certificates", text("{\"certificates\":[null]}")),
        ("no base64", text("{\"certificates\":[\"!\"]}")),
        ("no certificate", text("{\"certificates\":[\"AAAA\"]}")),
        ("nested ten thousand deep", nested.clone().into_bytes()),
        ("nested inside", format!("{{\"certificates\":{nested}}}").into_bytes()),
        ("bytes that are no text", vec![0xff; 100]),
        ("ten megabytes", vec![b' '; 10 << 20]),
        ("ten megabytes of certificate", {
            json!({"certificates": [base64(&vec![0x30; 10 << 20])]}).to_string().into_bytes()
        }),
        ("cut off", whole[..whole.len() / 2].to_vec()),
        ("more after it", [&whole[..], b"{}"].concat()),
        ("a certificate cut off", {
            json!({"certificates": [base64(&good.der()[..good.der().len() - 9])]}).to_string().into_bytes()
        }),
        ("a certificate with more after it", {
            json!({"certificates": [base64(&[good.der(), &[0]].concat())]}).to_string().into_bytes()
        }),
        ("the same field twice", repeated.into_bytes()),
        ("expired", payload(&[&expired])),
        ("of another authority", payload(&[&foreign])),
        ("of another authority that comes along", payload(&[&foreign, &stranger.certificate])),
        ("signed by another key", payload(&[&forged])),
        ("a changed signature", flipped(1)),
        ("a changed extension", flipped(100)),
        ("too many intermediates", payload(&[&good; 6])),
        ("a broken intermediate", {
            json!({"certificates": [base64(good.der()), "AAAA"]}).to_string().into_bytes()
        }),
    ];
    assert!(payloads.len() >= 20);
    for (what, payload) in payloads {
        let outcome = server.attest(payload.into(), &mut Answer("{}")).await;
        let refused = outcome.err().unwrap_or_else(|| panic!("{what} attests somebody"));
        assert!(
            matches!(refused.code, Code::InvalidArgument | Code::PermissionDenied),
            "{what}: {refused:?}"
        );
        assert!(refused.message.len() < 1000, "{what}: an error of {} bytes", refused.message.len());
    }

    // The certificate is good; what proves that its key is there is not.
    let answers: [&'static str; 20] = [
        "",
        "nonsense",
        "null",
        "7",
        "[]",
        "{}",
        "{\"ecdsa_signature\":null}",
        "{\"ecdsa_signature\":{}}",
        "{\"ecdsa_signature\":\"AAAA\"}",
        "{\"ecdsa_signature\":{\"r\":\"\",\"s\":\"\"}}",
        "{\"ecdsa_signature\":{\"r\":\"AA==\",\"s\":\"AA==\"}}",
        "{\"ecdsa_signature\":{\"r\":\"AQ==\",\"s\":\"AQ==\"}}",
        "{\"ecdsa_signature\":{\"r\":\"!\",\"s\":\"!\"}}",
        "{\"ecdsa_signature\":{\"r\":1,\"s\":2}}",
        "{\"rsa_signature\":{\"signature\":\"AAAA\"}}",
        "{\"rsa_signature\":{\"signature\":\"\"}}",
        "{\"none\":{}}",
        "{\"ecdsa_signature\":{\"r\":\"//////////////////////////////////////////8=\",\"s\":\"//////////////////////////////////////////8=\"}}",
        "{\"ecdsa_signature\":{\"r\":\"AQ==\",\"s\":\"AQ==\"},\"ecdsa_signature\":{\"r\":\"AQ==\",\"s\":\"AQ==\"}}",
        "{\"ecdsa_signature\":{\"r\":\"AQ==\"",
    ];
    for answer in answers {
        let outcome = server.attest(payload(&[&good]).into(), &mut Answer(answer)).await;
        let refused = outcome.err().unwrap_or_else(|| panic!("{answer} attests somebody"));
        assert!(
            matches!(refused.code, Code::InvalidArgument | Code::PermissionDenied),
            "{answer}: {refused:?}"
        );
    }
}
