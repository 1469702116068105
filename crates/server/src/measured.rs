//! The datastore, each of its operations counted and timed under SPIRE's name for it.
//!
//! What is one transaction here may be several operations in SPIRE; it counts as each of them. The
//! wrapper is a [`Store`] in everything else.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use runtime::metrics::{Call, Gauge, Metrics};
use spiffe::{Bundle, EntryId, JwtAuthority, SpiffeId, TrustDomain, UnixSecs};
use store::feed::{Federating, Feed, Followed};
use store::{
    Agent, AgentCondition, AgentFilter, AgentPage, AgentUpdate, Attestation, Attested, BundleMask,
    BundlePage, CaJournal, Committed, CreatedEntry, DeleteMode, EntryFilter, EntryMask, EntryPage,
    FederationMask, FederationRelationship, FederationRelationshipPage, JoinToken, NewEntry, Page, Store,
    StoreError, StoredEntry,
};
use tonic::Code;

use crate::api;
use crate::meters::of_store;

/// The datastore of this server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Datastore {
    store: Store,
    calls: Arc<Calls>,
    others: Arc<Others>,
}

/// The operations whose names depend on what is asked, and those of many items, each of which counts.
struct Others {
    create_entries: Call,
    update_entries: Call,
    delete_entries: Call,
    attest: [Call; 2],
    token_used: Call,
    /// Of entries, of agents.
    events: [Events; 2],
}

/// What is asked of a table of events.
struct Events {
    list: Call,
    fetch: Call,
    skipped: Gauge,
}

impl Datastore {
    /// This store, measured.
    pub(crate) fn new(store: Store, metrics: &Metrics) -> Self {
        let call = |parts: [&str; 2]| metrics.call(&["datastore", parts[0], parts[1]], &[]);
        let events = |of: &str, table: &str| Events {
            list: call([table, "list"]),
            fetch: call([table, "fetch"]),
            skipped: metrics.gauge(&[of, &format!("skipped_{of}_event_ids"), "count"], &[]),
        };
        let others = Others {
            create_entries: call(["registration_entry", "create"]),
            update_entries: call(["registration_entry", "update"]),
            delete_entries: call(["registration_entry", "delete"]),
            attest: [call(["node", "create"]), metrics.call(&["datastore", "node", "selectors", "set"], &[])],
            token_used: call(["join_token", "delete"]),
            events: [events("entry", "registration_entry_event"), events("node", "node_event")],
        };
        Self { store, calls: Arc::new(Calls::new(metrics)), others: Arc::new(others) }
    }

    /// As the store's operation of this name. A join token ends in the same transaction.
    pub(crate) async fn attest_agent(
        &self,
        attestation: Attestation,
    ) -> Result<Committed<Attested>, StoreError> {
        let token_used = attestation.join_token.is_some().then_some(&self.others.token_used);
        let work = all(&self.others.attest, self.store.attest_agent(attestation));
        match token_used {
            Some(token_used) => of_store(token_used, work).await,
            None => work.await,
        }
    }

    /// As the store's operation of this name.
    pub(crate) async fn create_entries(
        &self,
        entries: Vec<NewEntry>,
    ) -> Vec<Result<Committed<CreatedEntry>, StoreError>> {
        each(&self.others.create_entries, entries.len(), self.store.create_entries(entries)).await
    }

    /// As the store's operation of this name.
    pub(crate) async fn update_entries(
        &self,
        entries: Vec<NewEntry>,
        mask: EntryMask,
    ) -> Vec<Result<Committed<StoredEntry>, StoreError>> {
        each(&self.others.update_entries, entries.len(), self.store.update_entries(entries, mask)).await
    }

    /// As the store's operation of this name.
    pub(crate) async fn delete_entries(
        &self,
        ids: Vec<EntryId>,
    ) -> Vec<Result<Committed<EntryId>, StoreError>> {
        each(&self.others.delete_entries, ids.len(), self.store.delete_entries(ids)).await
    }

