//! Which entries can match a set of selectors.
//!
//! Each entry is filed once, under the one of its selectors that the fewest entries have. A workload's
//! entries are then among those filed under one of its selectors, and none of them is found twice.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use spiffe::{Entry, Selector, SelectorSet};

/// Places of entries by their rarest selector.
///
/// Selectors are told apart by a hash, which takes a tenth of what they take and may be that of another one:
/// who asks looks at the entries anyway. Nobody outside knows how it is made.
#[derive(Debug, Default)]
pub struct EntryIndex {
    /// In order.
    filed: Box<[(u32, u32)]>,
    hasher: RandomState,
}

impl EntryIndex {
    /// Files entries with their places. One without selectors matches nobody, or it would match everybody.
    pub fn build<'a>(entries: impl Iterator<Item = (usize, &'a Entry)> + Clone) -> Self {
        let mut uses: HashMap<&Selector, usize> = HashMap::new();
        for selector in entries.clone().flat_map(|(_, entry)| &entry.selector_set) {
            *uses.entry(selector).or_default() += 1;
        }
        let hasher = RandomState::new();
        let filed = entries.filter_map(|(place, entry)| {
            let rarest = entry.selector_set.iter().min_by_key(|selector| uses.get(selector))?;
            Some((hash(&hasher, rarest), u32::try_from(place).ok()?))
        });
        let mut filed: Box<[_]> = filed.collect();
        filed.sort_unstable();
        Self { filed, hasher }
    }

    /// The places of the entries that may match a workload with these selectors, in order and each once; the
    /// others do not.
    #[must_use]
    pub fn candidates(&self, selectors: &SelectorSet) -> Vec<usize> {
        let mut places = Vec::new();
        for selector in selectors {
            let hash = hash(&self.hasher, selector);
            let from = self.filed.partition_point(|(filed, _)| *filed < hash);
            let filed = self.filed.get(from..).unwrap_or_default().iter();
            places.extend(filed.take_while(|(filed, _)| *filed == hash).map(|(_, place)| *place as usize));
        }
        places.sort_unstable();
        places.dedup();
        places
    }
}

/// Half of a hash: two of ten thousand entries have the same one time in a hundred.
fn hash(hasher: &RandomState, selector: &Selector) -> u32 {
    (hasher.hash_one(selector) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spiffe::UnixSecs;

    use super::*;
    use crate::fixtures::{self, entry};
    use crate::state::Change;

    fn set(values: &[&str]) -> SelectorSet {
        values.iter().map(|value| Selector::new("unix", value)).collect()
    }

    fn index(entries: &[Entry]) -> EntryIndex {
        EntryIndex::build(entries.iter().enumerate())
    }

    #[test]
    fn an_entry_is_filed_under_its_rarest_selector() {
        let entries = [
            entry("a", "/a", &["uid:0", "path:/a"]),
            entry("b", "/b", &["uid:0", "path:/b"]),
            entry("c", "/c", &["uid:0"]),
        ];

        let index = index(&entries);

        assert_eq!(index.candidates(&set(&["uid:0"])), [2]);
        assert_eq!(index.candidates(&set(&["path:/a", "uid:0"])), [0, 2]);
        assert_eq!(index.candidates(&set(&["path:/x"])), [0; 0]);
    }

    #[test]
    fn entries_of_one_selector_are_all_found() {
        let entries: Vec<Entry> =
            (0..100).map(|number| entry(&format!("{number:02}"), "/x", &["uid:0"])).collect();

        assert_eq!(index(&entries).candidates(&set(&["gid:0", "uid:0"])), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn w08_an_entry_without_selectors_matches_nobody() {
        let entries = [entry("a", "/a", &[])];

        let index = index(&entries);

        assert_eq!(index.candidates(&set(&[])), [0; 0]);
        assert_eq!(index.candidates(&set(&["uid:0"])), [0; 0]);
    }

    /// Random entries and processes: who matches is who has all selectors, found by looking at each.
    #[test]
    fn w08_who_matches_has_all_selectors_of_an_entry() {
        let mut below = fixtures::chance();
        let mut some = |most: usize| -> Vec<String> {
            let count = below(most);
            (0..count).map(|_| format!("{}:{}", ["uid", "gid", "path"][below(3)], below(4))).collect()
        };
        let mut matches = 0;
        for _ in 0..200 {
            let entries: Vec<Arc<Entry>> = (0..40)
                .map(|number| {
                    let selectors = some(5);
                    let selectors: Vec<&str> = selectors.iter().map(String::as_str).collect();
                    Arc::new(entry(&format!("{number:02}"), "/x", &selectors))
                })
                .collect();
            let process = some(9);
            let has = |selector: &Selector| process.iter().any(|own| Selector::new("unix", own) == *selector);
            let is_own = |entry: &&Arc<Entry>| !entry.selectors.is_empty() && entry.selectors.iter().all(has);
            let expected: Vec<&str> = entries.iter().filter(is_own).map(|entry| entry.id.as_str()).collect();
            let change = Change::Synced {
                entries: entries.clone(),
                own: None,
                federated: Vec::new(),
                at: UnixSecs(1),
            };
            let state = fixtures::state().apply(change);

            let process: Vec<&str> = process.iter().map(String::as_str).collect();
            let found = state.entries.matching(&set(&process));

            assert_eq!(found.iter().map(|held| held.entry.id.as_str()).collect::<Vec<_>>(), expected);
            matches += expected.len();
        }
        assert!(matches > 100, "{matches}");
    }
}
