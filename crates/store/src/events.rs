//! The event tables: what tells other servers which rows to read again.

use std::time::Duration;

use spiffe::UnixSecs;

use crate::dialect::{Conn, Tx, Value, int, text, values};
use crate::{Committed, Store, StoreError};

/// One row of an event table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// In insertion order, not in commit order.
    pub id: i64,
    /// The entry id or the agent's SPIFFE ID.
    pub subject: String,
}

/// The highest ids of both event tables; 0 when empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventIds {
    /// Of `registered_entries_events`.
    pub entries: i64,
    /// Of `attested_node_entries_events`.
    pub agents: i64,
}

impl Store {
    /// The latest event ids.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn latest_events(&self) -> Result<EventIds, StoreError> {
        self.read(|conn| {
            let max = |sql| Ok::<_, StoreError>(conn.first(sql, values![], |r| int(r, 0))?.unwrap_or(0));
            Ok(EventIds {
                entries: max("SELECT max(id) FROM registered_entries_events")?,
                agents: max("SELECT max(id) FROM attested_node_entries_events")?,
            })
        })
        .await
    }

    /// Entry events with a higher id, in order.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn entry_events_since(&self, id: i64) -> Result<Vec<Event>, StoreError> {
        let sql = "SELECT id, entry_id FROM registered_entries_events WHERE id > ?1 ORDER BY id";
        self.read(move |conn| since(conn, sql, id)).await
    }

    /// Agent events with a higher id, in order.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn agent_events_since(&self, id: i64) -> Result<Vec<Event>, StoreError> {
        let sql = "SELECT id, spiffe_id FROM attested_node_entries_events WHERE id > ?1 ORDER BY id";
        self.read(move |conn| since(conn, sql, id)).await
    }

    /// Deletes the events of both tables that are older than `age`; how many.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn prune_events(&self, age: Duration) -> Result<Committed<usize>, StoreError> {
        let now = UnixSecs::from(self.now());
        let before = now.0.saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        self.write(move |tx| prune(tx, UnixSecs(before))).await
    }
}

fn since(conn: &Conn, sql: &str, id: i64) -> Result<Vec<Event>, StoreError> {
    conn.rows(sql, values![id], |row| Ok(Event { id: int(row, 0)?, subject: text(row, 1)? }))
}

fn prune(tx: &Tx<'_>, before: UnixSecs) -> Result<usize, StoreError> {
    let mut pruned = 0;
    for sql in [
        "DELETE FROM registered_entries_events WHERE unixepoch(created_at) < ?1",
        "DELETE FROM attested_node_entries_events WHERE unixepoch(created_at) < ?1",
    ] {
        pruned += tx.conn.execute(sql, &[Value::Moment(before)])?;
    }
    Ok(pruned)
}
