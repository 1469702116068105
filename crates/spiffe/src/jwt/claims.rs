//! The claims of a token: which there must be, and when and for whom they hold.

use serde_json::{Map, Value};

use super::{JwtError, LEEWAY};
use crate::{UnixSecs, json};

/// The claims of a token whose signature may not have been checked yet.
pub(super) struct Claims {
    pub(super) subject: String,
    pub(super) audience: Vec<String>,
    pub(super) expires_at: i64,
    not_before: Option<i64>,
    issued_at: Option<i64>,
    /// All of them; `aud`, if there, is a list.
    pub(super) all: Map<String, Value>,
}

impl Claims {
    pub(super) fn read(payload: &[u8]) -> Result<Self, JwtError> {
        let bad = JwtError::BadClaims;
        let mut all = match json::read(payload).map_err(|error| bad(error.to_string()))? {
            Value::Object(members) => members,
            Value::Null => Map::new(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(bad("not an object".to_owned()));
            }
        };
        let subject = text(&all, "sub")?.to_owned();
        for name in ["iss", "jti"] {
            text(&all, name)?;
        }
        let audience = audience(&all)?;
        let expires_at = instant(&all, "exp")?;
        let (not_before, issued_at) = (instant(&all, "nbf")?, instant(&all, "iat")?);
        if subject.is_empty() {
            return Err(JwtError::NoSubject);
        }
        let expires_at = expires_at.ok_or(JwtError::NoExpiry)?;
        if let Some(single @ Value::String(_)) = all.get_mut("aud") {
            *single = Value::Array(vec![single.take()]);
        }
        Ok(Self { subject, audience, expires_at, not_before, issued_at, all })
    }

    /// Whether they hold for `audience` at `now`.
    pub(super) fn check(&self, audience: &str, now: UnixSecs) -> Result<(), JwtError> {
        if !self.audience.iter().any(|name| name == audience) {
            let (expected, found) = (audience.to_owned(), self.audience.clone());
            return Err(JwtError::WrongAudience { expected, found });
        }
        self.check_time(now)?;
        if self.issued_at.is_some_and(|at| at > now.plus(LEEWAY).0) {
            return Err(JwtError::IssuedInFuture);
        }
        Ok(())
    }

    /// Whether they hold at `now`, whenever they were made.
    pub(super) fn check_time(&self, now: UnixSecs) -> Result<(), JwtError> {
        if self.not_before.is_some_and(|at| at > now.plus(LEEWAY).0) {
            return Err(JwtError::NotYetValid);
        }
        if now.plus(-LEEWAY).0 > self.expires_at {
            return Err(JwtError::Expired);
        }
        Ok(())
    }
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<&'a str, JwtError> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(JwtError::BadClaims(format!("{name} is not a string"))),
    }
}

fn audience(claims: &Map<String, Value>) -> Result<Vec<String>, JwtError> {
    let bad = || JwtError::BadClaims("aud is neither a string nor a list of strings".to_owned());
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(several)) => {
            several.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(bad)).collect()
        }
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => Err(bad()),
    }
}

/// A time, cut to whole seconds. Beyond what a date can hold it counts as expired: it is nonsense, and
/// nonsense must not live for ever.
fn instant(claims: &Map<String, Value>, name: &str) -> Result<Option<i64>, JwtError> {
    let value = match claims.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => number,
        Some(Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_)) => {
            return Err(JwtError::BadClaims(format!("{name} is not a number")));
        }
    };
    let seconds = value.as_f64().unwrap_or(f64::NAN).trunc();
    if seconds.abs() <= LAST_DATE {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number that 64 bits hold")]
        return Ok(Some(seconds as i64));
    }
    match name {
        "exp" => Err(JwtError::Expired),
        _ => Err(JwtError::BadClaims(format!("{name} is no date"))),
    }
}

/// The last second that SPIRE's library makes a date of: it counts from the year 1, in 64 bits.
const LAST_DATE: f64 = 9.223_371_974e18;

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(text: &str) -> Claims {
        Claims::read(text.as_bytes()).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn leeway_is_a_minute_on_either_side() {
        let checked = |text: &str| claims(text).check("a", UnixSecs(1000));

        assert_eq!(checked(r#"{"sub":"s","aud":"a","exp":940}"#), Ok(()));
        assert_eq!(checked(r#"{"sub":"s","aud":"a","exp":939}"#), Err(JwtError::Expired));
        assert_eq!(checked(r#"{"sub":"s","aud":"a","exp":2000,"nbf":1060,"iat":1060.9}"#), Ok(()));
        assert_eq!(checked(r#"{"sub":"s","aud":"a","exp":2000,"nbf":1061}"#), Err(JwtError::NotYetValid));
        assert_eq!(checked(r#"{"sub":"s","aud":"a","exp":2000,"iat":1061}"#), Err(JwtError::IssuedInFuture));
    }

    #[test]
    fn a_time_that_no_date_can_hold_is_none() {
        let exp = |text: &str| Claims::read(format!(r#"{{"sub":"s","aud":"a","exp":{text}}}"#).as_bytes());

        for text in ["9223372036854775807", "9223372036854775808", "9.3e18", "1e300"] {
            assert_eq!(exp(text).err(), Some(JwtError::Expired), "{text}");
        }
        for text in ["4000000000.9", "1000000000000000000", "1e18"] {
            assert!(exp(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn audiences_are_always_shown_as_a_list() {
        assert_eq!(claims(r#"{"sub":"s","aud":"a","exp":1}"#).all["aud"], serde_json::json!(["a"]));
    }
}
