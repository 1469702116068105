//! Selectors: what attestors find out about a node or a workload.

use std::fmt;
use std::sync::Arc;

/// One attested property, such as type `unix` with value `uid:1000`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    kind: Arc<str>,
    value: Arc<str>,
}

impl Selector {
    /// A selector of the given type and value, taken as they are (rows are read as leniently as
    /// SPIRE does; requests are checked where they come in).
    #[must_use]
    pub fn new(kind: &str, value: &str) -> Self {
        Self { kind: kind.into(), value: value.into() }
    }

    pub(crate) const fn shared(kind: Arc<str>, value: Arc<str>) -> Self {
        Self { kind, value }
    }

    /// The type: the name of the attestor plugin.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The value in the attestor's own form.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A set of selectors: sorted by type then value, each once. Cheap to clone and to share.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SelectorSet(Arc<[Selector]>);

impl SelectorSet {
    /// The set of a list; one that is in order already is shared.
    #[must_use]
    pub fn of(selectors: &Arc<[Selector]>) -> Self {
        if selectors.is_sorted_by(|a, b| a < b) {
            return Self(Arc::clone(selectors));
        }
        selectors.iter().cloned().collect()
    }

    /// Whether every selector of this set is in `other`. The empty set is a subset of all.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        let mut others = other.0.iter();
        self.0.iter().all(|mine| others.by_ref().find(|theirs| *theirs >= mine) == Some(mine))
    }

    /// The selectors in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Selector> {
        self.0.iter()
    }

    /// How many selectors the set holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the set holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it has this one.
    #[must_use]
    pub fn contains(&self, selector: &Selector) -> bool {
        self.0.binary_search(selector).is_ok()
    }
}

impl FromIterator<Selector> for SelectorSet {
    fn from_iter<I: IntoIterator<Item = Selector>>(selectors: I) -> Self {
        let mut sorted: Vec<Selector> = selectors.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        Self(sorted.into())
    }
}

impl<'a> IntoIterator for &'a SelectorSet {
    type Item = &'a Selector;
    type IntoIter = std::slice::Iter<'a, Selector>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[&str]) -> SelectorSet {
        values.iter().map(|value| Selector::new("t", value)).collect()
    }

    #[test]
    fn a_list_in_order_is_its_set() {
        let list = |values: &[&str]| values.iter().map(|value| Selector::new("t", value)).collect();

        let sorted: Arc<[Selector]> = list(&["a", "b"]);
        assert!(Arc::ptr_eq(&SelectorSet::of(&sorted).0, &sorted));
        assert_eq!(SelectorSet::of(&list(&["b", "a", "a"])), set(&["a", "b"]));
        assert_eq!(SelectorSet::of(&list(&["a", "a"])), set(&["a"]));
    }

    #[test]
    fn subset_of_sorted_sets() {
        assert!(set(&[]).is_subset(&set(&[])));
        assert!(set(&["b"]).is_subset(&set(&["c", "b", "a"])));
        assert!(set(&["c", "a"]).is_subset(&set(&["a", "b", "c"])));
        assert!(!set(&["d"]).is_subset(&set(&["a", "b"])));
        assert!(!set(&["a", "b"]).is_subset(&set(&["b"])));
    }
}
