//! What other servers changed.
//!
//! Events are hints; the row is the truth. On `SQLite` this process owns the file, so nobody else
//! changes anything and there is nothing to poll.

use spiffe::{EntryId, SpiffeId};

use crate::{Store, StoreError};

/// A row that another server touched: read it again; gone means deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// An entry.
    Entry(EntryId),
    /// An agent.
    Agent(SpiffeId),
}

/// Follows the event tables. Made before the bulk load, so that nothing falls between.
#[derive(Debug, Default)]
pub struct Feed {}

impl Feed {
    /// A feed that starts at the present state of the store.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn start(store: &Store) -> Result<Self, StoreError> {
        store.fresh().await?;
        Ok(Self {})
    }

    /// What others changed since the last call.
    ///
    /// # Errors
    /// If the database fails; ask again later.
    pub async fn poll(&mut self, store: &Store) -> Result<Vec<Hint>, StoreError> {
        store.fresh().await?;
        Ok(Vec::new())
    }
}
