//! Who is told of what: one [`Update`] per set of selectors, shared by all callers that have it.
//!
//! A group is there as long as somebody holds a [`Subscription`] of it. It is computed when the first
//! joins, and again when the state changes; a group is told only of changes that its workloads see. An
//! identity that lost its SVID, because its entry names another id now, is not shown as gone while the
//! next one is being signed: callers would take another identity for their default for that moment.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use proto::raw::Encoded;
use runtime::clock::Clock;
use runtime::reconcile::Poke;
use runtime::snapshot::Snapshot;
use spiffe::{Bundle, EntryId, SelectorSet, TrustDomain, UnixSecs};
use tokio::sync::watch;

use crate::api::sds::secrets::Contents;
use crate::state::{AgentState, Held, X509Svid};

/// All groups. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Subscriptions(Arc<Shared>);

struct Shared {
    state: Snapshot<AgentState>,
    clock: Arc<dyn Clock>,
    /// Poked when somebody waits for an SVID that is not there.
    wanted: Poke,
    groups: Mutex<HashMap<SelectorSet, Weak<Group>>>,
}

struct Group {
    selectors: SelectorSet,
    update: watch::Sender<Arc<Update>>,
    home: Weak<Shared>,
}

/// What the workloads of one set of selectors get.
pub struct Update {
    /// The entries that match, by id; the first that has an SVID is the default identity.
    pub entries: Vec<Arc<Held>>,
    /// The bundle of the own trust domain.
    pub own: Arc<Bundle>,
    /// The bundles of the trust domains that the entries federate with.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// The answer of `FetchX509SVID`, once somebody asked for it.
    pub x509_svids: Answer,
    /// The answer of `FetchX509Bundles`.
    pub x509_bundles: Answer,
    /// The answer of `FetchJWTBundles`.
    pub jwt_bundles: Answer,
    /// The answer of the Delegated Identity API's `SubscribeToX509SVIDs`.
    pub(crate) delegated: Answer,
    /// The answer of the broker API's `SubscribeToX509SVID`.
    pub(crate) brokered: Answer,
    /// The contents of the secrets that Envoys ask for.
    pub(crate) secrets: Contents,
}

impl Update {
    /// What workloads with these selectors get.
    #[must_use]
    pub fn of(state: &AgentState, selectors: &SelectorSet) -> Self {
        let entries = state.entries.matching(selectors);
        let mut federated = BTreeMap::new();
        for name in entries.iter().flat_map(|held| held.entry.federates_with.iter()) {
            if let Some(bundle) = state.bundles.federated.get(name) {
                federated.insert(name.clone(), Arc::clone(bundle));
            }
        }
        Self {
            entries,
            own: Arc::clone(&state.bundles.own),
            federated,
            x509_svids: Answer::default(),
            x509_bundles: Answer::default(),
            jwt_bundles: Answer::default(),
            delegated: Answer::default(),
            brokered: Answer::default(),
            secrets: Contents::default(),
        }
    }

    /// The identities, those of lower entry ids first.
    pub fn identities(&self) -> impl Iterator<Item = (&Held, &Arc<X509Svid>)> {
        self.entries.iter().filter_map(|held| Some((&**held, held.svid.as_ref()?)))
    }

    /// Whether SVIDs will come that are not there yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.entries.iter().any(|held| held.is_pending())
    }

    /// Whether an identity that was there `before` will come back under its entry's new id.
    fn is_between(&self, before: &Self) -> bool {
        let had_svid = |held: &Held| {
            let found = before.entries.binary_search_by(|other| other.entry.id.cmp(&held.entry.id));
            found.ok().and_then(|at| before.entries.get(at)).is_some_and(|held| held.svid.is_some())
        };
        self.entries.iter().any(|held| held.is_pending() && had_svid(held))
    }

    fn looks_like(&self, other: &Self) -> bool {
        self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(|(one, other)| looks_like(one, other))
            && Arc::ptr_eq(&self.own, &other.own)
            && self.federated.len() == other.federated.len()
            && self
                .federated
                .iter()
                .zip(&other.federated)
                .all(|(one, other)| one.0 == other.0 && Arc::ptr_eq(one.1, other.1))
    }
}

/// Whether a workload sees no difference. It does not see revisions, for instance: the SVID that a new
/// revision brings is a change of its own.
fn looks_like(one: &Arc<Held>, other: &Arc<Held>) -> bool {
    if Arc::ptr_eq(one, other) {
        return true;
    }
    let is_same_svid = match (&one.svid, &other.svid) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => one.refused == other.refused,
        _ => false,
    };
    let (one, other) = (&one.entry, &other.entry);
    is_same_svid
        && one.id == other.id
        && one.spiffe_id == other.spiffe_id
        && one.hint == other.hint
        && one.admin == other.admin
        && one.downstream == other.downstream
        && one.created_at == other.created_at
        && one.federates_with == other.federates_with
        && one.additional_attributes == other.additional_attributes
}

/// An answer that is encoded by the first who needs it and shared by the others.
#[derive(Debug, Default)]
pub struct Answer(OnceLock<Encoded>);

impl Answer {
    /// The answer; `encode` is called if it is not there yet.
    pub fn get(&self, encode: impl FnOnce() -> Encoded) -> Encoded {
        self.0.get_or_init(encode).clone()
    }
}

