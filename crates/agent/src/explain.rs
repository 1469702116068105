//! Why a workload has the identities it has, and not others. Pure.
//!
//! A [`Reason`] is what stands in the log line of a refusal and in an explanation: the first thing in
//! the way, by a code that scripts can rely on.

use proto::finial::explain::Candidate;
use proto::spire::types;
use spiffe::nearest::{Miss, nearest};
use spiffe::{Entry, Selector, SelectorSet, SpiffeId};

use crate::state::{AgentState, Held};

/// How many near misses are told.
const MISSES: usize = 5;

/// The first thing between a workload and an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nothing.
    Ok,
    /// The agent has not heard from the server.
    NotSynced,
    /// The process cannot be attested.
    NotAttested,
    /// Nothing is known of the workload.
    NoSelectors,
    /// The agent has no entries at all.
    NoEntries,
    /// No entry has only selectors that the workload has.
    SelectorsDiffer,
    /// What matches is for SVID stores.
    StoredOnly,
    /// What matches gives other identities than the one asked for.
    OtherId,
    /// An entry matches, and its SVID is being made.
    SvidPending,
    /// An entry matches, and the server does not sign for it.
    SvidRefused,
}

impl Reason {
    /// As scripts know it.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::NotSynced => "NOT_SYNCED",
            Self::NotAttested => "NOT_ATTESTED",
            Self::NoSelectors => "NO_SELECTORS",
            Self::NoEntries => "NO_ENTRIES",
            Self::SelectorsDiffer => "SELECTORS_DIFFER",
            Self::StoredOnly => "STORED_ONLY",
            Self::OtherId => "OTHER_ID",
            Self::SvidPending => "SVID_PENDING",
            Self::SvidRefused => "SVID_REFUSED",
        }
    }

    /// As people read it.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Ok => "the workload has an identity",
            Self::NotSynced => "the agent has not heard from the server yet",
            Self::NotAttested => "no workload attestor could say anything of the process",
            Self::NoSelectors => "no workload attestor found a selector",
            Self::NoEntries => {
                "the server gives this agent no entries: none has its ID, or one of its aliases, as parent"
            }
            Self::SelectorsDiffer => "every entry asks for a selector that the workload does not have",
            Self::StoredOnly => "the entries that match are for SVID stores",
            Self::OtherId => "the entries that match give other SPIFFE IDs than the one asked for",
            Self::SvidPending => "an entry matches; its X.509-SVID is being signed",
            Self::SvidRefused => "an entry matches; the server does not sign for it, its log says why",
        }
    }

    /// Why a workload with these selectors gets what it gets; of identities by `wanted` alone, if it says
    /// so.
    pub(crate) fn of(state: &AgentState, selectors: &SelectorSet, wanted: Option<&SpiffeId>) -> Self {
        let matching = state.entries.matching(selectors);
        if let Some(wanted) = wanted
            && !matching.is_empty()
        {
            let gives = matching.iter().any(|held| held.entry.spiffe_id == *wanted);
            return if gives { Self::Ok } else { Self::OtherId };
        }
        if matching.iter().any(|held| held.svid.is_some()) {
            return Self::Ok;
        }
        if matching.iter().any(|held| held.is_pending()) {
            return Self::SvidPending;
        }
        if !matching.is_empty() {
            return Self::SvidRefused;
        }
        if state.synced_at.is_none() {
            Self::NotSynced
        } else if selectors.is_empty() {
            Self::NoSelectors
        } else if state.entries.is_empty() {
            Self::NoEntries
        } else if state.entries.iter().any(|held| is_stored_match(&held.entry, selectors)) {
            Self::StoredOnly
        } else {
            Self::SelectorsDiffer
        }
    }
}

fn is_stored_match(entry: &Entry, selectors: &SelectorSet) -> bool {
    entry.store_svid && !entry.selector_set.is_empty() && entry.selector_set.is_subset(selectors)
}

/// The entries that match, those for SVID stores too.
pub(crate) fn matches(state: &AgentState, selectors: &SelectorSet) -> Vec<Candidate> {
    let stored = state.entries.iter().filter(|held| is_stored_match(&held.entry, selectors));
    let mut candidates: Vec<Candidate> =
        state.entries.matching(selectors).iter().map(|held| candidate(held)).collect();
    candidates.extend(stored.map(|held| candidate(held)));
    candidates
}

