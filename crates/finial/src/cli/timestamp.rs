//! Instants as operators write them in a filter, `2006-01-02 15:04:05 -0700 -07`, and what Go says of
//! those that are none.

/// The form of an instant.
const FORM: &str = "2006-01-02 15:04:05 -0700 -07";

/// Its parts: what stands before each, how it is written in the form, and what it is.
const PARTS: [(&str, &str, Part); 8] = [
    ("", "2006", Part::Year),
    ("-", "01", Part::Number { name: "month", from: 1, to: 12 }),
    ("-", "02", Part::Number { name: "day", from: 0, to: 99 }),
    (" ", "15", Part::Hour),
    (":", "04", Part::Number { name: "minute", from: 0, to: 59 }),
    (":", "05", Part::Second),
    (" ", "-0700", Part::Zone { digits: 4 }),
    (" ", "-07", Part::Zone { digits: 2 }),
];

#[derive(Clone, Copy)]
enum Part {
    Year,
    Number { name: &'static str, from: u32, to: u32 },
    Hour,
    Second,
    Zone { digits: usize },
}

/// Why a part is none.
enum Fault {
    Form,
    Range(&'static str),
}

/// Checks that `text` is an instant.
///
/// # Errors
/// Go's words for what is wrong.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let refused = |part: &str, found: &str| {
        let (text, form) = (quoted(text), quoted(FORM));
        format!("parsing time {text} as {form}: cannot parse {} as {}", quoted(found), quoted(part))
    };
    let mut rest = text;
    let mut date = [0_u32; 3];
    for (index, (before, written, part)) in PARTS.into_iter().enumerate() {
        rest = skip(rest, before).map_err(|found| refused(before, found))?;
        match part.take(rest) {
            Ok((value, behind)) => {
                if let Some(slot) = date.get_mut(index) {
                    *slot = value;
                }
                rest = behind;
            }
            Err(Fault::Form) => return Err(refused(written, rest)),
            Err(Fault::Range(name)) => {
                return Err(format!("parsing time {}: {name} out of range", quoted(text)));
            }
        }
    }
    if !rest.is_empty() {
        return Err(format!("parsing time {}: extra text: {}", quoted(text), quoted(rest)));
    }
    let [year, month, day] = date;
    if day == 0 || day > days_of(year, month) {
        return Err(format!("parsing time {}: day out of range", quoted(text)));
    }
    Ok(())
}

impl Part {
    /// Takes the part off `text`; gives its value and the rest.
    fn take(self, text: &str) -> Result<(u32, &str), Fault> {
        match self {
            Self::Year => {
                let (digits, rest) = text.split_at_checked(4).ok_or(Fault::Form)?;
                if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(Fault::Form);
                }
                Ok((digits.parse().map_err(|_| Fault::Form)?, rest))
            }
            Self::Number { name, from, to } => {
                let (value, rest) = two_digits(text).ok_or(Fault::Form)?;
                if (from..=to).contains(&value) { Ok((value, rest)) } else { Err(Fault::Range(name)) }
            }
            Self::Hour => {
                let one = || {
                    let (digit, rest) = text.split_at_checked(1)?;
                    Some((digit.parse::<u32>().ok()?, rest))
                };
                let (value, rest) = two_digits(text).or_else(one).ok_or(Fault::Form)?;
                if value < 24 { Ok((value, rest)) } else { Err(Fault::Range("hour")) }
            }
            Self::Second => {
                let (value, rest) = two_digits(text).ok_or(Fault::Form)?;
                if value > 59 {
                    return Err(Fault::Range("second"));
                }
                // A fraction may follow, though the form has none.
                let fraction = rest.strip_prefix(['.', ',']).map(without_digits);
                Ok((value, fraction.filter(|behind| behind.len() + 1 < rest.len()).unwrap_or(rest)))
            }
            Self::Zone { digits } => {
                let (zone, rest) = text.split_at_checked(digits + 1).ok_or(Fault::Form)?;
                let number = zone.strip_prefix(['+', '-']).ok_or(Fault::Form)?;
                let (hours, minutes) = two_digits(number).ok_or(Fault::Form)?;
                let minutes = if minutes.is_empty() { 0 } else { two_digits(minutes).ok_or(Fault::Form)?.0 };
                match (hours, minutes) {
                    (25.., _) => Err(Fault::Range("time zone offset hour")),
                    (_, 61..) => Err(Fault::Range("time zone offset minute")),
                    _ => Ok((hours, rest)),
                }
            }
        }
    }
}

/// What follows `before`, where a space stands for any number of them; else where it is missing.
fn skip<'a>(text: &'a str, before: &str) -> Result<&'a str, &'a str> {
    match before {
        " " if text.is_empty() => Ok(text),
        " " => text.strip_prefix(' ').map(|rest| rest.trim_start_matches(' ')).ok_or(text),
        before => text.strip_prefix(before).ok_or(text),
    }
}

fn two_digits(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at_checked(2)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    Some((digits.parse().ok()?, rest))
}

fn without_digits(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_ascii_digit())
}

const fn days_of(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// In quotes, every byte that is not plain ASCII escaped.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'\x7f' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, why: &str) {
        assert_eq!(check(text), Err(format!("parsing time \"{text}\"{why}")), "{text}");
    }

    #[test]
    fn instants_are_taken() {
        for text in [
            "2030-01-31 00:00:00 +0000 +00",
            "2028-02-29 5:04:05.75 -0730 -07",
            "2030-01-02  15:04:05  +2400 +24",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn the_first_part_that_does_not_fit_is_told() {
        let form = format!(" as \"{FORM}\": cannot parse");
        refused("x", &format!("{form} \"x\" as \"2006\""));
        refused("2030-01-01", &format!("{form} \"\" as \"15\""));
        refused("2030-01-01T00:00:00Z", &format!("{form} \"T00:00:00Z\" as \" \""));
        refused("2030-1-01 00:00:00 +0000 +00", &format!("{form} \"1-01 00:00:00 +0000 +00\" as \"01\""));
        refused("2030-01-01 00:00:00 +0000 UTC", &format!("{form} \"UTC\" as \"-07\""));
        refused("2030-13-01 00:00:00 +0000 +00", ": month out of range");
        refused("2030-02-29 00:00:00 +0000 +00", ": day out of range");
        refused("2030-01-01 24:00:00 +0000 +00", ": hour out of range");
        refused("2030-01-01 00:00:00 +2500 +00", ": time zone offset hour out of range");
        refused("2030-01-01 00:00:00 +0000 -0000", ": extra text: \"00\"");
    }
}
