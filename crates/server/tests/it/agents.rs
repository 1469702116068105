//! Agents: attest, renew, report, are listed, banned and deleted.

use std::sync::Arc;

use client::ServerClients;
use proto::convert::status::detail;
use proto::spire::server::trustdomain::RefreshBundleRequest;
use proto::spire::server::{agent as wire, bundle as bundle_wire, entry as entry_wire, svid as svid_wire};
use proto::spire::types;
use proto::spire::types::permission_denied_details::Reason;
use runtime::clock::{Clock, ManualClock, SystemClock};
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::Certificate;
use tonic::{Code, Status};

use crate::support::{Place, Running, attest, block, csr, expect_status};

const TOKEN_GONE: &str = "failed to attest: join token does not exist or has already been used";

fn post(version: &str) -> wire::PostStatusRequest {
    wire::PostStatusRequest { current_bundle_serial: 0, agent_version: version.to_owned() }
}

fn reason(status: &Status) -> Reason {
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    detail::<types::PermissionDeniedDetails>(status).unwrap().reason()
}

#[tokio::test]
async fn a_token_attests_one_agent_once() {
    let place = Place::new();
    let server = place.start().await;

    let agent = server.agent("one").await;
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let again = attest(&server.anonymous(), "one", &csr(&key)).await;

    expect_status(again, Code::InvalidArgument, TOKEN_GONE);
    assert_eq!(agent.id.path, "/spire/agent/join_token/one");
    let certificate = Certificate::parse(agent.chain[0].as_bytes()).unwrap();
    assert_eq!(certificate.uris(), ["spiffe://example.org/spire/agent/join_token/one"]);
    server.remote(agent.own).agent().post_status(post("1.2.3")).await.unwrap();
    let listed = server.local().agent().list_agents(wire::ListAgentsRequest::default()).await.unwrap();
    let listed = listed.into_inner().agents;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].agent_version, "1.2.3");
    assert_eq!(listed[0].x509svid_serial_number, certificate.serial().to_string());
    server.stop().await;
}

#[tokio::test]
async fn j01_of_many_that_use_one_token_at_a_time_one_attests() {
    let place = Place::new();
    let server = place.start().await;
    server.token("race").await;
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let clients = server.anonymous();

    let csr = csr(&key);
    let racing = (0..16).map(|_| attest(&clients, "race", &csr));
    let outcomes = futures::future::join_all(racing).await;

    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 15));
    for refused in lost {
        expect_status(refused, Code::InvalidArgument, TOKEN_GONE);
    }
    server.stop().await;
}

