//! Holding an answer against a recorded one in which what the server chose is numbered.
//!
//! `<uuid:1>`, `<id:1>`, `<serial:1>`, `<page:1>`: the same number is the same value and different
//! numbers are different values, within one case. `<now+60>` is that many seconds after the call,
//! `<lately>` and `<past>` say themselves. Where the recording holds an object and the answer holds
//! bytes, those are a certificate or a token described by its fields.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use crate::describe;

/// Beyond this many seconds an instant depends on the CA, whose age varies.
const BOUNDED_BY_CA: i64 = 20_000;

/// When the call was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Unix seconds.
    pub(crate) now: i64,
    /// For how many seconds the server has been running.
    pub(crate) age: i64,
}

/// The numbered values seen so far in one case.
#[derive(Debug, Default)]
pub(crate) struct Numbered {
    values: BTreeMap<String, String>,
}

impl Numbered {
    /// Whether `actual` is what `expected` describes; otherwise where and how it differs.
    pub(crate) fn check(&mut self, expected: &Value, actual: &Value, at: Moment) -> Result<(), String> {
        self.value(expected, actual, at).map_err(|why| why.trim_start_matches('.').to_owned())
    }

    fn value(&mut self, expected: &Value, actual: &Value, at: Moment) -> Result<(), String> {
        match (expected, actual) {
            (Value::Object(expected), Value::Object(actual)) => self.object(expected, actual, at),
            (Value::Object(fields), Value::String(bytes)) if fields.contains_key("ext") => {
                let certificate = describe::certificate(bytes).ok_or(": no certificate")?;
                self.value(expected, &certificate, at)
            }
            (Value::Object(fields), Value::String(compact)) if fields.contains_key("claims") => {
                let token = describe::token(compact).ok_or(": no token")?;
                self.value(expected, &token, at)
            }
            (Value::Array(expected), Value::Array(actual)) => {
                for (index, (expected, actual)) in expected.iter().zip(actual).enumerate() {
                    self.value(expected, actual, at).map_err(|why| format!(".{index}{why}"))?;
                }
                if expected.len() == actual.len() {
                    Ok(())
                } else {
                    Err(format!(": {} elements instead of {}", actual.len(), expected.len()))
                }
            }
            (Value::String(text), Value::String(_) | Value::Number(_)) if text.contains('<') => {
                let value = actual.as_str().map_or_else(|| actual.to_string(), str::to_owned);
                self.text(text, &value, at).map_err(|why| format!(": {why}"))
            }
            (expected, actual) if expected == actual => Ok(()),
            (expected, actual) => Err(format!(": {} instead of {}", short(actual), short(expected))),
        }
    }

    fn object(
        &mut self,
        expected: &Map<String, Value>,
        actual: &Map<String, Value>,
        at: Moment,
    ) -> Result<(), String> {
        for (key, wanted) in expected {
            if key == "message_starts" {
                let start = wanted.as_str().unwrap_or_default();
                let message = actual.get("message").and_then(Value::as_str).unwrap_or_default();
                if !message.starts_with(start) {
                    return Err(format!(".message: {message:?} does not start with {start:?}"));
                }
                continue;
            }
            let Some(found) = actual.get(key) else {
                return Err(format!(".{key} is missing, should be {}", short(wanted)));
            };
            self.value(wanted, found, at).map_err(|why| format!(".{key}{why}"))?;
        }
        let is_known = |key: &str| {
            expected.contains_key(key) || (key == "message" && expected.contains_key("message_starts"))
        };
        let excess = actual.iter().find(|(key, _)| !is_known(key));
        excess.map_or(Ok(()), |(key, value)| Err(format!(".{key} is too many: {}", short(value))))
    }

