//! Durations and instants as Go writes and reads them.

use std::fmt::Write as _;

use time::OffsetDateTime;
use time::macros::format_description;

/// Reads Go's duration syntax (`1h30m`, `-1.5s`, `0`) as nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || whole.len() > 20 {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total += whole * unit;
        let mut scale = unit;
        for digit in fraction.bytes().take(18) {
            scale /= 10;
            total += i128::from(digit - b'0') * scale;
        }
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Writes nanoseconds as Go's `Duration.String` does.
pub(crate) fn format_duration(nanos: i64) -> String {
    let magnitude = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    let fraction = |whole: u64, part: u64, width: usize| {
        let mut text = whole.to_string();
        if part > 0 {
            // Writing to a string cannot fail.
            let _written = write!(text, ".{}", format!("{part:0width$}").trim_end_matches('0'));
        }
        text
    };
    match magnitude {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{magnitude}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", fraction(magnitude / 1_000, magnitude % 1_000, 3)),
        1_000_000..1_000_000_000 => {
            format!("{sign}{}ms", fraction(magnitude / 1_000_000, magnitude % 1_000_000, 6))
        }
        _ => {
            let seconds = magnitude / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let mut text = sign.to_owned();
            if hours > 0 {
                let _written = write!(text, "{hours}h");
            }
            if seconds >= 60 {
                let _written = write!(text, "{minutes}m");
            }
            let _written = write!(text, "{}s", fraction(seconds % 60, magnitude % 1_000_000_000, 9));
            text
        }
    }
}

/// An instant as Go prints it: `2026-01-02 03:04:05 +0000 UTC`.
pub(crate) fn format_time(unix_seconds: i64) -> String {
    formatted(unix_seconds, "[year]-[month]-[day] [hour]:[minute]:[second] +0000 UTC")
}

/// An instant as RFC 3339 in UTC, to the second.
pub(crate) fn format_rfc3339(unix_seconds: i64) -> String {
    formatted(unix_seconds, "[year]-[month]-[day]T[hour]:[minute]:[second]Z")
}

/// Entries may end in any year, so the instant is looked up within the first cycle of the calendar.
fn formatted(unix_seconds: i64, form: &str) -> String {
    let cycle = unix_seconds.div_euclid(SECONDS_OF_400_YEARS);
    let Ok(instant) = OffsetDateTime::from_unix_timestamp(unix_seconds.rem_euclid(SECONDS_OF_400_YEARS))
    else {
        return format!("{unix_seconds} s");
    };
    let year = i64::from(instant.year()) + 400 * cycle;
    let sign = if year < 0 { "-" } else { "" };
    let date = format_description!("-[month]-[day]");
    let clock = format_description!("[hour]:[minute]:[second]");
    match (instant.format(date), instant.format(clock)) {
        (Ok(date), Ok(clock)) => form
            .replace("[year]-[month]-[day]", &format!("{sign}{:04}{date}", year.unsigned_abs()))
            .replace("[hour]:[minute]:[second]", &clock),
        _ => format!("{unix_seconds} s"),
    }
}

/// After so many seconds the calendar begins anew.
const SECONDS_OF_400_YEARS: i64 = 146_097 * 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_both_ways() {
        for (text, nanos) in [
            ("1h0m0s", 3_600_000_000_000),
            ("1m30.5s", 90_500_000_000),
            ("-1.5s", -1_500_000_000),
            ("1.5ms", 1_500_000),
            ("2µs", 2_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Some(nanos), "{text}");
            assert_eq!(format_duration(nanos), text);
        }
        assert_eq!(parse_duration("1.h"), Some(3_600_000_000_000));
        for bad in ["", "1", "h", "1x", "1..5s", "99999999h", ".s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn instants() {
        assert_eq!(format_time(4_102_444_800), "2100-01-01 00:00:00 +0000 UTC");
        assert_eq!(format_time(-5), "1969-12-31 23:59:55 +0000 UTC");
        assert_eq!(format_time(1_099_511_627_776), "36812-02-20 00:36:16 +0000 UTC");
        assert_eq!(format_time(-62_198_755_200), "-0001-01-01 00:00:00 +0000 UTC");
        assert_eq!(format_rfc3339(0), "1970-01-01T00:00:00Z");
    }
}
