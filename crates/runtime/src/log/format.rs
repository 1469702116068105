//! How a line looks: logrus' text and JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, UtcOffset};

use super::level::Level;
use crate::{json, sys};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Text with times to the second: what SPIRE writes when it is told no format.
    #[default]
    Default,
    /// Text with times to the nanosecond.
    Text,
    /// JSON with times to the nanosecond.
    Json,
}

/// A text that names no format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown logger format: {0:?}")]
pub struct UnknownFormat(pub String);

impl Format {
    /// Reads a name in any case; an empty one is the default.
    ///
    /// # Errors
    /// With SPIRE's text.
    pub fn parse(text: &str) -> Result<Self, UnknownFormat> {
        match text.to_uppercase().as_str() {
            "" => Ok(Self::Default),
            "TEXT" => Ok(Self::Text),
            "JSON" => Ok(Self::Json),
            _ => Err(UnknownFormat(text.to_owned())),
        }
    }

    pub(super) fn render(self, line: &Line<'_>) -> String {
        match self {
            Self::Default => as_text(line, Precision::Seconds),
            Self::Text => as_text(line, Precision::Nanoseconds),
            Self::Json => as_json(line),
        }
    }
}

/// What a line tells.
pub(super) struct Line<'a> {
    pub(super) time: SystemTime,
    pub(super) level: Level,
    pub(super) message: &'a str,
    pub(super) fields: &'a BTreeMap<Cow<'static, str>, Value>,
}

/// The value of a field.
#[derive(Clone, Debug)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number or a truth value, which JSON has without quotes.
    Bare(String),
    /// A number that text gives by its name.
    Named {
        /// The name.
        name: String,
        /// The number.
        number: i64,
    },
    /// An object in JSON, which text tells in its own way.
    Structured {
        /// The text.
        text: String,
        /// The object.
        json: String,
    },
    /// An instant in seconds since 1970, in UTC.
    Instant(i64),
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text)
            | Self::Bare(text)
            | Self::Named { name: text, .. }
            | Self::Structured { text, .. } => formatter.write_str(text),
            Self::Instant(seconds) => formatter.write_str(&instant(*seconds, " ", " +0000 UTC")),
        }
    }
}

/// An instant in UTC, between date and time of day, and behind them, what is told.
fn instant(seconds: i64, between: &str, zone: &str) -> String {
    let Ok(at) = OffsetDateTime::from_unix_timestamp(seconds) else { return seconds.to_string() };
    let (date, time) = (at.date(), at.time());
    format!("{date}{between}{:02}:{:02}:{:02}{zone}", time.hour(), time.minute(), time.second())
}

fn as_text(line: &Line<'_>, precision: Precision) -> String {
    let mut out = String::with_capacity(128);
    pair(&mut out, "time", &timestamp(line.time, precision));
    pair(&mut out, "level", line.level.name());
    if !line.message.is_empty() {
        pair(&mut out, "msg", line.message);
    }
    for (key, value) in keys(line.fields) {
        pair(&mut out, &key, &value.to_string());
    }
    out.push('\n');
    out
}

fn pair(out: &mut String, key: &str, value: &str) {
    if !out.is_empty() {
        out.push(' ');
    }
    out.push_str(key);
    out.push('=');
    if value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._/@^+".contains(&byte)) {
        out.push_str(value);
    } else {
        quote(out, value);
    }
}

fn as_json(line: &Line<'_>) -> String {
    let mut members = keys(line.fields);
    members.insert("level".into(), Value::Text(line.level.name().into()));
    members.insert("msg".into(), Value::Text(line.message.into()));
    members.insert("time".into(), Value::Text(timestamp(line.time, Precision::Nanoseconds)));
    let mut out = String::with_capacity(128);
    for (key, value) in members {
        out.push(if out.is_empty() { '{' } else { ',' });
        json::string(&mut out, &key);
        out.push(':');
        match value {
            Value::Text(text) => json::string(&mut out, &text),
            Value::Bare(text) => out.push_str(&text),
            Value::Named { number, .. } => out.push_str(&number.to_string()),
            Value::Structured { json, .. } => out.push_str(&json),
            Value::Instant(seconds) => json::string(&mut out, &instant(seconds, "T", "Z")),
        }
    }
    out.push_str("}\n");
    out
}

