//! A persistent ordered map: cloning is one reference count, and versions share what did not change.
//!
//! A B+ tree whose nodes are behind `Arc`. A change copies the nodes on its path that another version
//! still holds and edits the others in place, so a batch pays for each node once. Keys in branches are
//! lower bounds of their subtrees, not always the lowest key there.

use std::cmp::Ordering;
use std::slice;
use std::sync::Arc;

/// The most items in a node.
const FULL: usize = 32;
/// Items per node after a bulk build: room for a few before it splits.
const FILL: usize = 28;
/// Fewer items than this and a node joins its neighbour.
const THIN: usize = 8;

/// A persistent ordered map.
#[derive(Debug)]
pub(crate) struct Tree<K, V> {
    root: Option<Arc<Node<K, V>>>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node<K, V> {
    Leaf(Vec<(K, V)>),
    Branch(Children<K, V>),
}

/// A subtree under a lower bound of its keys.
type Child<K, V> = (K, Arc<Node<K, V>>);

type Children<K, V> = Vec<Child<K, V>>;

/// What a node split off.
type Split<K, V> = Option<Child<K, V>>;

impl<K: Ord + Clone, V: Clone> Tree<K, V> {
    /// Builds a tree bottom-up. The items must be in ascending order of their keys, each key once.
    pub(crate) fn from_sorted(items: Vec<(K, V)>) -> Self {
        debug_assert!(items.is_sorted_by(|a, b| a.0 < b.0), "items come sorted");
        let len = items.len();
        let mut level = chunked(items, Node::Leaf);
        while level.len() > 1 {
            level = chunked(level, Node::Branch);
        }
        Self { root: level.pop().map(|(_, root)| root), len }
    }

    /// Puts a value in and hands back the one it replaces.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let Some(root) = &mut self.root else {
            self.root = Some(Arc::new(Node::Leaf(vec![(key, value)])));
            self.len = 1;
            return None;
        };
        let (replaced, split) = Node::insert(root, key, value);
        if let Some(right) = split
            && let Some(low) = root.low().cloned()
        {
            *root = Arc::new(Node::Branch(vec![(low, Arc::clone(root)), right]));
        }
        if replaced.is_none() {
            self.len += 1;
        }
        replaced
    }

    /// Takes a value out. `probe` orders a key against the wanted one.
    pub(crate) fn remove(&mut self, probe: impl Fn(&K) -> Ordering) -> Option<V> {
        self.get(&probe)?;
        let root = self.root.as_mut()?;
        let removed = Node::remove(root, &probe)?;
        self.len -= 1;
        while let Some(root) = &self.root {
            self.root = match &**root {
                Node::Leaf(items) if items.is_empty() => None,
                Node::Branch(children) if children.len() <= 1 => {
                    children.first().map(|(_, child)| Arc::clone(child))
                }
                Node::Leaf(_) | Node::Branch(_) => break,
            };
        }
        Some(removed)
    }

    /// A value, to be changed in this version only.
    pub(crate) fn get_mut(&mut self, probe: impl Fn(&K) -> Ordering) -> Option<&mut V> {
        self.get(&probe)?;
        let mut node = self.root.as_mut()?;
        loop {
            match Arc::make_mut(node) {
                Node::Leaf(items) => {
                    let at = items.binary_search_by(|(key, _)| probe(key)).ok()?;
                    return items.get_mut(at).map(|(_, value)| value);
                }
                Node::Branch(children) => {
                    let at = place(children, &probe);
                    node = children.get_mut(at).map(|(_, child)| child)?;
                }
            }
        }
    }
}

impl<K, V> Tree<K, V> {
    /// A value.
    pub(crate) fn get(&self, probe: impl Fn(&K) -> Ordering) -> Option<&V> {
        let mut node = self.root.as_ref()?;
        loop {
            match &**node {
                Node::Leaf(items) => {
                    let at = items.binary_search_by(|(key, _)| probe(key)).ok()?;
                    return items.get(at).map(|(_, value)| value);
                }
                Node::Branch(children) => node = &children.get(place(children, &probe))?.1,
            }
        }
    }

    /// The item with the greatest key that is not above the wanted one.
    pub(crate) fn at_most(&self, probe: impl Fn(&K) -> Ordering) -> Option<(&K, &V)> {
        self.root.as_ref()?.at_most(&probe)
    }

    /// The items in order of their keys.
    pub(crate) fn iter(&self) -> Iter<'_, K, V> {
        self.from(|_| Ordering::Equal)
    }

    /// The items whose keys are not below the wanted one, in order.
    pub(crate) fn from(&self, probe: impl Fn(&K) -> Ordering) -> Iter<'_, K, V> {
        let mut iter = Iter { above: Vec::new(), leaf: [].iter() };
        let Some(mut node) = self.root.as_ref() else { return iter };
        loop {
            match &**node {
                Node::Leaf(items) => {
                    let at = items.partition_point(|(key, _)| probe(key).is_lt());
                    iter.leaf = items.get(at..).unwrap_or_default().iter();
                    return iter;
                }
                Node::Branch(children) => {
                    // The first child that may hold such keys: the last whose lower bound is below.
                    let at = children.partition_point(|(low, _)| probe(low).is_lt()).saturating_sub(1);
                    let mut rest = children.get(at..).unwrap_or_default().iter();
                    let Some((_, child)) = rest.next() else { return iter };
                    iter.above.push(rest);
                    node = child;
                }
            }
        }
    }

    /// How many items there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether both are the same version, without looking inside.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.root, &other.root) {
            (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

impl<K, V> Clone for Tree<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len }
    }
}

