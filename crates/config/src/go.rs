//! Durations, quotes and system errors in the words that users of SPIRE's programs know.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

/// A span of time that may be negative, to the nanosecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) i64);

const SECOND: i64 = 1_000_000_000;

impl Span {
    pub(crate) const fn seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(SECOND))
    }

    /// Reads `1h30m`, `-1.5s` or `0`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let invalid = || format!("time: invalid duration {}", quote_bytes(text));
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (whole, after) = digits(rest);
            let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
            if whole.is_empty() && fraction.is_empty() {
                return Err(invalid());
            }
            // A number beyond all bounds is told before its unit is looked at.
            let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
            if whole > 1 << 63 {
                return Err(invalid());
            }
            let unit_end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, after) = after.split_at_checked(unit_end).unwrap_or((after, ""));
            if unit.is_empty() {
                return Err(format!("time: missing unit in duration {}", quote_bytes(text)));
            }
            let Some(nanoseconds) = unit_length(unit) else {
                let (unit, text) = (quote_bytes(unit), quote_bytes(text));
                return Err(format!("time: unknown unit {unit} in duration {text}"));
            };
            let mut value = whole.checked_mul(nanoseconds).ok_or_else(invalid)?;
            let mut scale = nanoseconds;
            for digit in fraction.bytes() {
                scale /= 10;
                value = value.saturating_add(u64::from(digit.saturating_sub(b'0')) * scale);
            }
            total = total.checked_add(value).filter(|total| *total <= 1 << 63).ok_or_else(invalid)?;
            rest = after;
        }
        if negative {
            return Ok(Self(0_i64.checked_sub_unsigned(total).unwrap_or(i64::MIN)));
        }
        i64::try_from(total).map(Self).map_err(|_| invalid())
    }

    /// The same as a time that cannot be negative.
    pub(crate) fn to_duration(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }

    /// To the second, without the zeros at its end: `4h`, `1h30m`.
    pub(crate) fn short(self) -> String {
        let text = Self(self.0 - self.0 % SECOND).to_string();
        let text = text.strip_suffix("0s").filter(|text| text.ends_with('m')).unwrap_or(&text);
        text.strip_suffix("0m").filter(|text| text.ends_with('h')).unwrap_or(text).to_owned()
    }
}

/// As Go prints durations.
impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let magnitude = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let decimal = |nanoseconds: u64, unit: u64| {
            let width = usize::try_from(unit.ilog10()).unwrap_or(0);
            let (whole, part) = (nanoseconds / unit, nanoseconds % unit);
            if part == 0 {
                return whole.to_string();
            }
            format!("{whole}.{}", format!("{part:0width$}").trim_end_matches('0'))
        };
        match magnitude {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{magnitude}ns"),
            1_000..1_000_000 => write!(f, "{}µs", decimal(magnitude, 1_000)),
            1_000_000..1_000_000_000 => write!(f, "{}ms", decimal(magnitude, 1_000_000)),
            _ => {
                let minutes = magnitude / (60 * SECOND.unsigned_abs());
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(f, "{}m", minutes % 60)?;
                }
                write!(f, "{}s", decimal(magnitude % (60 * SECOND.unsigned_abs()), SECOND.unsigned_abs()))
            }
        }
    }
}

fn digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

fn unit_length(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// A duration as Go writes it, such as `1m30s`, in a plugin's settings.
///
/// # Errors
/// In Go's words. A negative one is none.
pub fn duration(text: &str) -> Result<Duration, String> {
    Span::parse(text).map(Span::to_duration)
}

pub(crate) use spiffe::quote::quoted as quote;

/// A text in double quotes, every byte beyond ASCII escaped, as error texts about durations have it.
fn quote_bytes(text: &str) -> String {
    let mut out = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'\x7f' => out.push(char::from(byte)),
            _ => escape(&mut out, 'x', u32::from(byte), 2),
        }
    }
    out.push('"');
    out
}

fn escape(out: &mut String, kind: char, value: u32, width: usize) {
    // Writing to a string cannot fail.
    let _written = write!(out, "\\{kind}{value:0width$x}");
}

/// What the system says, in lower case and without its number.
pub(crate) fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(characters).collect()
}

/// Why a file could not be read.
pub(crate) fn read_error(path: &str, error: &io::Error) -> String {
    let what = if error.kind() == io::ErrorKind::IsADirectory { "read" } else { "open" };
    format!("{what} {path}: {}", system_text(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, why: &str) {
        assert_eq!(Span::parse(text), Err(why.to_owned()), "{text}");
    }

    #[test]
    fn durations_are_read_and_written() {
        for (text, nanoseconds) in [
            ("1h0m0s", 3_600_000_000_000),
            ("1m30.5s", 90_500_000_000),
            ("-1.5s", -1_500_000_000),
            ("1.5ms", 1_500_000),
            ("2µs", 2_000),
            ("24h0m0s", 86_400_000_000_000),
        ] {
            assert_eq!(Span::parse(text), Ok(Span(nanoseconds)), "{text}");
            assert_eq!(Span(nanoseconds).to_string(), text);
        }
        assert_eq!(Span::seconds(4 * 3600).short(), "4h");
        assert_eq!(Span::seconds(90 * 60).short(), "1h30m");
        assert_eq!(Span::seconds(61).short(), "1m1s");
        assert_eq!(Span::seconds(10).short(), "10s");
    }

    #[test]
    fn refusals_say_what_is_missing() {
        refused("", "time: invalid duration \"\"");
        refused("x", "time: invalid duration \"x\"");
        refused("5", "time: missing unit in duration \"5\"");
        refused("30d", "time: unknown unit \"d\" in duration \"30d\"");
        refused("1é", "time: unknown unit \"\\xc3\\xa9\" in duration \"1\\xc3\\xa9\"");
        refused(".s", "time: invalid duration \".s\"");
        refused("99999999h", "time: invalid duration \"99999999h\"");
        refused("99999999999999999999", "time: invalid duration \"99999999999999999999\"");
    }

    #[test]
    fn quotes_escape_what_cannot_be_printed() {
        assert_eq!(quote("a\"b\\c\n\u{1}é\u{feff}"), r#""a\"b\\c\n\x01é\ufeff""#);
    }
}
