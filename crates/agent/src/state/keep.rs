//! The owner of [`AgentState`]: applies what the other tasks found out, publishes, tells subscribers.
//!
//! [`AgentState::apply`] is pure. A change is applied whole and in order; whoever sent it may wait
//! until readers see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtime::snapshot::{Publisher, Snapshot};
use spiffe::{Bundle, Entry, EntryId, TrustDomain, UnixSecs};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{AgentIdentity, AgentState, Bundles, Entries, Held, X509Svid, by_id};

/// Changes that may wait: their senders wait for their being applied, so there are few.
const CAPACITY: usize = 16;

/// What another task found out.
pub enum Change {
    /// A whole sync: all entries and bundles there are.
    Synced {
        /// The entries.
        entries: Vec<Arc<Entry>>,
        /// The bundle of the own trust domain, if there was one.
        own: Option<Bundle>,
        /// The bundles of others.
        federated: Vec<Bundle>,
        /// When.
        at: UnixSecs,
    },
    /// The server says that nothing changed.
    Confirmed {
        /// When.
        at: UnixSecs,
    },
    /// What came of a batch of signing requests.
    Issued(Vec<(EntryId, Option<X509Svid>)>),
    /// X.509-SVIDs that nobody uses, to make room, but not those that somebody asked for since; and
    /// those that have expired.
    Evicted {
        /// The entries.
        ids: Vec<EntryId>,
        /// When nobody used them.
        at: UnixSecs,
    },
    /// The agent's own SVID was renewed.
    Renewed(AgentIdentity),
}

/// The state is not kept any more: the agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent is stopping")]
pub struct Stopped;

impl Stopped {
    /// No failure where the agent was told to stop: its tasks end in any order then.
    pub(crate) fn unless_told_to(self, token: &CancellationToken) -> Result<(), Self> {
        if token.is_cancelled() { Ok(()) } else { Err(self) }
    }
}

/// Where changes are sent. Cheap to clone.
#[derive(Clone)]
pub struct Inbox(mpsc::Sender<(Change, oneshot::Sender<()>)>);

impl Inbox {
    /// Ends when readers see `change`. Dropped earlier, the change may or may not be made.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn apply(&self, change: Change) -> Result<(), Stopped> {
        let (tell, told) = oneshot::channel();
        self.0.send((change, tell)).await.map_err(|_| Stopped)?;
        told.await.map_err(|_| Stopped)
    }
}

/// The task.
pub struct Keeper {
    publisher: Publisher<AgentState>,
    inbox: mpsc::Receiver<(Change, oneshot::Sender<()>)>,
}

impl Keeper {
    /// A keeper that starts with `state`, and the way to it.
    #[must_use]
    pub fn new(state: AgentState) -> (Self, Inbox) {
        let (sender, inbox) = mpsc::channel(CAPACITY);
        (Self { publisher: Publisher::new(state), inbox }, Inbox(sender))
    }

    /// A reader.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<AgentState> {
        self.publisher.snapshot()
    }

    /// Applies changes until the token is cancelled. `published` is called after each that readers of
    /// entries or bundles would notice.
    ///
    /// # Errors
    /// None: the type fits [`runtime::tasks::Tasks::spawn`].
    pub async fn run(
        mut self,
        token: CancellationToken,
        mut published: impl FnMut(&AgentState) + Send,
    ) -> Result<(), Stopped> {
        loop {
            let next = tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                next = self.inbox.recv() => next,
            };
            let Some((change, applied)) = next else { return Ok(()) };
            let old = self.publisher.load();
            let new = Arc::new(old.apply(change));
            let is_noticed =
                !Arc::ptr_eq(&old.entries, &new.entries) || !Arc::ptr_eq(&old.bundles, &new.bundles);
            drop(old);
            self.publisher.publish(Arc::clone(&new));
            if is_noticed {
                published(&new);
            }
            // Whoever does not wait any more need not be told.
            applied.send(()).ok();
        }
    }
}

