//! Instants as SPIRE's `SQLite` driver writes and reads them.
//!
//! `YYYY-MM-DD HH:MM:SS[.fraction]+HH:MM`, the fraction without trailing zeros. SPIRE compares these
//! texts; this crate compares instants (`unixepoch`), which is right whatever the offsets are.

use std::time::SystemTime;

use spiffe::UnixSecs;
use time::{Date, Duration, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

/// An instant as a column holds it, in the zone `offset` seconds east of UTC.
pub(crate) fn format(instant: OffsetDateTime, offset: i64) -> String {
    let offset = i32::try_from(offset)
        .ok()
        .and_then(|seconds| UtcOffset::from_whole_seconds(seconds).ok())
        .unwrap_or(UtcOffset::UTC);
    let local = instant.to_offset(offset);
    let mut fraction = String::new();
    if local.nanosecond() > 0 {
        fraction = format!(".{:09}", local.nanosecond());
        fraction.truncate(fraction.trim_end_matches('0').len());
    }
    let sign = if offset.whole_seconds() < 0 { '-' } else { '+' };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}{fraction}{sign}{:02}:{:02}",
        local.year(),
        u8::from(local.month()),
        local.day(),
        local.hour(),
        local.minute(),
        local.second(),
        offset.whole_hours().unsigned_abs(),
        offset.minutes_past_hour().unsigned_abs(),
    )
}

/// The system time as a calendar instant.
pub(crate) fn instant(now: SystemTime) -> OffsetDateTime {
    OffsetDateTime::from(now)
}

/// Whole seconds as a calendar instant, clamped to what a calendar can hold.
pub(crate) fn instant_of(seconds: UnixSecs) -> OffsetDateTime {
    let end = 253_402_300_799;
    OffsetDateTime::from_unix_timestamp(seconds.0.clamp(-62_135_596_800, end))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Reads a column's text; `None` if it is no instant.
pub(crate) fn parse(text: &str) -> Option<OffsetDateTime> {
    let bytes = text.as_bytes();
    let number = |range: std::ops::Range<usize>| -> Option<u32> { text.get(range)?.parse().ok() };
    let date = Date::from_calendar_date(
        i32::try_from(number(0..4)?).ok()?,
        Month::try_from(u8::try_from(number(5..7)?).ok()?).ok()?,
        u8::try_from(number(8..10)?).ok()?,
    )
    .ok()?;
    if bytes.len() == 10 {
        return Some(PrimitiveDateTime::new(date, Time::MIDNIGHT).assume_utc());
    }
    let seconds = if bytes.get(16) == Some(&b':') { number(17..19)? } else { 0 };
    let time = Time::from_hms(
        u8::try_from(number(11..13)?).ok()?,
        u8::try_from(number(14..16)?).ok()?,
        u8::try_from(seconds).ok()?,
    )
    .ok()?;
    let mut rest = text.get(if bytes.get(16) == Some(&b':') { 19 } else { 16 }..)?;
    let mut nanoseconds = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let digits = fraction.get(..length.min(9))?;
        nanoseconds = format!("{digits:0<9}").parse::<i64>().ok()?;
        rest = fraction.get(length..)?;
    }
    let offset = match rest.trim() {
        "" | "Z" => 0,
        zone => {
            let sign = match zone.as_bytes().first()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let hours: i64 = zone.get(1..3)?.parse().ok()?;
            let minutes: i64 = zone.get(3..)?.trim_start_matches(':').parse().ok()?;
            sign * (hours * 3600 + minutes * 60)
        }
    };
    let local = PrimitiveDateTime::new(date, time).assume_utc();
    local.checked_add(Duration::nanoseconds(nanoseconds))?.checked_sub(Duration::seconds(offset))
}

/// Rounded to the nearest second, as SPIRE shows when an entry was made.
pub(crate) fn rounded(instant: OffsetDateTime) -> UnixSecs {
    let up = i64::from(instant.nanosecond() >= 500_000_000);
    UnixSecs(instant.unix_timestamp().saturating_add(up))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_written_as_the_driver_of_spire_does() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_795_421_155_687_291_800).unwrap();

        assert_eq!(format(at, 0), "2026-11-23 08:05:55.6872918+00:00");
        assert_eq!(format(at, 7200), "2026-11-23 10:05:55.6872918+02:00");
        assert_eq!(format(at, -12_600), "2026-11-23 04:35:55.6872918-03:30");
        assert_eq!(format(instant_of(UnixSecs(0)), 0), "1970-01-01 00:00:00+00:00");
    }

    #[test]
    fn instants_of_any_offset_are_read() {
        for (text, seconds) in [
            ("2026-11-23 08:05:55.687291849+00:00", 1_795_421_155),
            ("2026-11-23 10:05:55+02:00", 1_795_421_155),
            ("2026-11-23T08:05:55Z", 1_795_421_155),
            ("2026-11-23 08:05", 1_795_421_100),
            ("2026-11-23", 1_795_392_000),
        ] {
            assert_eq!(parse(text).map(OffsetDateTime::unix_timestamp), Some(seconds), "{text}");
        }
        assert_eq!(parse("soon"), None);
        assert_eq!(parse("2026-13-23 08:05:55"), None);
    }

    #[test]
    fn creation_is_rounded_to_the_nearest_second() {
        let at = |text| rounded(parse(text).unwrap()).0;

        assert_eq!(at("2026-11-23 08:05:55.5+00:00"), 1_795_421_156);
        assert_eq!(at("2026-11-23 08:05:55.499+00:00"), 1_795_421_155);
    }
}
