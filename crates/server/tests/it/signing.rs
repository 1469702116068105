//! SVIDs: minted for operators, signed for agents.

use proto::spire::server::bundle::GetBundleRequest;
use proto::spire::server::{entry as entry_wire, svid as wire};
use proto::spire::types;
use spiffe::jwt;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::{Certificate, CsrTemplate, Name};
use spiffe::{Bundle, SpiffeId, UnixSecs};
use tonic::Code;

use crate::support::{Place, Running, TestAgent, attest, csr, expect_status};

async fn entitled(server: &Running, agent: &TestAgent, name: &str) {
    let entry = types::Entry {
        id: name.to_owned(),
        parent_id: Some(agent.id.clone()),
        spiffe_id: Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: format!("/{name}") }),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
        dns_names: vec![format!("{name}.test")],
        x509_svid_ttl: 77,
        jwt_svid_ttl: 33,
        ..types::Entry::default()
    };
    let request = entry_wire::BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    let created = server.local().entry().batch_create_entry(request).await.unwrap().into_inner();
    assert!(created.results.iter().all(|result| result.status == Some(types::Status::ok())));
}

fn param(entry_id: &str, csr: Vec<u8>) -> wire::NewX509svidParams {
    wire::NewX509svidParams { entry_id: entry_id.to_owned(), csr: csr.into() }
}

#[tokio::test]
async fn a02_an_agent_gets_what_the_entry_says_whatever_the_request_says() {
    let place = Place::new();
    let server = place.start().await;
    let agent = server.agent("mine").await;
    entitled(&server, &agent, "web").await;
    let key = PrivateKey::generate(KeyKind::EcP384).unwrap();
    let greedy = CsrTemplate {
        subject: Name::new(&[]),
        id: SpiffeId::parse("spiffe://example.org/spire/server").ok(),
        dns_names: vec!["everything.test".to_owned()],
    };

    let request = wire::BatchNewX509svidRequest { params: vec![param("web", greedy.sign(&key).unwrap())] };
    let reply = server.remote(agent.own).svid().batch_new_x509svid(request).await.unwrap().into_inner();

    let svid = reply.results[0].svid.as_ref().unwrap();
    let certificate = Certificate::parse(&svid.cert_chain[0]).unwrap();
    assert_eq!(certificate.uris(), ["spiffe://example.org/web"]);
    assert_eq!(certificate.dns_names(), ["web.test"]);
    assert_eq!(certificate.public_key(), key.public());
    assert_eq!(certificate.not_after().since(certificate.not_before()), 87);
    assert_eq!(svid.expires_at, certificate.not_after().0);
    server.stop().await;
}

#[tokio::test]
async fn a01_a04_bad_items_fail_alone_and_foreign_entries_look_like_none() {
    let place = Place::new();
    let server = place.start().await;
    let (mine, other) = (server.agent("mine").await, server.agent("other").await);
    entitled(&server, &mine, "web").await;
    entitled(&server, &other, "db").await;
    let good = csr(&PrivateKey::generate(KeyKind::EcP256).unwrap());
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;

    let params = vec![
        param("db", good.clone()),
        param("nobody's", good.clone()),
        param("web", forged),
        param("web", b"nonsense".to_vec()),
        param("web", Vec::new()),
        param("", good.clone()),
        param("web", good),
    ];
    let request = wire::BatchNewX509svidRequest { params };
    let reply = server.remote(mine.own).svid().batch_new_x509svid(request).await.unwrap().into_inner();

    let statuses: Vec<_> = reply
        .results
        .iter()
        .map(|result| result.status.as_ref().map(|status| (status.code, status.message.as_str())).unwrap())
        .collect();
    assert_eq!(statuses[0], (5, "entry not found or not authorized"));
    assert_eq!(statuses[1], statuses[0]);
    assert_eq!(statuses[2], (3, "invalid CSR signature: signature check failed"));
    assert!(statuses[3].1.starts_with("malformed CSR: "));
    assert_eq!(statuses[4], (3, "missing CSR"));
    assert_eq!(statuses[5], (3, "missing entry ID"));
    assert_eq!(statuses[6], (0, "OK"));
    assert!(reply.results[6].svid.is_some());
    server.stop().await;
}

/// Requests that openssl made, each signed by its key: RSA with 1024 bits, and the curve P-224.
const WEAK: [&str; 2] = [
    "MIIBSzCBtQIBADAMMQowCAYDVQQDDAF4MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCu5oL0aAMMvm6CxdjoFCD/uH0gpOtP3hjv\
     iInuT5UCAwAGzWTfiP4XAe9qlMDbn7J/uFvDKmgGtxok5GITnEFmaPhxy5Q+OCA7uHWI78lFzMJZWAYKICCG1+5V9Sd9Pcfdd3WcBrTT9Fkc\
     qsxR88vJPBTZ82cUrYJ/6BbM+l9ziwIDAQABoAAwDQYJKoZIhvcNAQELBQADgYEAmFqdy8TLvhO0T97Tog6auUzD7va0KoNqeUe7JQ1UMRCu\
     LGL1I+cde6y1HL3N0ivAwN2pzO0JVS6+AybAW33Ciss+XX4JBcY1DSXKRV1ArjYfkGFI73G2AEBYLmf8Ghuq0uj2/N1OZ194s61/+CtsW1Ah\
     gaYE46OCBjLvdHjpfAk=",
    "MIGyMGMCAQAwDDEKMAgGA1UEAwwBeDBOMBAGByqGSM49AgEGBSuBBAAhAzoABCaoGHhEpvQqmg6QuAFT6/T7XIkG2v6aAGGAQ/pnUS9oZEfD\
     kgLA/wLJfUqLbdjWAByzfW1nzjAUoAAwCgYIKoZIzj0EAwIDPwAwPAIcMzZf6QeLXPSDvuT1eepCXMflQiEZxRYmAzetKwIcZfLD9YxnFK3c\
     EvlhjvIgsQzp7yGxu9xFm+tcgQ==",
];

