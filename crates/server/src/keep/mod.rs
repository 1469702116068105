//! What the server keeps in memory of its datastore: the entry graph and the bundles, as snapshots that
//! everybody reads and one task replaces.

mod bundles;
mod fresh;
mod keeper;
mod pace;
mod replica;
mod turn;
mod watchdog;
mod written;

use store::Changes;
use tokio::sync::watch;

pub(crate) use bundles::{BundleSet, KnownBundle, StoredAnchors};
pub(crate) use fresh::Fresh;
pub(crate) use keeper::{Around, Keeper, QUEUE};

/// Says how far the snapshots are. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Applied(watch::Receiver<u64>);

impl Applied {
    /// Waits until the snapshots show these changes, so that who wrote them reads them. Cancel-safe.
    pub(crate) async fn reached(&self, changes: &Changes) {
        // The keeper is gone only when the program ends; then nobody will read any more.
        self.0.clone().wait_for(|sequence| *sequence >= changes.sequence).await.ok();
    }
}