impl<K, V> Default for Tree<K, V> {
    fn default() -> Self {
        Self { root: None, len: 0 }
    }
}

impl<K: Ord + Clone, V: Clone> Node<K, V> {
    fn insert(this: &mut Arc<Self>, key: K, value: V) -> (Option<V>, Split<K, V>) {
        match Arc::make_mut(this) {
            Self::Leaf(items) => {
                let at = match items.binary_search_by(|(held, _)| held.cmp(&key)) {
                    Ok(at) => {
                        let held = items.get_mut(at).map(|(_, held)| std::mem::replace(held, value));
                        return (held, None);
                    }
                    Err(at) => at,
                };
                items.insert(at, (key, value));
                (None, split(items, at, Self::Leaf))
            }
            Self::Branch(children) => {
                let at = place(children, &|low: &K| low.cmp(&key));
                let Some((low, child)) = children.get_mut(at) else { return (None, None) };
                if key < *low {
                    low.clone_from(&key);
                }
                let (replaced, right) = Self::insert(child, key, value);
                let Some(right) = right else { return (replaced, None) };
                children.insert(at + 1, right);
                (replaced, split(children, at + 1, Self::Branch))
            }
        }
    }

    fn remove(this: &mut Arc<Self>, probe: &impl Fn(&K) -> Ordering) -> Option<V> {
        match Arc::make_mut(this) {
            Self::Leaf(items) => {
                let at = items.binary_search_by(|(key, _)| probe(key)).ok()?;
                Some(items.remove(at).1)
            }
            Self::Branch(children) => {
                let at = place(children, probe);
                let (_, child) = children.get_mut(at)?;
                let removed = Self::remove(child, probe)?;
                if child.count() < THIN {
                    join(children, at);
                }
                Some(removed)
            }
        }
    }

    fn low(&self) -> Option<&K> {
        match self {
            Self::Leaf(items) => items.first().map(|(key, _)| key),
            Self::Branch(children) => children.first().map(|(low, _)| low),
        }
    }
}

impl<K, V> Node<K, V> {
    fn count(&self) -> usize {
        match self {
            Self::Leaf(items) => items.len(),
            Self::Branch(children) => children.len(),
        }
    }

    fn at_most(&self, probe: &impl Fn(&K) -> Ordering) -> Option<(&K, &V)> {
        match self {
            Self::Leaf(items) => {
                let at = items.partition_point(|(key, _)| probe(key).is_le());
                items.get(at.checked_sub(1)?).map(|(key, value)| (key, value))
            }
            Self::Branch(children) => {
                let end = children.partition_point(|(low, _)| probe(low).is_le());
                // A lower bound may be lower than all that is left below it; then the item is to
                // the left.
                children.get(..end)?.iter().rev().find_map(|(_, child)| child.at_most(probe))
            }
        }
    }
}

/// Which child holds the wanted key: the last whose lower bound is not above it, else the first.
fn place<K, V>(children: &[Child<K, V>], probe: &impl Fn(&K) -> Ordering) -> usize {
    children.partition_point(|(low, _)| probe(low).is_le()).saturating_sub(1)
}

/// Splits the items of a node that got too many, the last one at `at`.
fn split<K: Clone, V, T>(
    items: &mut Vec<(K, T)>,
    at: usize,
    node: impl FnOnce(Vec<(K, T)>) -> Node<K, V>,
) -> Split<K, V> {
    if items.len() <= FULL {
        return None;
    }
    // Ascending keys, such as rows, leave full nodes behind.
    let cut = if at + 1 == items.len() { at } else { items.len() / 2 };
    let right = items.split_off(cut);
    let low = right.first()?.0.clone();
    Some((low, Arc::new(node(right))))
}

/// Joins the thin child at `at` with a neighbour, and splits the two again if that is too much.
fn join<K: Ord + Clone, V: Clone>(children: &mut Children<K, V>, at: usize) {
    if children.get(at).is_some_and(|(_, child)| child.count() == 0) {
        children.remove(at);
        return;
    }
    let left = at.saturating_sub(1);
    if left + 1 >= children.len() {
        return;
    }
    let (_, taken) = children.remove(left + 1);
    let Some((_, kept)) = children.get_mut(left) else { return };
    let right = match (Arc::make_mut(kept), Arc::unwrap_or_clone(taken)) {
        (Node::Leaf(items), Node::Leaf(mut more)) => {
            items.append(&mut more);
            split(items, 0, Node::Leaf)
        }
        (Node::Branch(items), Node::Branch(mut more)) => {
            items.append(&mut more);
            split(items, 0, Node::Branch)
        }
        (Node::Leaf(_), Node::Branch(_)) | (Node::Branch(_), Node::Leaf(_)) => None,
    };
    if let Some(right) = right {
        children.insert(left + 1, right);
    }
}

