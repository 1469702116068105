//! DNS names for the SANs of X.509-SVIDs.
//!
//! The grammar is that of SPIRE's API and wider than DNS: any ASCII character may stand in a label.
//! Only lengths, hyphens, wildcards and internationalised labels are looked at.

use std::fmt;

use idna::uts46::{AsciiDenyList, Hyphens, Uts46};

use crate::quote::quoted;

/// A DNS name, possibly with a wildcard as its first label. Kept as it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(String);

/// Why a text is no DNS name. Clients of SPIRE see these words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsNameError {
    /// A character beyond ASCII.
    #[error("name must be ascii")]
    NotAscii,
    /// More than one `*`.
    #[error("too many wildcards")]
    TooManyWildcards,
    /// A `*` elsewhere.
    #[error("wildcard must be first label")]
    WildcardNotFirst,
    /// Nothing, or spaces.
    #[error("empty or only whitespace")]
    Empty,
    /// A dot at the end.
    #[error("domain ends with dot")]
    EndsWithDot,
    /// A label too long, with hyphens where none may be, or no internationalised name, which is shown
    /// decoded where it can be; or the whole name, if it is too long or one of its labels is empty.
    #[error("idna error\nidna: invalid label {}", quoted(.0))]
    Label(String),
}

impl DnsName {
    /// Checks a name.
    ///
    /// # Errors
    /// The reason in the words of [`DnsNameError`].
    pub fn parse(text: &str) -> Result<Self, DnsNameError> {
        if !text.is_ascii() {
            return Err(DnsNameError::NotAscii);
        }
        let rest = match text.matches('*').count() {
            0 => text,
            1 => text.strip_prefix("*.").ok_or(DnsNameError::WildcardNotFirst)?,
            _ => return Err(DnsNameError::TooManyWildcards),
        };
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(DnsNameError::Empty);
        }
        if rest.ends_with('.') {
            return Err(DnsNameError::EndsWithDot);
        }
        match complaint(rest) {
            Some(bad) => Err(DnsNameError::Label(bad)),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for DnsName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first of `names` that a wildcard among them covers as well.
#[must_use]
pub fn covered_by_wildcard<'a>(names: &'a [&str]) -> Option<&'a str> {
    let is_covered = |name: &&&str| {
        let parent = name.split_once('.').map_or("", |(_, parent)| parent);
        !name.starts_with('*') && names.iter().any(|other| other.strip_prefix("*.") == Some(parent))
    };
    names.iter().find(is_covered).copied()
}

/// What of a name is invalid, if anything: in the order, and shown as, SPIRE's library does.
fn complaint(name: &str) -> Option<String> {
    for label in name.split('.') {
        if label.is_empty() {
            return Some(name.to_owned());
        }
        match label.strip_prefix("xn--") {
            Some(code) => {
                if let Err(bad) = internationalised(code) {
                    return Some(bad);
                }
            }
            None if has_good_hyphens(label) => {}
            None => return Some(label.to_owned()),
        }
    }
    // From right to left and from left to right in one name.
    if !is_valid(name) {
        return Some(name.to_owned());
    }
    let too_long = name.split('.').find(|label| label.len() > 63);
    too_long.or_else(|| (name.len() > 253).then_some(name)).map(str::to_owned)
}

/// None at either end, nor as third and fourth character.
fn has_good_hyphens(label: &str) -> bool {
    !label.starts_with('-') && !label.ends_with('-') && label.as_bytes().get(2..4) != Some(b"--")
}

/// Punycode must hide a label that needs it and is in lower case.
fn internationalised(code: &str) -> Result<(), String> {
    if code.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(code.to_owned());
    }
    let label = punycode(code).ok_or(code)?;
    let text: String = label.iter().collect();
    if text.is_ascii() {
        return Err(code.to_owned());
    }
    let is_valid = is_valid(&format!("xn--{code}"));
    if is_valid && has_good_hyphens(&text) { Ok(()) } else { Err(text) }
}

/// Whether all that is internationalised in it is valid (UTS 46, section 4.1), and stands in an order that
/// can be shown (RFC 5893).
fn is_valid(name: &str) -> bool {
    let (_, outcome) = Uts46::new().to_unicode(name.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow);
    outcome.is_ok()
}