    fn text(&mut self, expected: &str, actual: &str, at: Moment) -> Result<(), String> {
        let token = Regex::new(
            r"<(?:(uuid|id|serial|page):(\d+)|now([+-]\d+)|(lately|past|jti|serial)|key ([A-Za-z0-9 ]+))>",
        )
        .expect("the pattern is constant");
        let mut pattern = String::from(r"(?s)\A");
        let mut end = 0;
        for captures in token.captures_iter(expected) {
            let whole = captures.get(0).expect("group 0 always takes part");
            pattern.push_str(&regex::escape(&expected[end..whole.start()]));
            end = whole.end();
            let kind = captures.get(1).or_else(|| captures.get(4)).map_or("", |kind| kind.as_str());
            pattern.push_str(match kind {
                "uuid" => "([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})",
                "serial" => r"(\d+)",
                "id" | "page" | "jti" => r"(\S+?)",
                _ if captures.get(5).is_some() => "(.+)",
                _ => r"(-?\d+)",
            });
        }
        pattern.push_str(&regex::escape(&expected[end..]));
        pattern.push_str(r"\z");
        let pattern = Regex::new(&pattern).map_err(|error| format!("bad recording: {error}"))?;
        let differs = || format!("{actual:?} instead of {expected:?}");
        let found = pattern.captures(actual).ok_or_else(differs)?;

        for (index, captures) in token.captures_iter(expected).enumerate() {
            let value = found.get(index + 1).map_or("", |value| value.as_str());
            let seconds = || value.parse::<i64>().map_err(|error| format!("{value:?}: {error}"));
            if let (Some(kind), Some(number)) = (captures.get(1), captures.get(2)) {
                self.bind(kind.as_str(), number.as_str(), value)?;
            } else if let Some(offset) = captures.get(3) {
                let offset: i64 = offset.as_str().trim_start_matches('+').parse().map_err(|_| differs())?;
                let leeway = if offset.abs() >= BOUNDED_BY_CA { 120 + at.age } else { 6 };
                let distance = seconds()? - at.now - offset;
                if distance.abs() > leeway {
                    return Err(format!("now{:+} instead of now{offset:+}", distance + offset));
                }
            } else if let Some(key) = captures.get(5) {
                let kind = describe::public_key(value).ok_or("no public key")?;
                if kind != key.as_str() {
                    return Err(format!("a key of kind {kind} instead of {}", key.as_str()));
                }
            } else {
                let allowed = match captures.get(4).map_or("", |kind| kind.as_str()) {
                    "lately" => at.now - at.age - 60..=at.now + 6,
                    "past" => 0..=at.now,
                    _ => continue,
                };
                if !allowed.contains(&seconds()?) {
                    return Err(format!("now{:+} instead of {expected}", seconds()? - at.now));
                }
            }
        }
        Ok(())
    }

    fn bind(&mut self, kind: &str, number: &str, value: &str) -> Result<(), String> {
        let name = format!("{kind}:{number}");
        if let Some(known) = self.values.get(&name) {
            let same = known == value;
            return if same { Ok(()) } else { Err(format!("<{name}> was {known:?} and is {value:?}")) };
        }
        let twin = self
            .values
            .iter()
            .find(|(other, known)| *known == value && other.split(':').next() == Some(kind));
        if let Some((other, _)) = twin {
            return Err(format!("<{name}> has the value of <{other}>"));
        }
        self.values.insert(name, value.to_owned());
        Ok(())
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= 200 { text } else { format!("{}..", text.chars().take(200).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const AT: Moment = Moment { now: 1_800_000_000, age: 3 };

    #[test]
    fn numbers_bind_values_in_both_directions() {
        let mut numbered = Numbered::default();

        assert_eq!(numbered.check(&json!(["<id:1>", "<id:2>"]), &json!(["a", "b"]), AT), Ok(()));
        assert_eq!(numbered.check(&json!("<id:2>"), &json!("b"), AT), Ok(()));
        assert!(numbered.check(&json!("<id:2>"), &json!("c"), AT).is_err());
        assert!(numbered.check(&json!("<id:3>"), &json!("a"), AT).is_err());
        assert_eq!(numbered.check(&json!("entry <page:1> is"), &json!("entry a is"), AT), Ok(()));
    }

    #[test]
    fn instants_are_relative_to_the_call() {
        let mut numbered = Numbered::default();
        let mut check = |expected: &str, actual: i64| {
            numbered.check(&json!(expected), &json!(actual.to_string()), AT).is_ok()
        };

        assert!(check("<now+60>", AT.now + 64));
        assert!(!check("<now+60>", AT.now + 70));
        assert!(check("<now+86400>", AT.now + 86_300));
        assert!(check("<lately>", AT.now - 2));
        assert!(!check("<lately>", AT.now - 300));
        assert!(!check("<past>", AT.now + 1));
    }

    #[test]
    fn a_missing_key_means_empty() {
        let mut numbered = Numbered::default();

        assert!(numbered.check(&json!({"a": 1}), &json!({"a": 1, "b": 2}), AT).is_err());
        assert!(numbered.check(&json!({"a": 1, "b": 2}), &json!({"a": 1}), AT).is_err());
        assert_eq!(numbered.check(&json!({"message_starts": "x"}), &json!({"message": "xy"}), AT), Ok(()));
    }
}
