//! Every method by every kind of caller: who gets in is what the table says, cell by cell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use client::ServerClients;
use http::uri::PathAndQuery;
use proto::convert::status::detail;
use proto::spire::server::{agent, entry, svid};
use proto::spire::types;
use proto::spire::types::permission_denied_details::Reason;
use runtime::clock::{Clock, ManualClock, SystemClock};
use spiffe::SpiffeId;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::tls::OwnCertificate;
use spiffe::x509::{CertDer, CsrTemplate, Name};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use crate::support::{Place, Running};

pub(crate) const TABLE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/wire/authz.tsv"));

/// Callers and the column of the table that they are.
const CALLERS: [(&str, &str); 8] = [
    ("anonymous", "any"),
    ("agent", "agent"),
    ("banned", "any"),
    ("expired", "any"),
    ("workload", "any"),
    ("downstream", "downstream"),
    ("admin", "admin"),
    ("local", "local"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m01_a11_e03_every_method_lets_in_whom_the_table_names_and_nobody_else() {
    let mut place = Place::new();
    place.config.agent_ttl = Duration::from_secs(600);
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    let server = place.start_at(Arc::clone(&clock) as Arc<dyn Clock>).await;
    // It connects while its SVID holds.
    let expired = server.agent("expired").await;
    let expired = server.remote(expired.own);
    expired.agent().post_status(agent::PostStatusRequest::default()).await.unwrap();
    clock.advance(Duration::from_secs(700));
    let mut callers = callers(&server).await;
    let denied = expired.agent().post_status(agent::PostStatusRequest::default()).await.unwrap_err();
    let details = detail::<types::PermissionDeniedDetails>(&denied).unwrap();
    assert_eq!(details.reason(), Reason::AgentExpired);
    callers.insert("expired", expired);
    let mut cells = 0;

    for line in TABLE.lines().skip(1).filter(|line| !line.is_empty()) {
        let columns: Vec<&str> = line.split('\t').collect();
        let (method, allowed, listeners) = (columns[0], columns[1], columns[2]);
        for (name, column) in CALLERS {
            let answer = call(&callers[name], method).await;
            let is_served = name == "local" || listeners != "uds";
            let is_allowed = allowed == "any" || allowed.split(',').any(|allowed| allowed == column);
            judge(method, name, answer, is_served, is_allowed);
            cells += 1;
        }
    }

    assert_eq!(cells, 67 * CALLERS.len());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m02_a_method_that_the_table_does_not_name_is_nobodys() {
    let place = Place::new();
    let server = place.start().await;
    let callers = callers(&server).await;
    let (entry, svid) = ("/spire.api.server.entry.v1.Entry", "/spire.api.server.svid.v1.SVID");
    // No such service, no such method, and those that are there, spelt otherwise.
    let paths = [
        "/spire.api.server.keys.v1.Keys/ExportKey".to_owned(),
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".to_owned(),
        format!("{svid}/ExportX509Authority"),
        format!("{entry}/"),
        format!("{entry}/listEntries"),
        format!("{entry}/ListEntries/"),
        format!("{entry}/ListEntries%20"),
        format!("{entry}/../Entry/ListEntries"),
        format!("/{entry}/ListEntries"),
    ];

    for path in &paths {
        for (name, clients) in &callers {
            let status = call(clients, path).await.unwrap_err();
            let told = (status.code(), status.message());
            assert!(
                told.0 == Code::Unimplemented && told.1.starts_with("unknown "),
                "{name} {path}: {told:?}"
            );
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m03_a_refusal_names_the_method_and_tells_agents_why() {
    const METHOD: &str = "/spire.api.server.agent.v1.Agent/PostStatus";
    let mut place = Place::new();
    place.config.agent_ttl = Duration::from_secs(600);
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    let server = place.start_at(Arc::clone(&clock) as Arc<dyn Clock>).await;
    let refused = async |clients: &ServerClients| {
        let status = call(clients, METHOD).await.unwrap_err();
        let told = (status.code(), status.message());
        assert_eq!(
            told,
            (Code::PermissionDenied, format!("authorization denied for method {METHOD}").as_str())
        );
        detail::<types::PermissionDeniedDetails>(&status).map(|details| details.reason())
    };

    // To whom the method is closed whatever they are is told no more.
    assert_eq!(refused(&server.anonymous()).await, None);
    assert_eq!(refused(&server.local()).await, None);
    // Agents are told what they are.
    let [mut renewed, banned, evicted, expired] = [
        server.agent("renewed").await,
        server.agent("banned").await,
        server.agent("evicted").await,
        server.agent("expired").await,
    ];
    let before = server.remote(renewed.as_it_is());
    renewed.renew(&before).await.unwrap();
    server
        .remote(Arc::clone(&renewed.own))
        .agent()
        .post_status(agent::PostStatusRequest::default())
        .await
        .unwrap();
    assert_eq!(refused(&before).await, Some(Reason::AgentNotActive));
    let ban = agent::BanAgentRequest { id: Some(banned.id.clone()) };
    server.local().agent().ban_agent(ban).await.unwrap();
    assert_eq!(refused(&server.remote(banned.own)).await, Some(Reason::AgentBanned));
    let evict = agent::DeleteAgentRequest { id: Some(evicted.id.clone()) };
    server.local().agent().delete_agent(evict).await.unwrap();
    assert_eq!(refused(&server.remote(evicted.own)).await, Some(Reason::AgentNotAttested));
    let expired = server.remote(expired.own);
    expired.agent().post_status(agent::PostStatusRequest::default()).await.unwrap();
    clock.advance(Duration::from_secs(700));
    assert_eq!(refused(&expired).await, Some(Reason::AgentExpired));
    server.stop().await;
}

fn judge(method: &str, caller: &str, answer: Result<(), Status>, is_served: bool, is_allowed: bool) {
    let denied = format!("authorization denied for method {method}");
    let status = answer.err().unwrap_or_else(|| Status::ok(""));
    let told = (status.code(), status.message());
    if !is_served {
        let service = method.split('/').nth(1).unwrap();
        assert_eq!(told, (Code::Unimplemented, format!("unknown service {service}").as_str()), "{caller}");
    } else if is_allowed {
        assert_ne!(told.1, denied, "{caller} is kept out");
        assert!(!told.1.starts_with("unknown "), "{caller}: {told:?}");
    } else {
        assert_eq!(told, (Code::PermissionDenied, denied.as_str()), "{caller} gets in");
    }
}

async fn callers(server: &Running) -> BTreeMap<&'static str, ServerClients> {
    let agent = server.agent("agent").await;
    let banned = server.agent("banned").await;
    let ban = agent::BanAgentRequest { id: Some(banned.id.clone()) };
    server.local().agent().ban_agent(ban).await.unwrap();
    let entry = |kind: &str| types::Entry {
        parent_id: Some(id("/host")),
        spiffe_id: Some(id(&format!("/{kind}"))),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: format!("user:{kind}") }],
        admin: kind == "admin",
        downstream: kind == "downstream",
        ..types::Entry::default()
    };
    let create = entry::BatchCreateEntryRequest {
        entries: vec![entry("workload"), entry("downstream"), entry("admin")],
        output_mask: None,
    };
    server.local().entry().batch_create_entry(create).await.unwrap();
    let mut callers = BTreeMap::from([
        ("anonymous", server.anonymous()),
        ("agent", server.remote(agent.own)),
        ("banned", server.remote(banned.own)),
        ("local", server.local()),
    ]);
    for kind in ["workload", "downstream", "admin"] {
        callers.insert(kind, server.remote(minted(server, kind).await));
    }
    callers
}

/// An SVID that an operator minted.
async fn minted(server: &Running, kind: &str) -> Arc<OwnCertificate> {
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let id = SpiffeId::parse(&format!("spiffe://example.org/{kind}")).unwrap();
    let csr = CsrTemplate { subject: Name::new(&[]), id: Some(id), dns_names: Vec::new() };
    let mint = svid::MintX509svidRequest { csr: csr.sign(&key).unwrap().into(), ttl: 0 };
    let svid = server.local().svid().mint_x509svid(mint).await.unwrap().into_inner().svid.unwrap();
    let chain: Vec<_> = svid.cert_chain.iter().map(|der| CertDer::new(der)).collect();
    let own = OwnCertificate::empty();
    own.set(&chain, &key).unwrap();
    own
}

fn id(path: &str) -> types::Spiffeid {
    types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() }
}

/// Calls any method with an empty message.
async fn call(clients: &ServerClients, method: &str) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(clients.channel());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::try_from(method).unwrap();
    let answer = grpc.server_streaming(Request::new(Bytes::new()), path, Raw).await?;
    answer.into_inner().message().await.map(drop)
}

/// Messages as they are.
#[derive(Clone, Copy)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
