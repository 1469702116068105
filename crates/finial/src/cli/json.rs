//! JSON as SPIRE's commands print it: proto field names, unset fields shown, absent messages left out,
//! keys sorted, compact, one line, with the characters escaped that Go's encoder escapes.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use anyhow::{Context as _, Result};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

static POOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).ok());

/// The message of protobuf type `name` as a JSON tree without nulls.
pub(crate) fn tree(name: &str, message: &impl Message) -> Result<Value> {
    let pool = POOL.as_ref().context("the built-in descriptors cannot be read")?;
    let descriptor = pool.get_message_by_name(name).with_context(|| format!("no message {name}"))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .with_context(|| format!("cannot read {name}"))?;
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
    let mut value = dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .with_context(|| format!("cannot write {name} as JSON"))?;
    drop_nulls(&mut value);
    Ok(value)
}

/// One line of JSON with sorted keys.
pub(crate) fn line(value: &Value) -> String {
    let mut text = String::new();
    write_value(value, &mut text);
    text.push('\n');
    text
}

/// Text as a JSON string with Go's escapes.
pub(crate) fn quoted(text: &str) -> String {
    let plain = Value::String(text.to_owned()).to_string();
    let mut escaped = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn write_value(value: &Value, text: &mut String) {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<&String, &Value> = members.iter().collect();
            text.push('{');
            for (index, (key, member)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&quoted(key));
                text.push(':');
                write_value(member, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_value(item, text);
            }
            text.push(']');
        }
        Value::String(string) => text.push_str(&quoted(string)),
        Value::Number(number) => text.push_str(&number_text(number)),
        Value::Null | Value::Bool(_) => text.push_str(&value.to_string()),
    }
}

/// A number as Go's encoder writes it: a whole float without a fraction.
fn number_text(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e21 => format!("{float:.0}"),
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_floats_have_no_fraction() {
        let value = serde_json::json!([1795783629.0, 1.5, -2.0, 7, 1e21]);

        assert_eq!(line(&value), "[1795783629,1.5,-2,7,1e+21]\n");
    }

    #[test]
    fn keys_are_sorted_and_html_is_escaped() {
        let value = serde_json::json!({"b": "<&>", "a": [1, {"d": true, "c": "é\n"}]});

        assert_eq!(line(&value), "{\"a\":[1,{\"c\":\"é\\n\",\"d\":true}],\"b\":\"\\u003c\\u0026\\u003e\"}\n");
    }

    #[test]
    fn unset_fields_are_shown_and_absent_messages_are_not() {
        let entry = proto::spire::types::Entry { id: "x".to_owned(), ..Default::default() };

        let tree = tree("spire.api.types.Entry", &entry).unwrap();

        assert_eq!(tree["expires_at"], "0");
        assert_eq!(tree["x509_svid_ttl"], 0);
        assert!(tree.get("spiffe_id").is_none());
    }
}
