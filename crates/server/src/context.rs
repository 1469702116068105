//! What every API needs: the snapshots to read, the store to write to, the means to sign.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ca::issue::Issuer;
use config::ServerConfig;
use graph::EntryGraph;
use plugin::ServerNodeAttestor;
use runtime::bulk::Bulk;
use runtime::clock::Clock;
use runtime::health::Health;
use runtime::log::Log;
use runtime::snapshot::Snapshot;
use spiffe::{TrustDomain, UnixSecs};
use store::{Committed, StoreError};
use tonic::Status;

use crate::audit::Chain;
use crate::authz::{self, Policy};
use crate::ca_driver::Commands;
use crate::caller::Caller;
use crate::federation::Federation;
use crate::keep::{Applied, BundleSet, Fresh, KnownBundle};
use crate::limits::Limits;
use crate::measured::Datastore;
use crate::meters::Meters;
use crate::own_svid::OwnSvid;
use crate::sync::Hub;

/// The running server, as its APIs see it. Shared by all of them.
pub(crate) struct Context {
    /// The checked configuration.
    pub(crate) config: ServerConfig,
    /// The datastore.
    pub(crate) store: Datastore,
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
    /// What is measured.
    pub(crate) meters: Arc<Meters>,
    /// The operator's policy, if there is one, in place of the rules.
    pub(crate) policy: Option<Policy>,
    /// What audit lines are chained to, if they are.
    pub(crate) audit_chain: Option<Chain>,
    /// How often addresses may call.
    pub(crate) limits: Limits,
    /// How far the snapshots are with what this server writes.
    pub(crate) applied: Applied,
    /// How far they are with what others write.
    pub(crate) fresh: Fresh,
    /// Where batches are worked on.
    pub(crate) bulk: Bulk,
    /// The agents that wait for changes.
    pub(crate) hub: Hub,
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

    /// Judges the caller once more, by what any server committed before this: to be awaited by every
    /// call that signs or renews, when all else is checked, so that a ban anywhere holds at once. One
    /// reading of the database is shared by all who wait.
    ///
    /// # Errors
    /// That the caller may not call any more, or `Internal` if the database is there and cannot be read.
    pub(crate) async fn confirm(&self, caller: &Caller) -> Result<(), Status> {
        match self.fresh.wait().await {
            Ok(()) => {}
            // An outage of the database must not become one of every workload: what is known holds. But
            // not for ever: it may be away for this server alone, and bans be made elsewhere.
            Err(StoreError::Unavailable(reason)) if self.fresh.was_within(LONGEST_BLIND) => {
                tracing::debug!(reason, "Signing by what is known: the datastore is away");
            }
            Err(error) => return Err(unreadable(&error)),
        }
        let judged = authz::judge(self, caller.open, &caller.peer).await;
        judged.map(drop).map_err(|denied| denied.status(caller.rule.method))
    }

    /// Waits until the snapshots show what any server committed before this call.
    ///
    /// # Errors
    /// `Internal` if the database cannot be read.
    pub(crate) async fn up_to_date(&self) -> Result<(), Status> {
        self.fresh.wait().await.map_err(|error| unreadable(&error))
    }
}

/// How long agents are signed for by what is known while the database is away: as long as an X.509-SVID
/// lives by default, so that a ban that is not seen costs no more than one that came an SVID too late.
const LONGEST_BLIND: Duration = Duration::from_secs(3600);

fn unreadable(error: &StoreError) -> Status {
    Status::internal(format!("cannot read changes of other servers: {error}"))
}
