//! Lists and counts of entries from the snapshot, page by page as the datastore would give them.

use std::collections::HashSet;
use std::sync::Arc;

use graph::EntryGraph;
use spiffe::{Entry, TrustDomain};
use store::{EntryFilter, FederatesWithFilter, Match, Page, StoreError};

/// Entries of a page, and what asks for the next one.
pub(super) struct Listed<'a> {
    pub(super) entries: Vec<&'a Arc<Entry>>,
    pub(super) next_token: String,
}

/// One page (or everything) that matches. Selectors are not looked at.
///
/// A page is cut before downstream entries are picked from it: one without any is empty and the last,
/// as SPIRE's clients have always seen it.
pub(super) fn page<'a>(
    graph: &'a EntryGraph,
    filter: &'a EntryFilter,
    page: Option<&Page>,
) -> Result<Listed<'a>, StoreError> {
    let (after, size) = match page {
        Some(page) => (page.after()?, usize::try_from(page.size).unwrap_or(usize::MAX)),
        None => (i64::MIN, usize::MAX),
    };
    let mut last = None;
    let mut entries = Vec::new();
    for (row_id, entry) in matching(graph, filter, after.saturating_add(1)).take(size) {
        last = Some(row_id);
        if entry.downstream || !filter.downstream {
            entries.push(entry);
        }
    }
    let is_last = page.is_none() || entries.is_empty();
    let next_token = last.filter(|_| !is_last).map(|row| row.to_string()).unwrap_or_default();
    Ok(Listed { entries, next_token })
}

/// How many match.
pub(super) fn count(graph: &EntryGraph, filter: &EntryFilter) -> i32 {
    let all = filter.parent_id.is_none()
        && filter.spiffe_id.is_none()
        && filter.hint.is_empty()
        && filter.federates_with.is_none()
        && !filter.downstream;
    let count = if all {
        graph.counts().entries
    } else {
        let counts = |(_, entry): &(i64, &Arc<Entry>)| entry.downstream || !filter.downstream;
        matching(graph, filter, i64::MIN).filter(counts).count()
    };
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The entries from a row on that match all but `downstream`, in order of their rows. What an index
/// finds is read by it.
fn matching<'a>(
    graph: &'a EntryGraph,
    filter: &'a EntryFilter,
    from: i64,
) -> impl Iterator<Item = (i64, &'a Arc<Entry>)> {
    let candidates: Box<dyn Iterator<Item = (i64, &'a Arc<Entry>)> + 'a> =
        if let Some(spiffe_id) = &filter.spiffe_id {
            Box::new(graph.entries_of(spiffe_id).filter_map(|entry| Some((graph.row_of(&entry.id)?, entry))))
        } else if let Some(parent_id) = &filter.parent_id {
            Box::new(graph.entries_below(parent_id))
        } else {
            Box::new(graph.entries_from(from))
        };
    let federation = filter.federates_with.as_ref().map(Federation::of);
    candidates.filter(move |(row, entry)| {
        *row >= from
            && filter.spiffe_id.as_ref().is_none_or(|wanted| *wanted == entry.spiffe_id)
            && filter.parent_id.as_ref().is_none_or(|wanted| *wanted == entry.parent_id)
            && (filter.hint.is_empty() || filter.hint == entry.hint)
            && federation.as_ref().is_none_or(|wanted| wanted.fits(entry))
    })
}

/// A set of trust domains, and how that of an entry must relate to it.
struct Federation<'a> {
    wanted: HashSet<&'a TrustDomain>,
    matching: Match,
}

impl<'a> Federation<'a> {
    fn of(filter: &'a FederatesWithFilter) -> Self {
        Self { wanted: filter.trust_domains.iter().collect(), matching: filter.matching }
    }

