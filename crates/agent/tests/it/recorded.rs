//! A recorded SPIRE agent's answers: the same state gives the same answers, to the byte.

use std::fs;
use std::path::Path;

use agent::rotation::RotationRule;
use agent::state::{Issuers, X509Svid};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message;
use proto::sds::discovery::{DiscoveryRequest, DiscoveryResponse};
use proto::sds::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use serde_json::Value;
use spiffe::jwk::Jwk;
use spiffe::key::PrivateKey;
use spiffe::x509::Certificate;
use spiffe::{Bundle, Entry, JwtAuthority, TrustDomain, UnixSecs, X509Authority};
use tokio_stream::StreamExt;
use tonic::Request;

use crate::world::{World, own_entry};

/// The first request and the first response of a method.
fn recorded(method: &str) -> (Bytes, Bytes) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/wire-exchanges/workload.json");
    let file: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let calls = file["calls"].as_array().unwrap();
    let call = calls.iter().find(|call| call["method"] == format!("/SpiffeWorkloadAPI/{method}")).unwrap();
    let message = |key: &str| {
        let messages = call["messages"].as_array().unwrap();
        let text = messages.iter().find_map(|message| message[key].as_str()).unwrap();
        Bytes::from(STANDARD.decode(text).unwrap())
    };
    (message("request"), message("response"))
}

/// The requests of secret discovery by this method, each with its response.
fn secrets(method: &str) -> Vec<(DiscoveryRequest, DiscoveryResponse)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/wire-exchanges/workload.json");
    let file: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let method = format!("/envoy.service.secret.v3.SecretDiscoveryService/{method}");
    let calls = file["calls"].as_array().unwrap().iter().filter(|call| call["method"] == *method);
    let exchange = |call: &Value| {
        let message =
            |at: usize, key: &str| STANDARD.decode(call["messages"][at][key].as_str().unwrap()).unwrap();
        let request = DiscoveryRequest::decode(message(0, "request").as_slice()).unwrap();
        (request, DiscoveryResponse::decode(message(1, "response").as_slice()).unwrap())
    };
    calls.map(exchange).collect()
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

#[tokio::test]
async fn the_same_state_gives_the_same_answers() {
    let (_, x509_reply) = recorded("FetchX509SVID");
    let (_, bundles_reply) = recorded("FetchX509Bundles");
    let (_, keys_reply) = recorded("FetchJWTBundles");
    let (validate, validate_reply) = recorded("ValidateJWTSVID");
    let x509 = X509svidResponse::decode(x509_reply.clone()).unwrap();
    let keys = JwtBundlesResponse::decode(keys_reply.clone()).unwrap();
    let validate = ValidateJwtsvidRequest::decode(validate).unwrap();
    let chain = |svid: &X509svid| Certificate::parse_all(&svid.x509_svid).unwrap();
    let roots = Certificate::parse_all(&x509.svids[0].bundle).unwrap();

    // An agent that holds what the recorded one held, at that time.
    let world = World::configured(|config| config.disable_sds_api = false).await;
    let then = chain(&x509.svids[0])[0].not_before().plus(60).to_system_time();
    world.clock.set(then);
    let bundle = |name: &str, x509: &[Certificate]| Bundle {
        x509_authorities: x509
            .iter()
            .map(|root| X509Authority { der: root.to_shared(), tainted: false })
            .collect(),
        jwt_authorities: jwt_authorities(&keys.bundles[name]),
        ..Bundle::empty(TrustDomain::parse(name).unwrap())
    };
    let own = bundle("spiffe://example.org", &roots);
    let federated = x509.federated_bundles.iter();
    let federated: Vec<Bundle> =
        federated.map(|(name, der)| bundle(name, &Certificate::parse_all(der).unwrap())).collect();
    let entry = |(number, svid): (usize, &X509svid)| {
        let path = svid.spiffe_id.strip_prefix("spiffe://example.org").unwrap();
        let mut entry = own_entry(&number.to_string(), path);
        entry.hint.clone_from(&svid.hint);
        entry.federates_with = federated.iter().map(|bundle| bundle.trust_domain.clone()).collect();
        entry
    };
    let entries: Vec<Entry> = x509.svids.iter().enumerate().map(entry).collect();
    world.sync_with(&entries, own, &federated).await;
    for (svid, entry) in x509.svids.iter().zip(&entries) {
        let key = PrivateKey::from_der(&svid.x509_svid_key).unwrap();
        let chain: Vec<Bytes> =
            chain(svid).iter().map(|certificate| Bytes::copy_from_slice(certificate.der())).collect();
        let (mut rule, mut issuers) = (RotationRule::new(None), Issuers::default());
        let svid = X509Svid::accept(&chain, &key, entry, &roots, then, &mut rule, &mut issuers).unwrap();
        world.hold(entry.id.as_str(), svid).await;
    }

    let mut client = world.bare();
    let answer =
        client.fetch_x509svid(request(X509svidRequest {})).await.unwrap().into_inner().message().await;
    assert_eq!(answer.unwrap().unwrap().encode_to_vec(), x509_reply);
    let answer =
        client.fetch_x509_bundles(request(X509BundlesRequest {})).await.unwrap().into_inner().message().await;
    assert_eq!(answer.unwrap().unwrap(), X509BundlesResponse::decode(bundles_reply).unwrap());
    let answer =
        client.fetch_jwt_bundles(request(JwtBundlesRequest {})).await.unwrap().into_inner().message().await;
    assert_eq!(answer.unwrap().unwrap().encode_to_vec(), keys_reply);
    let answer = client.validate_jwtsvid(request(validate)).await.unwrap().into_inner();
    assert_eq!(answer, ValidateJwtsvidResponse::decode(validate_reply).unwrap());

    let mut envoy = SecretDiscoveryServiceClient::new(world.channel());
    let fetched = secrets("FetchSecrets");
    assert_eq!(fetched.len(), 6);
    for (request, response) in fetched {
        let answer = envoy.fetch_secrets(request).await.unwrap().into_inner();
        assert_eq!(answer, response);
    }
    for (request, response) in secrets("StreamSecrets") {
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        let mut answers = envoy.stream_secrets(requests).await.unwrap().into_inner();
        let mut answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.nonce.len(), 8);
        answer.nonce.clone_from(&response.nonce);
        assert_eq!(answer, response);
    }
}

fn jwt_authorities(jwks: &[u8]) -> Vec<JwtAuthority> {
    let set: Value = serde_json::from_slice(jwks).unwrap();
    let authority = |key: &Value| {
        let key = Jwk::read(key).unwrap();
        let public_key = key.key.spki().into();
        JwtAuthority { key_id: key.key_id, public_key, expires_at: UnixSecs(0), tainted: false }
    };
    set["keys"].as_array().unwrap().iter().map(authority).collect()
}
