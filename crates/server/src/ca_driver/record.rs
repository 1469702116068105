//! What of the authorities is stored: the journal row of this server, and its part of the bundle.

use ca::journal::Journal;
use spiffe::{Bundle, TrustDomain};
use store::{CaJournal, Changes, StoreError};

use crate::measured::Datastore;

/// The journal, and whether the stored one is the same.
#[derive(Default)]
pub(super) struct Record {
    pub(super) journal: Journal,
    /// 0 = not stored yet.
    pub(super) row: i64,
    pub(super) needs_saving: bool,
}

impl Record {
    /// Stores `journal` and adds `more` to the bundle, both or neither; what changed.
    ///
    /// # Errors
    /// If the datastore fails; then all is as it was.
    pub(super) async fn publish(
        &mut self,
        store: &Datastore,
        more: Bundle,
        journal: Journal,
    ) -> Result<Option<Changes>, StoreError> {
        let row = row(self.row, &journal);
        let stored = store.append_bundle_with_journal(more, row).await?;
        let (_, row) = stored.value;
        *self = Self { journal, row: row.id, needs_saving: false };
        Ok(stored.changes)
    }

    /// Stores `journal` and removes a compromised JWT authority from the bundle, both or neither; what
    /// changed.
    ///
    /// # Errors
    /// If the datastore fails, or refuses; then all is as it was.
    pub(super) async fn revoke_jwt(
        &mut self,
        store: &Datastore,
        trust_domain: TrustDomain,
        id: String,
        journal: Journal,
    ) -> Result<Option<Changes>, StoreError> {
        let row = row(self.row, &journal);
        let stored = store.revoke_jwt_authority_with_journal(trust_domain, id, row).await?;
        let (_, row) = stored.value;
        *self = Self { journal, row: row.id, needs_saving: false };
        Ok(stored.changes)
    }

    /// Stores the journal if it differs from the stored one; a failure is logged and made good later.
    pub(super) async fn save_if_needed(&mut self, store: &Datastore) {
        if !self.needs_saving {
            return;
        }
        match store.set_ca_journal(row(self.row, &self.journal)).await {
            Ok(stored) => {
                self.row = stored.value.id;
                self.needs_saving = false;
                tracing::debug!(
                    subsystem_name = "ca_manager",
                    ca_journal_id = self.row,
                    local_authority_id = stored.value.active_x509_authority_id,
                    "Successfully stored CA journal entry in datastore"
                );
            }
            Err(error) => {
                tracing::error!(subsystem_name = "ca_manager", %error, "Failed to update CA journal");
            }
        }
    }
}

/// The row of a journal. It is found by its active X.509 authority; before there is one by the first
/// that was prepared, so that a server that stops in between goes on with it.
fn row(id: i64, journal: &Journal) -> CaJournal {
    let newest = || journal.x509().next_back().map(|entry| entry.facts.id);
    CaJournal {
        id,
        data: journal.encode().into(),
        active_x509_authority_id: journal
            .active_x509()
            .map(str::to_owned)
            .or_else(newest)
            .unwrap_or_default(),
    }
}
