//! Buckets: the entries of one parent, in pages.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use spiffe::{Entry, TrustDomain};

use crate::page::{Page, Slot};
use crate::token::Token;
use crate::tree::Tree;

/// The entries of one parent that agents may see. A change makes a new bucket, which shares the pages
/// it did not touch.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    path: Arc<str>,
    /// By a lower bound of their rows.
    pages: Tree<i64, Arc<Page>>,
    len: usize,
    digest: Token,
    /// The buckets right below: those of identities that entries here give, each with the rows of
    /// these entries.
    children: Tree<(Arc<str>, i64), ()>,
    /// The trust domains that entries here federate with, each with how many do.
    federated: BTreeMap<TrustDomain, usize>,
}

/// A bucket that is filled in order of the rows.
pub(crate) struct Filling {
    bucket: Bucket,
    slots: Vec<Slot>,
}

impl Filling {
    /// Of this path.
    pub(crate) fn new(path: Arc<str>) -> Self {
        Self { bucket: Bucket::new(path), slots: Vec::new() }
    }

    /// Puts in an entry of a higher row than all before.
    pub(crate) fn push(&mut self, slot: Slot) {
        self.bucket.len += 1;
        self.bucket.digest = self.bucket.digest.plus(slot.digest);
        self.bucket.federate(&slot.entry);
        self.slots.push(slot);
    }

    /// The bucket.
    pub(crate) fn bucket(self) -> Bucket {
        Bucket { pages: Tree::from_sorted(Page::of_sorted(self.slots)), ..self.bucket }
    }
}

impl Bucket {
    /// The bucket of a parent's path, still empty.
    pub(crate) fn new(path: Arc<str>) -> Self {
        Self {
            path,
            pages: Tree::default(),
            len: 0,
            digest: Token::default(),
            children: Tree::default(),
            federated: BTreeMap::new(),
        }
    }

    /// Puts an entry in, or in the place of the one of that row.
    pub(crate) fn insert(&mut self, slot: Slot) {
        let row = slot.row;
        self.digest = self.digest.plus(slot.digest);
        self.federate(&slot.entry);
        let Some(page) = self.page_mut(row) else {
            let page = Arc::new(Page::from(vec![slot]));
            self.pages.insert(row, page);
            self.len += 1;
            return;
        };
        let (replaced, upper) = Arc::make_mut(page).insert(slot);
        if let Some(upper) = upper
            && let Some(first) = upper.slots().first().map(|slot| slot.row)
        {
            self.pages.insert(first, Arc::new(upper));
        }
        match replaced {
            Some(replaced) => {
                self.digest = self.digest.minus(replaced.digest);
                self.part(&replaced.entry);
            }
            None => self.len += 1,
        }
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, row: i64) {
        let Some(key) = self.page(row).map(|(key, _)| key) else { return };
        let Some(page) = self.pages.get_mut(|held| held.cmp(&key)) else { return };
        let Some(removed) = Arc::make_mut(page).remove(row) else { return };
        let (is_empty, is_thin) = (page.slots().is_empty(), page.is_thin());
        self.len -= 1;
        self.digest = self.digest.minus(removed.digest);
        self.part(&removed.entry);
        if is_empty {
            self.pages.remove(|held| held.cmp(&key));
        } else if is_thin {
            self.join(key);
        }
    }

    /// Notes that the entry of a row here gives the identity whose bucket is `child`.
    pub(crate) fn adopt(&mut self, child: &Arc<str>, row: i64) {
        self.children.insert((Arc::clone(child), row), ());
    }

    /// Notes that the entry of a row, which gave `child`, goes.
    pub(crate) fn release(&mut self, child: &str, row: i64) {
        self.children.remove(|(path, held)| (**path).cmp(child).then(held.cmp(&row)));
    }

    /// Notes that the bucket `child` goes.
    pub(crate) fn disown(&mut self, child: &str) {
        let first = |bucket: &Self| {
            let mut rows = bucket.children.from(|(path, _)| (**path).cmp(child));
            rows.next().filter(|((path, _), ())| **path == *child).map(|((_, row), ())| *row)
        };
        while let Some(row) = first(self) {
            self.release(child, row);
        }
    }

    /// Whose entries these are.
    pub(crate) const fn path(&self) -> &Arc<str> {
        &self.path
    }

    /// The pages in order of their rows.
    pub(crate) fn pages(&self) -> impl Iterator<Item = &Arc<Page>> {
        self.pages.iter().map(|(_, page)| page)
    }

    /// The paths of the buckets right below, each with the row of the first entry that leads there.
    pub(crate) fn children(&self) -> impl Iterator<Item = (&Arc<str>, i64)> {
        let mut next = self.children.iter().next();
        std::iter::from_fn(move || {
            let ((path, row), ()) = next?;
            next = self.children.from(|(held, _)| held.cmp(path).then(Ordering::Less)).next();
            Some((path, *row))
        })
    }

    /// Where the entry of a row is.
    pub(crate) fn find(&self, row: i64) -> Option<(&Arc<Page>, usize)> {
        let (_, page) = self.page(row)?;
        Some((page, page.find(row)?))
    }

    /// How many entries there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The sum of the digests of the entries.
    pub(crate) const fn digest(&self) -> Token {
        self.digest
    }

    /// The trust domains that entries here federate with.
    pub(crate) fn federated(&self) -> impl Iterator<Item = &TrustDomain> {
        self.federated.keys()
    }

    /// Whether both hold the same pages, without looking inside.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.pages.is_same(&other.pages)
    }

    /// Counts what an entry that comes federates with.
    fn federate(&mut self, entry: &Entry) {
        for name in entry.federates_with.iter() {
            *self.federated.entry(name.clone()).or_default() += 1;
        }
    }

    /// Counts off what an entry that goes federates with.
    fn part(&mut self, entry: &Entry) {
        for name in entry.federates_with.iter() {
            if let Some(count) = self.federated.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.federated.remove(name);
                }
            }
        }
    }

    fn page(&self, row: i64) -> Option<(i64, &Arc<Page>)> {
        self.pages.at_most(|held| held.cmp(&row)).map(|(key, page)| (*key, page))
    }

    /// The page where a row belongs.
    fn page_mut(&mut self, row: i64) -> Option<&mut Arc<Page>> {
        let key = match self.page(row) {
            Some((key, _)) => key,
            None => {
                // Below all pages: the first one takes it and is found by it from now on.
                let first = *self.pages.iter().next()?.0;
                let page = self.pages.remove(|held| held.cmp(&first))?;
                self.pages.insert(row, page);
                row
            }
        };
        self.pages.get_mut(|held| held.cmp(&key))
    }

    /// Joins the page at `key` with a neighbour, if both fit one.
    fn join(&mut self, key: i64) {
        let next = self.pages.from(|held| held.cmp(&key)).nth(1).map(|(key, _)| *key);
        let previous = self.pages.at_most(|held| held.cmp(&key.saturating_sub(1))).map(|(key, _)| *key);
        let pairs = [next.map(|next| (key, next)), previous.map(|previous| (previous, key))];
        for (left, right) in pairs.into_iter().flatten() {
            let page = |wanted: i64| self.pages.get(|held| held.cmp(&wanted));
            if !page(left).zip(page(right)).is_some_and(|(left, right)| left.fits(right)) {
                continue;
            }
            let Some(taken) = self.pages.remove(|held| held.cmp(&right)) else { return };
            if let Some(kept) = self.pages.get_mut(|held| held.cmp(&left)) {
                Arc::make_mut(kept).append(Arc::unwrap_or_clone(taken));
            }
            return;
        }
    }
}
