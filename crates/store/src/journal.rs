//! The CA journal: which authorities a server has prepared, activated and retired, as an opaque
//! document of SPIRE's format.

use bytes::Bytes;
use prost::Message;
use proto::spire::journal::Entries;
use spiffe::UnixSecs;

use crate::dialect::{Conn, Row, Tx, blob, int, text, values};
use crate::{Committed, Store, StoreError};

/// A stored journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaJournal {
    /// Its row; 0 = not stored yet.
    pub id: i64,
    /// The document.
    pub data: Bytes,
    /// Names the server that owns it: its active X.509 authority.
    pub active_x509_authority_id: String,
}

impl Store {
    /// Stores a journal: id 0 makes a row, any other replaces it. Returns it with its id.
    ///
    /// # Errors
    /// `NotFound` for an id that is gone.
    pub async fn set_ca_journal(&self, journal: CaJournal) -> Result<Committed<CaJournal>, StoreError> {
        self.write(move |tx| set(tx, &journal)).await
    }

    /// The journal of an active X.509 authority.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn fetch_ca_journal(
        &self,
        active_x509_authority_id: String,
    ) -> Result<Option<CaJournal>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT id, data, active_x509_authority_id FROM ca_journals \
                       WHERE active_x509_authority_id = ?1 ORDER BY id LIMIT 1";
            conn.first(sql, values![&active_x509_authority_id], read)
        })
        .await
    }

    /// All journals.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn list_ca_journals(&self) -> Result<Vec<CaJournal>, StoreError> {
        self.read(all).await
    }

    /// Deletes the journals whose authorities all expired at `before` or earlier; their rows.
    ///
    /// # Errors
    /// `Internal` for a journal that cannot be read: nothing is deleted then.
    pub async fn prune_ca_journals(&self, before: UnixSecs) -> Result<Committed<Vec<i64>>, StoreError> {
        self.write(move |tx| prune(tx, before)).await
    }
}

pub(crate) fn set(tx: &Tx<'_>, journal: &CaJournal) -> Result<CaJournal, StoreError> {
    let mut stored = journal.clone();
    if journal.id == 0 {
        stored.id = tx.conn.insert(
            "INSERT INTO ca_journals (created_at, updated_at, data, active_x509_authority_id, \
             active_jwt_authority_id) VALUES (?1, ?1, ?2, ?3, '')",
            values![tx.now, &journal.data[..], &journal.active_x509_authority_id],
        )?;
        return Ok(stored);
    }
    let touched = tx.conn.execute(
        "UPDATE ca_journals SET updated_at = ?1, data = ?2, active_x509_authority_id = ?3 \
         WHERE id = ?4",
        values![tx.now, &journal.data[..], &journal.active_x509_authority_id, journal.id],
    )?;
    if touched == 0 { Err(StoreError::not_found()) } else { Ok(stored) }
}

fn all(conn: &Conn) -> Result<Vec<CaJournal>, StoreError> {
    conn.rows("SELECT id, data, active_x509_authority_id FROM ca_journals ORDER BY id", values![], read)
}

fn read(row: &Row<'_>) -> Result<CaJournal, StoreError> {
    Ok(CaJournal { id: int(row, 0)?, data: blob(row, 1)?.into(), active_x509_authority_id: text(row, 2)? })
}

fn prune(tx: &Tx<'_>, before: UnixSecs) -> Result<Vec<i64>, StoreError> {
    let mut pruned = Vec::new();
    for journal in all(tx.conn)? {
        let entries = Entries::decode(journal.data).map_err(|error| {
            StoreError::Internal(format!("unable to unmarshal entries from CA journal record: {error}"))
        })?;
        let x509 = entries.x509_c_as.iter().map(|authority| authority.not_after);
        let jwt = entries.jwt_keys.iter().map(|authority| authority.not_after);
        if x509.chain(jwt).all(|not_after| not_after <= before.0) {
            tx.conn.execute("DELETE FROM ca_journals WHERE id = ?1", values![journal.id])?;
            tracing::info!(
                subsystem_name = "sql",
                ca_journal_id = journal.id,
                "Pruned stale CA journal record"
            );
            pruned.push(journal.id);
        }
    }
    Ok(pruned)
}
