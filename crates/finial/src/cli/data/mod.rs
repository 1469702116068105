//! JSON that operators hand in, read as leniently as SPIRE's commands read it: member names in any
//! case, `null` for nothing, the last of several of one name. What does not fit is told in the words of
//! Go's `encoding/json`.

mod syntax;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
pub(crate) use syntax::check;

/// What a value is to be.
pub(crate) enum Shape {
    /// A string.
    Text,
    /// `true` or `false`.
    Bool,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// Anything; it is handed on as a string that holds it as it is written.
    Raw,
    /// A list of strings.
    Texts,
    /// An object.
    Object(&'static Object),
    /// A list of objects, and what is said of `null` in it.
    Objects(&'static Object, &'static str),
}

/// Which members an object has. Others are passed over.
pub(crate) struct Object {
    /// The package and the name of Go's type, which messages name.
    pub(crate) go: (&'static str, &'static str),
    /// Names and values.
    pub(crate) members: &'static [(&'static str, Shape)],
}

/// Reads a document that is an object.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8], object: &'static Object) -> Result<T, String> {
    check(bytes)?;
    let text = String::from_utf8_lossy(bytes);
    let value = Place::default().object(text.trim(), object)?;
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// A string's text.
///
/// # Errors
/// Says what it is instead.
pub(crate) fn text(raw: &str) -> Result<String, String> {
    let value = Place::default().value(raw, &Shape::Text)?;
    Ok(value.as_str().unwrap_or_default().to_owned())
}

/// The struct and the members that lead to a value.
#[derive(Clone, Default)]
struct Place {
    within: &'static str,
    members: Vec<&'static str>,
}

impl Place {
    fn value(&self, raw: &str, shape: &Shape) -> Result<Value, String> {
        let first = raw.bytes().next().unwrap_or_default();
        // Nothing is nothing, whatever is expected.
        if first == b'n' && !matches!(shape, Shape::Raw) {
            return Ok(Value::Null);
        }
        match (shape, first) {
            (Shape::Raw, _) => Ok(raw.into()),
            (Shape::Text, b'"') => Ok(string(raw).into()),
            (Shape::Bool, b't' | b'f') => Ok((raw == "true").into()),
            (Shape::Int32, b'-' | b'0'..=b'9') => {
                raw.parse::<i32>().map(Value::from).map_err(|_| self.number(raw, "int32"))
            }
            (Shape::Int64, b'-' | b'0'..=b'9') => {
                raw.parse::<i64>().map(Value::from).map_err(|_| self.number(raw, "int64"))
            }
            (Shape::Texts, b'[') => self.list(raw, &Shape::Text, None),
            (Shape::Objects(object, missing), b'[') => self.list(raw, &Shape::Object(object), Some(missing)),
            (Shape::Object(object), b'{') => self.object(raw, object),
            _ => Err(self.misfit(kind(first), &go_type(shape))),
        }
    }

    fn object(&self, raw: &str, object: &'static Object) -> Result<Value, String> {
        let first = raw.bytes().next().unwrap_or_default();
        if first == b'n' {
            return Ok(Value::Object(Map::new()));
        }
        if first != b'{' {
            return Err(self.misfit(kind(first), &go_type(&Shape::Object(object))));
        }
        let mut known = Map::new();
        for (name, value) in members(raw) {
            let Some((name, shape)) = object.member(&name) else { continue };
            let mut place = Self { within: object.go.1, members: self.members.clone() };
            place.members.push(name);
            let value = place.value(value, shape)?;
            // By nothing, lists lose what they held; all else keeps it.
            if !value.is_null() {
                known.insert((*name).to_owned(), value);
            } else if matches!(shape, Shape::Texts | Shape::Objects(..) | Shape::Object(_)) {
                known.remove(*name);
            }
        }
        Ok(Value::Object(known))
    }

    fn list(&self, raw: &str, shape: &Shape, missing: Option<&str>) -> Result<Value, String> {
        let mut list = Vec::new();
        let mut without = None;
        for item in items(raw) {
            match (self.value(item, shape)?, missing) {
                (Value::Null, Some(missing)) => without = Some(missing),
                (Value::Null, None) => list.push(Value::from("")),
                (value, _) => list.push(value),
            }
        }
        // What is missing is noticed once everything has been read.
        match without {
            Some(missing) => Err(missing.to_owned()),
            None => Ok(list.into()),
        }
    }

    fn number(&self, raw: &str, go_type: &str) -> String {
        self.misfit(&format!("number {raw}"), go_type)
    }

    fn misfit(&self, what: &str, go_type: &str) -> String {
        match self.members.as_slice() {
            [] => format!("json: cannot unmarshal {what} into Go value of type {go_type}"),
            members => format!(
                "json: cannot unmarshal {what} into Go struct field {}.{} of type {go_type}",
                self.within,
                members.join(".")
            ),
        }
    }
}

impl Object {
    fn member(&self, name: &str) -> Option<(&&'static str, &'static Shape)> {
        let exact = self.members.iter().find(|(known, _)| *known == name);
        let found = exact.or_else(|| self.members.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)));
        found.map(|(name, shape)| (name, shape))
    }
}

fn kind(first: u8) -> &'static str {
    match first {
        b'{' => "object",
        b'[' => "array",
        b'"' => "string",
        b't' | b'f' => "bool",
        _ => "number",
    }
}