/// Decodes Punycode (RFC 3492).
fn punycode(code: &str) -> Option<Vec<char>> {
    const BASE: u32 = 36;
    let (plain, extra) = match code.rsplit_once('-') {
        // A delimiter with nothing before it delimits nothing.
        Some(("", _)) => return None,
        Some(parts) => parts,
        None => ("", code),
    };
    let mut label: Vec<char> = plain.chars().collect();
    let (mut point, mut index, mut bias) = (128_u32, 0_u32, 72_u32);
    let mut digits = extra.bytes().peekable();
    while digits.peek().is_some() {
        let (before, mut weight, mut k) = (index, 1_u32, BASE);
        loop {
            let digit = u32::from(match digits.next()? {
                letter @ b'a'..=b'z' => letter - b'a',
                digit @ b'0'..=b'9' => digit - b'0' + 26,
                _ => return None,
            });
            index = index.checked_add(digit.checked_mul(weight)?)?;
            let threshold = k.saturating_sub(bias).clamp(1, 26);
            if digit < threshold {
                break;
            }
            weight = weight.checked_mul(BASE - threshold)?;
            k += BASE;
        }
        let length = u32::try_from(label.len()).ok()? + 1;
        bias = adapted(index - before, length, before == 0);
        point = point.checked_add(index / length)?;
        index %= length;
        label.insert(usize::try_from(index).ok()?, char::from_u32(point)?);
        index += 1;
    }
    Some(label)
}

fn adapted(delta: u32, length: u32, first: bool) -> u32 {
    let mut delta = if first { delta / 700 } else { delta / 2 };
    delta += delta / length;
    let mut k = 0;
    while delta > 455 {
        delta /= 35;
        k += 36;
    }
    k + 36 * delta / (delta + 38)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(text: &str) {
        assert_eq!(DnsName::parse(text).expect(text).as_str(), text);
    }

    fn bad(text: &str, reason: &str) {
        let refusal = DnsName::parse(text).expect_err(text).to_string();
        assert!(refusal.starts_with(reason), "{text}: {refusal}");
    }

    #[test]
    fn name_rules() {
        for name in ["a.b", "*.a", "a_b.c", "A.b", "a b", "a/b", "::1", "123", "a--b", "abc--d", "a\0"] {
            ok(name);
        }
        ok(&"a".repeat(63));
        for name in
            ["xn--bcher-kva.example", "xn--ls8h.la", "xn--9ca.test", "xn--e1afmkfd.xn--p1ai", "xn--zca.de"]
        {
            ok(name);
        }

        bad("ä.b", "name must be ascii");
        bad("*.*.a", "too many wildcards");
        bad("*", "wildcard must be first label");
        bad("*a.b", "wildcard must be first label");
        bad("a.*.b", "wildcard must be first label");
        bad("", "empty or only whitespace");
        bad("*.", "empty or only whitespace");
        bad("\t", "empty or only whitespace");
        bad("a.", "domain ends with dot");
        for label in ["a-.b", "ab--c.d", "XN--bcher-kva.x", "xn--BCHER-kva.x", "xn---9ca.x"] {
            bad(label, "idna error\nidna: invalid label");
        }
    }

    #[test]
    fn what_is_invalid_is_named_as_the_library_of_spire_names_it() {
        let long = "a".repeat(64);
        let longest = "abc.".repeat(63) + "ab";
        let cases = [
            ("a..b", "a..b"),
            (".a", ".a"),
            ("*.a..b", "a..b"),
            ("-a.b", "-a"),
            ("xn--", ""),
            ("xn--a", "\u{80}"),
            ("xn--a-", "a-"),
            ("xn--0.pt", "0"),
            ("b.xn--zz", "zz"),
            ("xn--a-0ea.test", "\u{d3}a"),
            (&format!("{long}.-a"), "-a"),
            (&format!("{long}.a"), &long),
            (&longest, &longest),
        ];
        for (name, shown) in cases {
            bad(name, &format!("idna error\nidna: invalid label {}", quoted(shown)));
        }
    }

    #[test]
    fn what_a_label_hides_is_valid_text_that_can_be_shown() {
        // Three words from right to left, one from left to right, a virama before its joiner.
        for name in ["xn--9dbne9b", "xn--1-9hcuf1d", "xn--mgbbop3h", "a.xn--h1ahn.1b", "xn--11b2ezcw70k"] {
            ok(name);
        }
        // A Roman numeral, a ligature, a capital, a joiner that joins nothing, an accent on nothing.
        for (name, shown) in [
            ("xn--e5g", "\u{2177}"),
            ("a.xn--jm6c.1b", "\u{fb01}"),
            ("xn--8ba", "\u{c5}"),
            ("xn--ab-m1t", "a\u{200d}b"),
            ("xn--a-wbb", "\u{301}a"),
            // What begins with a digit, or stands beside one that does, has no order.
            ("a.xn--9dbne9b.1b", "a.xn--9dbne9b.1b"),
        ] {
            bad(name, &format!("idna error\nidna: invalid label {}", quoted(shown)));
        }
    }

    #[test]
    fn wildcards_cover_their_siblings() {
        assert_eq!(covered_by_wildcard(&["*.a", "b.a"]), Some("b.a"));
        assert_eq!(covered_by_wildcard(&["*.a", "c.b.a", "a"]), None);
    }
}
