//! Writes DER: just the types that certificates and requests are made of.

use crate::UnixSecs;

/// Tags.
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
pub(super) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(super) const NULL_TAG: u8 = 0x05;
const NULL: [u8; 2] = [NULL_TAG, 0];
pub(crate) const OID: u8 = 0x06;
pub(super) const UTF8_STRING: u8 = 0x0c;
pub(super) const PRINTABLE_STRING: u8 = 0x13;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// A value of `tag` with `contents`.
pub(crate) fn tlv(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(contents.len() + 6);
    out.push(tag);
    let length = contents.len();
    if let Ok(short @ 0..0x80) = u8::try_from(length) {
        out.push(short);
    } else {
        let bytes = length.to_be_bytes();
        let significant = bytes
            .iter()
            .position(|byte| *byte != 0)
            .map_or(&[][..], |at| bytes.get(at..).unwrap_or_default());
        out.push(0x80 | u8::try_from(significant.len()).unwrap_or(0));
        out.extend_from_slice(significant);
    }
    out.extend_from_slice(contents);
    out
}

/// A value of `tag` made of parts.
pub(crate) fn cat(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    tlv(tag, &parts.concat())
}

/// A context-specific, constructed value.
pub(crate) fn explicit(number: u8, contents: &[u8]) -> Vec<u8> {
    tlv(0xa0 | number, contents)
}

/// A context-specific, primitive value.
pub(crate) fn implicit(number: u8, contents: &[u8]) -> Vec<u8> {
    tlv(0x80 | number, contents)
}

/// An unsigned integer from big-endian bytes.
pub(crate) fn unsigned(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let significant = bytes.get(start..).unwrap_or_default();
    match significant.first() {
        None => tlv(INTEGER, &[0]),
        Some(first) if first & 0x80 != 0 => cat(INTEGER, &[&[0], significant]),
        Some(_) => tlv(INTEGER, significant),
    }
}

/// An object identifier from its encoded arcs.
pub(crate) fn oid(encoded: &[u8]) -> Vec<u8> {
    tlv(OID, encoded)
}

/// `TRUE`.
pub(crate) fn truth() -> Vec<u8> {
    tlv(BOOLEAN, &[0xff])
}

/// `NULL`.
pub(crate) const fn null() -> [u8; 2] {
    NULL
}

/// An octet string.
pub(crate) fn octets(contents: &[u8]) -> Vec<u8> {
    tlv(OCTET_STRING, contents)
}

/// A bit string of whole bytes.
pub(crate) fn bits(contents: &[u8]) -> Vec<u8> {
    cat(BIT_STRING, &[&[0], contents])
}

/// A bit string of named bits: `bit 0` is the first, trailing zeros are left out.
pub(crate) fn named_bits(bits: u16) -> Vec<u8> {
    if bits == 0 {
        return tlv(BIT_STRING, &[0]);
    }
    let [high, low] = bits.reverse_bits().to_be_bytes();
    let significant: &[u8] = if low == 0 { &[high] } else { &[high, low] };
    let unused = significant.last().map_or(0, |byte| byte.trailing_zeros());
    cat(BIT_STRING, &[&[u8::try_from(unused).unwrap_or(0)], significant])
}

/// A string in the narrowest type Go would choose: `PrintableString`, else `UTF8String`.
pub(crate) fn string(text: &str) -> Vec<u8> {
    let printable = |byte: u8| byte.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&byte);
    let tag = if text.bytes().all(printable) { PRINTABLE_STRING } else { UTF8_STRING };
    tlv(tag, text.as_bytes())
}

/// An instant: `UTCTime` for the years 1950 to 2049, else `GeneralizedTime` (RFC 5280, 4.1.2.5).
pub(crate) fn instant(at: UnixSecs) -> Vec<u8> {
    let [utc, generalized] = instant_forms(at);
    utc.or(generalized).unwrap_or_default()
}