impl AgentState {
    /// The state after `change`.
    #[must_use]
    pub fn apply(&self, change: Change) -> Self {
        let mut next = self.clone();
        match change {
            Change::Synced { entries, own, federated, at } => {
                next.bundles = merge_bundles(&self.bundles, own, federated);
                next.entries = merge_entries(&self.entries, entries);
                next.synced_at = Some(at);
            }
            Change::Confirmed { at } => next.synced_at = Some(at),
            Change::Issued(results) => {
                let mut entries = Entries::clone(&self.entries);
                for (id, svid) in results {
                    let Some(held) = entries.get_mut(&id) else { continue };
                    match svid {
                        // The entry may name somebody else by now.
                        Some(svid) if svid.id != held.entry.spiffe_id => {}
                        Some(svid) => {
                            debug!(entry = %id, spiffe_id = %svid.id, "SVID updated");
                            let held = Arc::make_mut(held);
                            held.svid = Some(Arc::new(svid));
                            held.refused = false;
                        }
                        None if held.refused => {}
                        None => Arc::make_mut(held).refused = true,
                    }
                }
                next.entries = Arc::new(entries);
            }
            Change::Evicted { ids, at } => {
                let mut entries = Entries::clone(&self.entries);
                for id in ids {
                    let goes = |held: &Held| {
                        held.last_used() < at || held.svid.as_ref().is_some_and(|svid| svid.expires_at <= at)
                    };
                    if let Some(held) = entries.get_mut(&id).filter(|held| goes(held)) {
                        Arc::make_mut(held).svid = None;
                    }
                }
                next.entries = Arc::new(entries);
            }
            Change::Renewed(agent) => next.agent = Arc::new(agent),
        }
        next
    }
}

/// The entries after a sync. Of several with one id the last counts.
fn merge_entries(old: &Arc<Entries>, synced: Vec<Arc<Entry>>) -> Arc<Entries> {
    let mut is_changed = false;
    let mut is_refiled = false;
    let held = synced.into_iter().map(|entry| match old.get(&entry.id) {
        Some(held) if Arc::ptr_eq(&held.entry, &entry) || *held.entry == *entry => Arc::clone(held),
        Some(held) => {
            is_changed = true;
            is_refiled |=
                held.entry.selector_set != entry.selector_set || held.entry.store_svid != entry.store_svid;
            debug!(entry = %entry.id, spiffe_id = %entry.spiffe_id, "Entry updated");
            Arc::new(updated(held, entry))
        }
        None => {
            is_changed = true;
            is_refiled = true;
            debug!(entry = %entry.id, spiffe_id = %entry.spiffe_id, "Entry created");
            Arc::new(Held::new(entry))
        }
    });
    let held = by_id(held);
    let mut left = held.iter().peekable();
    for gone in old.iter() {
        while left.next_if(|held| held.entry.id < gone.entry.id).is_some() {}
        if left.peek().is_none_or(|held| held.entry.id != gone.entry.id) {
            is_changed = true;
            is_refiled = true;
            debug!(entry = %gone.entry.id, spiffe_id = %gone.entry.spiffe_id, "Entry removed");
        }
    }
    if !is_changed {
        return Arc::clone(old);
    }
    let index = Arc::clone(&old.index);
    Arc::new(if is_refiled { Entries::filed(held) } else { Entries { held, index } })
}

/// What is held after the entry changed. The old SVID is used until the next is there, so that no
/// workload is without one, unless it names somebody whom the entry does not name any more.
fn updated(held: &Held, entry: Arc<Entry>) -> Held {
    let svid = held.svid.clone().filter(|svid| svid.id == entry.spiffe_id);
    Held { entry, svid, refused: false, last_used: Arc::clone(&held.last_used) }
}

