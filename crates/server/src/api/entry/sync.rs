//! The exchange of `SyncAuthorizedEntries`.
//!
//! An agent says which fields it wants. With few entries it gets them all and that is it; with more
//! than a page it gets their revisions, asks for those it does not know, and gets them, as often as it
//! likes, until it closes its side.
//!
//! Under the mask that SPIRE's agents send, every reply is made of pages that were encoded before, for
//! all agents together. Other masks are encoded here.

use std::collections::VecDeque;

use graph::{PAGE_SIZE, View};
use proto::convert::entry::{AGENT_MASK, masked};
use proto::raw::Encoded;
use proto::spire::server::entry as wire;
use proto::spire::types;
use spiffe::EntryId;
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};

/// One call: what the agent may see, and how far the exchange is.
pub(super) struct Exchange {
    view: View,
    asked: Streaming<wire::SyncAuthorizedEntriesRequest>,
    /// What still has to be sent.
    replies: VecDeque<Encoded>,
    /// What still has to be encoded and sent; `None` between two requests.
    wanted: Option<VecDeque<EntryId>>,
    state: State,
}

enum State {
    /// The agent has not said what it wants.
    Begun,
    /// It may ask for entries under this mask.
    Asking(Fields),
    /// All is said.
    Over,
}

/// Which fields of an entry are sent.
enum Fields {
    /// Those of agents: encoded before.
    OfAgents,
    /// Those of a mask; all without one.
    Of(Option<types::EntryMask>),
}

impl Exchange {
    pub(super) fn new(view: View, asked: Streaming<wire::SyncAuthorizedEntriesRequest>) -> Self {
        Self { view, asked, replies: VecDeque::new(), wanted: None, state: State::Begun }
    }

    /// The replies, one after the other; a page is put together when the one before is on its way.
    pub(super) fn replies(self) -> impl Stream<Item = Result<Encoded, Status>> + Send {
        futures::stream::try_unfold(self, async |mut exchange| {
            let reply = exchange.next().await?;
            Ok(reply.map(|reply| (reply, exchange)))
        })
    }

    async fn next(&mut self) -> Result<Option<Encoded>, Status> {
        loop {
            if let Some(reply) = self.replies.pop_front() {
                return Ok(Some(reply));
            }
            if let Some(reply) = self.next_wanted() {
                return Ok(Some(reply));
            }
            match &self.state {
                State::Over => return Ok(None),
                State::Begun => {
                    let first = self.asked.message().await?;
                    self.begin(&first.ok_or_else(|| Status::unknown("EOF"))?)?;
                }
                State::Asking(fields) => match self.asked.message().await {
                    // In order of their ids; what the agent may not see is passed over in silence.
                    Ok(Some(request)) => {
                        let ids = request.ids.iter().map(|id| EntryId::new(id));
                        if matches!(fields, Fields::OfAgents) {
                            self.replies = self.view.requested_pages(ids.collect()).into();
                        } else {
                            let mut wanted: Vec<_> = ids.filter(|id| self.view.entry(id).is_some()).collect();
                            wanted.sort_unstable();
                            self.wanted = Some(wanted.into());
                        }
                    }
                    // The agent is satisfied, or gone.
                    Ok(None) => return Ok(None),
                    Err(status) if status.code() == Code::Cancelled => return Ok(None),
                    Err(status) => return Err(status),
                },
            }
        }
    }

    /// A page of what was asked for under a mask of its own; there is always an answer, if an empty
    /// one.
    fn next_wanted(&mut self) -> Option<Encoded> {
        let mut wanted = self.wanted.take()?;
        let State::Asking(Fields::Of(mask)) = &self.state else { return None };
        let page = wanted.drain(..wanted.len().min(PAGE_SIZE));
        let entries = page.filter_map(|id| self.view.entry(&id).map(|entry| masked(entry, mask.as_ref())));
        let entries = entries.collect();
        let more = !wanted.is_empty();
        self.wanted = Some(wanted).filter(|_| more);
        Some(message(entries, more))
    }

    fn begin(&mut self, request: &wire::SyncAuthorizedEntriesRequest) -> Result<(), Status> {
        if !request.ids.is_empty() {
            return Err(Status::invalid_argument("specifying IDs on initial request is not supported"));
        }
        if request.output_mask.as_ref().is_some_and(|mask| !mask.revision_number) {
            return Err(Status::invalid_argument("revision number cannot be masked"));
        }
        let fields = match &request.output_mask {
            Some(mask) if *mask == AGENT_MASK => Fields::OfAgents,
            mask => Fields::Of(*mask),
        };
        if self.view.len() > PAGE_SIZE {
            self.replies = self.view.revision_pages().collect();
            self.state = State::Asking(fields);
        } else {
            self.replies = fields.all(&self.view);
            self.state = State::Over;
        }
        Ok(())
    }
}

impl Fields {
    /// All entries, which fit one message.
    fn all(&self, view: &View) -> VecDeque<Encoded> {
        match self {
            Self::OfAgents => view.entry_pages().collect(),
            Self::Of(mask) => {
                let entries = view.entries().map(|entry| masked(entry, mask.as_ref())).collect();
                [message(entries, false)].into()
            }
        }
    }
}

fn message(entries: Vec<types::Entry>, more: bool) -> Encoded {
    Encoded::of(&wire::SyncAuthorizedEntriesResponse { entry_revisions: Vec::new(), entries, more })
}