/// The two forms of an instant, where its year has them.
pub(crate) fn instant_forms(at: UnixSecs) -> [Option<Vec<u8>>; 2] {
    let (year, month, day) = civil(at.0.div_euclid(86_400));
    let second = at.0.rem_euclid(86_400);
    let (century, year_of_century) = (year.div_euclid(100), year.rem_euclid(100));
    let mut text = [b'Z'; 15];
    let parts = [century, year_of_century, month, day, second / 3600, second / 60 % 60, second % 60];
    for (place, part) in text.chunks_exact_mut(2).zip(parts) {
        // Each is below a hundred where it is looked at.
        let part = u8::try_from(part).unwrap_or(0);
        place.copy_from_slice(&[b'0' + part / 10 % 10, b'0' + part % 10]);
    }
    let short = text.get(2..).unwrap_or_default();
    let utc = (1950..2050).contains(&year).then(|| tlv(UTC_TIME, short));
    let generalized = (0..10_000).contains(&year).then(|| tlv(GENERALIZED_TIME, &text));
    [utc, generalized]
}

/// The instant of a `UTCTime` or `GeneralizedTime` in the form of RFC 5280, 4.1.2.5: to the second, in UTC.
pub(super) fn read_instant((tag, text): (u8, &[u8])) -> Option<UnixSecs> {
    let (pairs, [b'Z']) = text.as_chunks::<2>() else { return None };
    let mut numbers = pairs.iter().map(|pair| match pair {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Some(i64::from((tens - b'0') * 10 + (ones - b'0'))),
        _ => None,
    });
    let mut next = || numbers.next().flatten();
    let year = match tag {
        UTC_TIME => next().map(|year| if year < 50 { 2000 + year } else { 1900 + year })?,
        GENERALIZED_TIME => next()? * 100 + next()?,
        _ => return None,
    };
    let (month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?);
    let at = UnixSecs(days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second);
    // A thirtieth of February, or an hour too many, is written otherwise.
    let is_same = |form: &Vec<u8>| form.first() == Some(&tag) && form.get(2..) == Some(text);
    instant_forms(at).iter().flatten().any(is_same).then_some(at)
}

/// The day of a date, counted from 1970-01-01: the inverse of [`civil`] for a month from 1 to 12.
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    year.div_euclid(400) * 146_097 + day_of_era - 719_468
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
const fn civil(days: i64) -> (i64, i64, i64) {
    // Eras of 400 years start on a first of March, so that leap days come last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// Whether `der` is one value in DER (X.690, 8 and 10) with nothing behind it, down to the last
/// primitive: minimal lengths, minimal integers, types that certificates use. The parser of
/// certificates is more lenient than that.
pub(crate) fn is_strict(der: &[u8]) -> bool {
    element(der, DEEPEST).is_some_and(<[u8]>::is_empty)
}

/// The values that a value in strict DER is made of: tag and contents of each.
pub(crate) fn items(der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    elements(elements(der).next().map_or(&[], |(_, content)| content))
}

/// The values that stand behind each other in strict DER: tag and contents of each.
pub(crate) fn elements(der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = der;
    std::iter::from_fn(move || {
        let (&[tag, first], behind) = rest.split_first_chunk::<2>()?;
        let (length, behind) = match first {
            0..=0x7f => (usize::from(first), behind),
            _ => {
                let (bytes, behind) = behind.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), behind)
            }
        };
        let (content, behind) = behind.split_at_checked(length)?;
        rest = behind;
        Some((tag, content))
    })
}

/// The `N` values that stand behind each other in strict DER, if it is as many.
pub(super) fn exactly<const N: usize>(der: &[u8]) -> Option<[(u8, &[u8]); N]> {
    let mut values = elements(der);
    let mut parts = [(0, &[][..]); N];
    for part in &mut parts {
        *part = values.next()?;
    }
    values.next().is_none().then_some(parts)
}

/// The deepest nesting that is looked at.
const DEEPEST: usize = 32;

