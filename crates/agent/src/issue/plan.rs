//! What is to be signed next, and what goes to make room. Pure.
//!
//! First come SVIDs that somebody waits for, then those to be replaced, then those that an authority
//! now tainted signed, then those that somebody may want later, as long as there is room. An entry
//! that the server would not sign for waits its turn without holding up another.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::{EntryId, UnixSecs};

use crate::state::{AgentState, Held};

/// What the plan depends on besides the state.
pub(super) struct Circumstances<'a> {
    /// The time.
    pub(super) now: SystemTime,
    /// The entries that somebody is subscribed to.
    pub(super) in_use: &'a HashSet<EntryId>,
    /// Entries that are not to be tried before a time, and of which revision that holds.
    pub(super) waiting: &'a HashMap<EntryId, Waiting>,
    /// How many may be signed at once.
    pub(super) batch: usize,
    /// How many SVIDs are held where nobody asks for more.
    pub(super) most: usize,
    /// When SVIDs of tainted authorities may be replaced next, and how many of them.
    pub(super) tainted: (SystemTime, usize),
}

/// An entry that could not be signed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The entry as it was.
    pub(super) revision: i64,
    /// When it is tried again.
    pub(super) until: SystemTime,
}

/// What is to be done.
#[derive(Default)]
pub(super) struct Plan {
    /// To be signed, the most urgent first.
    pub(super) sign: Vec<Arc<Held>>,
    /// How many of these replace SVIDs of tainted authorities.
    pub(super) tainted: usize,
    /// SVIDs that go.
    pub(super) evict: Vec<EntryId>,
    /// When to look again if nothing happens.
    pub(super) next: Option<SystemTime>,
}

/// Why an entry needs a signature, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Wanted,
    Due(SystemTime),
    Tainted,
    Spare,
}

/// Whether a wait is not over. One that is longer than any comes from a clock that was set back since.
pub(super) fn is_ahead(until: SystemTime, now: SystemTime) -> bool {
    until.duration_since(now).is_ok_and(|wait| !wait.is_zero() && wait <= LONGEST_WAIT)
}

/// Longer than any wait after a failure.
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);