/// Nodes of [`FILL`] items each.
fn chunked<K: Clone, V, T>(items: Vec<(K, T)>, node: impl Fn(Vec<(K, T)>) -> Node<K, V>) -> Children<K, V> {
    let mut nodes = Vec::with_capacity(items.len().div_ceil(FILL));
    let mut items = items.into_iter();
    loop {
        let chunk: Vec<(K, T)> = items.by_ref().take(FILL).collect();
        let Some((low, _)) = chunk.first() else { return nodes };
        nodes.push((low.clone(), Arc::new(node(chunk))));
    }
}

/// Items in order of their keys.
pub(crate) struct Iter<'a, K, V> {
    above: Vec<slice::Iter<'a, Child<K, V>>>,
    leaf: slice::Iter<'a, (K, V)>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            let Some((_, node)) = self.above.last_mut()?.next() else {
                self.above.pop();
                continue;
            };
            match &**node {
                Node::Leaf(items) => self.leaf = items.iter(),
                Node::Branch(children) => self.above.push(children.iter()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The tree holds what the model holds, and every node is within its bounds.
    fn check(tree: &Tree<u16, u32>, model: &BTreeMap<u16, u32>) {
        assert_eq!(tree.len(), model.len());
        assert_eq!(tree.root.is_none(), model.is_empty());
        assert!(tree.iter().eq(model.iter()));
        if let Some(root) = &tree.root {
            check_node(root, None, None);
        }
    }

    fn check_node(node: &Node<u16, u32>, low: Option<u16>, high: Option<u16>) -> usize {
        let within = |key: u16| low.is_none_or(|low| low <= key) && high.is_none_or(|high| key < high);
        assert!(node.count() <= FULL && node.count() > 0);
        match node {
            Node::Leaf(items) => {
                assert!(items.iter().all(|(key, _)| within(*key)));
                1
            }
            Node::Branch(children) => {
                assert!(children.iter().skip(1).all(|(key, _)| within(*key)));
                let ends = children.iter().skip(1).map(|(low, _)| Some(*low)).chain([high]);
                let depths: Vec<usize> = children
                    .iter()
                    .zip(ends)
                    .enumerate()
                    .map(|(at, ((own, child), end))| {
                        check_node(child, if at == 0 { low } else { Some(*own) }, end)
                    })
                    .collect();
                assert!(depths.iter().all(|depth| *depth == depths[0]), "all leaves are equally deep");
                depths[0] + 1
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, u32),
        Remove(u16),
        Edit(u16),
        Keep,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = 0..2000_u16;
        let step = prop_oneof![
            5 => (key.clone(), any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            4 => key.clone().prop_map(Step::Remove),
            1 => key.prop_map(Step::Edit),
            1 => Just(Step::Keep),
        ];
        proptest::collection::vec(step, 0..800)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_map_and_old_versions_stay(
            start in proptest::collection::btree_map(0..2000_u16, any::<u32>(), 0..1200),
            steps in steps(),
        ) {
            let mut tree = Tree::from_sorted(start.clone().into_iter().collect());
            let mut model = start;
            let mut kept = vec![(tree.clone(), model.clone())];
            for step in steps {
                match step {
                    Step::Insert(key, value) => {
                        prop_assert_eq!(tree.insert(key, value), model.insert(key, value));
                    }
                    Step::Remove(key) => {
                        prop_assert_eq!(tree.remove(|held| held.cmp(&key)), model.remove(&key));
                    }
                    Step::Edit(key) => {
                        let mine = tree.get_mut(|held| held.cmp(&key)).map(|value| *value ^= 1);
                        let theirs = model.get_mut(&key).map(|value| *value ^= 1);
                        prop_assert_eq!(mine, theirs);
                    }
                    Step::Keep => kept.push((tree.clone(), model.clone())),
                }
            }
            kept.push((tree, model));

            for (tree, model) in &kept {
                check(tree, model);
                for key in (0..2010).step_by(37) {
                    prop_assert_eq!(tree.get(|held| held.cmp(&key)), model.get(&key));
                    prop_assert_eq!(tree.at_most(|held| held.cmp(&key)), model.range(..=key).next_back());
                    prop_assert!(tree.from(|held| held.cmp(&key)).eq(model.range(key..)));
                }
            }
        }
    }

    #[test]
    fn emptied_and_filled_again() {
        let mut tree = Tree::default();
        for round in 0..3_u32 {
            for key in 0..500_u16 {
                tree.insert(key, round);
            }
            let full = tree.clone();
            for key in (0..500_u16).rev() {
                assert_eq!(tree.remove(|held| held.cmp(&key)), Some(round));
            }
            assert!(tree.len() == 0 && tree.root.is_none());
            assert_eq!(full.len(), 500);
        }
    }
}
