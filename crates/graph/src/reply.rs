//! Replies to `SyncAuthorizedEntries`, put together from encoded pages.

use std::ops::Range;

use bytes::Bytes;
use proto::raw::Encoded;
use spiffe::EntryId;

use crate::page::{Encoding, Page};
use crate::view::View;

/// How many entries a message carries at most. Agents take their own page size from the first
/// message, so it must be exactly this many.
pub const PAGE_SIZE: usize = 500;

/// `SyncAuthorizedEntriesResponse.more`, set.
const MORE: [u8; 2] = [3 << 3, 1];

impl View {
    /// All entries under [the mask of agents](proto::convert::entry::AGENT_MASK), as messages
    /// `SyncAuthorizedEntriesResponse` of [`PAGE_SIZE`] entries, `more` set on all but the last.
    pub fn entry_pages(&self) -> impl Iterator<Item = Encoded> {
        self.messages(Page::entries)
    }

    /// The revisions of all entries, as messages `SyncAuthorizedEntriesResponse` of [`PAGE_SIZE`]
    /// revisions, `more` set on all but the last.
    pub fn revision_pages(&self) -> impl Iterator<Item = Encoded> {
        self.messages(Page::revisions)
    }

    /// Some entries, as [`Self::entry_pages`]: in order of their ids, unknown ones left out, one that
    /// was asked for twice there twice, at least one message.
    #[must_use]
    pub fn requested_pages(&self, mut ids: Vec<EntryId>) -> Vec<Encoded> {
        ids.sort_unstable();
        let mut messages = Vec::new();
        // Put together in one buffer: so many small pieces would each become a frame on the wire.
        let (mut message, mut count) = (Vec::new(), 0);
        for (page, at) in ids.iter().filter_map(|id| self.find(id)) {
            if count == PAGE_SIZE {
                message.extend_from_slice(&MORE);
                messages.push(Encoded::new(vec![std::mem::take(&mut message).into()]));
                count = 0;
            }
            message.extend_from_slice(page.entries().get(at));
            count += 1;
        }
        messages.push(Encoded::new(vec![message.into()]));
        messages
    }

    fn messages(&self, encoding: fn(&Page) -> &Encoding) -> impl Iterator<Item = Encoded> {
        let stretches = self.stretches().into_iter();
        let mut stretches =
            stretches.map(move |stretch| Unsent { encoding: encoding(stretch.page), range: stretch.range });
        let mut rest: Option<Unsent<'_>> = None;
        let mut left = Some(self.len());
        std::iter::from_fn(move || {
            let here = left?.min(PAGE_SIZE);
            left = left.map(|left| left - here).filter(|left| *left > 0);
            let mut room = here;
            let mut pieces = Vec::new();
            while room > 0 {
                let Some(mut unsent) = rest.take().or_else(|| stretches.next()) else { break };
                pieces.push(unsent.cut(&mut room));
                rest = Some(unsent).filter(|unsent| !unsent.range.is_empty());
            }
            if left.is_some() {
                pieces.push(Bytes::from_static(&MORE));
            }
            Some(Encoded::new(pieces))
        })
    }
}

/// Entries of a page that are not sent yet.
struct Unsent<'a> {
    encoding: &'a Encoding,
    range: Range<usize>,
}

impl Unsent<'_> {
    /// Takes as many entries off as there is room for.
    fn cut(&mut self, room: &mut usize) -> Bytes {
        let end = self.range.end.min(self.range.start + *room);
        let taken = self.range.start..end;
        *room -= taken.len();
        self.range.start = end;
        self.encoding.slice(taken)
    }
}