/// What stands behind the first value of `der`, if that is well-formed.
fn element(der: &[u8], depth: usize) -> Option<&[u8]> {
    let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            // The short form where it fits, and no leading zeros.
            if length < 0x80 || bytes.first() == Some(&0) {
                return None;
            }
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    let (class, constructed, number) = (tag >> 6, tag & 0x20 != 0, tag & 0x1f);
    if number == 0x1f {
        return None;
    }
    let fits = match (class, number) {
        (0, 0x10 | 0x11) => constructed,
        // Boolean, integer, bit string, octet string, null, object identifier.
        (0, 1) => !constructed && matches!(content, [0 | 0xff]),
        (0, 2) => {
            !constructed
                && !content.is_empty()
                && !matches!(content, [0, 0..=0x7f, ..] | [0xff, 0x80..=0xff, ..])
        }
        (0, 3) => !constructed && matches!(content, [0] | [0..=7, _, ..]),
        (0, 4) => !constructed,
        (0, 5) => !constructed && content.is_empty(),
        (0, 6) => !constructed && is_oid(content),
        // Texts and times.
        (0, 0x0c | 0x12 | 0x13 | 0x14 | 0x16 | 0x17 | 0x18 | 0x1a | 0x1b | 0x1c | 0x1e) => !constructed,
        // Context-specific ones are whatever the type around them says; no certificate has any others.
        (2, _) => true,
        _ => false,
    };
    if !fits {
        return None;
    }
    if constructed {
        let deeper = depth.checked_sub(1)?;
        let mut inner = content;
        while !inner.is_empty() {
            inner = element(inner, deeper)?;
        }
    }
    Some(rest)
}

/// Whether every arc of an object identifier is minimal, and the last one complete.
fn is_oid(arcs: &[u8]) -> bool {
    let starts = std::iter::once(&0).chain(arcs).zip(arcs);
    arcs.last().is_some_and(|last| last & 0x80 == 0)
        && !starts.into_iter().any(|(before, first)| before & 0x80 == 0 && *first == 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_integers() {
        assert_eq!(tlv(0x04, &[7; 0x7f])[..2], [0x04, 0x7f]);
        assert_eq!(tlv(0x04, &[7; 0x80])[..3], [0x04, 0x81, 0x80]);
        assert_eq!(tlv(0x04, &[7; 0x1234])[..4], [0x04, 0x82, 0x12, 0x34]);
        assert_eq!(unsigned(&[0, 0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(unsigned(&[0, 1]), [2, 1, 1]);
        assert_eq!(unsigned(&[]), [2, 1, 0]);
    }

    #[test]
    fn key_usage_bits() {
        assert_eq!(named_bits(0b0001_0101), [3, 2, 3, 0xa8]);
        assert_eq!(named_bits(0b0110_0000), [3, 2, 1, 0x06]);
        assert_eq!(named_bits(1 << 8), [3, 3, 7, 0, 0x80]);
    }

    #[test]
    fn instants_switch_form_in_2050() {
        assert_eq!(instant(UnixSecs(0))[2..], *b"700101000000Z");
        assert_eq!(instant(UnixSecs(951_782_400))[2..], *b"000229000000Z");
        assert_eq!(instant(UnixSecs(2_524_607_999))[2..], *b"491231235959Z");
        assert_eq!(instant(UnixSecs(2_524_608_000))[2..], *b"20500101000000Z");
    }

    #[test]
    fn instants_read_back() {
        let day = 86_400;
        // Every day of 800 years, each at another second.
        for n in -146_097_i64..146_097 {
            let at = UnixSecs(n * day + (n * 7919).rem_euclid(day));
            for form in instant_forms(at).into_iter().flatten() {
                assert_eq!(read_instant((form[0], &form[2..])), Some(at));
            }
        }
        for text in ["260230000000Z", "261301000000Z", "260001000000Z", "260100000000Z", "260101240000Z"] {
            assert_eq!(read_instant((UTC_TIME, text.as_bytes())), None, "{text}");
        }
        for text in ["2601010000Z", "260101000000", "260101000000+0000", "26010100000aZ", "Z", ""] {
            assert_eq!(read_instant((UTC_TIME, text.as_bytes())), None, "{text}");
        }
        assert_eq!(read_instant((UTF8_STRING, b"260101000000Z")), None);
    }
}