#[tokio::test]
async fn a03_keys_that_are_too_weak_get_no_svid() {
    let place = Place::new();
    let server = place.start().await;
    let agent = server.agent("mine").await;
    entitled(&server, &agent, "web").await;
    let clients = server.remote(agent.own);

    let weak = |text: &str| base64::Engine::decode(&base64::prelude::BASE64_STANDARD, text).unwrap();
    let params = WEAK.map(|text| param("web", weak(text))).to_vec();
    let request = wire::BatchNewX509svidRequest { params };
    let reply = clients.svid().batch_new_x509svid(request).await.unwrap().into_inner();

    for result in reply.results {
        let status = result.status.unwrap();
        assert_eq!(status.code, Code::InvalidArgument as i32, "{status:?}");
        assert!(result.svid.is_none());
    }
    // Nor do agents, whose token is still good after it, and operators.
    server.token("weak").await;
    for text in WEAK {
        let refused = attest(&server.anonymous(), "weak", &weak(text)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        let mint = wire::MintX509svidRequest { csr: weak(text).into(), ttl: 0 };
        let refused = server.local().svid().mint_x509svid(mint).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    let good = csr(&PrivateKey::generate(KeyKind::EcP256).unwrap());
    attest(&server.anonymous(), "weak", &good).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn more_than_a_second_of_signatures_is_refused_as_a_whole() {
    let place = Place::new();
    let server = place.start().await;
    let agent = server.agent("greedy").await;

    let request = wire::BatchNewX509svidRequest { params: vec![param("x", Vec::new()); 501] };
    let refused = server.remote(agent.own).svid().batch_new_x509svid(request).await;

    let text =
        "rejecting request due to certificate signing rate limiting: rate (501) exceeds burst size (500)";
    expect_status(refused, Code::ResourceExhausted, text);
    server.stop().await;
}

#[tokio::test]
async fn a_token_says_what_the_entry_says() {
    let place = Place::new();
    let server = place.start().await;
    let agent = server.agent("mine").await;
    entitled(&server, &agent, "web").await;
    let clients = server.remote(agent.own);
    let ask = |entry_id: &str, audience: &[&str]| wire::NewJwtsvidRequest {
        entry_id: entry_id.to_owned(),
        audience: audience.iter().map(ToString::to_string).collect(),
    };

    let svid = clients.svid().new_jwtsvid(ask("web", &["a", "b"])).await.unwrap().into_inner().svid.unwrap();

    let own = clients.bundle().get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    let own = Bundle::try_from(&own).unwrap();
    let now = UnixSecs(svid.issued_at);
    let verified = jwt::verify(&svid.token, "b", now, |_| Some(&own.jwt_authorities)).unwrap();
    assert_eq!(verified.id.as_str(), "spiffe://example.org/web");
    assert_eq!(verified.audience, ["a", "b"]);
    assert_eq!(svid.expires_at - svid.issued_at, 33);
    assert_eq!(svid.id.unwrap().path, "/web");
    let unknown = clients.svid().new_jwtsvid(ask("db", &["a"])).await;
    expect_status(unknown, Code::NotFound, "entry not found or not authorized");
    let nobody = clients.svid().new_jwtsvid(ask("web", &[])).await;
    expect_status(nobody, Code::InvalidArgument, "at least one audience is required");
    server.stop().await;
}

#[tokio::test]
async fn without_jwt_svids_neither_operators_nor_agents_get_any() {
    let mut place = Place::new();
    place.config.disable_jwt_svids = true;
    let server = place.start().await;
    let agent = server.agent("mine").await;

    let minted = server.local().svid().mint_jwtsvid(wire::MintJwtsvidRequest::default()).await;
    let signed = server.remote(agent.own).svid().new_jwtsvid(wire::NewJwtsvidRequest::default()).await;

    expect_status(minted, Code::Unimplemented, "JWT functionality is disabled");
    expect_status(signed, Code::Unimplemented, "JWT functionality is disabled");
    server.stop().await;
}

#[tokio::test]
async fn lifetimes_below_zero_are_refused() {
    let place = Place::new();
    let server = place.start().await;
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let template = CsrTemplate {
        subject: Name::new(&[]),
        id: SpiffeId::parse("spiffe://example.org/w").ok(),
        dns_names: Vec::new(),
    };
    let svid = server.local().svid();

    let x509 = wire::MintX509svidRequest { csr: template.sign(&key).unwrap().into(), ttl: -1 };
    let jwt = wire::MintJwtsvidRequest {
        id: Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: "/w".to_owned() }),
        audience: vec!["a".to_owned()],
        ttl: -1,
    };

    let refused = "invalid TTL: -1 is negative";
    expect_status(svid.clone().mint_x509svid(x509).await, Code::InvalidArgument, refused);
    expect_status(svid.clone().mint_jwtsvid(jwt).await, Code::InvalidArgument, refused);
    server.stop().await;
}
