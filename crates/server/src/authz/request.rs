//! Requests as a policy sees them: as Go writes SPIRE's messages in JSON. Names are those of the protocol,
//! what is empty is left out, enumerations are numbers, bytes are in base64. A choice of several is an
//! object under Go's name for it, `null` where nothing is chosen.

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use serde_json::{Map, Number, Value};

/// The requests of all methods without streams.
pub(super) struct Requests {
    /// The message that each takes.
    methods: HashMap<String, String>,
    messages: HashMap<String, Message>,
}

#[derive(Default)]
struct Message {
    fields: HashMap<u32, Field>,
    /// Go's names of the choices.
    choices: Vec<String>,
}

struct Field {
    name: String,
    kind: Type,
    message: String,
    is_repeated: bool,
    /// Which choice it is of, and Go's name for it there.
    choice: Option<(String, String)>,
    /// Whether it is shown when it is zero.
    is_explicit: bool,
}

/// What of a field has come so far.
enum Found {
    One(Value),
    Many(Vec<Value>),
    /// A message, which may come in pieces.
    Pieces(Vec<u8>),
}

impl Requests {
    /// Those of the APIs.
    pub(super) fn new() -> Self {
        let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
        let mut requests = Self { methods: HashMap::new(), messages: HashMap::new() };
        for file in &set.file {
            for message in &file.message_type {
                requests.add(file.package(), message);
            }
            for service in &file.service {
                for method in &service.method {
                    if method.client_streaming() || method.server_streaming() {
                        continue;
                    }
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    requests.methods.insert(path, local(method.input_type()));
                }
            }
        }
        requests
    }

    /// Whether this is a method without streams.
    pub(super) fn is_known(&self, method: &str) -> bool {
        self.methods.contains_key(method)
    }

    /// The request of this method.
    ///
    /// # Errors
    /// The bytes are no such request.
    pub(super) fn shown(&self, method: &str, bytes: &[u8]) -> Result<Value, String> {
        let Some(message) = self.methods.get(method) else { return Ok(Value::Null) };
        self.object(message, bytes, DEEPEST)
    }

    fn add(&mut self, scope: &str, described: &DescriptorProto) {
        let name = format!("{scope}.{}", described.name());
        let mut message = Message::default();
        for field in &described.field {
            let choice = field.oneof_index.and_then(|index| usize::try_from(index).ok());
            let choice = choice.filter(|_| !field.proto3_optional());
            let choice = choice.and_then(|index| described.oneof_decl.get(index));
            let choice = choice.map(|choice| (in_go(choice.name()), in_go(field.name())));
            if let Some((choice, _)) = &choice
                && !message.choices.contains(choice)
            {
                message.choices.push(choice.clone());
            }
            let Ok(number) = u32::try_from(field.number()) else { continue };
            message.fields.insert(number, Field::new(field, choice));
        }
        self.messages.insert(name.clone(), message);
        for nested in &described.nested_type {
            self.add(&name, nested);
        }
    }

    fn object(&self, message: &str, mut bytes: &[u8], depth: u8) -> Result<Value, String> {
        let depth = depth.checked_sub(1).ok_or("messages are nested too deep")?;
        let Some(message) = self.messages.get(message) else { return Ok(Value::Null) };
        let mut found: HashMap<u32, Found> = HashMap::new();
        let mut chosen: HashMap<&str, u32> = HashMap::new();
        while !bytes.is_empty() {
            let (number, wire) = decode_key(&mut bytes).map_err(|error| error.to_string())?;
            let payload = Payload::read(&mut bytes, wire)?;
            let Some(field) = message.fields.get(&number) else { continue };
            if let Some((choice, _)) = &field.choice
                && let Some(before) = chosen.insert(choice, number)
                && before != number
            {
                found.remove(&before);
            }
            self.take(field, payload, found.entry(number), depth)?;
        }
        let mut object = Map::new();
        for choice in &message.choices {
            object.insert(choice.clone(), Value::Null);
        }
        for (number, found) in found {
            let Some(field) = message.fields.get(&number) else { continue };
            let value = match found {
                Found::One(value) => value,
                Found::Many(values) => Value::Array(values),
                Found::Pieces(bytes) => self.object(&field.message, &bytes, depth)?,
            };
            if let Some((choice, name)) = &field.choice {
                object.insert(choice.clone(), Value::Object(Map::from_iter([(name.clone(), value)])));
            } else if field.is_explicit || !is_zero(&value) {
                object.insert(field.name.clone(), value);
            }
        }
        Ok(Value::Object(object))
    }

