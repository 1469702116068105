//! Which entries the server lets the agent serve (`SyncAuthorizedEntries`).
//!
//! The server answers with all entries if they fit one page, else with pages of their revisions; the
//! agent then asks for those it has not, page by page. The page size is that of the server's first
//! page. [`Merge`] holds the outcome so far and decides what to ask for; it is pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::convert::entry::answered;
use proto::spire::server::entry::{
    EntryRevision, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use proto::spire::types;
use spiffe::{Entry, EntryId, SpiffeId, Texts};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::warn;

use client::ServerClients;
use proto::convert::entry::AGENT_MASK;
use proto::spire::server::entry::GetAuthorizedEntriesRequest;

use crate::state::Entries;

/// All entries, of which those in `known` are not sent again.
pub(super) async fn sync(
    clients: &ServerClients,
    known: &Entries,
    agent: &SpiffeId,
) -> Result<Vec<Arc<Entry>>, Status> {
    let (requests, receiver) = mpsc::channel(1);
    send(&requests, SyncAuthorizedEntriesRequest { output_mask: Some(AGENT_MASK), ids: Vec::new() }).await?;
    let answers = clients.entry().sync_authorized_entries(ReceiverStream::new(receiver)).await?;
    let mut answers = answers.into_inner();
    let mut merge = Merge::new(known, agent);

    let mut page = next(&mut answers).await?;
    let page_size = page.entry_revisions.len();
    if page_size == 0 {
        merge.entries(&page.entries);
        return Ok(merge.finish());
    }
    loop {
        if !page.entries.is_empty() {
            return Err(Status::internal("unexpected entry in response receiving entry revisions"));
        }
        merge.revisions(&page.entry_revisions);
        if !page.more {
            break;
        }
        page = next(&mut answers).await?;
    }
    for ids in merge.wanted().chunks(page_size) {
        send(&requests, SyncAuthorizedEntriesRequest { output_mask: None, ids: ids.to_vec() }).await?;
        loop {
            let page = next(&mut answers).await?;
            if !page.entry_revisions.is_empty() {
                return Err(Status::internal(
                    "unexpected entry revisions in response while requesting entries",
                ));
            }
            merge.entries(&page.entries);
            if !page.more {
                break;
            }
        }
    }
    Ok(merge.finish())
}

/// All entries in one message, as agents asked before there were pages.
pub(super) async fn get(
    clients: &ServerClients,
    known: &Entries,
    agent: &SpiffeId,
) -> Result<Vec<Arc<Entry>>, Status> {
    let request = GetAuthorizedEntriesRequest { output_mask: Some(AGENT_MASK) };
    let answer = clients.entry().get_authorized_entries(request).await?.into_inner();
    let mut merge = Merge::new(known, agent);
    merge.entries(&answer.entries);
    Ok(merge.finish())
}

async fn send(
    requests: &mpsc::Sender<SyncAuthorizedEntriesRequest>,
    request: SyncAuthorizedEntriesRequest,
) -> Result<(), Status> {
    requests.send(request).await.map_err(|_| Status::unavailable("the server ended the stream"))
}

async fn next(
    answers: &mut Streaming<SyncAuthorizedEntriesResponse>,
) -> Result<SyncAuthorizedEntriesResponse, Status> {
    answers.message().await?.ok_or_else(|| Status::unavailable("the server ended the stream"))
}

/// The outcome of a sync so far.
pub(super) struct Merge<'a> {
    known: &'a Entries,
    agent: &'a SpiffeId,
    kept: BTreeMap<EntryId, Arc<Entry>>,
    wanted: Vec<String>,
    texts: Texts,
}

impl<'a> Merge<'a> {
    pub(super) fn new(known: &'a Entries, agent: &'a SpiffeId) -> Self {
        Self { known, agent, kept: BTreeMap::new(), wanted: Vec::new(), texts: Texts::default() }
    }