#[tokio::test]
async fn j01_a_token_that_is_used_late_is_expired_and_then_gone() {
    let place = Place::new();
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    let server = place.start_at(Arc::clone(&clock) as Arc<dyn Clock>).await;
    server.token("late").await;
    let csr = csr(&PrivateKey::generate(KeyKind::EcP256).unwrap());
    clock.advance(std::time::Duration::from_secs(601));

    let late = attest(&server.anonymous(), "late", &csr).await;
    let again = attest(&server.anonymous(), "late", &csr).await;

    expect_status(late, Code::InvalidArgument, "join token expired");
    expect_status(again, Code::InvalidArgument, TOKEN_GONE);
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_its_key_did_not_sign_is_refused_and_costs_no_token() {
    let place = Place::new();
    let server = place.start().await;
    server.token("kept").await;
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let mut forged = csr(&key);
    *forged.last_mut().unwrap() ^= 1;

    let refused = attest(&server.anonymous(), "kept", &forged).await.unwrap_err();

    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("failed to parse CSR: "), "{refused:?}");
    attest(&server.anonymous(), "kept", &csr(&key)).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a06_a09_the_renewed_svid_takes_over_when_it_is_first_used() {
    let place = Place::new();
    let server = place.start().await;
    let mut agent = server.agent("renewing").await;
    let old = server.remote(agent.as_it_is());

    agent.renew(&old).await.unwrap();
    // The old one is still good, until the new one was seen.
    old.agent().post_status(post("a")).await.unwrap();
    server.remote(agent.as_it_is()).agent().post_status(post("b")).await.unwrap();

    let denied = old.agent().post_status(post("c")).await.unwrap_err();
    assert_eq!(
        denied.message(),
        "authorization denied for method /spire.api.server.agent.v1.Agent/PostStatus"
    );
    assert_eq!(reason(&denied), Reason::AgentNotActive);
    server.stop().await;
}

#[tokio::test]
async fn a08_a_banned_agent_is_told_so_and_a_deleted_one_is_unknown() {
    let place = Place::new();
    let server = place.start().await;
    let (banned, deleted) = (server.agent("banned").await, server.agent("deleted").await);
    let local = server.local();

    local.agent().ban_agent(wire::BanAgentRequest { id: Some(banned.id) }).await.unwrap();
    local.agent().delete_agent(wire::DeleteAgentRequest { id: Some(deleted.id.clone()) }).await.unwrap();

    let denied = server.remote(banned.own).agent().post_status(post("x")).await.unwrap_err();
    assert_eq!(reason(&denied), Reason::AgentBanned);
    let denied = server.remote(deleted.own).agent().post_status(post("x")).await.unwrap_err();
    assert_eq!(reason(&denied), Reason::AgentNotAttested);
    let again = local.agent().delete_agent(wire::DeleteAgentRequest { id: Some(deleted.id) }).await;
    expect_status(again, Code::NotFound, "agent not found");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_a_known_agent_read_no_database() {
    let mut place = Place::new();
    // Time stands still, so that only calls could read; nor would a limit ever let go.
    place.config.rate_limits.signing = false;
    let server = place.start_at(Arc::new(ManualClock::new(SystemClock.now()))).await;
    let agent = server.agent("known").await;
    let entry = types::Entry {
        id: "web".to_owned(),
        parent_id: Some(agent.id.clone()),
        spiffe_id: Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: "/web".to_owned() }),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
        ..types::Entry::default()
    };
    let create = entry_wire::BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    let created = server.local().entry().batch_create_entry(create).await.unwrap().into_inner();
    assert_eq!(created.results[0].status.as_ref().unwrap().code, 0, "{created:?}");
    let clients = server.remote(agent.own.clone());
    clients.agent().post_status(post("1.0")).await.unwrap();
    let csr = csr(&PrivateKey::generate(KeyKind::EcP256).unwrap());
    // Answered once the relationships have been read, which is done at start.
    let unknown = RefreshBundleRequest { trust_domain: "unknown.test".to_owned() };
    server.local().trust_domain().refresh_bundle(unknown).await.unwrap_err();
    let before = server.statements();

    for _ in 0..1000 {
        let ask = futures::stream::iter([entry_wire::SyncAuthorizedEntriesRequest::default()]);
        let synced = clients.entry().sync_authorized_entries(ask).await.unwrap();
        assert_eq!(synced.into_inner().message().await.unwrap().unwrap().entries[0].id, "web");

        let params = svid_wire::NewX509svidParams { entry_id: "web".to_owned(), csr: csr.clone().into() };
        let sign = svid_wire::BatchNewX509svidRequest { params: vec![params] };
        let signed = clients.svid().batch_new_x509svid(sign).await.unwrap().into_inner();
        assert!(signed.results[0].svid.is_some(), "{signed:?}");

        clients.bundle().get_bundle(bundle_wire::GetBundleRequest::default()).await.unwrap();
    }
    clients.agent().post_status(post("1.0")).await.unwrap();

    assert_eq!(server.statements(), before);
    server.stop().await;
}