    /// As the store's operation of this name: events are listed, and those fetched that were passed over.
    pub(crate) async fn follow(
        &self,
        feed: Feed,
        federating: Federating,
        with_fingerprint: bool,
    ) -> Result<Followed, StoreError> {
        let [entries, agents] = &self.others.events;
        let (missing_entries, missing_agents) = feed.missing();
        let fetches = [(entries, missing_entries), (agents, missing_agents)];
        let fetches: Vec<_> = fetches
            .into_iter()
            .filter(|(_, missing)| *missing > 0)
            .map(|(events, _)| events.fetch.start())
            .collect();
        let work = self.store.follow(feed, federating, with_fingerprint);
        let followed = of_store(&entries.list, of_store(&agents.list, work)).await;
        let code = followed.as_ref().map_or_else(api::code_of, |_| Code::Ok);
        fetches.into_iter().for_each(|fetch| fetch.done(code));
        if let Ok(followed) = &followed {
            let (missing_entries, missing_agents) = followed.feed.missing();
            entries.skipped.set_count(usize::try_from(missing_entries).unwrap_or(usize::MAX));
            agents.skipped.set_count(usize::try_from(missing_agents).unwrap_or(usize::MAX));
        }
        followed
    }
}

impl Deref for Datastore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

/// Declares the operations that are measured: the signature of each, and the parts of its name after
/// `datastore`. With several names it is measured under each.
macro_rules! measured {
    ($($operation:ident($($argument:ident: $kind:ty),*) -> $outcome:ty as $([$($part:literal),+])&+;)*) => {
        struct Calls {
            $($operation: Vec<Call>,)*
        }

        impl Calls {
            fn new(metrics: &Metrics) -> Self {
                Self { $($operation: vec![$(metrics.call(&["datastore", $($part),+], &[])),+],)* }
            }
        }

        impl Datastore {
            $(
                /// As the store's operation of this name.
                pub(crate) async fn $operation(&self, $($argument: $kind),*) -> Result<$outcome, StoreError> {
                    all(&self.calls.$operation, self.store.$operation($($argument),*)).await
                }
            )*
        }
    };
}

