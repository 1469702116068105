//! Of several entries with one hint only the oldest is shown: hints are unique in an answer.

use std::collections::HashMap;

use spiffe::{Entry, EntryId};
use tracing::warn;

/// The entries that are not shown. Of two that are equally old the one with the lower id is.
pub(in crate::api) fn hidden<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<&'a EntryId> {
    let mut shown: HashMap<&str, &Entry> = HashMap::new();
    let mut hidden = Vec::new();
    for entry in entries.filter(|entry| !entry.hint.is_empty()) {
        let Some(rival) = shown.insert(&entry.hint, entry) else { continue };
        let age = |entry: &'a Entry| (entry.created_at, &entry.id);
        let loser = if age(rival) < age(entry) {
            shown.insert(&entry.hint, rival);
            entry
        } else {
            rival
        };
        warn!(entry_id = %loser.id, hint = loser.hint, "Ignoring entry with duplicate hint");
        hidden.push(&loser.id);
    }
    hidden
}

#[cfg(test)]
mod tests {
    use spiffe::UnixSecs;

    use super::*;
    use crate::fixtures::entry;

    fn check(entries: &[(&str, &str, i64)], expected: &[&str]) {
        let entries: Vec<Entry> = entries
            .iter()
            .map(|(id, hint, created_at)| Entry {
                hint: (*hint).to_owned(),
                created_at: UnixSecs(*created_at),
                ..entry(id, "/a", &[])
            })
            .collect();
        let mut hidden: Vec<&str> = hidden(entries.iter()).into_iter().map(EntryId::as_str).collect();
        hidden.sort_unstable();
        assert_eq!(hidden, expected);
    }

    #[test]
    fn the_oldest_of_a_hint_is_shown() {
        check(&[("a", "x", 3), ("b", "x", 1), ("c", "x", 2), ("d", "y", 9)], &["a", "c"]);
    }

    #[test]
    fn of_equally_old_ones_the_lower_id_is_shown() {
        check(&[("b", "x", 1), ("a", "x", 1), ("c", "x", 1)], &["b", "c"]);
    }

    #[test]
    fn entries_without_a_hint_are_all_shown() {
        check(&[("a", "", 1), ("b", "", 1)], &[]);
    }
}
