//! Matching output against recorded text with tokens (`<uuid:1>`, `<time +60>`, `<any>`, ..).
//!
//! The expected text becomes one anchored regular expression; what the tokens captured is then held
//! against everything seen earlier in the scenario: the same number is the same value, different
//! numbers are different values.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use regex::Regex;
use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, PrimitiveDateTime};

/// How far an instant may be from the recorded distance to its step, in seconds.
const LEEWAY: i64 = 60;

/// Encloses a token that [`unfold`] has taken apart; it cannot occur in text output.
const MARK: char = '\u{1}';

/// The values that numbered tokens have taken so far in one scenario.
#[derive(Debug, Default)]
pub struct Binding {
    values: BTreeMap<String, String>,
}

impl Binding {
    /// Whether `actual` is what `expected` describes at the instant `now`; if so the new values are
    /// kept. Otherwise the reason.
    ///
    /// # Errors
    /// Says which part differs.
    pub fn check(&mut self, expected: &str, actual: &str, now: OffsetDateTime) -> Result<(), String> {
        let (pattern, tokens) = compile(&without_whims(expected));
        let regex = Regex::new(&pattern).map_err(|error| format!("bad template: {error}"))?;
        let actual = unfold(&without_whims(actual), expected);
        let Some(captures) = regex.captures(&actual) else {
            return Err("the text differs".to_owned());
        };
        let mut fresh = self.values.clone();
        for (index, token) in tokens.iter().enumerate() {
            let value = captures.get(index + 1).map_or("", |found| found.as_str());
            match token {
                Token::Same(name) => bind(&mut fresh, name, &value.replace('\n', ""))?,
                Token::Time(offset) => near(&parse_time(value)?, now, *offset)?,
                Token::Unix(offset) => {
                    let seconds = value.parse().map_err(|_| format!("{value:?} is no number"))?;
                    let instant = OffsetDateTime::from_unix_timestamp(seconds)
                        .map_err(|error| format!("{value}: {error}"))?;
                    near(&instant, now, *offset)?;
                }
                Token::Free => {}
            }
        }
        self.values = fresh;
        Ok(())
    }
}

enum Token {
    Same(String),
    Time(i64),
    Unix(i64),
    Free,
}

fn bind(values: &mut BTreeMap<String, String>, name: &str, value: &str) -> Result<(), String> {
    if let Some(known) = values.get(name) {
        return if known == value {
            Ok(())
        } else {
            Err(format!("<{name}> was {known:?} and is now {value:?}"))
        };
    }
    let kind = name.split(':').next().unwrap_or_default();
    let twin = values.iter().find(|(other, known)| other.split(':').next() == Some(kind) && *known == value);
    if let Some((other, _)) = twin {
        return Err(format!("<{name}> has the value of <{other}>: {value:?}"));
    }
    values.insert(name.to_owned(), value.to_owned());
    Ok(())
}

fn near(instant: &OffsetDateTime, now: OffsetDateTime, offset: i64) -> Result<(), String> {
    let distance = (*instant - now).whole_seconds() - offset;
    if distance.abs() <= LEEWAY { Ok(()) } else { Err(format!("{instant} is {distance} s off")) }
}

fn parse_time(text: &str) -> Result<OffsetDateTime, String> {
    let rfc = format!("{}Z", text.replacen(' ', "T", 1));
    OffsetDateTime::parse(&rfc, &Rfc3339)
        .or_else(|_| PrimitiveDateTime::parse(&rfc, &Rfc3339).map(PrimitiveDateTime::assume_utc))
        .map_err(|error| format!("{text:?} is no instant: {error}"))
}

/// The expected text as a regular expression with one group per token.
fn compile(expected: &str) -> (String, Vec<Token>) {
    let token = Regex::new(
        r"<(?:(uuid|serial|hex|kid|b64|jwt|jti):(\d+)|(time|unix) ([+-]\d+)|(dur|uptime|version|seq2|seq|any))>",
    )
    .expect("the pattern is constant");
    let mut pattern = String::from(r"(?s)\A");
    let mut tokens = Vec::new();
    let mut end = 0;
    for captures in token.captures_iter(expected) {
        let whole = captures.get(0).expect("group 0 always takes part");
        pattern.push_str(&regex::escape(&expected[end..whole.start()]));
        end = whole.end();
        let group = |n: usize| captures.get(n).map_or("", |found| found.as_str());
        let name = [group(1), group(3), group(5)].concat();
        let part = match name.as_str() {
            "uuid" => "([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})".to_owned(),
            "serial" => r"(\d+)".to_owned(),
            "hex" => "([0-9a-f]{64}|[0-9a-f]{40})".to_owned(),
            "kid" => "([0-9A-Za-z]{32})".to_owned(),
            "jti" => r"([^\x22\s]+)".to_owned(),
            "b64" => r"([A-Za-z0-9+/_=-]{43,}(?:\n[A-Za-z0-9+/=]+)*)".to_owned(),
            "jwt" => format!("{MARK}([^{MARK}]+){MARK}"),
            "time" => r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?)".to_owned(),
            "unix" => r"(-?\d+)".to_owned(),
            "dur" => r"([0-9.hmsnuµ]+)".to_owned(),
            "uptime" => r"([0-9a-z. ]+)".to_owned(),
            "version" => r"([^\x22\s]+)".to_owned(),
            "seq" | "seq2" => r"(\d)".to_owned(),
            _ => "(.*?)".to_owned(),
        };
        pattern.push_str(&part);
        let offset = || group(4).trim_start_matches('+').parse().unwrap_or_default();
        tokens.push(match name.as_str() {
            "uuid" | "serial" | "hex" | "kid" | "jti" | "b64" | "jwt" | "seq" | "seq2" => {
                Token::Same(format!("{name}:{}", group(2)))
            }
            "time" => Token::Time(offset()),
            "unix" => Token::Unix(offset()),
            _ => Token::Free,
        });
    }
    pattern.push_str(&regex::escape(&expected[end..]));
    pattern.push_str(r"\z");
    // A sequence number is any digit, each time anew.
    for token in &mut tokens {
        if matches!(token, Token::Same(name) if name.starts_with("seq")) {
            *token = Token::Free;
        }
    }
    (pattern, tokens)
}