    fn take(
        &self,
        field: &Field,
        payload: Payload<'_>,
        entry: std::collections::hash_map::Entry<'_, u32, Found>,
        depth: u8,
    ) -> Result<(), String> {
        match (payload, field.kind) {
            (Payload::Bytes(bytes), Type::Message) if field.is_repeated => {
                let value = self.object(&field.message, bytes, depth)?;
                if let Found::Many(values) = entry.or_insert_with(|| Found::Many(Vec::new())) {
                    values.push(value);
                }
            }
            (Payload::Bytes(bytes), Type::Message) => {
                if let Found::Pieces(pieces) = entry.or_insert_with(|| Found::Pieces(Vec::new())) {
                    pieces.extend_from_slice(bytes);
                }
            }
            (Payload::Bytes(mut bytes), kind) if field.is_repeated && wire_of(kind).is_some() => {
                let Some(wire) = wire_of(kind) else { return Ok(()) };
                if let Found::Many(values) = entry.or_insert_with(|| Found::Many(Vec::new())) {
                    while !bytes.is_empty() {
                        values.extend(Payload::read(&mut bytes, wire)?.value(kind)?);
                    }
                }
            }
            (payload, kind) => {
                // A field of another wire type is one that is not known.
                let Some(value) = payload.value(kind)? else { return Ok(()) };
                if field.is_repeated {
                    if let Found::Many(values) = entry.or_insert_with(|| Found::Many(Vec::new())) {
                        values.push(value);
                    }
                } else {
                    entry.insert_entry(Found::One(value));
                }
            }
        }
        Ok(())
    }
}

impl Field {
    fn new(field: &FieldDescriptorProto, choice: Option<(String, String)>) -> Self {
        Self {
            name: field.name().to_owned(),
            kind: field.r#type(),
            message: local(field.type_name()),
            is_repeated: field.label() == Label::Repeated,
            choice,
            is_explicit: field.proto3_optional() || field.r#type() == Type::Message,
        }
    }
}

/// What stands behind a key.
enum Payload<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
}

impl<'a> Payload<'a> {
    fn read(bytes: &mut &'a [u8], wire: WireType) -> Result<Self, String> {
        const CUT: &str = "unexpected EOF";
        match wire {
            WireType::Varint => Ok(Self::Varint(decode_varint(bytes).map_err(|error| error.to_string())?)),
            WireType::ThirtyTwoBit => {
                let (value, rest) = bytes.split_first_chunk().ok_or(CUT)?;
                *bytes = rest;
                Ok(Self::Fixed32(*value))
            }
            WireType::SixtyFourBit => {
                let (value, rest) = bytes.split_first_chunk().ok_or(CUT)?;
                *bytes = rest;
                Ok(Self::Fixed64(*value))
            }
            WireType::LengthDelimited => {
                let length = decode_varint(bytes).map_err(|error| error.to_string())?;
                let length = usize::try_from(length).map_err(|_| CUT)?;
                let (value, rest) = bytes.split_at_checked(length).ok_or(CUT)?;
                *bytes = rest;
                Ok(Self::Bytes(value))
            }
            WireType::StartGroup | WireType::EndGroup => Err("groups are not known".to_owned()),
        }
    }

    /// As a value of this kind; none if it cannot be one.
    #[expect(clippy::cast_possible_truncation, reason = "numbers are cut to the width of their type")]
    #[expect(clippy::cast_possible_wrap, reason = "negative numbers come as the two's complement")]
    fn value(&self, kind: Type) -> Result<Option<Value>, String> {
        Ok(Some(match (self, kind) {
            (Self::Varint(number), Type::Bool) => Value::Bool(*number != 0),
            (Self::Varint(number), Type::Int32 | Type::Enum) => Value::from(*number as i32),
            (Self::Varint(number), Type::Int64) => Value::from(*number as i64),
            (Self::Varint(number), Type::Uint32) => Value::from(*number as u32),
            (Self::Varint(number), Type::Uint64) => Value::from(*number),
            (Self::Varint(number), Type::Sint32 | Type::Sint64) => {
                Value::from((number >> 1) as i64 ^ -((number & 1) as i64))
            }
            (Self::Fixed32(bytes), Type::Fixed32) => Value::from(u32::from_le_bytes(*bytes)),
            (Self::Fixed32(bytes), Type::Sfixed32) => Value::from(i32::from_le_bytes(*bytes)),
            (Self::Fixed32(bytes), Type::Float) => float(f32::from_le_bytes(*bytes).into()),
            (Self::Fixed64(bytes), Type::Fixed64) => Value::from(u64::from_le_bytes(*bytes)),
            (Self::Fixed64(bytes), Type::Sfixed64) => Value::from(i64::from_le_bytes(*bytes)),
            (Self::Fixed64(bytes), Type::Double) => float(f64::from_le_bytes(*bytes)),
            (Self::Bytes(bytes), Type::String) => {
                let text = std::str::from_utf8(bytes).map_err(|_| "string field contains invalid UTF-8")?;
                Value::from(text)
            }
            (Self::Bytes(bytes), Type::Bytes) => Value::from(BASE64_STANDARD.encode(bytes)),
            _ => return Ok(None),
        }))
    }
}