measured! {
    create_bundle(bundle: Bundle) -> Committed<()> as ["bundle", "create"];
    set_bundle(bundle: Bundle) -> Committed<()> as ["bundle", "set"];
    append_bundle(bundle: Bundle) -> Committed<Arc<Bundle>> as ["bundle", "append"];
    append_bundle_with_journal(bundle: Bundle, journal: CaJournal) -> Committed<(Arc<Bundle>, CaJournal)>
        as ["bundle", "append"] & ["ca_journal", "set"];
    update_bundle(bundle: Bundle, mask: BundleMask) -> Committed<Arc<Bundle>> as ["bundle", "update"];
    delete_bundle(trust_domain: TrustDomain, mode: DeleteMode) -> Committed<()> as ["bundle", "delete"];
    fetch_bundle(trust_domain: TrustDomain) -> Option<Arc<Bundle>> as ["bundle", "fetch"];
    list_bundles(page: Option<Page>) -> BundlePage as ["bundle", "list"];
    count_bundles() -> i32 as ["bundle", "count"];
    prune_bundle(trust_domain: TrustDomain, before: UnixSecs) -> Committed<bool> as ["bundle", "prune"];
    taint_x509_authority(trust_domain: TrustDomain, subject_key_id: String) -> Committed<Arc<Bundle>>
        as ["bundle", "x509", "taint"];
    revoke_x509_authority(trust_domain: TrustDomain, subject_key_id: String) -> Committed<Arc<Bundle>>
        as ["bundle", "x509", "revoke"];
    taint_jwt_authority(trust_domain: TrustDomain, key_id: String) -> Committed<JwtAuthority>
        as ["bundle", "jwt", "taint"];
    revoke_jwt_authority(trust_domain: TrustDomain, key_id: String) -> Committed<JwtAuthority>
        as ["bundle", "jwt", "revoke"];
    revoke_jwt_authority_with_journal(trust_domain: TrustDomain, key_id: String, journal: CaJournal)
        -> Committed<(JwtAuthority, CaJournal)> as ["bundle", "jwt", "revoke"] & ["ca_journal", "set"];
    create_join_token(token: JoinToken, alias: Option<NewEntry>) -> Committed<Option<CreatedEntry>>
        as ["join_token", "create"];
    fetch_join_token(token: String) -> Option<JoinToken> as ["join_token", "fetch"];
    delete_join_token(token: String) -> Committed<()> as ["join_token", "delete"];
    prune_join_tokens(before: UnixSecs) -> Committed<usize> as ["join_token", "prune"];
    update_agent(id: SpiffeId, update: AgentUpdate, condition: AgentCondition) -> Committed<Option<Arc<Agent>>>
        as ["node", "update"];
    promote_agent(id: SpiffeId, new_serial: String) -> Committed<Option<Arc<Agent>>> as ["node", "update"];
    ban_agent(id: SpiffeId) -> Committed<Arc<Agent>> as ["node", "update"];
    delete_agent(id: SpiffeId) -> Committed<()> as ["node", "delete"];
    prune_agents(before: UnixSecs, non_reattestable: bool, batch: u32) -> Committed<Vec<SpiffeId>>
        as ["node", "prune"];
    fetch_agent(id: SpiffeId) -> Option<Arc<Agent>> as ["node", "fetch"] & ["node", "selectors", "fetch"];
    list_agents(filter: AgentFilter, page: Option<Page>) -> AgentPage as ["node", "list"];
    load_agents() -> Vec<Arc<Agent>> as ["node", "list"] & ["node", "selectors", "list"];
    count_agents(filter: AgentFilter) -> i32 as ["node", "count"];
    prune_entries(before: UnixSecs) -> Committed<Vec<EntryId>> as ["registration_entry", "prune"];
    fetch_entry(id: EntryId) -> Option<StoredEntry> as ["registration_entry", "fetch"];
    list_entries(filter: EntryFilter, page: Option<Page>) -> EntryPage as ["registration_entry", "list"];
    load_entries() -> Vec<StoredEntry> as ["registration_entry", "list"];
    count_entries(filter: EntryFilter) -> i32 as ["registration_entry", "count"];
    set_ca_journal(journal: CaJournal) -> Committed<CaJournal> as ["ca_journal", "set"];
    fetch_ca_journal(active_x509_authority_id: String) -> Option<CaJournal> as ["ca_journal", "fetch"];
    prune_ca_journals(before: UnixSecs) -> Committed<Vec<i64>> as ["ca_journal", "prune"];
    create_federation_relationship(relationship: FederationRelationship) -> Committed<FederationRelationship>
        as ["federation_relationship", "create"];
    update_federation_relationship(relationship: FederationRelationship, mask: FederationMask)
        -> Committed<FederationRelationship> as ["federation_relationship", "update"];
    delete_federation_relationship(trust_domain: TrustDomain) -> Committed<()>
        as ["federation_relationship", "delete"];
    fetch_federation_relationship(trust_domain: TrustDomain) -> Option<FederationRelationship>
        as ["federation_relationship", "fetch"];
    list_federation_relationships(page: Option<Page>) -> FederationRelationshipPage
        as ["federation_relationship", "list"];
    prune_events(age: Duration) -> Committed<usize>
        as ["registration_entry_event", "prune"] & ["node_event", "prune"];
}

/// Does `work` as a call of each of these.
async fn all<T>(calls: &[Call], work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match calls {
        [only] => of_store(only, work).await,
        [first, second] => of_store(first, of_store(second, work)).await,
        _ => work.await,
    }
}

/// Does `work` on so many items, each as such a call.
async fn each<T>(
    call: &Call,
    count: usize,
    work: impl Future<Output = Vec<Result<T, StoreError>>>,
) -> Vec<Result<T, StoreError>> {
    let running: Vec<_> = std::iter::repeat_with(|| call.start()).take(count).collect();
    let outcomes = work.await;
    for (running, outcome) in running.into_iter().zip(&outcomes) {
        running.done(outcome.as_ref().map_or_else(api::code_of, |_| Code::Ok));
    }
    outcomes
}