/// Attests with any payload of any attestor; what the server says of it.
async fn attest_with(server: &Running, attestor: &str, payload: &[u8]) -> Status {
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let params = wire::attest_agent_request::Params {
        data: Some(types::AttestationData { r#type: attestor.to_owned(), payload: payload.to_vec().into() }),
        params: Some(wire::AgentX509svidParams { csr: csr(&key).into() }),
    };
    let request = wire::AttestAgentRequest { step: Some(wire::attest_agent_request::Step::Params(params)) };
    let answers = server.anonymous().agent().attest_agent(futures::stream::iter([request])).await;
    match answers {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    }
}

#[tokio::test]
async fn n07_what_is_no_join_token_attests_nobody() {
    let place = Place::new();
    let server = place.start().await;
    server.token("Token-1").await;

    let mut wrong: Vec<Vec<u8>> = [
        "token-1",
        "TOKEN-1",
        "Token-1 ",
        " Token-1",
        "Token-1\n",
        "Token-1\0",
        "\0Token-1",
        "Token-",
        "Token-10",
        "oken-1",
        "Token_1",
        "Token%1",
        "%",
        "_",
        "*",
        "' OR '1'='1",
        "\"Token-1\"",
        "{\"token\":\"Token-1\"}",
        "Token\u{2010}1",
        "Token-\u{ff11}",
        "../Token-1",
        "Token-1/..",
        "null",
        "Token-1;--",
    ]
    .into_iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    wrong.push(vec![0xff; 8]);
    wrong.push([b"Token-1".as_slice(), &[0xfe]].concat());
    wrong.push(vec![b'x'; 3 << 20]);
    wrong.push("[".repeat(10_000).into_bytes());
    assert!(wrong.len() >= 20);
    for payload in &wrong {
        let refused = attest_with(&server, "join_token", payload).await;
        let shown = String::from_utf8_lossy(&payload[..payload.len().min(40)]).into_owned();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, TOKEN_GONE), "{shown:?}");
    }
    let nothing = attest_with(&server, "join_token", b"").await;
    assert_eq!(nothing.message(), "malformed param: missing attestation data payload");
    let large = attest_with(&server, "join_token", &vec![b'x'; 10 << 20]).await;
    assert!(large.message().starts_with("grpc: received message larger than max"), "{large:?}");
    for attestor in ["", "Join_token", "join_token ", "aws_iid", "none", "\u{1f511}"] {
        let refused = attest_with(&server, attestor, b"Token-1").await;
        assert!(
            matches!(refused.code(), Code::InvalidArgument | Code::FailedPrecondition),
            "{attestor:?}: {refused:?}"
        );
    }

    let refused = attest_with(&server, "a\"\0", b"Token-1").await;
    let text = r#"error getting node attestor: could not find node attestor type "a\"\x00""#;
    assert_eq!(refused.message(), text);

    // None of this has used it up.
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    attest(&server.anonymous(), "Token-1", &csr(&key)).await.unwrap();
    server.stop().await;
}

