//! The filters of lists and counts.

use proto::convert::{id, selector};
use proto::spire::server::entry::{count_entries_request, list_entries_request};
use proto::spire::types;
use spiffe::TrustDomain;
use spiffe::quote::quoted_number;
use store::{EntryFilter, FederatesWithFilter, Match, SelectorFilter};
use tonic::Status;

use crate::api::status::{failed, invalid};

/// The criteria of a request: those of lists and those of counts are the same.
#[derive(Default)]
pub(super) struct Asked {
    by_spiffe_id: Option<types::Spiffeid>,
    by_parent_id: Option<types::Spiffeid>,
    by_selectors: Option<types::SelectorMatch>,
    by_federates_with: Option<types::FederatesWithMatch>,
    by_hint: Option<String>,
    by_downstream: Option<bool>,
}

impl Asked {
    /// The criteria, read in SPIRE's order: the first that is wrong is named.
    pub(super) fn filter(self, trust_domain: &TrustDomain, what: &str) -> Result<EntryFilter, Status> {
        let mut filter = EntryFilter { hint: self.by_hint.unwrap_or_default(), ..EntryFilter::default() };
        // It is the datastore that judges how sets are matched, when all else is read.
        let mut unhandled = None;
        if let Some(wire) = &self.by_parent_id {
            let parent = id::member(trust_domain, Some(wire));
            filter.parent_id = Some(parent.map_err(|why| invalid("malformed parent ID filter", why))?);
        }
        if let Some(wire) = &self.by_spiffe_id {
            let spiffe_id = id::workload(trust_domain, Some(wire));
            filter.spiffe_id = Some(spiffe_id.map_err(|why| invalid("malformed SPIFFE ID filter", why))?);
        }
        if let Some(wire) = &self.by_selectors {
            let malformed = "malformed selectors filter";
            let selectors = selector::all(&wire.selectors).map_err(|why| invalid(malformed, why))?;
            if selectors.is_empty() {
                return Err(invalid(malformed, "empty selector set"));
            }
            match matching(wire.r#match) {
                Some(matching) => filter.selectors = Some(SelectorFilter { selectors, matching }),
                None => unhandled = Some(("selectors", wire.r#match)),
            }
        }
        if let Some(wire) = &self.by_federates_with {
            let malformed = "malformed federates with filter";
            let names = wire.trust_domains.iter().map(|name| TrustDomain::parse(name));
            let trust_domains: Vec<_> =
                names.collect::<Result<_, _>>().map_err(|why| invalid(malformed, why))?;
            if trust_domains.is_empty() {
                return Err(invalid(malformed, "empty trust domain set"));
            }
            match matching(wire.r#match) {
                Some(matching) => {
                    filter.federates_with = Some(FederatesWithFilter { trust_domains, matching });
                }
                None => unhandled = unhandled.or(Some(("federates with", wire.r#match))),
            }
        }
        if let Some((set, number)) = unhandled {
            let number = quoted_number(number);
            return Err(failed(what, format!("datastore-sql: unhandled {set} match behavior {number}")));
        }
        // `false` is no filter either.
        filter.downstream = self.by_downstream.unwrap_or_default();
        Ok(filter)
    }
}

/// The numbers are the same for selectors and trust domains.
const fn matching(number: i32) -> Option<Match> {
    match number {
        0 => Some(Match::Exact),
        1 => Some(Match::Subset),
        2 => Some(Match::Superset),
        3 => Some(Match::Any),
        _ => None,
    }
}

impl From<list_entries_request::Filter> for Asked {
    fn from(wire: list_entries_request::Filter) -> Self {
        Self {
            by_spiffe_id: wire.by_spiffe_id,
            by_parent_id: wire.by_parent_id,
            by_selectors: wire.by_selectors,
            by_federates_with: wire.by_federates_with,
            by_hint: wire.by_hint,
            by_downstream: wire.by_downstream,
        }
    }
}

impl From<count_entries_request::Filter> for Asked {
    fn from(wire: count_entries_request::Filter) -> Self {
        Self {
            by_spiffe_id: wire.by_spiffe_id,
            by_parent_id: wire.by_parent_id,
            by_selectors: wire.by_selectors,
            by_federates_with: wire.by_federates_with,
            by_hint: wire.by_hint,
            by_downstream: wire.by_downstream,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: fn(&mut Asked)) -> String {
        let mut asked = Asked::default();
        change(&mut asked);
        let own = TrustDomain::parse("example.org").unwrap();
        asked.filter(&own, "failed to list entries").unwrap_err().message().to_owned()
    }

    #[test]
    fn refusals_are_in_the_words_of_the_api() {
        assert_eq!(
            refusal(|asked| asked.by_parent_id = Some(types::Spiffeid::default())),
            "malformed parent ID filter: trust domain is missing"
        );
        assert_eq!(
            refusal(|asked| asked.by_selectors = Some(types::SelectorMatch::default())),
            "malformed selectors filter: empty selector set"
        );
        assert_eq!(
            refusal(|asked| asked.by_federates_with = Some(types::FederatesWithMatch::default())),
            "malformed federates with filter: empty trust domain set"
        );
        assert_eq!(
            refusal(|asked| {
                let trust_domains = vec!["a.test".to_owned()];
                asked.by_federates_with = Some(types::FederatesWithMatch { trust_domains, r#match: 9 });
            }),
            "failed to list entries: datastore-sql: unhandled federates with match behavior '\\t'"
        );
        assert_eq!(
            refusal(|asked| {
                let selectors = vec![types::Selector { r#type: "t".to_owned(), value: "v".to_owned() }];
                asked.by_selectors = Some(types::SelectorMatch { selectors, r#match: 9 });
                asked.by_federates_with = Some(types::FederatesWithMatch::default());
            }),
            "malformed federates with filter: empty trust domain set"
        );
    }

    #[test]
    fn an_empty_hint_and_a_false_downstream_are_no_filters() {
        let own = TrustDomain::parse("example.org").unwrap();
        let asked = Asked { by_hint: Some(String::new()), by_downstream: Some(false), ..Asked::default() };

        let filter = asked.filter(&own, "").unwrap();

        assert!(filter.hint.is_empty() && !filter.downstream);
    }
}
