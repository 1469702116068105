//! Numbers as they are written.

use super::error::HclError;
use crate::go::quote;

/// A whole number in the base that its prefix names: `0x`, `0o` or `0`, `0b`, else ten.
pub(crate) fn integer(text: &str) -> Result<i64, HclError> {
    let refused = |why: &str| HclError::bare(format!("strconv.ParseInt: parsing {}: {why}", quote(text)));
    let syntax = || refused("invalid syntax");
    let range = || refused("value out of range");
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, text.get(1..).unwrap_or_default()),
        Some(b'+') => (false, text.get(1..).unwrap_or_default()),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, body) = match lower.strip_prefix('0') {
        Some(rest) if !rest.is_empty() => match (rest.as_bytes().first(), rest.get(1..)) {
            (Some(b'x'), Some(rest)) => (16, rest),
            (Some(b'o'), Some(rest)) => (8, rest),
            (Some(b'b'), Some(rest)) => (2, rest),
            _ => (8, rest),
        },
        _ => (10, lower.as_str()),
    };
    // An underscore stands between digits, or between prefix and digit.
    let prefixed = base != 10;
    let good_underscores =
        !body.ends_with('_') && !body.contains("__") && (prefixed || !body.starts_with('_'));
    let plain = body.replace('_', "");
    if plain.is_empty() || !good_underscores || !plain.chars().all(|digit| digit.is_digit(base)) {
        return Err(syntax());
    }
    let magnitude = u64::from_str_radix(&plain, base).map_err(|_| range())?;
    if negative {
        0_i64.checked_sub_unsigned(magnitude).ok_or_else(range)
    } else {
        i64::try_from(magnitude).map_err(|_| range())
    }
}

/// A decimal fraction.
pub(crate) fn float(text: &str) -> Result<f64, HclError> {
    let refused = |why: &str| HclError::bare(format!("strconv.ParseFloat: parsing {}: {why}", quote(text)));
    let value: f64 = text.parse().map_err(|_| refused("invalid syntax"))?;
    if value.is_infinite() { Err(refused("value out of range")) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, value: i64) {
        assert_eq!(integer(text), Ok(value), "{text}");
    }

    fn refused(text: &str, why: &str) {
        let error = integer(text).expect_err(text);

        assert_eq!(error.to_string(), format!("strconv.ParseInt: parsing \"{text}\": {why}"));
    }

    #[test]
    fn prefixes_name_the_base() {
        check("8081", 8081);
        check("0x1F", 31);
        check("0644", 420);
        check("0o17", 15);
        check("0b11", 3);
        check("-5", -5);
        check("0", 0);
        check("1_000", 1000);
        check("-9223372036854775808", i64::MIN);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        refused("", "invalid syntax");
        refused("08", "invalid syntax");
        refused("0x", "invalid syntax");
        refused("1.5", "invalid syntax");
        refused("_1", "invalid syntax");
        refused("9223372036854775808", "value out of range");

        let error = integer("1\0").expect_err("a zero byte is no digit");
        assert_eq!(error.to_string(), r#"strconv.ParseInt: parsing "1\x00": invalid syntax"#);
    }
}