fn go_type(shape: &Shape) -> String {
    match shape {
        Shape::Text => "string".to_owned(),
        Shape::Bool => "bool".to_owned(),
        Shape::Int32 => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Raw => "json.RawMessage".to_owned(),
        Shape::Texts => "[]string".to_owned(),
        Shape::Object(Object { go: (package, name), .. }) => format!("{package}.{name}"),
        Shape::Objects(Object { go: (package, name), .. }, _) => format!("[]*{package}.{name}"),
    }
}

/// The members of an object, names as they are meant, values as they are written.
fn members(object: &str) -> impl Iterator<Item = (String, &str)> {
    items(object).into_iter().filter_map(|member| {
        let (name, value) = member.split_at_checked(string_end(member))?;
        let (_, value) = value.split_once(':')?;
        Some((string(name), value.trim()))
    })
}

/// What stands between the outer brackets, cut at its commas.
fn items(list: &str) -> Vec<&str> {
    let inner = list.get(1..list.len().saturating_sub(1)).unwrap_or_default();
    let (mut found, mut from, mut at, mut depth) = (Vec::new(), 0, 0, 0_usize);
    while let Some(byte) = inner.as_bytes().get(at) {
        match byte {
            b'"' => {
                at += string_end(inner.get(at..).unwrap_or_default());
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                found.push(inner.get(from..at).unwrap_or_default().trim());
                from = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    let last = inner.get(from..).unwrap_or_default().trim();
    if !last.is_empty() {
        found.push(last);
    }
    found
}

/// How long the string is that `text` begins with, its quotes included.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// What a string stands for; halves of surrogate pairs are replaced.
fn string(quoted: &str) -> String {
    let inner = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    let mut units = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(character) = rest.next() {
        let meant = match character {
            '\\' => match rest.next().unwrap_or_default() {
                'u' => {
                    let (digits, behind) = rest.as_str().split_at_checked(4).unwrap_or_default();
                    rest = behind.chars();
                    units.push(u16::from_str_radix(digits, 16).unwrap_or_default());
                    continue;
                }
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                other => other,
            },
            plain => plain,
        };
        units.extend_from_slice(meant.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16_lossy(&units)
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
        ttl: i32,
        names: Vec<String>,
        raw: Option<String>,
    }

    const ITEM: Object = Object {
        go: ("a", "Item"),
        members: &[
            ("hint", Shape::Text),
            ("ttl", Shape::Int32),
            ("names", Shape::Texts),
            ("raw", Shape::Raw),
        ],
    };
    const DOCUMENT: Object =
        Object { go: ("a", "Document"), members: &[("entries", Shape::Objects(&ITEM, "missing entry"))] };

    fn items_of(text: &str) -> Result<Vec<Item>, String> {
        read::<Document>(text.as_bytes(), &DOCUMENT).map(|document| document.entries)
    }

    fn hints(text: &str) -> Vec<String> {
        items_of(text).unwrap().into_iter().map(|item| item.hint).collect()
    }

    fn refused(text: &str, why: &str) {
        assert_eq!(items_of(text), Err(why.to_owned()), "{text}");
    }

    #[test]
    fn names_may_have_any_case_and_null_is_nothing() {
        assert_eq!(hints(r#"{"Entries":[{"HINT":"a"},{"hint":null,"x":[1,{"y":"]"}]}]}"#), ["a", ""]);
        assert!(hints(r#"{"entries":null}"#).is_empty());
        assert!(hints("null").is_empty());
        assert_eq!(hints(r#"{"entries":[{"hint":"a","hint":"b", "hint" : null}]}"#), ["b"]);
    }

    #[test]
    fn strings_are_what_their_escapes_say() {
        assert_eq!(
            hints(r#"{"entries":[{"h\u0069nt":"\"\\\/\n\u00e9\ud83d\ude00\ud800"}]}"#),
            ["\"\\/\n\u{e9}\u{1f600}\u{fffd}"]
        );
    }

    #[test]
    fn lists_and_parts_are_kept() {
        let items = items_of(r#"{"entries":[{"names":["a",null,"b,]"],"raw":{"x": [1] }}]}"#).unwrap();

        assert_eq!(items[0].names, ["a", "", "b,]"]);
        assert_eq!(items[0].raw.as_deref(), Some(r#"{"x": [1] }"#));
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_place() {
        refused("[]", "json: cannot unmarshal array into Go value of type a.Document");
        refused("7", "json: cannot unmarshal number into Go value of type a.Document");
        refused(r#"{"entries":[null]}"#, "missing entry");
        refused(
            r#"{"entries":{}}"#,
            "json: cannot unmarshal object into Go struct field Document.entries of type []*a.Item",
        );
        refused(
            r#"{"entries":["a"]}"#,
            "json: cannot unmarshal string into Go struct field Document.entries of type a.Item",
        );
        refused(
            r#"{"entries":[{"Hint":true}]}"#,
            "json: cannot unmarshal bool into Go struct field Item.entries.hint of type string",
        );
        refused(
            r#"{"entries":[{"ttl":1.5}]}"#,
            "json: cannot unmarshal number 1.5 into Go struct field Item.entries.ttl of type int32",
        );
        refused(
            r#"{"entries":[{"names":[1]}]}"#,
            "json: cannot unmarshal number into Go struct field Item.entries.names of type string",
        );
        refused(r#"{"entries":[{"ttl":1],}"#, "invalid character ']' after object key:value pair");
    }
}
