//! Conversations, step by step.

use prost::Message;
use proto::sds::core::Node;
use proto::sds::discovery::DiscoveryResponse;

use super::*;
use crate::fixtures;

/// A stream whose nonces are counted.
struct Stream {
    config: SdsConfig,
    session: Session,
    nonces: u32,
}

impl Stream {
    fn new() -> Self {
        let config = fixtures::config().sds;
        Self { session: Session::new(&config), config, nonces: 0 }
    }

    /// A request that answers the response with this version and nonce.
    fn hear(&mut self, names: &[&str], version: &str, nonce: &str) -> Heard {
        let request = DiscoveryRequest {
            version_info: version.to_owned(),
            response_nonce: nonce.to_owned(),
            resource_names: names.iter().map(ToString::to_string).collect(),
            type_url: "a type".to_owned(),
            ..DiscoveryRequest::default()
        };
        self.session.hear(&self.config, request)
    }

    /// What is sent when this is what was asked for: version and nonce.
    fn respond(&mut self, content: &'static str) -> Option<(String, String)> {
        let resource = Resource { name: "n".to_owned(), content: Bytes::from_static(content.as_bytes()) };
        let nonce = format!("n{}", self.nonces + 1);
        let sent = self.session.respond(vec![resource], || nonce)?;
        self.nonces += 1;
        let sent = DiscoveryResponse::decode(sent.to_bytes()).unwrap();
        assert_eq!((sent.resources.len(), sent.type_url.as_str()), (1, "a type"));
        Some((sent.version_info, sent.nonce))
    }
}

fn sent(version: &str, nonce: &str) -> Option<(String, String)> {
    Some((version.to_owned(), nonce.to_owned()))
}

/// The field of a secret's certificate, empty.
const A: &str = "\x12\x00";
/// The field of a secret's validation context, empty.
const B: &str = "\x22\x00";

#[test]
fn the_first_request_is_answered_and_its_acceptance_is_not() {
    let mut stream = Stream::new();
    assert!(stream.session.asked().is_none());

    assert_eq!(stream.hear(&["a"], "", ""), Heard::News);
    assert_eq!(stream.respond(A), sent("1", "n1"));
    assert_eq!(stream.hear(&["a"], "1", "n1"), Heard::Accepted);
    assert_eq!(stream.respond(A), None);
}

#[test]
fn an_update_is_sent_once_if_it_changes_what_was_asked_for() {
    let mut stream = Stream::new();
    stream.session.updated();
    stream.hear(&["a"], "", "");
    assert_eq!(stream.respond(A), sent("1", "n1"));

    stream.session.updated();
    assert_eq!(stream.respond(A), None);
    stream.session.updated();
    assert_eq!(stream.respond(B), sent("3", "n2"));
    assert_eq!(stream.respond(B), None);
    assert_eq!(stream.hear(&["a"], "3", "n2"), Heard::Accepted);
}

#[test]
fn another_set_of_names_is_answered_and_another_order_is_not() {
    let mut stream = Stream::new();
    stream.hear(&["a", "b"], "", "");
    stream.respond(A);

    assert_eq!(stream.hear(&["b", "a"], "1", "n1"), Heard::Accepted);
    assert_eq!(stream.respond(A), None);
    assert_eq!(stream.hear(&["a"], "1", "n1"), Heard::News);
    assert_eq!(stream.respond(B), sent("1", "n2"));
    // A name twice: the count is another, which SPIRE answers.
    assert_eq!(stream.hear(&["a", "a"], "1", "n2"), Heard::News);
    assert_eq!(stream.respond(B), sent("1", "n3"));
    assert_eq!(stream.hear(&["a", "b"], "1", "n3"), Heard::News);
    assert_eq!(stream.respond(B), sent("1", "n4"));
}

#[test]
fn a_stale_request_changes_nothing() {
    let mut stream = Stream::new();
    stream.hear(&["a"], "", "");
    stream.respond(A);
    stream.session.updated();
    stream.respond(B);

    for nonce in ["n1", "", "other"] {
        assert_eq!(stream.hear(&["b"], "1", nonce), Heard::Stale);
    }

    assert_eq!(stream.respond(B), None);
    assert_eq!(stream.session.asked().unwrap().0, &Names::new(["a".to_owned()]));
}