fn candidate(held: &Held) -> Candidate {
    let reason = if held.entry.store_svid {
        Reason::StoredOnly.code()
    } else if held.svid.is_some() {
        ""
    } else if held.refused {
        Reason::SvidRefused.code()
    } else {
        Reason::SvidPending.code()
    };
    Candidate {
        entry: Some(shown(&held.entry)),
        reason: reason.to_owned(),
        svid_expires_at: held.svid.as_ref().map_or(0, |svid| svid.expires_at.0),
        ..Candidate::default()
    }
}

/// The entries that little is missing for.
pub(crate) fn misses(state: &AgentState, selectors: &SelectorSet) -> Vec<Candidate> {
    let entries = state.entries.iter().map(|held| &held.entry);
    let miss = |miss: Miss<'_>| Candidate {
        entry: Some(shown(miss.entry)),
        missing: wire(miss.missing.iter()),
        reason: Reason::SelectorsDiffer.code().to_owned(),
        ..Candidate::default()
    };
    nearest(entries, selectors, MISSES).into_iter().map(miss).collect()
}

/// The entry as far as the agent knows it: not its parent, nor when it expires.
fn shown(entry: &Entry) -> types::Entry {
    proto::convert::entry::masked(entry, Some(&proto::convert::entry::AGENT_MASK))
}

/// Selectors as messages have them.
pub(crate) fn wire<'a>(selectors: impl Iterator<Item = &'a Selector>) -> Vec<types::Selector> {
    selectors.map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use spiffe::UnixSecs;

    use super::*;
    use crate::fixtures::{self, entry, svid};
    use crate::state::Change;

    fn set(values: &[&str]) -> SelectorSet {
        values.iter().map(|value| Selector::new("unix", value)).collect()
    }

    fn with(entries: Vec<Entry>) -> AgentState {
        let entries = entries.into_iter().map(Arc::new).collect();
        fixtures::state().apply(Change::Synced { entries, own: None, federated: Vec::new(), at: UnixSecs(1) })
    }

    fn code(state: &AgentState, values: &[&str]) -> &'static str {
        Reason::of(state, &set(values), None).code()
    }

    #[test]
    fn the_first_thing_in_the_way_is_named() {
        assert_eq!(code(&fixtures::state(), &["uid:1"]), "NOT_SYNCED");
        assert_eq!(code(&with(Vec::new()), &["uid:1"]), "NO_ENTRIES");
        let stored = Entry { store_svid: true, ..entry("s", "/s", &["uid:9"]) };
        let one = entry("a", "/a", &["uid:1", "gid:1"]);
        let state = with(vec![entry("a", "/a", &["uid:1", "gid:1"]), stored]);
        assert_eq!(code(&state, &[]), "NO_SELECTORS");
        assert_eq!(code(&state, &["uid:1"]), "SELECTORS_DIFFER");
        assert_eq!(code(&state, &["uid:9"]), "STORED_ONLY");
        assert_eq!(code(&state, &["uid:1", "gid:1"]), "SVID_PENDING");

        let refused = state.apply(Change::Issued(vec![(one.id.clone(), None)]));
        assert_eq!(code(&refused, &["uid:1", "gid:1"]), "SVID_REFUSED");
        let issued = state.apply(Change::Issued(vec![(one.id.clone(), Some(svid(&one, UNIX_EPOCH)))]));
        assert_eq!(code(&issued, &["uid:1", "gid:1", "user:x"]), "OK");
        let wanted = SpiffeId::parse("spiffe://example.org/other").unwrap();
        assert_eq!(Reason::of(&issued, &set(&["uid:1", "gid:1"]), Some(&wanted)), Reason::OtherId);
    }

    #[test]
    fn near_misses_name_what_is_missing() {
        let state = with(vec![entry("a", "/a", &["uid:1", "gid:1"]), entry("b", "/b", &["uid:2"])]);

        let misses = misses(&state, &set(&["uid:1"]));

        let named: Vec<(&str, String)> = misses
            .iter()
            .map(|miss| (miss.entry.as_ref().unwrap().id.as_str(), miss.missing[0].value.clone()))
            .collect();
        assert_eq!(named, [("a", "gid:1".to_owned()), ("b", "uid:2".to_owned())]);
        assert_eq!(matches(&state, &set(&["uid:2"])).len(), 1);
    }
}
