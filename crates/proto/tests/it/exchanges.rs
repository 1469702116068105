//! Recorded messages decode, mean what the recording says, and encode to the same bytes again.

use std::fs;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use proto::convert::status;
use proto::spire::types::PermissionDeniedDetails;
use serde_json::Value;

struct Recorded {
    method: String,
    descriptor: MessageDescriptor,
    bytes: Vec<u8>,
    decoded: Option<Value>,
}

#[test]
fn every_message_means_what_the_recording_says() {
    let messages = recorded();
    // protobuf JSON with the names of the .proto files, as the recording has it
    let options = SerializeOptions::new().use_proto_field_name(true);

    let mut compared = 0;
    for message in &messages {
        let read =
            DynamicMessage::decode(message.descriptor.clone(), message.bytes.as_slice()).expect("decodes");
        assert_eq!(read.unknown_fields().count(), 0, "{}: unknown fields", message.method);
        let Some(expected) = &message.decoded else { continue };
        let json = read.serialize_with_options(serde_json::value::Serializer, &options).expect("serializes");
        assert_eq!(&json, expected, "{}", message.method);
        compared += 1;
    }

    assert_eq!((messages.len(), compared), (77, 45));
}

#[test]
fn every_message_encodes_to_the_recorded_bytes() {
    for message in recorded() {
        // The order of a map's entries is the sender's whim: compare by length and meaning.
        let again = reencoded(&message);
        assert_eq!(again.len(), message.bytes.len(), "{}: length", message.method);
        if again != message.bytes {
            let read =
                |bytes: &[u8]| DynamicMessage::decode(message.descriptor.clone(), bytes).expect("decodes");
            assert_eq!(read(&again), read(&message.bytes), "{}: meaning", message.method);
            assert!(has_map(&message.descriptor), "{}: differs without a map", message.method);
        }
    }
}

#[test]
fn refusals_carry_their_reason() {
    let file = json("denials.json");
    let denials = file["denials"].as_object().expect("denials");

    let mut with_reason = 0;
    for (reason, call) in denials {
        let Some(details) = call["status"]["grpc_status_details_bin"].as_str() else { continue };
        let details = BASE64_STANDARD.decode(details).expect("base64");
        let message = call["status"]["message"].as_str().expect("a message");
        let got = tonic::Status::with_details(tonic::Code::PermissionDenied, message, details.clone().into());
        let read: PermissionDeniedDetails = status::detail(&got).expect("a detail");
        assert_eq!(read.reason().as_str_name(), reason);
        let sent = status::with_detail(tonic::Code::PermissionDenied, message, &read);
        assert_eq!(sent.details(), details);
        with_reason += 1;
    }

    assert_eq!(with_reason, 5);
}