fn float(number: f64) -> Value {
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

/// How numbers of this kind come when several come in one piece.
const fn wire_of(kind: Type) -> Option<WireType> {
    match kind {
        Type::Double | Type::Fixed64 | Type::Sfixed64 => Some(WireType::SixtyFourBit),
        Type::Float | Type::Fixed32 | Type::Sfixed32 => Some(WireType::ThirtyTwoBit),
        Type::String | Type::Bytes | Type::Message | Type::Group => None,
        Type::Int64
        | Type::Uint64
        | Type::Int32
        | Type::Uint32
        | Type::Sint32
        | Type::Sint64
        | Type::Bool
        | Type::Enum => Some(WireType::Varint),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Object(_) => false,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
    }
}

/// The name of a message without the dot before it.
fn local(name: &str) -> String {
    name.trim_start_matches('.').to_owned()
}

/// A name of the protocol as Go's generated code has it.
fn in_go(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let mut letters = word.chars();
            letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
        })
        .collect()
}

/// Far deeper than any request.
const DEEPEST: u8 = 32;

#[cfg(test)]
mod tests {
    use proto::spire::server::agent::{ListAgentsRequest, list_agents_request};
    use proto::spire::server::entry::{BatchCreateEntryRequest, ListEntriesRequest};
    use proto::spire::server::trustdomain::BatchCreateFederationRelationshipRequest;
    use proto::spire::types;
    use serde_json::json;

    use super::*;

    fn shown(method: &str, message: &impl prost::Message) -> Value {
        Requests::new().shown(&format!("/spire.api.server.{method}"), &message.encode_to_vec()).unwrap()
    }

    #[test]
    fn requests_are_shown_as_go_writes_them() {
        let entry = types::Entry {
            spiffe_id: Some(types::Spiffeid { trust_domain: "example.org".into(), path: "/a".into() }),
            selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1".into() }],
            federates_with: vec!["b.test".into()],
            x509_svid_ttl: -5,
            expires_at: 7,
            admin: true,
            ..types::Entry::default()
        };
        let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };

        assert_eq!(
            shown("entry.v1.Entry/BatchCreateEntry", &request),
            json!({"entries": [{
                "spiffe_id": {"trust_domain": "example.org", "path": "/a"},
                "selectors": [{"type": "unix", "value": "uid:1"}],
                "federates_with": ["b.test"], "x509_svid_ttl": -5, "expires_at": 7, "admin": true,
            }]})
        );
        assert_eq!(shown("entry.v1.Entry/ListEntries", &ListEntriesRequest::default()), json!({}));
    }

    #[test]
    fn what_is_wrapped_or_chosen_is_told_from_what_is_not_there() {
        let filter =
            list_agents_request::Filter { by_banned: Some(false), ..list_agents_request::Filter::default() };
        let request =
            ListAgentsRequest { filter: Some(filter), page_size: 3, ..ListAgentsRequest::default() };
        assert_eq!(
            shown("agent.v1.Agent/ListAgents", &request),
            json!({"filter": {"by_banned": {}}, "page_size": 3})
        );

        let relationship =
            types::FederationRelationship { trust_domain: "a.test".into(), ..Default::default() };
        let mut request = BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![relationship],
            output_mask: None,
        };
        let method = "trustdomain.v1.TrustDomain/BatchCreateFederationRelationship";
        let none = json!({"federation_relationships":
            [{"trust_domain": "a.test", "BundleEndpointProfile": null}]});
        assert_eq!(shown(method, &request), none);
        request.federation_relationships[0].bundle_endpoint_profile =
            Some(types::federation_relationship::BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}));
        let web = json!({"federation_relationships":
            [{"trust_domain": "a.test", "BundleEndpointProfile": {"HttpsWeb": {}}}]});
        assert_eq!(shown(method, &request), web);
    }

    #[test]
    fn broken_requests_and_streams_are_not_shown() {
        let requests = Requests::new();
        let method = "/spire.api.server.entry.v1.Entry/GetEntry";

        for broken in [&[10, 5, b'a'][..], &[10, 1, 0xff], &[0xff], &[11]] {
            requests.shown(method, broken).unwrap_err();
        }
        assert!(requests.is_known(method));
        assert!(!requests.is_known("/spire.api.server.agent.v1.Agent/AttestAgent"));
    }
}
