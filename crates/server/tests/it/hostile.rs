//! What hostile clients send: it ends their call, never another's, and tells them nothing.

use std::time::Duration;

use client::ServerClients;
use futures::future::join_all;
use http::uri::PathAndQuery;
use prost::Message;
use proto::spire::server::{agent, bundle, entry, svid};
use proto::spire::types;
use spiffe::key::{KeyKind, PrivateKey};
use tonic::{Code, Request, Status};

use crate::matrix::{Raw, TABLE};
use crate::support::{Place, attest, csr, expect_status};

/// Messages whose damaged copies are sent, to their own method and to any other.
fn corpus() -> Vec<Vec<u8>> {
    let id = |path: &str| types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() };
    let entry = types::Entry {
        id: "one".to_owned(),
        parent_id: Some(id("/host")),
        spiffe_id: Some(id("/one")),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "user:one".to_owned() }],
        dns_names: vec!["one.example.org".to_owned()],
        federates_with: vec!["other.org".to_owned()],
        hint: "hint".to_owned(),
        x509_svid_ttl: 60,
        ..types::Entry::default()
    };
    let request = csr(&PrivateKey::generate(KeyKind::EcP256).unwrap());
    let list = entry::ListEntriesRequest {
        filter: Some(entry::list_entries_request::Filter {
            by_spiffe_id: Some(id("/one")),
            by_selectors: Some(types::SelectorMatch { selectors: entry.selectors.clone(), r#match: 1 }),
            ..Default::default()
        }),
        page_size: 7,
        page_token: "12".to_owned(),
        ..Default::default()
    };
    let foreign = types::Bundle {
        trust_domain: "other.org".to_owned(),
        x509_authorities: vec![types::X509Certificate { asn1: request.clone().into(), tainted: false }],
        sequence_number: 3,
        ..types::Bundle::default()
    };
    let mint_jwt = svid::MintJwtsvidRequest {
        id: Some(id("/one")),
        audience: vec!["a".to_owned(), "b".to_owned()],
        ttl: 60,
    };
    vec![
        Vec::new(),
        entry::BatchCreateEntryRequest { entries: vec![entry.clone(), entry], output_mask: None }
            .encode_to_vec(),
        list.encode_to_vec(),
        bundle::BatchSetFederatedBundleRequest { bundle: vec![foreign], output_mask: None }.encode_to_vec(),
        svid::MintX509svidRequest { csr: request.into(), ttl: 60 }.encode_to_vec(),
        mint_jwt.encode_to_vec(),
        agent::CreateJoinTokenRequest { ttl: 60, token: "token".to_owned(), agent_id: Some(id("/one")) }
            .encode_to_vec(),
        agent::BanAgentRequest { id: Some(id("/spire/agent/x")) }.encode_to_vec(),
    ]
}

/// Sends any bytes to any method: what the first answer says.
async fn send(clients: &ServerClients, method: &str, message: &[u8]) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(clients.channel());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::try_from(method).unwrap();
    let message = bytes::Bytes::copy_from_slice(message);
    let answer = grpc.server_streaming(Request::new(message), path, Raw).await?;
    answer.into_inner().message().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x07_damaged_messages_end_no_more_than_their_call() {
    let place = Place::new();
    let server = place.start().await;
    let caller = server.agent("hostile").await;
    let clients = [server.local(), server.remote(caller.own), server.anonymous()];
    // What makes it wait for an answer of its own says nothing about a message; what makes it call
    // somebody is not for a fuzzer.
    let methods: Vec<&str> = TABLE
        .lines()
        .skip(1)
        .filter_map(|line| line.split('\t').next())
        .filter(|method| !method.ends_with("/Watch") && !method.contains("/RefreshBundle"))
        .filter(|method| !method.is_empty())
        .collect();
    let inputs: Vec<Vec<u8>> = corpus().into_iter().map(|input| [&[0, 0], &input[..]].concat()).collect();

    testkit::fuzz::drive("server_methods", &inputs, &[b"example.org", &[0x0a, 0xff, 0x01]], 4_000, |input| {
        let (Some(which), Some(who)) = (input.first(), input.get(1)) else { return };
        let method = methods[usize::from(*which) % methods.len()];
        let client = &clients[usize::from(*who) % clients.len()];
        let answer = tokio::task::block_in_place(|| {
            let call = tokio::time::timeout(Duration::from_secs(10), send(client, method, &input[2..]));
            tokio::runtime::Handle::current().block_on(call)
        });
        let answer = answer.unwrap_or_else(|_| panic!("{method} gives no answer"));
        if let Err(status) = answer {
            assert_ne!(status.message(), "internal error", "{method} panicked");
            assert_ne!(status.code(), Code::Unavailable, "{method}: {status:?}");
        }
    });

    let count = server.local().agent().count_agents(agent::CountAgentsRequest::default()).await.unwrap();
    assert!(count.into_inner().count <= 1);
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_message_is_an_internal_error_on_streams_too() {
    let place = Place::new();
    let server = place.start().await;
    let caller = server.agent("damaged").await;
    let agent = server.remote(caller.own);

    for (clients, method) in [
        (&server.local(), "/spire.api.server.agent.v1.Agent/GetAgent"),
        (&server.anonymous(), "/spire.api.server.agent.v1.Agent/AttestAgent"),
        (&agent, "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries"),
    ] {
        let refused = send(clients, method, b"\xff").await.unwrap_err();
        assert_eq!(refused.code(), Code::Internal, "{method}: {refused:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r11_a_page_is_as_long_as_its_rows_however_long_it_may_be() {
    let place = Place::new();
    let server = place.start().await;
    let _agent = server.agent("listed").await;
    let local = server.local();

    for page_size in [i32::MAX, 0] {
        let entries = entry::ListEntriesRequest { page_size, ..Default::default() };
        assert!(local.entry().list_entries(entries).await.unwrap().into_inner().entries.is_empty());
        let agents = agent::ListAgentsRequest { page_size, ..Default::default() };
        assert_eq!(local.agent().list_agents(agents).await.unwrap().into_inner().agents.len(), 1);
        let bundles = bundle::ListFederatedBundlesRequest { page_size, ..Default::default() };
        let bundles = local.bundle().list_federated_bundles(bundles).await.unwrap();
        assert!(bundles.into_inner().bundles.is_empty());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j04_tokens_are_random_and_live_for_a_time() {
    let place = Place::new();
    let server = place.start().await;
    let local = server.local();
    let create = |ttl| {
        let request = agent::CreateJoinTokenRequest { ttl, token: String::new(), agent_id: None };
        let local = &local;
        async move { local.agent().create_join_token(request).await }
    };

    let made = join_all((0..64).map(|_| create(600))).await;
    let mut tokens: Vec<_> = made.into_iter().map(|token| token.unwrap().into_inner().value).collect();

    for token in &tokens {
        let id = uuid::Uuid::parse_str(token).unwrap();
        assert_eq!(id.get_version_num(), 4);
    }
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 64);
    for ttl in [0, -1] {
        expect_status(create(ttl).await, Code::InvalidArgument, "ttl is required, you must provide one");
    }
    server.stop().await;
}

#[tokio::test]
async fn g04_refusals_of_a_remote_caller_name_nothing_of_the_inside() {
    let place = Place::new();
    let server = place.start().await;
    let anonymous = server.anonymous();
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();

    let mut said = Vec::new();
    for token in ["none", "' or 1=1 --", "\u{1f511}", "a\0b", "../../../etc/passwd", "%s%n"] {
        let refused = attest(&anonymous, token, &csr(&key)).await.unwrap_err();
        said.push((token, refused));
    }

    let inside = place.path("").display().to_string();
    for (token, refused) in said {
        assert_eq!(refused.code(), Code::InvalidArgument, "{token:?}");
        for word in [inside.as_str(), ".rs:", "sqlite", "SELECT", "panicked", "127.0.0.1"] {
            assert!(
                !refused.message().to_lowercase().contains(&word.to_lowercase()),
                "{token:?}: {refused:?}"
            );
        }
    }
    server.stop().await;
}