    /// Takes a page of revisions: an entry is kept if it is known as it is, else asked for. An entry
    /// that was deleted and made anew under its id may have the old revision, but not the old date.
    pub(super) fn revisions(&mut self, page: &[EntryRevision]) {
        for revision in page {
            if revision.id.is_empty() || revision.revision_number < 0 {
                warn!(
                    entry_id = %revision.id,
                    revision_number = revision.revision_number,
                    "Received malformed entry revision from SPIRE server; are the server and agent versions compatible?"
                );
                continue;
            }
            let id = EntryId::new(&revision.id);
            match self.known.get(&id) {
                Some(held)
                    if held.entry.revision_number == revision.revision_number
                        && (revision.created_at == 0 || held.entry.created_at.0 == revision.created_at) =>
                {
                    self.kept.insert(id, Arc::clone(&held.entry));
                }
                Some(_) | None => self.wanted.push(revision.id.clone()),
            }
        }
    }

    /// The ids to ask for, in order, each once.
    pub(super) fn wanted(&mut self) -> Vec<String> {
        self.wanted.sort_unstable();
        self.wanted.dedup();
        std::mem::take(&mut self.wanted)
    }

    /// Takes a page of entries. One that cannot be read is left out: what is known of it is outdated.
    pub(super) fn entries(&mut self, page: &[types::Entry]) {
        for wire in page {
            match answered(wire, self.agent, &mut self.texts) {
                Ok(entry) if entry.id.as_str().is_empty() => malformed(wire, "it has no id"),
                Ok(entry) => {
                    // What is known already is not held twice.
                    let known = self.known.get(&entry.id).map(|held| &held.entry);
                    let entry = match known {
                        Some(known) if **known == entry => Arc::clone(known),
                        _ => Arc::new(entry),
                    };
                    self.kept.insert(entry.id.clone(), entry);
                }
                Err(error) => malformed(wire, &error.to_string()),
            }
        }
    }

    /// Keeps what is known, but for these.
    pub(super) fn keep_but(&mut self, gone: impl Iterator<Item = EntryId>) {
        let known = self.known.iter().map(|held| (held.entry.id.clone(), Arc::clone(&held.entry)));
        self.kept.extend(known);
        gone.for_each(|id| _ = self.kept.remove(&id));
    }

    pub(super) fn finish(self) -> Vec<Arc<Entry>> {
        self.kept.into_values().collect()
    }
}