#[test]
fn a_rejected_response_is_not_sent_again_until_there_is_another() {
    let mut stream = Stream::new();
    stream.hear(&["a"], "", "");
    stream.respond(A);

    assert_eq!(stream.hear(&["a"], "", "n1"), Heard::Rejected);
    assert_eq!(stream.respond(A), None);
    assert_eq!(stream.hear(&["a"], "0", "n1"), Heard::Rejected);
    stream.session.updated();
    assert_eq!(stream.respond(B), sent("2", "n2"));
    assert_eq!(stream.hear(&["b"], "1", "n2"), Heard::RejectedWithNews);
    assert_eq!(stream.respond(A), sent("2", "n3"));
}

#[test]
fn the_node_is_remembered() {
    let mut stream = Stream::new();
    let fields = [(
        "disable_spiffe_cert_validation".to_owned(),
        prost_types::Value { kind: Some(prost_types::value::Kind::BoolValue(true)) },
    )];
    let metadata = Some(prost_types::Struct { fields: fields.into_iter().collect() });
    let node = Some(Node { metadata, ..Node::default() });
    let request = DiscoveryRequest { node, type_url: "a type".to_owned(), ..DiscoveryRequest::default() };
    stream.session.hear(&stream.config, request);
    stream.respond(A);

    stream.hear(&["b"], "1", "n1");

    assert_eq!(stream.session.asked().unwrap().1, Validation::Plain);
}

/// Whole conversations: one request per piece of the input, each with its length before it.
#[test]
fn fuzz_sds_conversations() {
    use crate::api::sds::select::{Selected, select, tests as stage};

    let framed = |requests: &[DiscoveryRequest]| -> Vec<u8> {
        requests.iter().flat_map(|request| request.encode_length_delimited_to_vec()).collect()
    };
    let asks = |names: &[&str], version: &str, nonce: &str| DiscoveryRequest {
        version_info: version.to_owned(),
        response_nonce: nonce.to_owned(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        type_url: "a type".to_owned(),
        node: Some(Node { user_agent_name: "envoy".to_owned(), ..Node::default() }),
        ..DiscoveryRequest::default()
    };
    let corpus = [
        framed(&[asks(&["default"], "", ""), asks(&["default", "ROOTCA"], "1", "n1"), asks(&[], "0", "n2")]),
        framed(&[
            asks(&["ALL"], "", ""),
            asks(&["spiffe://other.test"], "1", "stale"),
            asks(&["x"], "1", "n1"),
        ]),
        framed(&[asks(&[], "", ""), asks(&["spiffe://example.org/db"], "1", "n1")]),
    ];
    let pieces: [&[u8]; 5] = [b"default", b"ROOTCA", b"ALL", b"spiffe://example.org/web", b"n1"];
    let config = fixtures::config().sds;
    let updates = [
        stage::update(stage::world(), &["1", "2"]),
        stage::update(stage::world(), &["2"]),
        stage::update(Vec::new(), &[]),
    ];
    let answered = std::cell::Cell::new(0_u32);

    testkit::fuzz::drive("sds-conversations", &corpus, &pieces, 6_000, |mut bytes| {
        let (mut session, mut nonces) = (Session::new(&config), 0_u32);
        let mut turn = 0;
        while let Ok(request) = DiscoveryRequest::decode_length_delimited(&mut bytes) {
            turn += 1;
            let (was_sent, nonce) = (session.expected().is_some(), request.response_nonce.clone());
            let is_stale = session.expected().is_some_and(|(expected, _)| expected != nonce);
            assert_eq!(session.hear(&config, request) == Heard::Stale, was_sent && is_stale);
            let update = &updates[turn % updates.len()];
            let Some((names, how)) = session.asked() else { continue };
            let Ok(Selected::Ready(resources)) = select(update, &config, names, how) else { continue };
            let found = resources.len();
            let next = format!("n{}", nonces + 1);
            if let Some(sent) = session.respond(resources, || next.clone()) {
                nonces += 1;
                let sent = DiscoveryResponse::decode(sent.to_bytes()).unwrap();
                assert_eq!((sent.resources.len(), sent.nonce), (found, next));
                answered.set(answered.get() + 1);
            }
            session.updated();
        }
    });

    assert!(answered.get() > 0);
}
