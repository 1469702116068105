//! Which entries can match a set of selectors.
//!
//! Each entry is filed once, under the one of its selectors that the fewest entries have. A workload's
//! entries are then among those filed under one of its selectors, and none of them is found twice.

use std::collections::HashMap;

use spiffe::{Entry, EntryId, Selector, SelectorSet};

/// Entries by their rarest selector.
#[derive(Debug, Default)]
pub struct EntryIndex(HashMap<Selector, Filed>);

/// The entries that are filed under one selector: most often a single one.
#[derive(Debug)]
enum Filed {
    One(EntryId),
    Several(Vec<EntryId>),
}

impl Filed {
    fn push(&mut self, id: EntryId) {
        match self {
            Self::One(first) => *self = Self::Several(vec![first.clone(), id]),
            Self::Several(ids) => ids.push(id),
        }
    }

    fn ids(&self) -> &[EntryId] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(ids) => ids,
        }
    }
}

impl EntryIndex {
    /// Files entries. One without selectors matches nobody, or it would match everybody.
    pub fn build<'a>(entries: impl Iterator<Item = &'a Entry> + Clone) -> Self {
        let mut uses: HashMap<&Selector, usize> = HashMap::new();
        for selector in entries.clone().flat_map(|entry| &entry.selector_set) {
            *uses.entry(selector).or_default() += 1;
        }
        let mut index: HashMap<Selector, Filed> = HashMap::new();
        for entry in entries {
            let rarest = entry.selector_set.iter().min_by_key(|selector| uses.get(selector));
            if let Some(selector) = rarest {
                let filed = index.entry(selector.clone());
                filed
                    .and_modify(|filed| filed.push(entry.id.clone()))
                    .or_insert_with(|| Filed::One(entry.id.clone()));
            }
        }
        Self(index)
    }

    /// The entries that may match a workload with these selectors, each once; the others do not.
    pub fn candidates(&self, selectors: &SelectorSet) -> impl Iterator<Item = &EntryId> {
        selectors.iter().filter_map(|selector| self.0.get(selector)).flat_map(Filed::ids)
    }
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

    fn candidates(index: &EntryIndex, values: &[&str]) -> Vec<String> {
        index.candidates(&set(values)).map(ToString::to_string).collect()
    }

    #[test]
    fn an_entry_is_filed_under_its_rarest_selector() {
        let entries = [
            entry("a", "/a", &["uid:0", "path:/a"]),
            entry("b", "/b", &["uid:0", "path:/b"]),
            entry("c", "/c", &["uid:0"]),
        ];

        let index = EntryIndex::build(entries.iter());

        assert_eq!(candidates(&index, &["uid:0"]), ["c"]);
        assert_eq!(candidates(&index, &["path:/a", "uid:0"]), ["a", "c"]);
        assert_eq!(candidates(&index, &["path:/x"]), Vec::<String>::new());
    }

    #[test]
    fn w08_an_entry_without_selectors_matches_nobody() {
        let entries = [entry("a", "/a", &[])];

        let index = EntryIndex::build(entries.iter());

        assert_eq!(candidates(&index, &[]), Vec::<String>::new());
        assert_eq!(candidates(&index, &["uid:0"]), Vec::<String>::new());
    }

    /// Random entries and processes: who matches is who has all selectors, found by looking at each.
    #[test]
    fn w08_who_matches_has_all_selectors_of_an_entry() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |limit: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % 1_000_003).unwrap() % limit
        };
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
