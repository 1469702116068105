//! Bundles and federation relationships.

use proto::spire::server::bundle as wire;
use proto::spire::server::bundle::batch_delete_federated_bundle_request::Mode;
use proto::spire::server::{entry as entry_wire, trustdomain as relationship_wire};
use proto::spire::types;
use spiffe::key::{KeyKind, PrivateKey};
use tonic::Code;

use crate::support::{Place, Running, expect_status};

fn bundle(name: &str) -> types::Bundle {
    types::Bundle {
        trust_domain: name.to_owned(),
        refresh_hint: 60,
        sequence_number: 9,
        ..Default::default()
    }
}

fn jwt_key(key_id: &str) -> types::JwtKey {
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    types::JwtKey {
        public_key: key.public().spki().to_vec().into(),
        key_id: key_id.to_owned(),
        expires_at: 4_000_000_000,
        tainted: true,
    }
}

async fn set(server: &Running, bundles: Vec<types::Bundle>) {
    let request = wire::BatchSetFederatedBundleRequest { bundle: bundles, output_mask: None };
    let reply = server.local().bundle().batch_set_federated_bundle(request).await.unwrap().into_inner();
    assert!(reply.results.iter().all(|result| result.status == Some(types::Status::ok())), "{reply:?}");
}

async fn linked_entry(server: &Running) {
    let id =
        |path: &str| Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() });
    let entry = types::Entry {
        id: "linked".to_owned(),
        parent_id: id("/host"),
        spiffe_id: id("/w"),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
        federates_with: vec!["fed.test".to_owned()],
        ..types::Entry::default()
    };
    let request = entry_wire::BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    let reply = server.local().entry().batch_create_entry(request).await.unwrap().into_inner();
    assert!(reply.results.iter().all(|result| result.status == Some(types::Status::ok())), "{reply:?}");
}

async fn delete(server: &Running, mode: Mode) -> i32 {
    let request = wire::BatchDeleteFederatedBundleRequest {
        trust_domains: vec!["fed.test".to_owned()],
        mode: mode.into(),
    };
    let reply = server.local().bundle().batch_delete_federated_bundle(request).await.unwrap().into_inner();
    reply.results.first().and_then(|result| result.status.as_ref()).unwrap().code
}

async fn federated_entry(server: &Running) -> Option<Vec<String>> {
    let request = entry_wire::GetEntryRequest { id: "linked".to_owned(), output_mask: None };
    server.local().entry().get_entry(request).await.ok().map(|entry| entry.into_inner().federates_with)
}

#[tokio::test]
async fn a_bundle_in_use_goes_only_by_a_mode_that_says_what_becomes_of_its_users() {
    let place = Place::new();
    let server = place.start().await;
    set(&server, vec![bundle("fed.test")]).await;
    linked_entry(&server).await;

    assert_eq!(delete(&server, Mode::Restrict).await, i32::from(Code::FailedPrecondition));
    assert_eq!(federated_entry(&server).await.unwrap(), ["fed.test"]);
    assert_eq!(delete(&server, Mode::Dissociate).await, 0);
    assert_eq!(federated_entry(&server).await.unwrap(), [""; 0]);
    assert_eq!(delete(&server, Mode::Dissociate).await, i32::from(Code::NotFound));

    let gone = entry_wire::BatchDeleteEntryRequest { ids: vec!["linked".to_owned()] };
    server.local().entry().batch_delete_entry(gone).await.unwrap();
    set(&server, vec![bundle("fed.test")]).await;
    linked_entry(&server).await;
    assert_eq!(delete(&server, Mode::Delete).await, 0);
    assert_eq!(federated_entry(&server).await, None);
    server.stop().await;
}