/// The text without the spaces that Go's protobuf library puts into claims at its whim (each build of
/// a program has its own).
fn without_whims(text: &str) -> String {
    let line = |line: &str| {
        if line.starts_with("Claims ") { line.replace(", \"", ",\"") } else { line.to_owned() }
    };
    text.split_inclusive('\n').map(line).collect()
}

/// Takes tokens (JWTs) and, where the recorded text does, base64 of JSON objects apart; those that it
/// holds as they are stay.
fn unfold(actual: &str, expected: &str) -> String {
    let objects = expected.contains("b64of:");
    let jwt = Regex::new(r"eyJ[\w-]*\.eyJ[\w-]*\.[\w-]+").expect("the pattern is constant");
    let mut text = jwt
        .replace_all(actual, |captures: &regex::Captures<'_>| {
            let token = &captures[0];
            let mut parts = token.split('.').map(|part| {
                let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
                serde_json::from_slice::<Value>(&bytes).ok().map(|value| sorted(&value))
            });
            match (parts.next().flatten(), parts.next().flatten()) {
                (Some(header), Some(claims)) => format!("{MARK}{token}{MARK} {header} {claims}"),
                _ => token.to_owned(),
            }
        })
        .into_owned();
    if objects {
        let blob = Regex::new(r"\b(?:ey|ew)[A-Za-z0-9+/]{10,}={0,2}").expect("the pattern is constant");
        text = blob
            .replace_all(&text, |captures: &regex::Captures<'_>| {
                if expected.contains(&captures[0]) {
                    return captures[0].to_owned();
                }
                let decoded = STANDARD.decode(&captures[0]).ok();
                let object = decoded.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
                object.map_or_else(|| captures[0].to_owned(), |value| format!("b64of:{}", sorted(&value)))
            })
            .into_owned();
    }
    text
}

/// Compact JSON with the keys of all objects sorted.
fn sorted(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<&String, String> =
                members.iter().map(|(key, value)| (key, sorted(value))).collect();
            let members: Vec<String> = members
                .into_iter()
                .map(|(key, value)| format!("{}:{value}", Value::String(key.clone())))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(sorted).collect::<Vec<_>>().join(",")),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    #[test]
    fn numbers_bind_values_in_both_directions() {
        let mut binding = Binding::default();
        let (a, b) = ("6e1b2a3c-0000-4000-8000-000000000001", "6e1b2a3c-0000-4000-8000-000000000002");

        assert_eq!(binding.check("id <uuid:1>\n", &format!("id {a}\n"), now()), Ok(()));
        assert!(binding.check("id <uuid:1>\n", &format!("id {b}\n"), now()).is_err());
        assert!(binding.check("id <uuid:2>\n", &format!("id {a}\n"), now()).is_err());
        assert_eq!(binding.check("<uuid:2> <uuid:1>", &format!("{b} {a}"), now()), Ok(()));
    }

    #[test]
    fn instants_are_relative_to_the_step() {
        let mut binding = Binding::default();

        assert_eq!(binding.check("<time +60> +0000 UTC", "2027-01-15 08:01:00 +0000 UTC", now()), Ok(()));
        assert!(binding.check("<time +600> +0000 UTC", "2027-01-15 08:01:00 +0000 UTC", now()).is_err());
        assert_eq!(binding.check("\"<unix +300>\"", "\"1800000310\"", now()), Ok(()));
        assert!(binding.check("\"<unix +300>\"", "\"1800000400\"", now()).is_err());
    }

    #[test]
    fn tokens_are_taken_apart() {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let jwt = format!(
            "{}.{}.c2ln",
            part(r#"{"typ":"JWT","alg":"ES256"}"#),
            part(r#"{"sub":"x","exp":1800000300}"#)
        );
        let expected = "<jwt:1> {\"alg\":\"ES256\",\"typ\":\"JWT\"} {\"exp\":<unix +300>,\"sub\":\"x\"}\n";

        assert_eq!(Binding::default().check(expected, &format!("{jwt}\n"), now()), Ok(()));
    }
}
