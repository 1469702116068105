//! What changes from one version of the graph to the next.

use std::sync::Arc;

use spiffe::{Entry, EntryId, SpiffeId};

use crate::agents::AgentRecord;

/// One change.
#[derive(Clone, Debug)]
pub enum Change {
    /// An entry was created or updated, or read again.
    EntrySet {
        /// Its row in the datastore.
        row_id: i64,
        /// What it holds now.
        entry: Arc<Entry>,
    },
    /// The entry of a row is gone.
    EntryDeleted {
        /// The row.
        row_id: i64,
    },
    /// There is no entry of this id (any more), in whatever row it was.
    EntryGone(EntryId),
    /// An agent was created or updated, or read again.
    AgentSet(Arc<AgentRecord>),
    /// An agent is gone.
    AgentDeleted(SpiffeId),
}

/// Changes in the order in which they were committed.
#[derive(Clone, Debug, Default)]
pub struct ChangeBatch(Vec<Change>);

impl ChangeBatch {
    /// Adds a change that came later than all before.
    pub fn push(&mut self, change: Change) {
        self.0.push(change);
    }

    /// How many changes there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The changes in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Change> {
        self.0.iter()
    }
}

impl From<Vec<Change>> for ChangeBatch {
    fn from(changes: Vec<Change>) -> Self {
        Self(changes)
    }
}

impl FromIterator<Change> for ChangeBatch {
    fn from_iter<I: IntoIterator<Item = Change>>(changes: I) -> Self {
        Self(changes.into_iter().collect())
    }
}

impl Extend<Change> for ChangeBatch {
    fn extend<I: IntoIterator<Item = Change>>(&mut self, changes: I) {
        self.0.extend(changes);
    }
}

impl<'a> IntoIterator for &'a ChangeBatch {
    type Item = &'a Change;
    type IntoIter = std::slice::Iter<'a, Change>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