/// Through the generated types where a recording has them, so that those are tested too.
fn reencoded(message: &Recorded) -> Vec<u8> {
    macro_rules! through {
        ($($name:literal => $ty:ty),+ $(,)?) => {
            match message.descriptor.full_name() {
                $($name => <$ty>::decode(message.bytes.as_slice()).expect("decodes").encode_to_vec(),)+
                other => panic!("no generated type named for {other}"),
            }
        };
    }
    use proto::spire::server::{agent, bundle, entry, svid};
    use proto::{sds, spire, workload};
    through! {
        "spire.api.server.agent.v1.AttestAgentRequest" => agent::AttestAgentRequest,
        "spire.api.server.agent.v1.AttestAgentResponse" => agent::AttestAgentResponse,
        "spire.api.server.agent.v1.PostStatusRequest" => agent::PostStatusRequest,
        "spire.api.server.agent.v1.PostStatusResponse" => agent::PostStatusResponse,
        "spire.api.server.agent.v1.RenewAgentRequest" => agent::RenewAgentRequest,
        "spire.api.server.bundle.v1.GetBundleRequest" => bundle::GetBundleRequest,
        "spire.api.server.bundle.v1.GetFederatedBundleRequest" => bundle::GetFederatedBundleRequest,
        "spire.api.server.entry.v1.ListEntriesRequest" => entry::ListEntriesRequest,
        "spire.api.server.entry.v1.SyncAuthorizedEntriesRequest" => entry::SyncAuthorizedEntriesRequest,
        "spire.api.server.entry.v1.SyncAuthorizedEntriesResponse" => entry::SyncAuthorizedEntriesResponse,
        "spire.api.server.svid.v1.BatchNewX509SVIDRequest" => svid::BatchNewX509svidRequest,
        "spire.api.server.svid.v1.BatchNewX509SVIDResponse" => svid::BatchNewX509svidResponse,
        "spire.api.server.svid.v1.NewJWTSVIDRequest" => svid::NewJwtsvidRequest,
        "spire.api.server.svid.v1.NewJWTSVIDResponse" => svid::NewJwtsvidResponse,
        "spire.api.types.Bundle" => spire::types::Bundle,
        "X509SVIDRequest" => workload::X509svidRequest,
        "X509SVIDResponse" => workload::X509svidResponse,
        "X509BundlesRequest" => workload::X509BundlesRequest,
        "X509BundlesResponse" => workload::X509BundlesResponse,
        "JWTSVIDRequest" => workload::JwtsvidRequest,
        "JWTSVIDResponse" => workload::JwtsvidResponse,
        "JWTBundlesRequest" => workload::JwtBundlesRequest,
        "JWTBundlesResponse" => workload::JwtBundlesResponse,
        "ValidateJWTSVIDRequest" => workload::ValidateJwtsvidRequest,
        "ValidateJWTSVIDResponse" => workload::ValidateJwtsvidResponse,
        "envoy.service.discovery.v3.DiscoveryRequest" => sds::discovery::DiscoveryRequest,
        "envoy.service.discovery.v3.DiscoveryResponse" => sds::discovery::DiscoveryResponse,
    }
}

fn has_map(message: &MessageDescriptor) -> bool {
    message.fields().any(|field| field.is_map() || field.kind().as_message().is_some_and(has_map_below))
}

/// One level is enough: `Struct` is the only message with a map that another one holds.
fn has_map_below(message: &MessageDescriptor) -> bool {
    message.fields().any(|field| field.is_map())
}

fn recorded() -> Vec<Recorded> {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    let mut messages = Vec::new();
    for file in [
        "agent-join_token.json",
        "attest-x509pop-ec.json",
        "attest-x509pop-rsa.json",
        "denials.json",
        "sync-503-entries.json",
        "workload.json",
    ] {
        let file = json(file);
        let calls = file["calls"].as_array().into_iter().flatten();
        let denials = file["denials"].as_object().into_iter().flat_map(|denials| denials.values());
        for call in calls.chain(denials) {
            read_call(&pool, call, &mut messages);
        }
    }
    messages
}

fn read_call(pool: &DescriptorPool, call: &Value, messages: &mut Vec<Recorded>) {
    let path = call["method"].as_str().expect("a method");
    let (service, method) = path[1..].split_once('/').expect("a path");
    let service = pool.get_service_by_name(service).expect("a known service");
    let method = service.methods().find(|known| known.name() == method).expect("a known method");
    for message in call["messages"].as_array().expect("messages") {
        let (text, descriptor) = match message["request"].as_str() {
            Some(request) => (request, method.input()),
            None => (message["response"].as_str().expect("a response"), method.output()),
        };
        messages.push(Recorded {
            method: path.to_owned(),
            descriptor,
            bytes: BASE64_STANDARD.decode(text).expect("base64"),
            decoded: message.get("decoded").cloned(),
        });
    }
}

fn json(name: &str) -> Value {
    let path = crate::conformance("wire-exchanges").join(name);
    serde_json::from_str(&fs::read_to_string(path).expect("a recording")).expect("JSON")
}