    fn fits(&self, entry: &Entry) -> bool {
        let has: HashSet<&TrustDomain> = entry.federates_with.iter().collect();
        match self.matching {
            Match::Exact => has == self.wanted,
            Match::Subset => !has.is_empty() && has.is_subset(&self.wanted),
            Match::Superset => has.is_superset(&self.wanted),
            Match::Any => !has.is_disjoint(&self.wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use spiffe::{EntryId, Selector, SpiffeId, UnixSecs};

    use super::*;

    fn entry(number: i64) -> (i64, Arc<Entry>) {
        let id = |path: String| SpiffeId::parse(&format!("spiffe://example.org/{path}")).unwrap();
        let selectors: Arc<[Selector]> = [Selector::new("t", "v")].into();
        let names = ["a.test", "b.test"].map(|name| TrustDomain::parse(name).unwrap());
        let names = names.into_iter().take(usize::try_from(number % 3).unwrap());
        let entry = Entry {
            id: EntryId::new(&format!("e{number}")),
            spiffe_id: id(format!("w{}", number % 2)),
            parent_id: id(format!("p{}", number % 4)),
            selector_set: selectors.iter().cloned().collect(),
            selectors,
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: names.collect(),
            admin: false,
            downstream: number == 7,
            expires_at: UnixSecs(0),
            dns_names: [].into(),
            revision_number: 0,
            store_svid: false,
            hint: if number > 5 { "late".into() } else { String::new() },
            created_at: UnixSecs(1),
            additional_attributes: None,
        };
        (number, Arc::new(entry))
    }

    fn graph() -> EntryGraph {
        EntryGraph::load(TrustDomain::parse("example.org").unwrap(), (1..=9).map(entry), [])
    }

    fn rows(filter: &EntryFilter, size: u32, token: &str) -> (Vec<i64>, String) {
        let asked = (size > 0).then(|| Page { size, token: token.to_owned() });
        let graph = graph();
        let page = page(&graph, filter, asked.as_ref()).unwrap();
        let row = |entry: &&Arc<Entry>| entry.id.as_str().trim_start_matches('e').parse().unwrap();
        (page.entries.iter().map(row).collect(), page.next_token)
    }

    #[test]
    fn a_list_is_walked_page_by_page() {
        let all = EntryFilter::default();

        assert_eq!(rows(&all, 0, ""), ((1..=9).collect(), String::new()));
        assert_eq!(rows(&all, 4, ""), (vec![1, 2, 3, 4], "4".into()));
        assert_eq!(rows(&all, 4, "4"), (vec![5, 6, 7, 8], "8".into()));
        assert_eq!(rows(&all, 4, "8"), (vec![9], "9".into()));
        assert_eq!(rows(&all, 4, "9"), (vec![], String::new()));
        let bad = Page { size: 4, token: "-1".into() };
        assert!(page(&graph(), &all, Some(&bad)).is_err());
    }

    #[test]
    fn criteria_must_all_hold() {
        let id = |path: &str| SpiffeId::parse(&format!("spiffe://example.org/{path}")).ok();
        let mut filter = EntryFilter { spiffe_id: id("w1"), ..EntryFilter::default() };
        assert_eq!(rows(&filter, 0, "").0, [1, 3, 5, 7, 9]);
        filter.parent_id = id("p3");
        assert_eq!(rows(&filter, 0, "").0, [3, 7]);
        filter.hint = "late".into();
        assert_eq!(rows(&filter, 1, ""), (vec![7], "7".into()));
        assert_eq!(count(&graph(), &filter), 1);
        assert_eq!(count(&graph(), &EntryFilter::default()), 9);
    }

    #[test]
    fn trust_domains_relate_as_sets() {
        let federating = |matching, names: &[&str]| {
            let trust_domains = names.iter().map(|name| TrustDomain::parse(name).unwrap()).collect();
            let federates_with = Some(FederatesWithFilter { trust_domains, matching });
            rows(&EntryFilter { federates_with, ..EntryFilter::default() }, 0, "").0
        };

        // Rows 1, 4, 7 federate with a; 2, 5, 8 with a and b.
        assert_eq!(federating(Match::Exact, &["a.test"]), [1, 4, 7]);
        assert_eq!(federating(Match::Subset, &["b.test", "a.test"]), [1, 2, 4, 5, 7, 8]);
        assert_eq!(federating(Match::Superset, &["b.test"]), [2, 5, 8]);
        assert_eq!(federating(Match::Any, &["b.test", "c.test"]), [2, 5, 8]);
        assert_eq!(federating(Match::Exact, &["c.test"]), [0_i64; 0]);
    }

    #[test]
    fn a_page_without_downstream_entries_is_the_last() {
        let filter = EntryFilter { downstream: true, ..EntryFilter::default() };

        assert_eq!(rows(&filter, 0, "").0, [7]);
        assert_eq!(rows(&filter, 4, ""), (vec![], String::new()));
        assert_eq!(rows(&filter, 4, "4"), (vec![7], "8".into()));
        assert_eq!(count(&graph(), &filter), 1);
    }
}
