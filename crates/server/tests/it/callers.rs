//! Who may call what, and how refusals read.

use proto::health::HealthCheckRequest;
use proto::spire::server::debug::GetInfoRequest;
use proto::spire::server::logger::{GetLoggerRequest, SetLogLevelRequest};
use proto::spire::server::{agent as wire, svid};
use proto::spire::types::LogLevel;
use spiffe::SpiffeId;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::{CsrTemplate, Name};
use tonic::Code;

use crate::support::{Place, expect_status};

#[tokio::test]
async fn an_anonymous_client_may_attest_and_little_else() {
    let place = Place::new();
    let server = place.start().await;
    let anonymous = server.anonymous();

    let list = anonymous.agent().list_agents(wire::ListAgentsRequest::default()).await;
    let renew = anonymous.agent().renew_agent(wire::RenewAgentRequest::default()).await;
    let attest = anonymous.agent().attest_agent(futures::stream::iter([])).await.unwrap();
    let health = anonymous.health().check(HealthCheckRequest::default()).await;

    let denied = "authorization denied for method /spire.api.server.agent.v1.Agent/";
    expect_status(list, Code::PermissionDenied, &format!("{denied}ListAgents"));
    expect_status(renew, Code::PermissionDenied, &format!("{denied}RenewAgent"));
    let attest = attest.into_inner().message().await;
    expect_status(attest, Code::InvalidArgument, "failed to receive request from stream: EOF");
    expect_status(health, Code::Unimplemented, "unknown service grpc.health.v1.Health");
    server.stop().await;
}

#[tokio::test]
async fn the_own_socket_serves_operators_and_is_no_agent() {
    let place = Place::new();
    let server = place.start().await;
    let agent = server.agent("counted").await;
    let local = server.local();

    let health = local.health().check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.status, 1);
    let service = HealthCheckRequest { service: "x".to_owned() };
    let per_service = local.health().check(service).await;
    expect_status(per_service, Code::InvalidArgument, "per-service health is not supported");
    let info = local.debug().get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.agents_count, info.entries_count, info.federated_bundles_count), (1, 0, 1));
    let subjects: Vec<_> = info.svid_chain.iter().map(|cert| cert.subject.as_str()).collect();
    assert_eq!(subjects[0], "O=SPIRE,C=US");
    assert!(subjects[1].ends_with(",O=SPIFFE,C=US"), "{subjects:?}");
    let post = wire::PostStatusRequest::default();
    let denied = local.agent().post_status(post).await;
    let text = "authorization denied for method /spire.api.server.agent.v1.Agent/PostStatus";
    expect_status(denied, Code::PermissionDenied, text);
    drop(agent);
    server.stop().await;
}

#[tokio::test]
async fn the_log_level_is_shown_and_changed() {
    let place = Place::new();
    let server = place.start().await;
    let mut logger = server.local().logger();

    let unset = logger.set_log_level(SetLogLevelRequest { new_level: 0 }).await;
    let unknown = logger.set_log_level(SetLogLevelRequest { new_level: 8 }).await;
    let set = logger.set_log_level(SetLogLevelRequest { new_level: LogLevel::Warn.into() }).await;

    expect_status(unset, Code::InvalidArgument, "newLevel value cannot be LogLevel_UNSPECIFIED");
    expect_status(unknown, Code::InvalidArgument, "unsupported log level");
    assert_eq!(set.unwrap().into_inner().current_level(), LogLevel::Warn);
    let shown = logger.get_logger(GetLoggerRequest {}).await.unwrap().into_inner();
    assert_eq!((shown.current_level(), shown.launch_level()), (LogLevel::Warn, LogLevel::Info));
    server.stop().await;
}

#[tokio::test]
async fn a_call_without_a_message_ends_as_with_spire() {
    let place = Place::new();
    let server = place.start().await;
    let mut grpc = tonic::client::Grpc::new(server.local().channel());
    grpc.ready().await.unwrap();

    let path = http::uri::PathAndQuery::from_static("/spire.api.server.debug.v1.Debug/GetInfo");
    let nothing = tonic::Request::new(futures::stream::empty());
    let answer = grpc.streaming(nothing, path, crate::matrix::Raw).await;

    expect_status(answer.map(drop), Code::Unknown, "EOF");
    server.stop().await;
}

#[tokio::test]
async fn a14_nobody_is_given_the_servers_own_id() {
    let place = Place::new();
    let server = place.start().await;
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let id = SpiffeId::parse("spiffe://example.org/spire/server").unwrap();
    let csr = CsrTemplate { subject: Name::new(&[]), id: Some(id), dns_names: Vec::new() };

    let mint = svid::MintX509svidRequest { csr: csr.sign(&key).unwrap().into(), ttl: 0 };
    let minted = server.local().svid().mint_x509svid(mint).await;

    let text = "CSR URI SAN is invalid: \"spiffe://example.org/spire/server\" is not a workload in trust \
                domain \"example.org\"; path is in the reserved namespace";
    expect_status(minted, Code::InvalidArgument, text);
    server.stop().await;
}
