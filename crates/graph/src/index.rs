//! Which rows carry a value, by the hash of that value.
//!
//! An index holds two numbers per row and no text: whoever asks compares the candidates with what it
//! looks for, since two values may share a hash. Copying a node is copying bytes.

use std::hash::{BuildHasher, Hash, RandomState};

use spiffe::{Selector, SelectorSet};

use crate::tree::Tree;

/// Hashes with a key of their own, so that nobody can choose values that collide.
#[derive(Clone, Default)]
pub(crate) struct Hashes(RandomState);

impl Hashes {
    /// The hash of a text.
    pub(crate) fn of(&self, text: &str) -> u64 {
        self.0.hash_one(text)
    }

    /// The hash of a selector.
    pub(crate) fn of_selector(&self, selector: &Selector) -> u64 {
        let mut state = self.0.build_hasher();
        selector.hash(&mut state);
        std::hash::Hasher::finish(&state)
    }
}

/// Rows by hash, those of one hash in ascending order.
#[derive(Clone, Default)]
pub(crate) struct Index(Tree<(u64, i64), ()>);

impl Index {
    /// An index of these pairs, in any order, each once.
    pub(crate) fn build(mut pairs: Vec<(u64, i64)>) -> Self {
        pairs.sort_unstable();
        pairs.dedup();
        Self(Tree::from_sorted(pairs.into_iter().map(|pair| (pair, ())).collect()))
    }

    /// Files a row.
    pub(crate) fn add(&mut self, hash: u64, row: i64) {
        self.0.insert((hash, row), ());
    }

    /// Takes a row out, if it is filed under this hash.
    pub(crate) fn remove(&mut self, hash: u64, row: i64) {
        self.0.remove(|held| held.cmp(&(hash, row)));
    }

    /// The rows filed under a hash, in order.
    pub(crate) fn rows(&self, hash: u64) -> impl Iterator<Item = i64> + '_ {
        self.0
            .from(move |held| held.cmp(&(hash, i64::MIN)))
            .take_while(move |((held, _), ())| *held == hash)
            .map(|((_, row), ())| *row)
    }

    /// How many rows there are.
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The selector of a set with the fewest rows, as its hash; `None` for the empty set.
    ///
    /// Costs little more than counting those rows, however many the other selectors have.
    pub(crate) fn rarest(&self, hashes: &Hashes, selectors: &SelectorSet) -> Option<u64> {
        let all: Vec<u64> = selectors.iter().map(|selector| hashes.of_selector(selector)).collect();
        let mut limit = 8;
        loop {
            let counts = all.iter().map(|hash| (self.rows(*hash).take(limit).count(), *hash));
            let (count, hash) = counts.min()?;
            if count < limit {
                return Some(hash);
            }
            limit *= 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_hash_come_in_order() {
        let mut index = Index::build(vec![(7, 3), (9, 1), (7, -1)]);
        index.add(7, 2);
        index.add(7, 2);
        index.remove(7, 3);
        index.remove(8, 1);

        assert_eq!(index.rows(7).collect::<Vec<_>>(), [-1, 2]);
        assert_eq!(index.rows(8).count(), 0);
        assert_eq!(index.len(), 3);
    }

    #[test]
    fn the_rarest_selector_is_found_among_common_ones() {
        let hashes = Hashes::default();
        let (common, rare) = (Selector::new("t", "cluster:a"), Selector::new("t", "node:a"));
        let mut index = Index::default();
        for row in 0..1000 {
            index.add(hashes.of_selector(&common), row);
        }
        for row in 0..40 {
            index.add(hashes.of_selector(&rare), row);
        }

        let set = [common, rare.clone()].into_iter().collect();

        assert_eq!(index.rarest(&hashes, &set), Some(hashes.of_selector(&rare)));
        assert_eq!(index.rarest(&hashes, &SelectorSet::default()), None);
    }
}
