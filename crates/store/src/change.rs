//! What a transaction changed, as the in-memory snapshots want to know it.

use std::sync::Arc;

use spiffe::{Bundle, Entry, EntryId, SpiffeId, TrustDomain};

use crate::{Agent, FederationRelationship};

/// One committed change.
#[derive(Clone, Debug)]
pub enum Change {
    /// An entry was created or updated.
    EntrySet {
        /// Its row: list order and page token.
        row_id: i64,
        /// Its contents now.
        entry: Arc<Entry>,
    },
    /// An entry is gone.
    EntryDeleted {
        /// Its row.
        row_id: i64,
        /// Its id.
        id: EntryId,
    },
    /// An agent was created, updated, banned, or got other selectors. Selectors are always filled in.
    AgentSet(Arc<Agent>),
    /// An agent is gone.
    AgentDeleted(SpiffeId),
    /// A bundle was created or changed.
    BundleSet(Arc<Bundle>),
    /// A bundle is gone.
    BundleDeleted(TrustDomain),
    /// A federation relationship was created or changed.
    FederationSet(Arc<FederationRelationship>),
    /// A federation relationship is gone.
    FederationDeleted(TrustDomain),
}

/// The changes of one operation, in commit order.
#[derive(Clone, Debug)]
pub struct Changes {
    /// 1, 2, 3, ... over all operations that changed something since the store was opened.
    pub sequence: u64,
    /// What changed, in the order it was written.
    pub list: Arc<[Change]>,
}

/// The outcome of a mutating operation that is on disk.
#[derive(Clone, Debug)]
pub struct Committed<T> {
    /// What the caller asked for.
    pub value: T,
    /// What it changed: `None` if nothing that snapshots hold.
    pub changes: Option<Changes>,
}

impl<T> Committed<T> {
    /// The same changes with another outcome.
    pub fn map<U>(self, of: impl FnOnce(T) -> U) -> Committed<U> {
        Committed { value: of(self.value), changes: self.changes }
    }
}