/// The recorded node, and what its certificate leads to.
fn recorded(name: &str) -> String {
    format!("{}/../../conformance/keys/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Attests by `x509pop` with the recorded certificate, as the agent's half does it.
async fn attest_node(server: &Running) -> Result<types::Spiffeid, Status> {
    let data = serde_json::json!({
        "private_key_path": recorded("x509pop-node-1.key"), "certificate_path": recorded("x509pop-node-1.pem"),
    });
    let declared = |kind: &str, name: &str, data: plugin::catalog::Data| plugin::catalog::Declaration {
        kind: kind.to_owned(),
        name: name.to_owned(),
        command: String::new(),
        enabled: true,
        data,
    };
    let blocks = [
        declared("KeyManager", "memory", plugin::catalog::Data::Absent),
        declared("NodeAttestor", "x509pop", plugin::catalog::Data::Inline(data.to_string())),
        declared("WorkloadAttestor", "unix", plugin::catalog::Data::Absent),
    ];
    let trust_domain = spiffe::TrustDomain::parse("example.org").unwrap();
    let host = plugin::Host::bare();
    let loaded = plugin::catalog::load_agent(&blocks, plugins::tables::AGENT, &trust_domain, &host).await;
    let (sender, requests) = futures::channel::mpsc::unbounded();
    let mut stream =
        Wire { sender, requests: Some(requests), clients: server.anonymous(), answers: None, outcome: None };
    let attestor = loaded.map_err(|error| Status::internal(error.to_string()))?.node_attestor;
    let attested = attestor.attest(&mut stream).await;
    match stream.outcome {
        Some(outcome) => outcome,
        None => Err(Status::internal(format!("{attested:?}"))),
    }
}

/// The agent's end of a stream to a server that is real.
struct Wire {
    sender: futures::channel::mpsc::UnboundedSender<wire::AttestAgentRequest>,
    requests: Option<futures::channel::mpsc::UnboundedReceiver<wire::AttestAgentRequest>>,
    clients: ServerClients,
    answers: Option<tonic::Streaming<wire::AttestAgentResponse>>,
    outcome: Option<Result<types::Spiffeid, Status>>,
}

impl Wire {
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, plugin::PluginError> {
        let answer = match &mut self.answers {
            Some(answers) => answers.message().await,
            None => {
                let requests = self.requests.take().unwrap();
                let answers = self.clients.agent().attest_agent(requests).await;
                match answers {
                    Ok(answers) => self.answers.insert(answers.into_inner()).message().await,
                    Err(status) => Err(status),
                }
            }
        };
        match answer.map(|answer| answer.unwrap().step.unwrap()) {
            Ok(wire::attest_agent_response::Step::Challenge(challenge)) => Ok(Some(challenge)),
            Ok(wire::attest_agent_response::Step::Result(result)) => {
                self.outcome = Some(Ok(result.svid.unwrap().id.unwrap()));
                Ok(None)
            }
            Err(status) => {
                self.outcome = Some(Err(status));
                Ok(None)
            }
        }
    }
}

#[async_trait::async_trait]
impl plugin::AgentStream for Wire {
    async fn send_payload(
        &mut self,
        payload: bytes::Bytes,
    ) -> Result<Option<bytes::Bytes>, plugin::PluginError> {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let params = wire::attest_agent_request::Params {
            data: Some(types::AttestationData { r#type: "x509pop".to_owned(), payload }),
            params: Some(wire::AgentX509svidParams { csr: csr(&key).into() }),
        };
        let step = Some(wire::attest_agent_request::Step::Params(params));
        self.sender.unbounded_send(wire::AttestAgentRequest { step }).unwrap();
        self.next().await
    }

    async fn send_response(
        &mut self,
        response: bytes::Bytes,
    ) -> Result<Option<bytes::Bytes>, plugin::PluginError> {
        let step = Some(wire::attest_agent_request::Step::ChallengeResponse(response));
        self.sender.unbounded_send(wire::AttestAgentRequest { step }).unwrap();
        self.next().await
    }
}

#[tokio::test]
async fn n02_an_attestor_names_agents_in_its_own_namespace_alone() {
    let with = |template: &str, anywhere: bool| {
        let mut place = Place::new();
        let data = serde_json::json!({
            "ca_bundle_path": recorded("x509pop-ca.pem"), "agent_path_template": template,
        });
        place.config.plugins.push(block("NodeAttestor", "x509pop", &data.to_string()));
        place.config.finial.allow_agent_ids_anywhere = anywhere;
        place
    };
    let attested = async |template: &str, anywhere| {
        let place = with(template, anywhere);
        let server = place.start().await;
        let attested = attest_node(&server).await;
        let listed = server.local().agent().list_agents(wire::ListAgentsRequest::default()).await.unwrap();
        assert_eq!(listed.into_inner().agents.len(), usize::from(attested.is_ok()), "{template}");
        server.stop().await;
        attested.map(|id| id.path).map_err(|status| status.message().to_owned())
    };
    let cn = "{{ .Subject.CommonName }}";

    let own = attested(&format!("/x509pop/{cn}"), false).await;
    assert_eq!(own.as_deref(), Ok("/spire/agent/x509pop/node-1"));
    let elsewhere = attested(&format!("/racks/{cn}"), false).await.unwrap_err();
    assert!(
        elsewhere.contains("is not in the namespace of node attestor \"x509pop\"")
            && elsewhere.contains("allow_agent_ids_anywhere"),
        "{elsewhere}"
    );
    let allowed = attested(&format!("/racks/{cn}"), true).await;
    assert_eq!(allowed.as_deref(), Ok("/spire/agent/racks/node-1"));
    // In no case in that of another, whether it is in use here or not.
    for other in ["join_token", "aws_iid", "k8s_psat"] {
        for anywhere in [false, true] {
            let refused = attested(&format!("/{other}/{cn}"), anywhere).await.unwrap_err();
            assert!(refused.contains("it is another node attestor's"), "{refused}");
        }
    }
}
