//! The filters of lists and counts.

use proto::convert::selector;
use proto::spire::server::agent as wire;
use proto::spire::types;
use proto::spire::types::selector_match::MatchBehavior;
use spiffe::UnixSecs;
use spiffe::quote::quoted_number;
use store::{AgentFilter, Match, SelectorFilter};
use time::{Date, Month, PrimitiveDateTime, Time, UtcOffset};
use tonic::Status;

use crate::api::status::{failed, invalid};

/// A filter as either request has it.
#[derive(Default)]
pub(super) struct Filter {
    attestation_type: String,
    selectors: Option<types::SelectorMatch>,
    banned: Option<bool>,
    can_reattest: Option<bool>,
    expires_before: String,
}

impl Filter {
    /// As the store takes it; `what` failed if a match behaviour is unknown.
    pub(super) fn parse(self, what: &str) -> Result<AgentFilter, Status> {
        let selectors = self.selectors.map(|filter| parse_selectors(&filter, what)).transpose()?;
        Ok(AgentFilter {
            attestation_type: self.attestation_type,
            banned: self.banned,
            can_reattest: self.can_reattest,
            // As in SPIRE, one that cannot be read is no filter, nor is the instant at which Go's time begins.
            expires_before: parse_instant(&self.expires_before).filter(|at| *at != START_OF_TIME),
            valid_at: None,
            selectors,
            ids: Vec::new(),
        })
    }
}

impl From<wire::count_agents_request::Filter> for Filter {
    fn from(filter: wire::count_agents_request::Filter) -> Self {
        Self {
            attestation_type: filter.by_attestation_type,
            selectors: filter.by_selector_match,
            banned: filter.by_banned,
            can_reattest: filter.by_can_reattest,
            expires_before: filter.by_expires_before,
        }
    }
}

impl From<wire::list_agents_request::Filter> for Filter {
    fn from(filter: wire::list_agents_request::Filter) -> Self {
        Self {
            attestation_type: filter.by_attestation_type,
            selectors: filter.by_selector_match,
            banned: filter.by_banned,
            can_reattest: filter.by_can_reattest,
            expires_before: filter.by_expires_before,
        }
    }
}

fn parse_selectors(filter: &types::SelectorMatch, what: &str) -> Result<SelectorFilter, Status> {
    let selectors = filter.selectors.iter().map(spiffe::Selector::try_from).collect::<Result<_, _>>();
    let selectors: Vec<_> =
        selectors.map_err(|error: selector::SelectorError| invalid("failed to parse selectors", error))?;
    let matching = match MatchBehavior::try_from(filter.r#match) {
        Ok(MatchBehavior::MatchExact) => Match::Exact,
        Ok(MatchBehavior::MatchSubset) => Match::Subset,
        Ok(MatchBehavior::MatchSuperset) => Match::Superset,
        Ok(MatchBehavior::MatchAny) => Match::Any,
        // An empty set is refused for being empty, however it would be compared.
        Err(_) if selectors.is_empty() => Match::Any,
        Err(_) => {
            let behaviour = quoted_number(filter.r#match);
            return Err(failed(what, format_args!("datastore-sql: unhandled match behavior {behaviour}")));
        }
    };
    Ok(SelectorFilter { selectors, matching })
}

/// The first instant of the first year.
const START_OF_TIME: UnixSecs = UnixSecs(-62_135_596_800);

/// Reads `2006-01-02 15:04:05 -0700 -07`, the form in which SPIRE's command line sends it. A fraction
/// of a second may follow the seconds; the second offset repeats the hours of the first. Since agents
/// expire at whole seconds, what expires before a fraction expires before the next of them.
fn parse_instant(text: &str) -> Option<UnixSecs> {
    let mut words = text.split(' ');
    let (date, time, offset, hours) = (words.next()?, words.next()?, words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let (time, rounding) = match time.split_once(['.', ',']) {
        Some((time, fraction)) if !fraction.is_empty() && is_digits(fraction) => {
            (time, i64::from(fraction.bytes().any(|digit| digit != b'0')))
        }
        Some(_) => return None,
        None => (time, 0),
    };
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let narrow = |number: u32| u8::try_from(number).ok();
    let month = Month::try_from(narrow(month)?).ok()?;
    let date = Date::from_calendar_date(i32::try_from(year).ok()?, month, narrow(day)?).ok()?;
    let time = Time::from_hms(narrow(hour)?, narrow(minute)?, narrow(second)?).ok()?;
    parse_offset(hours, 2)?;
    let local = PrimitiveDateTime::new(date, time).assume_offset(parse_offset(offset, 4)?);
    Some(UnixSecs(local.unix_timestamp() + rounding))
}

fn parse_offset(text: &str, digits: usize) -> Option<UtcOffset> {
    let (sign, number) = match text.split_at_checked(1)? {
        ("+", number) => (1, number),
        ("-", number) => (-1, number),
        _ => return None,
    };
    if number.len() != digits || !is_digits(number) {
        return None;
    }
    let (hours, minutes) = number.split_at_checked(2)?;
    let hours: i32 = hours.parse().ok()?;
    let minutes: i32 = if minutes.is_empty() { 0 } else { minutes.parse().ok()? };
    UtcOffset::from_whole_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[u32; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next().filter(|part| part.len() == digits && is_digits(part))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_match_behaviour_is_refused_unless_the_set_is_refused_first() {
        let one = types::Selector { r#type: "a".to_owned(), value: "1".to_owned() };
        let unknown = types::SelectorMatch { selectors: vec![one], r#match: 4 };
        let empty = types::SelectorMatch { selectors: Vec::new(), r#match: 4 };

        let refusal = parse_selectors(&unknown, "failed to list agents").unwrap_err();

        let text = r"failed to list agents: datastore-sql: unhandled match behavior '\x04'";
        assert_eq!((refusal.code(), refusal.message()), (tonic::Code::Internal, text));
        assert!(parse_selectors(&empty, "failed to list agents").unwrap().selectors.is_empty());
    }

    #[test]
    fn the_start_of_time_is_no_filter() {
        let read = |text: &str| {
            let filter = Filter { expires_before: text.to_owned(), ..Filter::default() };
            filter.parse("failed to list agents").unwrap().expires_before
        };

        assert_eq!(read("0001-01-01 00:00:00 +0000 +00"), None);
        assert_eq!(read("0001-01-01 00:00:01 +0000 +00"), Some(UnixSecs(-62_135_596_799)));
    }

    #[test]
    fn instants_are_read_as_the_command_line_writes_them() {
        let read = |text: &str| parse_instant(text).map(|at| at.0);

        assert_eq!(read("2026-11-23 08:05:55 +0000 +00"), Some(1_795_421_155));
        assert_eq!(read("2026-11-23 10:05:55 +0200 +02"), Some(1_795_421_155));
        for fraction in [".25", ",25", ".9999999999"] {
            assert_eq!(read(&format!("2026-11-23 04:35:55{fraction} -0330 -03")), Some(1_795_421_156));
        }
        assert_eq!(read("2026-11-23 04:35:55.00 -0330 -03"), Some(1_795_421_155));
        for bad in [
            "",
            "2026-11-23T08:05:55Z",
            "2026-11-23 08:05:55",
            "2026-11-23 08:05:55 +0000 UTC",
            "2026-13-23 08:05:55 +0000 +00",
            "2026-11-23 8:05:55 +0000 +00",
            "2026-11-23 08:05:55 0000 00",
            "2026-11-23 08:05:55. +0000 +00",
            "2026-11-23 08:05:55,x +0000 +00",
            "2026-11-23 08:05:55 +0000 +00 ",
        ] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
