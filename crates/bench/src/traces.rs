//! What a run has made in the target, so that it can be taken away again.

use std::cell::RefCell;
use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use proto::spire::server::agent::DeleteAgentRequest;
use proto::spire::server::entry::list_entries_request::Filter;
use proto::spire::server::entry::{BatchDeleteEntryRequest, ListEntriesRequest};
use proto::spire::types;
use spiffe::SpiffeId;

use crate::BenchError;
use crate::judge::wire_of;
use crate::target::Target;

/// Entries, agents and their aliases.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    entries: RefCell<BTreeSet<String>>,
    agents: RefCell<Vec<SpiffeId>>,
    aliases: RefCell<BTreeSet<String>>,
}

impl Traces {
    /// An entry was made.
    pub(crate) fn entry(&self, id: String) {
        self.entries.borrow_mut().insert(id);
    }

    /// An entry was taken away again.
    pub(crate) fn entry_is_gone(&self, id: &str) {
        self.entries.borrow_mut().remove(id);
    }

    /// An agent attested.
    pub(crate) fn agent(&self, id: SpiffeId) {
        self.agents.borrow_mut().push(id);
    }

    /// Agents were given this alias, for each of which the server has made an entry.
    pub(crate) fn alias(&self, id: &SpiffeId) {
        self.aliases.borrow_mut().insert(id.as_str().to_owned());
    }

    /// Takes everything away.
    ///
    /// # Errors
    /// The target cannot be asked.
    pub(crate) async fn remove(&self, target: &Target) -> Result<(), BenchError> {
        let mut entries: Vec<String> = self.entries.take().into_iter().collect();
        for alias in self.aliases.take() {
            let id = SpiffeId::parse(&alias).map_err(|error| BenchError::Setting(error.to_string()))?;
            entries.extend(entries_of(target, &id).await?);
        }
        let agents = self.agents.take();
        if entries.len() + agents.len() > MANY {
            target.say(&format!("removing {} entries and {} agents", entries.len(), agents.len()));
        }
        remove_entries(target, &entries).await?;
        let mut removals = stream::iter(agents.iter().map(|id| {
            let mut client = target.admin.agent();
            let request = DeleteAgentRequest { id: Some(wire_of(id)) };
            async move { client.delete_agent(request).await }
        }))
        .buffer_unordered(AT_ONCE);
        while let Some(removed) = removals.next().await {
            match removed {
                Ok(_) => {}
                Err(status) if status.code() == tonic::Code::NotFound => {}
                Err(status) => return Err(BenchError::call("remove a simulated agent")(status)),
            }
        }
        Ok(())
    }
}

/// Deletes entries by their ids; those that are gone already are no failure.
///
/// # Errors
/// The target cannot be asked.
pub(crate) async fn remove_entries(target: &Target, ids: &[String]) -> Result<(), BenchError> {
    for ids in ids.chunks(BATCH) {
        let request = BatchDeleteEntryRequest { ids: ids.to_vec() };
        target.admin.entry().batch_delete_entry(request).await.map_err(BenchError::call("remove entries"))?;
    }
    Ok(())
}

/// The ids of the entries for one SPIFFE ID.
async fn entries_of(target: &Target, id: &SpiffeId) -> Result<Vec<String>, BenchError> {
    let filter = Filter { by_spiffe_id: Some(wire_of(id)), ..Filter::default() };
    let request = ListEntriesRequest {
        filter: Some(filter),
        output_mask: Some(types::EntryMask::default()),
        ..ListEntriesRequest::default()
    };
    let answer =
        target.admin.entry().list_entries(request).await.map_err(BenchError::call("list entries"))?;
    Ok(answer.into_inner().entries.into_iter().map(|entry| entry.id).collect())
}

const BATCH: usize = 1000;
const AT_ONCE: usize = 16;
/// So many are told, since they take a while.
const MANY: usize = 2000;
