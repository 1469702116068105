//! Servers below this one: they get a CA, and their JWT keys become the trust domain's.

use proto::spire::server::bundle::{GetBundleRequest, PublishJwtAuthorityRequest};
use proto::spire::server::{entry as entry_wire, svid as wire};
use proto::spire::types;
use spiffe::SpiffeId;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::tls::OwnCertificate;
use spiffe::x509::{
    Attribute, CertDer, Certificate, CsrTemplate, Issuer, Name, Role, Serial, Validity, X509Template,
    assemble, verify_svid,
};
use tonic::{Code, Response, Status};

use client::ServerClients;

use crate::support::{Place, Running, csr, expect_status};

/// A workload with a downstream entry.
async fn downstream(server: &Running) -> ServerClients {
    let id = |path: &str| types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() };
    let entry = types::Entry {
        parent_id: Some(id("/host")),
        spiffe_id: Some(id("/below")),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
        downstream: true,
        ..types::Entry::default()
    };
    let create = entry_wire::BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    server.local().entry().batch_create_entry(create).await.unwrap();
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let template = CsrTemplate {
        subject: Name::new(&[]),
        id: SpiffeId::parse("spiffe://example.org/below").ok(),
        dns_names: Vec::new(),
    };
    let mint = wire::MintX509svidRequest { csr: template.sign(&key).unwrap().into(), ttl: 0 };
    let svid = server.local().svid().mint_x509svid(mint).await.unwrap().into_inner().svid.unwrap();
    let chain: Vec<_> = svid.cert_chain.iter().map(|der| CertDer::new(der)).collect();
    let own = OwnCertificate::empty();
    own.set(&chain, &key).unwrap();
    server.remote(own)
}

/// Asks for a CA of this key.
async fn ask_for_ca(
    below: &ServerClients,
    key: &PrivateKey,
    preferred_ttl: i32,
) -> Result<wire::NewDownstreamX509caResponse, Status> {
    let request = wire::NewDownstreamX509caRequest { csr: csr(key).into(), preferred_ttl };
    below.svid().new_downstream_x509ca(request).await.map(Response::into_inner)
}

fn jwt_key(key_id: &str, expires_at: i64) -> types::JwtKey {
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    types::JwtKey {
        public_key: key.public().spki().to_vec().into(),
        key_id: key_id.to_owned(),
        expires_at,
        tainted: false,
    }
}

#[tokio::test]
async fn d01_d02_a_server_below_gets_a_ca_of_the_trust_domain_and_nothing_else() {
    let place = Place::new();
    let server = place.start().await;
    let below = downstream(&server).await;
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();

    let reply = ask_for_ca(&below, &key, 600).await.unwrap();

    let ca = Certificate::parse(&reply.ca_cert_chain[0]).unwrap();
    assert!(ca.is_ca());
    assert_eq!(ca.uris(), ["spiffe://example.org"]);
    assert_eq!(ca.public_key(), key.public());
    assert_eq!(ca.not_after().since(ca.not_before()), 610);
    let own = below.bundle().get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!(reply.x509_authorities, [own.x509_authorities[0].asn1.clone()]);
    let refused = ask_for_ca(&below, &key, -1).await;
    expect_status(refused, Code::InvalidArgument, "invalid TTL: -1 is negative");
    server.stop().await;
}

#[tokio::test]
async fn d03_its_keys_become_the_trust_domains_unless_they_are_over_or_taken() {
    let place = Place::new();
    let server = place.start().await;
    let below = downstream(&server).await;
    let publish = async |jwt_authority| {
        below.bundle().publish_jwt_authority(PublishJwtAuthorityRequest { jwt_authority }).await
    };
    let good = jwt_key("below", 4_000_000_000);

    let published = publish(Some(good.clone())).await.unwrap().into_inner().jwt_authorities;

    assert_eq!(published.len(), 2);
    assert_eq!(published[1], good);
    let again = publish(Some(good)).await.unwrap().into_inner().jwt_authorities;
    assert_eq!(again, published);
    let own = below.bundle().get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!(own.jwt_authorities, published);
    let taken = "invalid JWT authority: key ID below is used twice";
    expect_status(publish(Some(jwt_key("below", 0))).await, Code::InvalidArgument, taken);
    let over = "invalid JWT authority: key has expired";
    expect_status(publish(Some(jwt_key("over", 5))).await, Code::InvalidArgument, over);
    let nameless = "invalid JWT authority: missing key ID";
    expect_status(publish(Some(jwt_key("", 0))).await, Code::InvalidArgument, nameless);
    expect_status(publish(None).await, Code::InvalidArgument, "missing JWT authority");
    server.stop().await;
}

/// What operators are told of what is accepted.
const GUIDE: &str = include_str!("../../../../docs/security.md");

#[tokio::test]
async fn d04_a_server_below_can_speak_for_every_identity_and_the_guide_says_so() {
    let place = Place::new();
    let server = place.start().await;
    let below = downstream(&server).await;
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let reply = ask_for_ca(&below, &key, 600).await.unwrap();
    let ca = Certificate::parse(&reply.ca_cert_chain[0]).unwrap();
    let root = Certificate::parse(&reply.x509_authorities[0]).unwrap();

    for id in ["spiffe://example.org/spire/server", "spiffe://example.org/anything"] {
        let own = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let template = X509Template {
            serial: Serial::from_be_bytes(&[1]),
            subject: Name::new(&[(Attribute::Country, "US")]),
            validity: Validity { not_before: ca.not_before(), not_after: ca.not_after() },
            public_key: own.public().clone(),
            id: SpiffeId::parse(id).unwrap(),
            dns_names: Vec::new(),
            role: Role::Svid,
        };
        let issuer = Issuer { name: ca.subject().clone(), key_id: ca.subject_key_id().map(<[u8]>::to_vec) };
        let tbs = template.tbs(&issuer, key.sig_alg().unwrap());
        let signature = key.sign(tbs.alg(), tbs.as_bytes()).unwrap();
        let svid = Certificate::parse(assemble(&tbs, &signature).as_bytes()).unwrap();

        let verified =
            verify_svid(&[svid, ca.clone()], std::slice::from_ref(&root), ca.not_before().plus(20));
        assert_eq!(verified.unwrap().as_str(), id);
    }

    let told = GUIDE.split_whitespace().collect::<Vec<_>>().join(" ");
    for said in ["can sign for any identity of the trust domain", "`spiffe://example.org/spire/server`"] {
        assert!(told.contains(said), "the guide does not say {said:?}");
    }
    server.stop().await;
}
