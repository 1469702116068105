//! Pages: neighbouring entries of one bucket, and what they look like on the wire.
//!
//! A page is encoded when somebody first asks, once, for all agents that see it. A change makes a new
//! page; readers of the old one keep it.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use prost::encoding::message;
use proto::convert::entry::AGENT_MASK;
use proto::convert::field::put_entry;
use proto::spire::server::entry::EntryRevision;
use spiffe::Entry;

use crate::token::Token;

/// The most entries of a page. A change costs encoding this many again, a reply a piece for each.
const FULL: usize = 64;
/// A page with fewer joins its neighbour.
const THIN: usize = 16;

/// `SyncAuthorizedEntriesResponse.entry_revisions`
const ENTRY_REVISIONS: u32 = 1;
/// `SyncAuthorizedEntriesResponse.entries`
const ENTRIES: u32 = 2;

/// An entry in its page.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) row: i64,
    pub(crate) entry: Arc<Entry>,
    pub(crate) digest: Token,
}

/// Entries in order of their rows; never empty in a bucket.
#[derive(Debug, Default)]
pub(crate) struct Page {
    slots: Vec<Slot>,
    revisions: OnceLock<Encoding>,
    entries: OnceLock<Encoding>,
}

impl Page {
    /// Pages of slots that are in order.
    pub(crate) fn of_sorted(slots: Vec<Slot>) -> Vec<(i64, Arc<Self>)> {
        let mut pages = Vec::with_capacity(slots.len().div_ceil(FULL));
        let mut slots = slots.into_iter();
        loop {
            let page = Self::from(slots.by_ref().take(FULL).collect::<Vec<_>>());
            let Some(first) = page.slots.first() else { return pages };
            pages.push((first.row, Arc::new(page)));
        }
    }

    /// Puts a slot in, and hands back what held its row before and the upper part if that was too much.
    pub(crate) fn insert(&mut self, slot: Slot) -> (Option<Slot>, Option<Self>) {
        self.forget();
        let at = match self.place(slot.row) {
            Ok(at) => return (self.slots.get_mut(at).map(|held| std::mem::replace(held, slot)), None),
            Err(at) => at,
        };
        self.slots.insert(at, slot);
        if self.slots.len() <= FULL {
            return (None, None);
        }
        // New rows come last: they leave full pages behind.
        let cut = if at + 1 == self.slots.len() { at } else { self.slots.len() / 2 };
        (None, Some(Self::from(self.slots.split_off(cut))))
    }

    /// Takes a row out.
    pub(crate) fn remove(&mut self, row: i64) -> Option<Slot> {
        let at = self.place(row).ok()?;
        self.forget();
        Some(self.slots.remove(at))
    }

    /// Puts the slots of the page that follows behind its own.
    pub(crate) fn append(&mut self, next: Self) {
        self.forget();
        self.slots.extend(next.slots);
    }

    /// Where a row is.
    pub(crate) fn find(&self, row: i64) -> Option<usize> {
        self.place(row).ok()
    }

    /// All of it.
    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Whether it is better joined with a neighbour.
    pub(crate) fn is_thin(&self) -> bool {
        self.slots.len() < THIN
    }

    /// Whether both fit one page with room for more.
    pub(crate) fn fits(&self, other: &Self) -> bool {
        self.slots.len() + other.slots.len() <= FULL * 3 / 4
    }

    /// Fields `entry_revisions` of a reply to `SyncAuthorizedEntries`.
    pub(crate) fn revisions(&self) -> &Encoding {
        self.revisions.get_or_init(|| {
            Encoding::of(&self.slots, |entry, bytes| {
                let revision = EntryRevision {
                    id: entry.id.as_str().to_owned(),
                    revision_number: entry.revision_number,
                    created_at: entry.created_at.0,
                };
                message::encode(ENTRY_REVISIONS, &revision, bytes);
            })
        })
    }

    /// Fields `entries` of a reply to `SyncAuthorizedEntries` under the mask of agents.
    pub(crate) fn entries(&self) -> &Encoding {
        self.entries.get_or_init(|| {
            Encoding::of(&self.slots, |entry, bytes| {
                put_entry(ENTRIES, entry, Some(&AGENT_MASK), bytes);
            })
        })
    }

    fn place(&self, row: i64) -> Result<usize, usize> {
        self.slots.binary_search_by_key(&row, |slot| slot.row)
    }

    fn forget(&mut self) {
        self.revisions.take();
        self.entries.take();
    }
}

impl From<Vec<Slot>> for Page {
    fn from(slots: Vec<Slot>) -> Self {
        Self { slots, ..Self::default() }
    }
}

impl Clone for Page {
    /// Without the encodings: who clones a page is about to change it.
    fn clone(&self) -> Self {
        Self::from(self.slots.clone())
    }
}

/// The entries of a page as fields of a message, and where each ends.
#[derive(Debug)]
pub(crate) struct Encoding {
    bytes: Bytes,
    ends: Box<[usize]>,
}

impl Encoding {
    fn of(slots: &[Slot], field: impl Fn(&Entry, &mut Vec<u8>)) -> Self {
        let mut bytes = Vec::new();
        let ends = slots
            .iter()
            .map(|slot| {
                field(&slot.entry, &mut bytes);
                bytes.len()
            })
            .collect();
        bytes.shrink_to_fit();
        Self { bytes: bytes.into(), ends }
    }

    /// The fields of some of the entries.
    pub(crate) fn slice(&self, range: Range<usize>) -> Bytes {
        self.bytes.slice(self.bytes_of(range))
    }

    /// The field of one entry.
    pub(crate) fn get(&self, at: usize) -> &[u8] {
        self.bytes.get(self.bytes_of(at..at + 1)).unwrap_or_default()
    }

    fn bytes_of(&self, range: Range<usize>) -> Range<usize> {
        let end_of = |count: usize| match count.checked_sub(1) {
            Some(last) => self.ends.get(last).copied().unwrap_or(self.bytes.len()),
            None => 0,
        };
        end_of(range.start)..end_of(range.end)
    }
}
