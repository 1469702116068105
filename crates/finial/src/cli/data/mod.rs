//! JSON that operators hand in, read as leniently as SPIRE's commands read it: member names in any
//! case, `null` for nothing, the last of several of one name. A list is never taken for an object.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Which members a document has.
pub(crate) struct Shape {
    /// All names, in any object of it.
    pub(crate) names: &'static [&'static str],
    /// Those that hold lists of objects, and what is said of `null` in one.
    pub(crate) lists: &'static [(&'static str, &'static str)],
    /// Those that hold objects.
    pub(crate) objects: &'static [&'static str],
}

/// Reads a document.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8], shape: &Shape) -> Result<T, String> {
    let value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let members = shape.object(value)?;
    serde_json::from_value(members).map_err(|error| error.to_string())
}

impl Shape {
    fn object(&self, value: Value) -> Result<Value, String> {
        let Value::Object(members) = value else {
            return Err("cannot read JSON: an object is expected".to_owned());
        };
        let mut known = Map::new();
        for (name, value) in members {
            let name = self.name(name);
            let value = if value.is_null() {
                continue;
            } else if let Some((_, missing)) = self.lists.iter().find(|(list, _)| *list == name) {
                self.list(value, missing)?
            } else if self.objects.contains(&name.as_str()) {
                self.object(value)?
            } else {
                value
            };
            known.insert(name, value);
        }
        Ok(Value::Object(known))
    }

    fn list(&self, value: Value, missing: &str) -> Result<Value, String> {
        let Value::Array(items) = value else {
            return Err("cannot read JSON: a list is expected".to_owned());
        };
        let read = |item: Value| if item.is_null() { Err(missing.to_owned()) } else { self.object(item) };
        Ok(Value::Array(items.into_iter().map(read).collect::<Result<_, _>>()?))
    }

    /// The name as it is known.
    fn name(&self, given: String) -> String {
        if self.names.contains(&given.as_str()) {
            return given;
        }
        let known = self.names.iter().find(|name| name.eq_ignore_ascii_case(&given));
        known.map_or(given, |name| (*name).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(default)]
    struct Document {
        entries: Vec<Item>,
    }

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(default)]
    struct Item {
        hint: String,
    }

    const SHAPE: Shape =
        Shape { names: &["entries", "hint"], lists: &[("entries", "missing entry")], objects: &[] };

    fn hints(text: &str) -> Result<Vec<String>, String> {
        let document: Document = read(text.as_bytes(), &SHAPE)?;
        Ok(document.entries.into_iter().map(|item| item.hint).collect())
    }

    #[test]
    fn names_may_have_any_case_and_null_is_nothing() {
        assert_eq!(hints(r#"{"Entries":[{"HINT":"a"},{"hint":null,"x":1}]}"#).unwrap(), ["a", ""]);
        assert!(hints(r#"{"entries":null}"#).unwrap().is_empty());
        assert_eq!(hints(r#"{"entries":[{"hint":"a","hint":"b"}]}"#).unwrap(), ["b"]);
    }

    #[test]
    fn a_list_is_no_object() {
        for text in ["[]", "null", "7", r#"{"entries":{}}"#, r#"{"entries":[["a"]]}"#, r#"{"entries":["a"]}"#]
        {
            assert!(hints(text).is_err(), "{text}");
        }
        assert_eq!(hints(r#"{"entries":[null]}"#).unwrap_err(), "missing entry");
    }
}
