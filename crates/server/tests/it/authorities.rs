//! Authorities commanded by operators.

use proto::spire::server::debug::GetInfoRequest;
use proto::spire::server::{bundle, localauthority as wire};
use tonic::Code;

use crate::support::{Place, Running, expect_status};

async fn active(server: &Running) -> String {
    state(server).await.active.unwrap().authority_id
}

async fn state(server: &Running) -> wire::GetX509AuthorityStateResponse {
    let request = wire::GetX509AuthorityStateRequest {};
    server.local().local_authority().get_x509_authority_state(request).await.unwrap().into_inner()
}

async fn prepare(server: &Running) -> String {
    let request = wire::PrepareX509AuthorityRequest {};
    let prepared = server.local().local_authority().prepare_x509_authority(request).await.unwrap();
    prepared.into_inner().prepared_authority.unwrap().authority_id
}

/// Tainted or not, of each X.509 authority that agents are told of.
async fn taints(server: &Running) -> Vec<bool> {
    let bundle = server.anonymous().bundle().get_bundle(bundle::GetBundleRequest::default()).await.unwrap();
    bundle.into_inner().x509_authorities.iter().map(|authority| authority.tainted).collect()
}

#[tokio::test]
async fn a_ca_is_replaced_tainted_and_revoked() {
    let place = Place::new();
    let server = place.start().await;
    let old = active(&server).await;
    let mut commands = server.local().local_authority();

    let new = prepare(&server).await;
    assert_eq!(taints(&server).await, [false, false]);
    let early =
        commands.taint_x509_authority(wire::TaintX509AuthorityRequest { authority_id: new.clone() }).await;
    let text = "only Old local authorities can be tainted: unsupported local authority status: PREPARED";
    expect_status(early, Code::InvalidArgument, text);
    let activate = wire::ActivateX509AuthorityRequest { authority_id: new.clone() };
    commands.activate_x509_authority(activate.clone()).await.unwrap();
    let again = commands.activate_x509_authority(activate).await;
    expect_status(again, Code::InvalidArgument, "unexpected authority ID");
    assert_eq!(active(&server).await, new);
    assert_eq!(state(&server).await.old.unwrap().authority_id, old);

    let revoke = wire::RevokeX509AuthorityRequest { authority_id: old.clone() };
    let untainted = commands.revoke_x509_authority(revoke.clone()).await;
    let text = "failed to revoke X.509 authority: it is not possible to revoke an untainted root CA";
    expect_status(untainted, Code::Internal, text);
    let taint = wire::TaintX509AuthorityRequest { authority_id: old };
    commands.taint_x509_authority(taint).await.unwrap();
    assert_eq!(taints(&server).await, [true, false]);
    commands.revoke_x509_authority(revoke).await.unwrap();
    assert_eq!(taints(&server).await, [false]);

    // SPIRE's server cannot say what it is until its own SVID is renewed.
    let info = server.local().debug().get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert!(!info.svid_chain.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_prepared_authority_outlives_a_restart() {
    let place = Place::new();
    let first = place.start().await;
    let (signing, prepared) = (active(&first).await, prepare(&first).await);
    first.stop().await;

    let second = place.start().await;

    let state = state(&second).await;
    assert_eq!(state.active.unwrap().authority_id, signing);
    assert_eq!(state.prepared.unwrap().authority_id, prepared);
    let activate = wire::ActivateX509AuthorityRequest { authority_id: prepared };
    second.local().local_authority().activate_x509_authority(activate).await.unwrap();
    second.stop().await;
}

#[tokio::test]
async fn a_family_that_is_turned_off_says_so() {
    let mut place = Place::new();
    place.config.disable_jwt_svids = true;
    let server = place.start().await;
    let mut commands = server.local().local_authority();

    let prepared = commands.prepare_jwt_authority(wire::PrepareJwtAuthorityRequest {}).await;
    let nameless = commands.activate_jwt_authority(wire::ActivateJwtAuthorityRequest::default()).await;
    let upstream =
        commands.taint_x509_upstream_authority(wire::TaintX509UpstreamAuthorityRequest::default()).await;

    expect_status(prepared, Code::Unimplemented, "JWT functionality is disabled");
    expect_status(nameless, Code::Unimplemented, "JWT functionality is disabled");
    expect_status(upstream, Code::FailedPrecondition, "upstream authority is not configured");
    server.stop().await;
}