/// What is to be done now.
pub(super) fn plan(state: &AgentState, around: &Circumstances<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut urgent: Vec<(Urgency, &Arc<Held>)> = Vec::new();
    let mut unused: Vec<&Arc<Held>> = Vec::new();
    let mut held_count = 0_usize;
    let now = UnixSecs::from(around.now);
    let mut look_again = |at: SystemTime| plan.next = Some(plan.next.map_or(at, |next| next.min(at)));

    for held in state.entries.iter().filter(|held| !held.entry.store_svid) {
        let entry = &held.entry;
        let is_used = around.in_use.contains(&entry.id);
        let is_fetched_ahead =
            !entry.additional_attributes.is_some_and(|attributes| attributes.disable_x509_svid_prefetch);
        let urgency = match &held.svid {
            Some(svid) => {
                if !is_used && !is_fetched_ahead && around.now >= svid.renew_at {
                    plan.evict.push(entry.id.clone());
                    continue;
                }
                if svid.expires_at <= now {
                    plan.evict.push(entry.id.clone());
                } else {
                    look_again(svid.expires_at.to_system_time());
                }
                held_count += 1;
                if !is_used {
                    unused.push(held);
                }
                if svid.revision != entry.revision_number || svid.entry_created_at != entry.created_at {
                    Urgency::Due(around.now)
                } else if around.now >= svid.renew_at {
                    Urgency::Due(svid.renew_at)
                } else if !state.bundles.keys.is_empty() && !state.bundles.keys.contains(svid.authority()) {
                    // Its authority was tainted and revoked between two looks at the bundle: nobody
                    // believes it any more.
                    Urgency::Due(around.now)
                } else if state.bundles.tainted_keys.contains(svid.authority()) {
                    Urgency::Tainted
                } else {
                    look_again(svid.renew_at);
                    continue;
                }
            }
            None if is_used => Urgency::Wanted,
            None if is_fetched_ahead => Urgency::Spare,
            None => continue,
        };
        match around.waiting.get(&entry.id) {
            Some(waiting)
                if waiting.revision == entry.revision_number && is_ahead(waiting.until, around.now) =>
            {
                look_again(waiting.until);
            }
            Some(_) | None => urgent.push((urgency, held)),
        }
    }

    urgent.sort_by_key(|(urgency, _)| *urgency);
    let mut room = around.most.saturating_sub(held_count);
    let (tainted_from, tainted_most) = around.tainted;
    for (urgency, held) in urgent {
        if plan.sign.len() >= around.batch {
            break;
        }
        match urgency {
            Urgency::Wanted => room = room.saturating_sub(1),
            Urgency::Due(_) => {}
            Urgency::Tainted if is_ahead(tainted_from, around.now) => {
                look_again(tainted_from);
                continue;
            }
            Urgency::Tainted if plan.tainted >= tainted_most => continue,
            Urgency::Tainted => plan.tainted += 1,
            Urgency::Spare if room == 0 => continue,
            Urgency::Spare => room -= 1,
        }
        plan.sign.push(Arc::clone(held));
    }

    let excess = held_count.saturating_sub(around.most);
    if excess > 0 {
        unused.sort_by_key(|held| held.last_used());
        let excessive: Vec<EntryId> = unused.iter().take(excess).map(|held| held.entry.id.clone()).collect();
        let gone: HashSet<&EntryId> = excessive.iter().collect();
        plan.sign.retain(|held| !gone.contains(&held.entry.id));
        plan.evict.extend(excessive);
    }
    plan
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use spiffe::entry::AdditionalAttributes;
    use spiffe::{Entry, UnixSecs};

    use super::*;
    use crate::fixtures::{entry, state, svid};
    use crate::state::Change;

    const NOW: u64 = 1_000_000;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Entries of which those with a time have an SVID to be renewed then.
    fn with(entries: Vec<(Entry, Option<u64>)>) -> AgentState {
        let issued = entries
            .iter()
            .filter_map(|(entry, renew_at)| Some((entry.id.clone(), Some(svid(entry, at((*renew_at)?))))))
            .collect();
        let entries = entries.into_iter().map(|(entry, _)| Arc::new(entry)).collect();
        let synced = Change::Synced { entries, own: None, federated: Vec::new(), at: UnixSecs(1) };
        state().apply(synced).apply(Change::Issued(issued))
    }

    fn named(number: usize) -> Entry {
        entry(&format!("e{number:04}"), &format!("/{number}"), &["uid:1"])
    }

    fn look<'a>(
        state: &AgentState,
        in_use: &[&str],
        waiting: &HashMap<EntryId, Waiting>,
        change: impl FnOnce(&mut Circumstances<'a>),
    ) -> Plan {
        let in_use: HashSet<EntryId> = in_use.iter().map(|id| EntryId::new(id)).collect();
        let mut around = Circumstances {
            now: at(NOW),
            // Both live as long as this call.
            in_use: Box::leak(Box::new(in_use)),
            waiting: Box::leak(Box::new(waiting.clone())),
            batch: 500,
            most: 1000,
            tainted: (at(0), 100),
        };
        change(&mut around);
        plan(state, &around)
    }

    fn ids(held: &[Arc<Held>]) -> Vec<&str> {
        held.iter().map(|held| held.entry.id.as_str()).collect()
    }

    #[test]
    fn the_wanted_come_first_then_the_due_by_time_then_the_spare() {
        let state = with(vec![
            (named(1), None),
            (named(2), Some(NOW - 1)),
            (named(3), Some(NOW - 5)),
            (named(4), Some(NOW + 7)),
            (named(5), None),
        ]);

        let plan = look(&state, &["e0005"], &HashMap::new(), |_| {});

        assert_eq!(ids(&plan.sign), ["e0005", "e0003", "e0002", "e0001"]);
        assert_eq!(plan.next, Some(at(NOW + 7)));
    }

    #[test]
    fn a_changed_entry_is_signed_anew_and_keeps_its_svid_until_then() {
        let state = with(vec![(named(1), Some(NOW + 100)), (named(2), Some(NOW + 100))]);
        let mut changed = named(1);
        changed.revision_number = 1;
        let mut remade = named(2);
        remade.created_at = UnixSecs(77);
        let entries = vec![Arc::new(changed), Arc::new(remade)];
        let synced = Change::Synced { entries, own: None, federated: Vec::new(), at: UnixSecs(2) };

        let state = state.apply(synced);
        let plan = look(&state, &[], &HashMap::new(), |_| {});

        assert_eq!(ids(&plan.sign), ["e0001", "e0002"]);
        assert_eq!(state.entries.svid_count(), 2);
    }

    #[test]
    fn an_entry_that_waits_holds_up_no_other_and_a_new_revision_ends_the_wait() {
        let state = with(vec![(named(1), None), (named(2), None)]);
        let until = at(NOW + 9);
        let wait = |revision| HashMap::from([(EntryId::new("e0001"), Waiting { revision, until })]);

        let held_back = look(&state, &["e0001"], &wait(0), |_| {});
        let revised = look(&state, &["e0001"], &wait(-1), |_| {});

        assert_eq!(ids(&held_back.sign), ["e0002"]);
        assert_eq!(held_back.next, Some(until));
        assert_eq!(ids(&revised.sign), ["e0001", "e0002"]);
    }

    #[test]
    fn a_wait_is_over_when_the_clock_is_set_back() {
        assert!(is_ahead(at(NOW + 240), at(NOW)));
        assert!(!is_ahead(at(NOW), at(NOW)));
        assert!(!is_ahead(at(NOW), at(NOW + 1)));
        assert!(!is_ahead(at(NOW), at(NOW - 86_400)));
    }

    #[test]
    fn spares_fill_the_room_and_the_wanted_come_beside_it() {
        let entries = (0..1001).map(|number| (named(number), None)).collect();
        let state = with(entries);

        let spare = look(&state, &[], &HashMap::new(), |around| around.batch = 2000);
        let full = look(&state, &["e1000", "e0999"], &HashMap::new(), |around| {
            around.batch = 2000;
            around.most = 1;
        });

        assert_eq!(spare.sign.len(), 1000);
        assert_eq!(ids(&full.sign), ["e0999", "e1000"]);
    }

    #[test]
    fn too_many_give_up_those_unused_for_longest() {
        let entries = (0..5).map(|number| (named(number), Some(NOW + 100))).collect();
        let state = with(entries);
        for (number, used) in [(0, 50), (1, 40), (2, 10), (3, 20), (4, 30)] {
            let id = EntryId::new(&format!("e{number:04}"));
            state.entries.get(&id).unwrap().touch(UnixSecs(used));
        }

        let plan = look(&state, &["e0002"], &HashMap::new(), |around| around.most = 3);

        let evicted: Vec<_> = plan.evict.iter().map(EntryId::as_str).collect();
        assert_eq!(evicted, ["e0003", "e0004"]);
    }

    #[test]
    fn an_entry_not_to_be_fetched_ahead_has_an_svid_only_while_it_is_used() {
        let mut lazy = named(1);
        lazy.additional_attributes =
            Some(AdditionalAttributes { disable_x509_svid_prefetch: true, ..Default::default() });
        let lazy = || Entry { additional_attributes: lazy.additional_attributes, ..named(1) };

        let unused = look(&with(vec![(lazy(), None)]), &[], &HashMap::new(), |_| {});
        let used = look(&with(vec![(lazy(), None)]), &["e0001"], &HashMap::new(), |_| {});
        let due = look(&with(vec![(lazy(), Some(NOW - 1))]), &[], &HashMap::new(), |_| {});
        let due_and_used = look(&with(vec![(lazy(), Some(NOW - 1))]), &["e0001"], &HashMap::new(), |_| {});

        assert_eq!((unused.sign.len(), unused.evict.len()), (0, 0));
        assert_eq!(used.sign.len(), 1);
        assert_eq!((due.sign.len(), due.evict.len()), (0, 1));
        assert_eq!((due_and_used.sign.len(), due_and_used.evict.len()), (1, 0));
    }

    #[test]
    fn svids_of_a_tainted_authority_are_replaced_in_portions() {
        let entries = (0..250).map(|number| (named(number), Some(NOW + 100))).collect();
        let mut state = with(entries);
        let mut bundles = (*state.bundles).clone();
        bundles.tainted_keys.insert(crate::fixtures::AUTHORITY);
        state.bundles = Arc::new(bundles);

        let now = look(&state, &[], &HashMap::new(), |_| {});
        let later = look(&state, &[], &HashMap::new(), |around| around.tainted = (at(NOW + 5), 100));

        assert_eq!((now.sign.len(), now.tainted), (100, 100));
        assert_eq!((later.sign.len(), later.next), (0, Some(at(NOW + 5))));
    }

    #[test]
    fn svids_of_an_authority_that_is_gone_are_replaced_at_once() {
        let entries = (0..3).map(|number| (named(number), Some(NOW + 100))).collect();
        let mut state = with(entries);
        let signed = |state: &AgentState| look(state, &[], &HashMap::new(), |_| {}).sign.len();
        let known = |keys: &[[u8; 20]]| {
            let mut bundles = (*state.bundles).clone();
            bundles.keys = keys.iter().copied().collect();
            Arc::new(bundles)
        };

        let [there, gone] = [known(&[[9; 20], crate::fixtures::AUTHORITY]), known(&[[9; 20]])];
        state.bundles = there;
        assert_eq!(signed(&state), 0);
        state.bundles = gone;
        assert_eq!(signed(&state), 3);
    }

    #[test]
    fn entries_of_svid_stores_are_not_signed_for_workloads() {
        let stored = Entry { store_svid: true, ..named(1) };

        let plan = look(&with(vec![(stored, None)]), &["e0001"], &HashMap::new(), |_| {});

        assert_eq!(plan.sign.len(), 0);
    }
}