impl Subscriptions {
    /// No groups yet. `wanted` is poked when somebody waits for an SVID that is not there.
    #[must_use]
    pub fn new(state: Snapshot<AgentState>, clock: Arc<dyn Clock>, wanted: Poke) -> Self {
        Self(Arc::new(Shared { state, clock, wanted, groups: Mutex::default() }))
    }

    /// The group of callers that have exactly these selectors.
    #[must_use]
    pub fn join(&self, selectors: SelectorSet) -> Subscription {
        let subscription = self.enter(selectors);
        let now = UnixSecs::from(self.0.clock.now());
        let is_pending = {
            let update = subscription.updates.borrow();
            for held in &update.entries {
                held.touch(now);
            }
            update.is_pending()
        };
        if is_pending {
            self.0.wanted.poke();
        }
        subscription
    }

    fn enter(&self, selectors: SelectorSet) -> Subscription {
        let mut groups = self.0.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.get(&selectors).and_then(Weak::upgrade) {
            return Subscription::of(group);
        }
        // The state is loaded with the groups locked: if it changes after that, `refresh` finds the
        // group; if it changed before, this is the new one.
        let update = watch::Sender::new(Arc::new(Update::of(&self.0.state.load(), &selectors)));
        let group = Arc::new(Group { selectors: selectors.clone(), update, home: Arc::downgrade(&self.0) });
        groups.insert(selectors, Arc::downgrade(&group));
        Subscription::of(group)
    }

    /// Computes all groups anew after the state changed, and tells those that see a difference.
    pub fn refresh(&self, state: &AgentState) {
        for group in self.groups() {
            let next = Update::of(state, &group.selectors);
            group.update.send_if_modified(|current| {
                let is_news = !next.looks_like(current);
                if is_news {
                    *current = Arc::new(next);
                }
                is_news
            });
        }
    }

    /// The entries that somebody is subscribed to.
    #[must_use]
    pub fn in_use(&self) -> HashSet<EntryId> {
        let mut used = HashSet::new();
        for group in self.groups() {
            used.extend(group.update.borrow().entries.iter().map(|held| held.entry.id.clone()));
        }
        used
    }

    /// The groups that somebody is in. Collected first: the last one to let go of a group locks.
    fn groups(&self) -> Vec<Arc<Group>> {
        let groups = self.0.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.values().filter_map(Weak::upgrade).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(home) = self.home.upgrade() else { return };
        let mut groups = home.groups.lock().unwrap_or_else(PoisonError::into_inner);
        // Another group of the same selectors may have taken the place.
        if groups.get(&self.selectors).is_some_and(|group| group.strong_count() == 0) {
            groups.remove(&self.selectors);
        }
    }
}

/// How long callers are not told that an SVID is gone whose successor is being signed.
const BETWEEN: Duration = Duration::from_secs(1);

/// A place in a group.
pub struct Subscription {
    updates: watch::Receiver<Arc<Update>>,
    group: Arc<Group>,
    /// The update that was seen last.
    seen: Arc<Update>,
    /// Until when an update is held back that lacks what is being signed.
    held_until: Option<Instant>,
}

impl Subscription {
    fn of(group: Arc<Group>) -> Self {
        let updates = group.update.subscribe();
        let seen = Arc::clone(&updates.borrow());
        Self { updates, group, seen, held_until: None }
    }

    /// What the group gets now; [`Subscription::changed`] then waits for the next.
    pub fn current(&mut self) -> Arc<Update> {
        self.seen = Arc::clone(&self.updates.borrow_and_update());
        self.held_until = None;
        Arc::clone(&self.seen)
    }

    /// Waits for an update that was not seen yet. Cancel-safe. It never ends by itself: whoever waits
    /// watches for the end of the program too.
    pub async fn changed(&mut self) -> Arc<Update> {
        loop {
            if self.updates.changed().await.is_err() {
                // The group holds the sender and lives as long as this.
                std::future::pending::<()>().await;
            }
            let is_between = self.updates.borrow().is_between(&self.seen);
            let home = self.group.home.upgrade().filter(|_| is_between);
            let Some(clock) = home.map(|home| Arc::clone(&home.clock)) else { return self.current() };
            let now = clock.instant();
            let until = *self.held_until.get_or_insert(now + BETWEEN);
            let mut next = self.updates.clone();
            // Whoever stops waiting here goes on the next time.
            self.updates.mark_changed();
            tokio::select! {
                biased;
                _ = next.changed() => {}
                () = clock.sleep(until.saturating_duration_since(now)) => return self.current(),
            }
        }
    }

    /// What the group gets once all SVIDs that will come are there; after `patience` what is there.
    pub async fn settled(&mut self, clock: &dyn Clock, patience: Duration) -> Arc<Update> {
        let mut update = self.current();
        let mut timeout = clock.sleep(patience);
        while update.is_pending() {
            tokio::select! {
                biased;
                next = self.changed() => update = next,
                () = &mut timeout => return self.current(),
            }
        }
        update
    }

    /// The selectors.
    #[must_use]
    pub fn selectors(&self) -> &SelectorSet {
        &self.group.selectors
    }
}
