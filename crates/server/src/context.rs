//! What every API needs: the snapshots to read, the store to write to, the means to sign.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use ca::issue::Issuer;
use config::ServerConfig;
use graph::EntryGraph;
use plugin::ServerNodeAttestor;
use runtime::clock::Clock;
use runtime::health::Health;
use runtime::log::Log;
use runtime::snapshot::Snapshot;
use spiffe::{TrustDomain, UnixSecs};
use store::{Committed, Store};
use tonic::Status;

use crate::ca_driver::Commands;
use crate::federation::Federation;
use crate::keep::{Applied, BundleSet, KnownBundle};
use crate::limits::Limits;
use crate::own_svid::OwnSvid;

/// The running server, as its APIs see it. Shared by all of them.
pub(crate) struct Context {
    /// The checked configuration.
    pub(crate) config: ServerConfig,
    /// The datastore.
    pub(crate) store: Store,
    /// The entries and agents.
    pub(crate) graph: Snapshot<EntryGraph>,
    /// The bundles of all trust domains.
    pub(crate) bundles: Snapshot<BundleSet>,
    /// Signs.
    pub(crate) issuer: Issuer,
    /// Commands the authorities.
    pub(crate) authorities: Commands,
    /// Refreshes the bundles of other trust domains.
    pub(crate) federation: Federation,
    /// The server's own SVID.
    pub(crate) own_svid: Snapshot<OwnSvid>,
    /// The node attestors by name.
    pub(crate) node_attestors: BTreeMap<String, Arc<dyn ServerNodeAttestor>>,
    /// How often addresses may call.
    pub(crate) limits: Limits,
    /// How far the snapshots are.
    pub(crate) applied: Applied,
    /// The log, whose level may be changed.
    pub(crate) log: Log,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
    /// How the parts of the server are.
    pub(crate) health: Health,
    /// When the server started.
    pub(crate) started: SystemTime,
}

impl Context {
    /// The server's own trust domain.
    pub(crate) const fn trust_domain(&self) -> &TrustDomain {
        &self.config.trust_domain
    }

    /// The time of day in whole seconds.
    pub(crate) fn now(&self) -> UnixSecs {
        UnixSecs::from(self.clock.now())
    }

    /// The own bundle as it is now; `None` before there is one.
    pub(crate) fn own_bundle(&self) -> Option<Arc<KnownBundle>> {
        self.bundles.load().get(self.trust_domain()).cloned()
    }

    /// What a write came to, once the snapshots show it: whoever is answered then reads what it wrote.
    pub(crate) async fn applied<T>(&self, committed: Committed<T>) -> T {
        if let Some(changes) = &committed.changes {
            self.applied.reached(changes).await;
        }
        committed.value
    }

    /// Waits until the snapshots show what any server committed before this call: to be awaited by
    /// every call that signs or renews, so that a ban anywhere holds at once.
    ///
    /// # Errors
    /// `Internal` if the database cannot be asked.
    pub(crate) async fn fresh(&self) -> Result<(), Status> {
        let fresh = self.store.fresh().await;
        fresh.map_err(|error| Status::internal(format!("cannot read changes of other servers: {error}")))
    }
}
