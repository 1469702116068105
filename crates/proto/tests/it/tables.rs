//! Every service, method, message, field, enum and value has the name, number and type it must have.

use std::collections::BTreeMap;
use std::fs;

use prost_reflect::{Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

/// How many rows the tables have, so that a table cannot get lost.
const ROWS: usize = 1333;

/// What stands left and right in a row: what it is about, and what holds for it.
type Facts = BTreeMap<String, String>;

#[test]
fn every_row_of_the_tables_holds() {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    let have = described(&pool);
    let want = tabled();

    let differ: Vec<String> = want
        .iter()
        .filter(|(key, fact)| have.get(*key) != Some(*fact))
        .map(|(key, fact)| format!("{key}: must be {fact:?}, is {:?}", have.get(key)))
        .collect();

    assert_eq!(differ, Vec::<String>::new());
    assert_eq!(want.len(), ROWS);
}

#[test]
fn tabled_packages_hold_nothing_else() {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    let want = tabled();

    let extra: Vec<String> = described(&pool)
        .into_keys()
        .filter(|key| !["google.", "envoy.", "grpc."].iter().any(|package| key.contains(package)))
        .filter(|key| !want.contains_key(key))
        .collect();

    assert_eq!(extra, Vec::<String>::new());
}

fn tabled() -> Facts {
    let mut facts = Facts::new();
    for file in fs::read_dir(crate::conformance("wire")).expect("the tables") {
        let path = file.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a table");
        for row in text.lines().filter(|row| !row.is_empty() && !row.starts_with('#')) {
            let columns: Vec<&str> = row.split('\t').collect();
            let keys = match columns[0] {
                "package" => continue,
                "service" | "method" | "message" | "enum" => 2,
                "field" | "value" => 3,
                other => panic!("{}: a row of kind {other}", path.display()),
            };
            let (key, fact) = columns.split_at(keys);
            let known = facts.insert(key.join(" "), fact.join(" "));
            assert_eq!(known, None, "{row} stands twice");
        }
    }
    facts
}

fn described(pool: &DescriptorPool) -> Facts {
    let mut facts = Facts::new();
    for service in pool.services() {
        facts.insert(format!("service {}", service.full_name()), "-".into());
        for method in service.methods() {
            let streams = match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => "unary",
                (true, false) => "client-stream",
                (false, true) => "server-stream",
                (true, true) => "bidi-stream",
            };
            facts.insert(
                format!("method /{}/{}", service.full_name(), method.name()),
                format!("{} {} {streams} -", method.input().full_name(), method.output().full_name()),
            );
        }
    }
    for message in pool.all_messages().filter(|message| !message.is_map_entry()) {
        facts.insert(format!("message {}", message.full_name()), "-".into());
        for field in message.fields() {
            facts.insert(format!("field {} {}", message.full_name(), field.name()), field_fact(&field));
        }
    }
    for enumeration in pool.all_enums() {
        describe_enum(&enumeration, &mut facts);
    }
    facts
}

fn field_fact(field: &FieldDescriptor) -> String {
    let message: MessageDescriptor = field.parent_message().clone();
    let presence = field.field_descriptor_proto().proto3_optional();
    let label = match field.cardinality() {
        _ if field.is_map() => "map",
        Cardinality::Repeated => "repeated",
        Cardinality::Required => "required",
        Cardinality::Optional if presence => "optional",
        Cardinality::Optional => "single",
    };
    let kind = match field.kind() {
        Kind::Message(entry) if field.is_map() => format!(
            "map<{},{}>",
            kind_name(&entry.map_entry_key_field().kind()),
            kind_name(&entry.map_entry_value_field().kind())
        ),
        kind => kind_name(&kind),
    };
    let oneof = message
        .oneofs()
        .filter(|oneof| !oneof.is_synthetic())
        .find(|oneof| oneof.fields().any(|member| member.number() == field.number()))
        .map_or_else(|| "-".to_owned(), |oneof| oneof.name().to_owned());
    let options = field.field_descriptor_proto().options.as_ref();
    let flag = if options.is_some_and(|options| options.deprecated()) { "deprecated" } else { "-" };
    format!("{} {kind} {label} {oneof} {flag}", field.number())
}

fn kind_name(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => format!("message:{}", message.full_name()),
        Kind::Enum(enumeration) => format!("enum:{}", enumeration.full_name()),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn describe_enum(enumeration: &EnumDescriptor, facts: &mut Facts) {
    facts.insert(format!("enum {}", enumeration.full_name()), "-".into());
    for value in enumeration.values() {
        facts.insert(
            format!("value {} {}", enumeration.full_name(), value.name()),
            format!("{} -", value.number()),
        );
    }
}
