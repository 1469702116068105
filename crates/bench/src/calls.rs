//! The calls that several commands make: entries in bulk, the sync of an agent, lists page by page.

use client::ServerClients;
use proto::convert::entry::AGENT_MASK;
use proto::spire::server::bundle::GetBundleRequest;
use proto::spire::server::entry::{
    BatchCreateEntryRequest, EntryRevision, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use proto::spire::types;
use spiffe::SpiffeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::judge::wire_of;
use crate::{Trouble, check_item};

/// An entry of a simulated workload: two selectors, one of them its own.
pub(crate) fn entry(id: &SpiffeId, parent: &SpiffeId, number: usize) -> types::Entry {
    let selector = |kind: &str, value: String| types::Selector { r#type: kind.to_owned(), value };
    types::Entry {
        spiffe_id: Some(wire_of(id)),
        parent_id: Some(wire_of(parent)),
        selectors: vec![
            selector("k8s", format!("ns:bench-{}", number % 100)),
            selector("unix", format!("uid:{}", 1_000_000 + number)),
        ],
        ..types::Entry::default()
    }
}

/// Creates entries in one call and hands back their ids.
///
/// # Errors
/// One is refused, or the call fails.
pub(crate) async fn create(
    server: &ServerClients,
    entries: Vec<types::Entry>,
) -> Result<Vec<String>, Trouble> {
    let count = entries.len();
    let request = BatchCreateEntryRequest { entries, output_mask: Some(types::EntryMask::default()) };
    let results = server.entry().batch_create_entry(request).await?.into_inner().results;
    if results.len() != count {
        return Err(Trouble::Wrong(format!("{count} entries were created with {} results", results.len())));
    }
    let mut ids = Vec::with_capacity(count);
    for result in results {
        check_item(result.status.as_ref())?;
        let id = result.entry.map(|entry| entry.id).filter(|id| !id.is_empty());
        ids.push(id.ok_or_else(|| Trouble::Wrong("an entry was created without an id".to_owned()))?);
    }
    Ok(ids)
}

/// What an agent knows after a sync, so that it can tell that nothing changed since.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// How many entries it has.
    pub(crate) count: usize,
    /// Of each, where they do not fit a page.
    revisions: Vec<EntryRevision>,
}

/// What one sync brought.
#[derive(Debug)]
pub(crate) struct Synced {
    pub(crate) known: Known,
    /// How many entries were sent whole.
    pub(crate) sent: usize,
}

impl Known {
    /// Whether the entries come whole each time, being so few.
    pub(crate) const fn fits_a_page(&self) -> bool {
        self.revisions.is_empty()
    }
}

/// One sync of an agent, as agents do it: all entries if they fit a page, else pages of revisions, of
/// which those that `known` lacks are asked for.
///
/// # Errors
/// The call fails or is not answered as the protocol demands.
pub(crate) async fn sync(agent: &ServerClients, known: &Known) -> Result<Synced, Trouble> {
    let (requests, receiver) = mpsc::channel(1);
    let first = SyncAuthorizedEntriesRequest { output_mask: Some(AGENT_MASK), ids: Vec::new() };
    let gone = || Trouble::Failed("the sync ended early".to_owned());
    requests.try_send(first).map_err(|_| gone())?;
    let mut answers =
        agent.entry().sync_authorized_entries(ReceiverStream::new(receiver)).await?.into_inner();

    let mut page = next(&mut answers).await?;
    let page_size = page.entry_revisions.len();
    if page_size == 0 {
        let count = named(&page)?;
        return Ok(Synced { known: Known { count, revisions: Vec::new() }, sent: count });
    }
    let mut revisions = Vec::new();
    loop {
        if !page.entries.is_empty() {
            return Err(Trouble::Wrong("entries among the revisions of a sync".to_owned()));
        }
        let more = page.more;
        revisions.append(&mut page.entry_revisions);
        if !more {
            break;
        }
        page = next(&mut answers).await?;
    }
    let mut sent = 0;
    if known.revisions != revisions {
        let ids: Vec<String> = revisions.iter().map(|revision| revision.id.clone()).collect();
        for ids in ids.chunks(page_size) {
            let request = SyncAuthorizedEntriesRequest { output_mask: None, ids: ids.to_vec() };
            requests.send(request).await.map_err(|_| gone())?;
            loop {
                let page = next(&mut answers).await?;
                sent += named(&page)?;
                if !page.more {
                    break;
                }
            }
        }
    }
    Ok(Synced { known: Known { count: revisions.len(), revisions }, sent })
}

/// How many entries a page has. Each must say whose it is and by what it is known.
fn named(page: &SyncAuthorizedEntriesResponse) -> Result<usize, Trouble> {
    let is_whole = |entry: &types::Entry| {
        !entry.id.is_empty() && entry.spiffe_id.is_some() && !entry.selectors.is_empty()
    };
    match page.entries.iter().find(|entry| !is_whole(entry)) {
        Some(entry) => {
            Err(Trouble::Wrong(format!("a sync sent the entry {:?} with parts missing", entry.id)))
        }
        None => Ok(page.entries.len()),
    }
}

async fn next(
    answers: &mut Streaming<SyncAuthorizedEntriesResponse>,
) -> Result<SyncAuthorizedEntriesResponse, Trouble> {
    answers.message().await?.ok_or_else(|| Trouble::Failed("the sync ended early".to_owned()))
}

/// One poll of an agent with nothing to do: a sync, and the bundle.
///
/// # Errors
/// A call fails, or the bundle is empty.
pub(crate) async fn poll(agent: &ServerClients, known: &Known) -> Result<(), Trouble> {
    let found = sync(agent, known).await?.known;
    if found.count != known.count {
        let why = format!("an agent was authorised for {} entries, and is for {}", known.count, found.count);
        return Err(Trouble::Wrong(why));
    }
    let bundle = agent.bundle().get_bundle(GetBundleRequest::default()).await?.into_inner();
    if bundle.x509_authorities.is_empty() {
        return Err(Trouble::Wrong("the bundle has no authorities".to_owned()));
    }
    Ok(())
}