fn malformed(wire: &types::Entry, reason: &str) {
    warn!(
        entry_id = %wire.id,
        error = reason,
        "Received malformed entry from SPIRE server; are the server and agent versions compatible?"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, agent_id};
    use crate::state::{AgentState, Change};

    fn wire(number: usize, revision: i64) -> types::Entry {
        let mut entry = fixtures::entry(&format!("e{number:05}"), &format!("/w/{number}"), &["uid:1"]);
        entry.revision_number = revision;
        proto::convert::entry::masked(&entry, Some(&AGENT_MASK))
    }

    fn revision(wire: &types::Entry) -> EntryRevision {
        EntryRevision {
            id: wire.id.clone(),
            revision_number: wire.revision_number,
            created_at: wire.created_at,
        }
    }

    fn known(entries: Vec<Arc<Entry>>) -> Arc<Entries> {
        let change = Change::Synced { entries, own: None, federated: Vec::new(), at: spiffe::UnixSecs(1) };
        fixtures::state().apply(change).entries
    }

    /// A sync against a server that has `server`, in pages of `page_size`, by a client that knows
    /// `known`. Gives the outcome and how many entries were sent.
    fn run(server: &[types::Entry], page_size: usize, known: &Entries) -> (Vec<Arc<Entry>>, usize) {
        let agent = agent_id();
        let mut merge = Merge::new(known, &agent);
        if server.len() <= page_size {
            merge.entries(server);
            return (merge.finish(), server.len());
        }
        for page in server.chunks(page_size) {
            merge.revisions(&page.iter().map(revision).collect::<Vec<_>>());
        }
        let wanted = merge.wanted();
        for ids in wanted.chunks(page_size) {
            let page: Vec<types::Entry> =
                server.iter().filter(|entry| ids.contains(&entry.id)).cloned().collect();
            merge.entries(&page);
        }
        (merge.finish(), wanted.len())
    }

    fn check_size(size: usize) {
        let server: Vec<_> = (0..size).map(|number| wire(number, 0)).collect();

        let (first, _) = run(&server, 500, &Entries::default());
        let known = known(first.clone());
        let (second, sent) = run(&server, 500, &known);

        assert_eq!((first.len(), second.len()), (size, size));
        assert_eq!(sent, if size <= 500 { size } else { 0 });
        for (first, second) in first.iter().zip(&second) {
            assert!(Arc::ptr_eq(first, second), "{} is held twice", first.id);
        }
        assert_eq!(known.len(), size);
    }

    #[test]
    fn every_number_of_entries_arrives_and_is_sent_once() {
        for size in [0, 1, 499, 500, 501, 1000, 10_000] {
            check_size(size);
        }
    }

    #[test]
    fn only_what_changed_is_sent_and_what_is_gone_goes() {
        let mut server: Vec<_> = (0..1200).map(|number| wire(number, 0)).collect();
        let known = known(run(&server, 500, &Entries::default()).0);
        server[3].revision_number = 1;
        // Made anew under its id: the same revision, another date.
        server[700].created_at += 1;
        server.remove(900);
        server.push(wire(5000, 0));

        let (entries, sent) = run(&server, 500, &known);

        assert_eq!((entries.len(), sent), (1200, 3));
        let by_id = |id: &str| entries.iter().find(|entry| entry.id.as_str() == id);
        assert_eq!(by_id("e00003").unwrap().revision_number, 1);
        assert_eq!(by_id("e00700").unwrap().created_at.0, server[700].created_at);
        assert!(by_id("e00900").is_none() && by_id("e05000").is_some());
    }

    #[test]
    fn a16_malformed_entries_are_left_out_and_hold_up_nothing() {
        let mut broken = wire(1, 0);
        broken.spiffe_id = None;
        let mut nameless = wire(2, 0);
        nameless.id.clear();

        let (entries, _) = run(&[wire(0, 0), broken, nameless, wire(3, 0)], 500, &Entries::default());

        let ids: Vec<_> = entries.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids, ["e00000", "e00003"]);
    }

    #[test]
    fn malformed_revisions_are_left_out() {
        let (known, agent) = (Entries::default(), agent_id());
        let mut merge = Merge::new(&known, &agent);

        merge.revisions(&[
            EntryRevision { id: String::new(), revision_number: 0, created_at: 0 },
            EntryRevision { id: "a".to_owned(), revision_number: -1, created_at: 0 },
            EntryRevision { id: "b".to_owned(), revision_number: 0, created_at: 0 },
            EntryRevision { id: "b".to_owned(), revision_number: 0, created_at: 0 },
        ]);

        assert_eq!(merge.wanted(), ["b"]);
    }

    #[test]
    fn an_old_server_sends_no_dates() {
        let known = known(run(&[wire(0, 0)], 500, &Entries::default()).0);
        let agent = agent_id();
        let mut merge = Merge::new(&known, &agent);

        merge.revisions(&[EntryRevision { created_at: 0, ..revision(&wire(0, 0)) }]);

        assert_eq!(merge.wanted(), Vec::<String>::new());
        assert_eq!(merge.finish().len(), 1);
    }

    #[test]
    fn a_state_without_a_change_is_the_same_allocation() {
        let entries = run(&[wire(0, 0), wire(1, 0)], 500, &Entries::default()).0;
        let state = fixtures::state();
        let synced = |state: &AgentState, at: i64| {
            let entries = entries.clone();
            let at = spiffe::UnixSecs(at);
            state.apply(Change::Synced { entries, own: None, federated: Vec::new(), at })
        };

        let first = synced(&state, 1);
        let second = synced(&first, 2);

        assert!(Arc::ptr_eq(&first.entries, &second.entries));
        assert!(Arc::ptr_eq(&state.bundles, &second.bundles));
        assert_eq!(second.synced_at, Some(spiffe::UnixSecs(2)));
    }
}