fn merge_bundles(old: &Arc<Bundles>, own: Option<Bundle>, federated: Vec<Bundle>) -> Arc<Bundles> {
    let own = match own {
        Some(own) if own != *old.own => {
            debug!(trust_domain_id = %own.trust_domain.id(), "Bundle updated");
            Arc::new(own)
        }
        Some(_) | None => Arc::clone(&old.own),
    };
    let mut is_changed = !Arc::ptr_eq(&own, &old.own);
    let mut kept: BTreeMap<TrustDomain, Arc<Bundle>> = BTreeMap::new();
    for bundle in federated {
        // Nobody but the own server speaks for the own trust domain.
        if bundle.trust_domain == own.trust_domain {
            continue;
        }
        let name = bundle.trust_domain.clone();
        let known = old.federated.get(&name);
        let bundle = match known {
            Some(known) if **known == bundle => Arc::clone(known),
            _ => {
                is_changed = true;
                let what = if known.is_some() { "Bundle updated" } else { "Bundle added" };
                debug!(trust_domain_id = %name.id(), "{what}");
                Arc::new(bundle)
            }
        };
        kept.insert(name, bundle);
    }
    for name in old.federated.keys().filter(|name| !kept.contains_key(name)) {
        is_changed = true;
        debug!(trust_domain_id = %name.id(), "Bundle removed");
    }
    if !is_changed {
        return Arc::clone(old);
    }
    if Arc::ptr_eq(&own, &old.own) {
        return Arc::new(Bundles { federated: kept, ..(**old).clone() });
    }
    Arc::new(Bundles::new(own, kept))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::fixtures::{self, entry, svid};

    fn synced(state: &AgentState, entries: Vec<Entry>) -> AgentState {
        let entries = entries.into_iter().map(Arc::new).collect();
        state.apply(Change::Synced { entries, own: None, federated: Vec::new(), at: UnixSecs(1) })
    }

    fn issued(state: &AgentState, entry: &Entry) -> AgentState {
        state.apply(Change::Issued(vec![(entry.id.clone(), Some(svid(entry, UNIX_EPOCH)))]))
    }

    fn named(id: &str, path: &str) -> Entry {
        entry(id, path, &["uid:1"])
    }

    #[test]
    fn an_entry_that_names_somebody_else_loses_its_svid_at_once() {
        let state = issued(&synced(&fixtures::state(), vec![named("a", "/a")]), &named("a", "/a"));

        let renamed = synced(&state, vec![named("a", "/b")]);
        let late = issued(&renamed, &named("a", "/a"));

        assert_eq!((state.entries.svid_count(), renamed.entries.svid_count()), (1, 0));
        assert_eq!(late.entries.svid_count(), 0);
        assert_eq!(issued(&late, &named("a", "/b")).entries.svid_count(), 1);
    }

    #[test]
    fn of_entries_with_one_id_the_last_counts() {
        let entries =
            vec![named("b", "/b"), named("a", "/first"), named("a", "/second"), named("a", "/last")];

        let state = synced(&fixtures::state(), entries);

        let paths: Vec<&str> = state.entries.iter().map(|held| held.entry.spiffe_id.path()).collect();
        assert_eq!(paths, ["/last", "/b"]);
    }

    #[test]
    fn what_is_signed_for_an_entry_that_is_gone_is_dropped() {
        let state = synced(&fixtures::state(), vec![named("a", "/a")]);

        let state = issued(&synced(&state, Vec::new()), &named("a", "/a"));

        assert_eq!(state.entries.len(), 0);
    }

    #[test]
    fn a_refused_entry_is_not_waited_for_until_it_changes() {
        let state = synced(&fixtures::state(), vec![named("a", "/a")]);
        let held = |state: &AgentState| Arc::clone(state.entries.iter().next().unwrap());
        assert!(held(&state).is_pending());

        let refused = state.apply(Change::Issued(vec![(EntryId::new("a"), None)]));
        let revised = synced(&refused, vec![Entry { revision_number: 1, ..named("a", "/a") }]);

        assert!(!held(&refused).is_pending());
        assert!(held(&revised).is_pending());
    }

    #[test]
    fn only_what_nobody_asked_for_since_is_evicted() {
        let entries = || vec![named("a", "/a"), named("b", "/b")];
        let state = synced(&fixtures::state(), entries());
        let state = issued(&issued(&state, &named("a", "/a")), &named("b", "/b"));
        state.entries.get(&EntryId::new("b")).unwrap().touch(UnixSecs(100));

        let ids = vec![EntryId::new("a"), EntryId::new("b"), EntryId::new("c")];
        let state = state.apply(Change::Evicted { ids, at: UnixSecs(100) });

        let left: Vec<_> = state.entries.iter().filter(|held| held.svid.is_some()).collect();
        assert_eq!(left.iter().map(|held| held.entry.id.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn entries_of_svid_stores_match_no_workload() {
        let stored = Entry { store_svid: true, ..named("a", "/a") };

        let state = synced(&fixtures::state(), vec![stored, named("b", "/b")]);
        let matching = state.entries.matching(&entry("", "/x", &["uid:1", "gid:1"]).selector_set);

        assert_eq!(state.entries.len(), 2);
        assert_eq!(matching.iter().map(|held| held.entry.id.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn nobody_but_the_own_server_speaks_for_the_own_trust_domain() {
        let state = fixtures::state();
        let own = state.bundles.own.trust_domain.clone();
        let poisoned = Bundle { refresh_hint: 7, ..Bundle::empty(own) };

        let change =
            Change::Synced { entries: Vec::new(), own: None, federated: vec![poisoned], at: UnixSecs(1) };
        let next = state.apply(change);

        assert!(Arc::ptr_eq(&state.bundles, &next.bundles));
    }
}
