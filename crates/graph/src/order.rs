//! The order of what an agent sees, as SPIRE answers it: the entries of a parent by their rows, and
//! behind the first entry that gives an identity everything below that; first what is below the agent
//! itself, then what is below its aliases.
//!
//! No entry is looked at: buckets know which buckets are below, and the first row that leads there.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use crate::bucket::Bucket;
use crate::page::{Page, Slot};
use crate::view::View;

/// Neighbouring entries of one page.
#[derive(Clone, Debug)]
pub(crate) struct Stretch<'a> {
    pub(crate) page: &'a Arc<Page>,
    pub(crate) range: Range<usize>,
}

impl<'a> Stretch<'a> {
    /// The entries.
    pub(crate) fn slots(self) -> &'a [Slot] {
        self.page.slots().get(self.range).unwrap_or_default()
    }
}

/// A bucket that was begun, and how far it is.
struct Begun<'a> {
    pages: Vec<&'a Arc<Page>>,
    /// The page that is next, and its slot.
    next: (usize, usize),
    /// The buckets below, last first, each with the row behind which it comes.
    below: Vec<(i64, &'a Arc<Bucket>)>,
}

impl View {
    /// All entries in order.
    pub(crate) fn stretches(&self) -> Vec<Stretch<'_>> {
        let mut stretches = Vec::new();
        let mut seen = HashSet::new();
        let mut begun: Vec<Begun<'_>> = Vec::new();
        for start in self.starts.iter().filter_map(|path| self.bucket(path)) {
            if seen.insert(start.path()) {
                begun.push(self.begin(start));
            }
            // By hand and not by recursion: chains of parents may be long.
            while let Some(bucket) = begun.last_mut() {
                let Some((row, child)) = bucket.below.pop() else {
                    bucket.go_to(i64::MAX, &mut stretches);
                    begun.pop();
                    continue;
                };
                if seen.insert(child.path()) {
                    bucket.go_to(row, &mut stretches);
                    begun.push(self.begin(child));
                }
            }
        }
        stretches
    }

    fn begin<'a>(&'a self, bucket: &'a Arc<Bucket>) -> Begun<'a> {
        let mut below: Vec<_> =
            bucket.children().filter_map(|(path, row)| Some((row, self.bucket(path)?))).collect();
        below.sort_unstable_by_key(|(row, _)| std::cmp::Reverse(*row));
        Begun { pages: bucket.pages().collect(), next: (0, 0), below }
    }
}

impl<'a> Begun<'a> {
    /// Hands out the entries up to a row.
    fn go_to(&mut self, row: i64, stretches: &mut Vec<Stretch<'a>>) {
        let (mut number, mut from) = self.next;
        while let Some(page) = self.pages.get(number) {
            let to = page.slots().partition_point(|slot| slot.row <= row);
            if to > from {
                stretches.push(Stretch { page, range: from..to });
            }
            if to < page.slots().len() {
                from = from.max(to);
                break;
            }
            (number, from) = (number + 1, 0);
        }
        self.next = (number, from);
    }
}
