//! What differs between two views.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use spiffe::{Entry, EntryId};

use crate::bucket::Bucket;
use crate::page::{Page, Slot};
use crate::token::Token;
use crate::view::{Footprint, View};

/// What turns an older view into a newer one.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Entries that are new, or hold something else.
    pub set: Vec<Arc<Entry>>,
    /// Entries that are gone.
    pub removed: Vec<EntryId>,
}

impl Delta {
    /// Whether both views hold the same.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }
}

impl View {
    /// What changed since an older view, of the same agent or another. Buckets and pages that both
    /// share are not looked at.
    #[must_use]
    pub fn delta(&self, older: &Self) -> Delta {
        self.since(&older.buckets)
    }

    /// The same since the view whose footprint this is.
    #[must_use]
    pub fn delta_since(&self, older: &Footprint) -> Delta {
        self.since(&older.buckets)
    }

    fn since(&self, older: &[Arc<Bucket>]) -> Delta {
        let (mut new, mut old) = (Vec::new(), Vec::new());
        let (mut mine, mut theirs) = (self.buckets.iter().peekable(), older.iter().peekable());
        loop {
            let order = match (mine.peek(), theirs.peek()) {
                (Some(mine), Some(theirs)) => mine.path().cmp(theirs.path()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            let bucket = mine.next_if(|_| order.is_le());
            let before = theirs.next_if(|_| order.is_ge());
            if let (Some(bucket), Some(before)) = (bucket, before)
                && bucket.is_same(before)
            {
                continue;
            }
            unshared(bucket, before, &mut new, &mut old);
        }

        let mut held: HashMap<&EntryId, Token> =
            old.into_iter().map(|slot| (&slot.entry.id, slot.digest)).collect();
        let mut delta = Delta::default();
        for slot in new {
            if held.remove(&slot.entry.id) != Some(slot.digest) {
                delta.set.push(Arc::clone(&slot.entry));
            }
        }
        delta.removed = held.into_keys().cloned().collect();
        delta.removed.sort_unstable();
        delta
    }
}

/// Collects the slots of the pages that only one of two buckets holds.
fn unshared<'a>(
    bucket: Option<&'a Arc<Bucket>>,
    before: Option<&'a Arc<Bucket>>,
    new: &mut Vec<&'a Slot>,
    old: &mut Vec<&'a Slot>,
) {
    let first_row = |page: &Page| page.slots().first().map(|slot| slot.row);
    let mut mine = bucket.into_iter().flat_map(|bucket| bucket.pages()).peekable();
    let mut theirs = before.into_iter().flat_map(|bucket| bucket.pages()).peekable();
    loop {
        let order = match (mine.peek(), theirs.peek()) {
            (Some(mine), Some(theirs)) => first_row(mine).cmp(&first_row(theirs)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        let page = mine.next_if(|_| order.is_le());
        let other = theirs.next_if(|_| order.is_ge());
        if let (Some(page), Some(other)) = (page, other)
            && Arc::ptr_eq(page, other)
        {
            continue;
        }
        new.extend(page.into_iter().flat_map(|page| page.slots()));
        old.extend(other.into_iter().flat_map(|page| page.slots()));
    }
}
