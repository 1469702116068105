//! Agents: attest, renew, report, are listed, banned and deleted.

use std::sync::Arc;

use proto::convert::status::detail;
use proto::spire::server::trustdomain::RefreshBundleRequest;
use proto::spire::server::{agent as wire, bundle as bundle_wire, entry as entry_wire, svid as svid_wire};
use proto::spire::types;
use proto::spire::types::permission_denied_details::Reason;
use runtime::clock::{Clock, ManualClock, SystemClock};
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::Certificate;
use tonic::{Code, Status};

use crate::support::{Place, attest, csr, expect_status};

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