#[tokio::test]
async fn a10_agents_read_the_bundles_and_masks_cut_them() {
    let place = Place::new();
    let server = place.start().await;
    set(&server, vec![bundle("fed.test")]).await;
    let agent = server.agent("reader").await;
    let clients = server.remote(agent.own);
    let federated = |name: &str, output_mask| wire::GetFederatedBundleRequest {
        trust_domain: name.to_owned(),
        output_mask,
    };

    let own = clients.bundle().get_bundle(wire::GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!((own.x509_authorities.len(), own.jwt_authorities.len()), (1, 1));
    let whole = clients.bundle().get_federated_bundle(federated("fed.test", None)).await.unwrap();
    assert_eq!(whole.into_inner(), bundle("fed.test"));
    let mask = Some(types::BundleMask { sequence_number: true, ..Default::default() });
    let part = clients.bundle().get_federated_bundle(federated("spiffe://fed.test", mask)).await.unwrap();
    assert_eq!((part.get_ref().refresh_hint, part.get_ref().sequence_number), (0, 9));
    let unknown = clients.bundle().get_federated_bundle(federated("nobody.test", None)).await;
    expect_status(unknown, Code::NotFound, "bundle not found");
    let text = "getting a federated bundle for the server's own trust domain is not allowed";
    let own = clients.bundle().get_federated_bundle(federated("example.org", None)).await;
    expect_status(own, Code::InvalidArgument, text);
    server.stop().await;
}

#[tokio::test]
async fn a_key_id_that_is_in_use_is_not_given_to_another_key() {
    let place = Place::new();
    let server = place.start().await;
    let key = jwt_key("one");
    let append = |key: &types::JwtKey| wire::AppendBundleRequest {
        jwt_authorities: vec![key.clone()],
        ..Default::default()
    };

    let first = server.local().bundle().append_bundle(append(&key)).await.unwrap().into_inner();
    let again = server.local().bundle().append_bundle(append(&key)).await.unwrap().into_inner();
    let other = server.local().bundle().append_bundle(append(&jwt_key("one"))).await;

    assert_eq!(first.jwt_authorities.len(), 2);
    assert!(!first.jwt_authorities[1].tainted, "nobody taints by request");
    assert_eq!(again, first);
    let text = "failed to convert JWT authority: key ID one is used twice";
    expect_status(other, Code::InvalidArgument, text);
    let nothing = server.local().bundle().append_bundle(wire::AppendBundleRequest::default()).await;
    expect_status(nothing, Code::InvalidArgument, "no authorities to append");
    server.stop().await;
}

#[tokio::test]
async fn what_could_verify_nothing_is_not_stored() {
    let place = Place::new();
    let server = place.start().await;
    let refusal = async |change: fn(&mut types::Bundle)| {
        let mut wrong = bundle("fed.test");
        change(&mut wrong);
        let request = wire::BatchSetFederatedBundleRequest { bundle: vec![wrong], output_mask: None };
        let reply = server.local().bundle().batch_set_federated_bundle(request).await.unwrap().into_inner();
        let status = reply.results[0].status.clone().unwrap();
        assert_eq!(status.code, i32::from(Code::InvalidArgument), "{status:?}");
        status.message
    };

    assert_eq!(
        refusal(|bundle| bundle.x509_authorities.push(types::X509Certificate::default())).await,
        "failed to convert bundle: unable to parse X.509 authority: no certificate"
    );
    assert_eq!(
        refusal(|bundle| bundle.jwt_authorities = vec![jwt_key("a"), jwt_key("a")]).await,
        "failed to convert bundle: unable to parse JWT authority: key ID a is used twice"
    );
    assert_eq!(
        refusal(|bundle| bundle.refresh_hint = -1).await,
        "failed to convert bundle: refresh hint is out of range"
    );
    assert_eq!(
        refusal(|bundle| bundle.trust_domain = "example.org".to_owned()).await,
        "setting a federated bundle for the server's own trust domain is not allowed"
    );
    let count = server.local().bundle().count_bundles(wire::CountBundlesRequest {}).await.unwrap();
    assert_eq!(count.into_inner().count, 1);
    server.stop().await;
}

#[tokio::test]
async fn relationships_bring_their_bundle_and_leave_it() {
    let place = Place::new();
    let server = place.start().await;
    let relationship = types::FederationRelationship {
        trust_domain: "fed.test".to_owned(),
        bundle_endpoint_url: "HTTPS://127.0.0.1:1/bundle".to_owned(),
        trust_domain_bundle: Some(bundle("fed.test")),
        bundle_endpoint_profile: Some(types::federation_relationship::BundleEndpointProfile::HttpsWeb(
            types::HttpsWebProfile {},
        )),
    };
    let api = server.local().trust_domain();
    let create = relationship_wire::BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![relationship.clone(), relationship],
        output_mask: None,
    };

    let created = api.clone().batch_create_federation_relationship(create).await.unwrap().into_inner();
    let codes: Vec<_> = created.results.iter().map(|r| r.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [0, i32::from(Code::Internal)]);
    let shown = created.results[0].federation_relationship.as_ref().unwrap();
    assert_eq!(shown.bundle_endpoint_url, "https://127.0.0.1:1/bundle");

    let refresh = |name: &str| relationship_wire::RefreshBundleRequest { trust_domain: name.to_owned() };
    let missing = api.clone().refresh_bundle(refresh("nobody.test")).await;
    expect_status(missing, Code::NotFound, "no relationship with trust domain \"nobody.test\"");
    let nobody_there = api.clone().refresh_bundle(refresh("fed.test")).await;
    let text = "failed to refresh bundle: failed to fetch federated bundle from endpoint: failed to fetch \
                bundle: cannot connect to 127.0.0.1:1: connection refused";
    expect_status(nobody_there, Code::Internal, text);

    let delete = relationship_wire::BatchDeleteFederationRelationshipRequest {
        trust_domains: vec!["spiffe://fed.test".to_owned()],
    };
    let deleted = api.clone().batch_delete_federation_relationship(delete).await.unwrap().into_inner();
    assert_eq!(deleted.results[0].trust_domain, "fed.test");
    let gone = api.clone().refresh_bundle(refresh("fed.test")).await;
    expect_status(gone, Code::NotFound, "no relationship with trust domain \"fed.test\"");
    let request = wire::GetFederatedBundleRequest { trust_domain: "fed.test".to_owned(), output_mask: None };
    assert!(server.local().bundle().get_federated_bundle(request).await.is_ok());
    server.stop().await;
}
