//! A start from a replica: nearly all is read there, and from the primary database what became of it
//! since. What a server begins with is as fresh as if all of it came from the primary.

use graph::EntryGraph;
use runtime::snapshot::Snapshot;
use spiffe::TrustDomain;
use store::StoreError;
use store::feed::{Feed, Hints};

use super::BundleSet;
use super::keeper::record;
use super::turn::{self, Loaded};
use crate::measured::Datastore;

/// What a server begins with.
pub(super) struct Begun {
    pub(super) feed: Feed,
    pub(super) graph: EntryGraph,
    pub(super) bundles: BundleSet,
}

/// Reads everything at `replica`, and at `primary` what is newer; `None` if events between the two may
/// have been pruned.
///
/// # Errors
/// If either cannot be read.
pub(super) async fn begin(
    primary: &Datastore,
    replica: &Datastore,
    feed: Feed,
    trust_domain: TrustDomain,
) -> Result<Option<Begun>, StoreError> {
    let nobody = turn::federating(Snapshot::fixed(EntryGraph::new(trust_domain.clone())));
    // The feed begins before the rows are read, so that nothing falls between.
    let feed = replica.follow(feed, nobody, false).await?.feed;
    let Loaded { entries, agents, bundles } = turn::load(replica).await?;
    if !primary.goes_on(&feed).await? {
        tracing::info!(
            subsystem_name = "sql",
            "The replica is too far behind, or no events are kept; reading the primary database"
        );
        return Ok(None);
    }
    let entries = entries.into_iter().map(|stored| (stored.row_id, stored.entry));
    let graph = EntryGraph::load(trust_domain, entries, agents.iter().map(|agent| record(agent)));
    let bundles = BundleSet::new(bundles);
    let followed = primary.follow(feed, turn::federating(Snapshot::fixed(graph.clone())), false).await?;
    let (graph, _) = graph.apply(&turn::entries_and_agents(&followed, &Hints::default()));
    let bundles = turn::bundles(&followed, &Hints::default(), &bundles).unwrap_or(bundles);
    tracing::info!(subsystem_name = "sql", "Entries, agents and bundles were read from the replica");
    Ok(Some(Begun { feed: followed.feed, graph, bundles }))
}