/// The fields in order, those that bear a fixed name set aside as logrus does.
fn keys(fields: &BTreeMap<Cow<'static, str>, Value>) -> BTreeMap<String, Value> {
    let renamed = |key: &Cow<'static, str>| match &**key {
        "time" | "msg" | "level" => format!("fields.{key}"),
        key => key.to_owned(),
    };
    fields.iter().map(|(key, value)| (renamed(key), value.clone())).collect()
}

#[derive(Clone, Copy)]
enum Precision {
    Seconds,
    Nanoseconds,
}

/// RFC 3339 in local time, without trailing zeros in the fraction.
fn timestamp(at: SystemTime, precision: Precision) -> String {
    let seconds = match at.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or_default(),
        Err(_before_1970) => 0,
    };
    let offset = UtcOffset::from_whole_seconds(sys::local_offset(seconds)).unwrap_or(UtcOffset::UTC);
    let local = OffsetDateTime::from(at).to_offset(offset);
    let (hours, minutes, _) = offset.as_hms();
    let mut text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        local.year(),
        u8::from(local.month()),
        local.day(),
        local.hour(),
        local.minute(),
        local.second()
    );
    if matches!(precision, Precision::Nanoseconds) && local.nanosecond() > 0 {
        let fraction = format!(".{:09}", local.nanosecond());
        text.push_str(fraction.trim_end_matches('0'));
    }
    if offset.is_utc() {
        text.push('Z');
    } else {
        let sign = if offset.is_negative() { '-' } else { '+' };
        text.push_str(&format!("{sign}{:02}:{:02}", hours.unsigned_abs(), minutes.unsigned_abs()));
    }
    text
}

/// Quotes as Go's `%q`.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\0'..='\u{1f}' | '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(character))),
            ' '..='~' => out.push(character),
            _ if is_printable(character) => out.push(character),
            '\u{80}'..='\u{ffff}' => out.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => out.push_str(&format!("\\U{:08x}", u32::from(character))),
        }
    }
    out.push('"');
}

/// Whether a character beyond ASCII shows on paper. The standard library tells by escaping the others;
/// behind a letter it leaves combining marks alone, as Go does everywhere.
fn is_printable(character: char) -> bool {
    !character.is_whitespace() && format!("a{character}").escape_debug().count() == 2
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn g03_values_are_quoted_as_go_quotes() {
        let mut out = String::new();

        quote(&mut out, "a\u{7}\u{1}\u{7f}\"\\ü\u{301}\u{a0}\u{200b}\u{10ffff}😀");

        assert_eq!(out, "\"a\\a\\x01\\x7f\\\"\\\\ü\u{301}\\u00a0\\u200b\\U0010ffff😀\"");
    }

    #[test]
    fn times_lose_the_zeros_at_their_end() {
        let at = UNIX_EPOCH + Duration::new(1_700_000_000, 120_000_000);

        let text = timestamp(at, Precision::Nanoseconds);

        assert!(text[19..].starts_with(".12"), "{text}");
        assert!(!text[22..].starts_with('0'), "{text}");
        assert_eq!(&timestamp(at, Precision::Seconds)[..19], &text[..19]);
    }

    #[test]
    fn instants_and_objects_are_told_as_each_format_has_them() {
        let object = Value::Structured { text: "CN=a".to_owned(), json: r#"{"CommonName":"a"}"#.to_owned() };
        let fields =
            BTreeMap::from([("at".into(), Value::Instant(1_700_000_000)), ("subject".into(), object)]);
        let line = Line { time: UNIX_EPOCH, level: Level::Info, message: "m", fields: &fields };

        let (text, json) = (Format::Text.render(&line), Format::Json.render(&line));

        assert!(text.ends_with("at=\"2023-11-14 22:13:20 +0000 UTC\" subject=\"CN=a\"\n"), "{text}");
        assert!(json.contains(r#""at":"2023-11-14T22:13:20Z""#), "{json}");
        assert!(json.contains(r#""subject":{"CommonName":"a"}"#), "{json}");
    }

    #[test]
    fn formats_are_read_in_any_case() {
        assert_eq!(Format::parse("Json"), Ok(Format::Json));
        assert_eq!(Format::parse(""), Ok(Format::Default));
        assert_eq!(Format::parse("xml").unwrap_err().to_string(), "unknown logger format: \"xml\"");
    }
}
