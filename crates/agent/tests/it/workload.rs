//! The Workload API: who gets what, and how who gets nothing is told.

use client::WorkloadError;
use proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
    X509BundlesRequest, X509svidRequest,
};
use spiffe::TrustDomain;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::authority::Authority;
use crate::world::{World, entry, federated, hinted, names, own_entry};

/// The code and text of a refused call.
pub(crate) fn refusal<T>(result: Result<T, WorkloadError>) -> (Code, String) {
    match result {
        Err(WorkloadError::Refused(status)) => (status.code(), status.message().to_owned()),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was answered"),
    }
}

fn told<T>(result: Result<T, Status>) -> (Code, String) {
    let status = result.err().expect("a refusal");
    (status.code(), status.message().to_owned())
}

fn no_identity() -> (Code, String) {
    (Code::PermissionDenied, "no identity issued".to_owned())
}

fn with_headers<T>(message: T, values: &[&'static str]) -> Request<T> {
    let mut request = Request::new(message);
    for value in values {
        request.metadata_mut().append("workload.spiffe.io", MetadataValue::from_static(value));
    }
    request
}

#[tokio::test]
async fn a_workload_gets_its_identity_and_the_bundles_to_verify_peers_with() {
    let world = World::start().await;
    let (other, third) = (Authority::new("other.org"), Authority::new("third.org"));
    let web = federated(own_entry("b", "/web"), &[&other]);
    world
        .sync(&[web, own_entry("a", "/db"), entry("c", "/no", &["uid:1"])], &[other.bundle(), third.bundle()])
        .await;
    world.issue(&[own_entry("a", "/db"), own_entry("b", "/web")]).await;

    let update = world.client().x509_svids().await.unwrap();

    let ids: Vec<String> = update.svids.iter().map(|svid| svid.id.to_string()).collect();
    assert_eq!(ids, ["spiffe://example.org/db", "spiffe://example.org/web"]);
    assert_eq!(names(&update.bundles), ["example.org", "other.org"]);
    let own = &update.bundles[&TrustDomain::parse("example.org").unwrap()];
    assert_eq!(own[0].as_ref(), world.own.certificate.der());
    assert_eq!(update.bundles[&other.trust_domain][0].as_ref(), other.certificate.der());
    for svid in &update.svids {
        let key = spiffe::key::PrivateKey::from_der(svid.key.secret_pkcs8()).unwrap();
        let leaf = spiffe::x509::Certificate::parse(&svid.chain[0]).unwrap();
        assert_eq!(leaf.public_key(), key.public());
    }
}

#[tokio::test]
async fn w15_who_no_entry_is_for_is_refused_by_every_method() {
    let world = World::start().await;
    world.serve(&[entry("a", "/a", &["uid:1000", "uid:1"])]).await;
    let client = world.client();

    assert_eq!(refusal(client.x509_svids().await), no_identity());
    assert_eq!(refusal(client.x509_bundles().await), no_identity());
    assert_eq!(refusal(client.jwt_bundles().await), no_identity());
    assert_eq!(refusal(client.jwt_svids(&["x".to_owned()], None).await), no_identity());
}

#[tokio::test]
async fn verifiers_without_identity_get_the_own_bundles_where_that_is_allowed() {
    let world = World::configured(|config| config.allow_unauthenticated_verifiers = true).await;
    let other = Authority::new("other.org");
    world.sync(&[federated(entry("a", "/a", &["uid:1"]), &[&other])], &[other.bundle()]).await;
    let client = world.client();

    assert_eq!(names(&client.x509_bundles().await.unwrap().bundles), ["example.org"]);
    assert_eq!(names(&client.jwt_bundles().await.unwrap().bundles), ["example.org"]);
    assert_eq!(refusal(client.x509_svids().await), no_identity());
}

#[tokio::test]
async fn bundles_are_those_of_the_own_trust_domain_and_of_federated_ones() {
    let world = World::start().await;
    let other = Authority::new("other.org");
    world.sync(&[federated(own_entry("a", "/a"), &[&other])], &[other.bundle()]).await;
    let client = world.client();

    let x509 = client.x509_bundles().await.unwrap();
    let jwt = client.jwt_bundles().await.unwrap();

    assert_eq!(names(&x509.bundles), ["example.org", "other.org"]);
    assert_eq!(names(&jwt.bundles), ["example.org", "other.org"]);
    let keys = String::from_utf8(jwt.bundles[&other.trust_domain].to_vec()).unwrap();
    assert_eq!(keys, other.bundle().to_jwt_jwks());
    assert!(keys.starts_with("{\n    \"keys\": [\n        {\n            \"kty\": \"EC\""), "{keys}");
}

#[tokio::test]
async fn wit_keys_are_not_shown_among_jwt_keys() {
    let world = World::start().await;
    let mut bundle = world.own.bundle();
    bundle.wit_authorities = bundle.jwt_authorities.clone();
    bundle.wit_authorities[0].key_id = "wit".to_owned();
    world.sync_with(&[own_entry("a", "/a")], bundle, &[]).await;

    let jwt = world.client().jwt_bundles().await.unwrap();

    let keys = String::from_utf8(jwt.bundles[&world.own.trust_domain].to_vec()).unwrap();
    assert!(keys.contains("\"kid\": \"key\"") && !keys.contains("wit"), "{keys}");
}

#[tokio::test]
async fn w14_without_the_security_header_nothing_is_looked_at() {
    let world = World::start().await;
    let mut bare = world.bare();
    let missing = (Code::InvalidArgument, "security header missing from request".to_owned());

    for values in [&[][..], &["True"], &["1"], &["true", "true"]] {
        assert_eq!(told(bare.fetch_x509svid(with_headers(X509svidRequest {}, values)).await), missing);
    }
    assert_eq!(told(bare.fetch_x509_bundles(X509BundlesRequest {}).await), missing);
    assert_eq!(told(bare.fetch_jwtsvid(JwtsvidRequest::default()).await), missing);
    assert_eq!(told(bare.fetch_jwt_bundles(JwtBundlesRequest {}).await), missing);
    assert_eq!(told(bare.validate_jwtsvid(ValidateJwtsvidRequest::default()).await), missing);
    assert_eq!(told(bare.fetch_witsvid(WitsvidRequest::default()).await), missing);
    assert_eq!(told(bare.fetch_wit_bundles(WitBundlesRequest {}).await), missing);
    assert_eq!(world.times_asked(), 0);
}

#[tokio::test]
async fn wit_svids_are_not_offered() {
    let world = World::start().await;
    let mut bare = world.bare();

    let svids = bare.fetch_witsvid(with_headers(WitsvidRequest::default(), &["true"])).await;
    let bundles = bare.fetch_wit_bundles(with_headers(WitBundlesRequest {}, &["true"])).await;

    assert_eq!(told(svids), (Code::Unimplemented, "fetching WIT-SVIDs is not implemented".to_owned()));
    assert_eq!(told(bundles), (Code::Unimplemented, "fetching WIT bundles is not implemented".to_owned()));
}

#[tokio::test]
async fn arguments_are_checked_before_the_caller_is_attested() {
    let world = World::start().await;
    let client = world.client();
    let wrong = |text: &str| (Code::InvalidArgument, text.to_owned());

    assert_eq!(refusal(client.jwt_svids(&[], None).await), wrong("audience must be specified"));
    assert_eq!(refusal(client.validate_jwt("x", "").await), wrong("audience must be specified"));
    assert_eq!(refusal(client.validate_jwt("", "x").await), wrong("svid must be specified"));
    let request = JwtsvidRequest { audience: vec!["x".to_owned()], spiffe_id: "http://a/b".to_owned() };
    let refused = told(world.bare().fetch_jwtsvid(with_headers(request, &["true"])).await);
    assert_eq!(refused, wrong("invalid requested SPIFFE ID: scheme is missing or invalid"));
    assert_eq!(world.times_asked(), 0);
}

#[tokio::test]
async fn of_several_identities_with_one_hint_the_oldest_is_shown() {
    let world = World::start().await;
    let entries = [
        hinted(own_entry("a", "/young"), "x", 9),
        hinted(own_entry("b", "/old"), "x", 3),
        own_entry("c", "/plain"),
    ];
    world.serve(&entries).await;
    let client = world.client();

    let update = client.x509_svids().await.unwrap();
    let svids: Vec<(&str, &str)> =
        update.svids.iter().map(|svid| (svid.id.path(), svid.hint.as_str())).collect();
    assert_eq!(svids, [("/old", "x"), ("/plain", "")]);
    world.sync(&entries[..1], &[]).await;
    assert_eq!(client.x509_svids().await.unwrap().svids[0].id.path(), "/young");
}

#[tokio::test]
async fn an_entry_that_is_pushed_to_a_store_is_no_identity() {
    let world = World::start().await;
    let mut stored = own_entry("a", "/a");
    stored.store_svid = true;
    world.serve(&[stored]).await;

    assert_eq!(refusal(world.client().x509_svids().await), no_identity());
}

#[tokio::test]
async fn each_call_attests_anew() {
    let world = World::start().await;
    world.serve(&[own_entry("a", "/a")]).await;
    let client = world.client();

    for _ in 0..3 {
        client.x509_svids().await.unwrap();
    }

    assert_eq!(world.times_asked(), 3);
}

#[tokio::test]
async fn one_identity_that_cannot_be_signed_holds_up_no_other() {
    let world = World::start().await;
    let (good, bad) = (own_entry("a", "/a"), own_entry("b", "/b"));
    world.sync(&[own_entry("a", "/a"), own_entry("b", "/b")], &[]).await;
    world.issue(&[good]).await;
    world.refuse(&bad).await;

    let update = world.client().x509_svids().await.unwrap();

    assert_eq!(update.svids.len(), 1);
}
