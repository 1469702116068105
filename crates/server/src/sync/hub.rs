//! The agents that wait for changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use graph::Affected;
use runtime::metrics::Gauge;
use runtime::reconcile::Poke;
use spiffe::SpiffeId;
use tokio_util::sync::CancellationToken;

/// Streams of one agent at once. One is enough; a second is there while the agent changes connections,
/// others are left over from connections that broke unseen.
const PER_AGENT: usize = 4;

/// Where agents wait. Cheap to clone; clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Hub(Arc<Inner>);

#[derive(Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    count: Gauge,
}

#[derive(Default)]
struct Waiting {
    by_agent: HashMap<SpiffeId, Vec<Waiter>>,
    count: usize,
    next: u64,
}

struct Waiter {
    number: u64,
    poke: Poke,
    replaced: CancellationToken,
}

/// A place to wait, given up when it is dropped.
pub(crate) struct Place {
    hub: Hub,
    agent: SpiffeId,
    number: u64,
    poke: Poke,
    replaced: CancellationToken,
}

impl Hub {
    /// Nobody waits yet. `count` shows how many do.
    pub(crate) fn new(count: Gauge) -> Self {
        Self(Arc::new(Inner { waiting: Mutex::default(), count }))
    }

    /// Waits for what concerns `agent`. If it has too many places the oldest is taken from it.
    pub(crate) fn enter(&self, agent: &SpiffeId) -> Place {
        let (poke, replaced) = (Poke::new(), CancellationToken::new());
        let mut waiting = self.locked();
        let number = waiting.next;
        waiting.next += 1;
        waiting.count += 1;
        let places = waiting.by_agent.entry(agent.clone()).or_default();
        if places.len() >= PER_AGENT
            && let Some(oldest) = places.first()
        {
            oldest.replaced.cancel();
        }
        places.push(Waiter { number, poke: poke.clone(), replaced: replaced.clone() });
        self.0.count.set_count(waiting.count);
        drop(waiting);
        Place { hub: self.clone(), agent: agent.clone(), number, poke, replaced }
    }

    /// Wakes those whom a change concerns. Costs what the change reaches, however many wait.
    pub(crate) fn wake(&self, affected: &Affected) {
        if affected.is_empty() || self.is_empty() {
            return;
        }
        // Found before anything is locked.
        let mut agents = affected.agents().chain(affected.records()).peekable();
        if agents.peek().is_none() {
            return;
        }
        let waiting = self.locked();
        for waiter in agents.filter_map(|agent| waiting.by_agent.get(agent)).flatten() {
            waiter.poke.poke();
        }
    }

    /// Wakes everybody.
    pub(crate) fn wake_all(&self) {
        self.locked().by_agent.values().flatten().for_each(|waiter| waiter.poke.poke());
    }

    /// Whether an agent waits.
    pub(crate) fn has(&self, agent: &SpiffeId) -> bool {
        self.locked().by_agent.contains_key(agent)
    }

    fn is_empty(&self) -> bool {
        self.locked().by_agent.is_empty()
    }

    fn locked(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Ends when something changed for the agent since the last time. Cancel-safe.
    pub(crate) async fn woken(&self) {
        self.poke.poked().await;
    }

    /// Ends when the agent has other places in its stead.
    pub(crate) async fn replaced(&self) {
        self.replaced.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.hub.locked();
        if let Some(places) = waiting.by_agent.get_mut(&self.agent) {
            places.retain(|waiter| waiter.number != self.number);
            if places.is_empty() {
                waiting.by_agent.remove(&self.agent);
            }
        }
        waiting.count = waiting.count.saturating_sub(1);
        self.hub.0.count.set_count(waiting.count);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use graph::EntryGraph;
    use spiffe::TrustDomain;

    use super::super::push::tests::{entry_set, record_set};
    use super::*;

    fn id(path: &str) -> SpiffeId {
        TrustDomain::parse("example.org").unwrap().id_with_path(path).unwrap()
    }

    fn is_woken(place: &Place) -> bool {
        place.woken().now_or_never().is_some()
    }

    #[test]
    fn only_those_whom_a_change_concerns_are_woken() {
        let hub = Hub::default();
        let graph = EntryGraph::new(TrustDomain::parse("example.org").unwrap());
        let [a, b] = ["a", "b"].map(|name| hub.enter(&id(&format!("/spire/agent/{name}"))));

        let (graph, affected) = graph.apply(&vec![entry_set(1, "/spire/agent/a", "/w", "s")].into());
        hub.wake(&affected);
        assert_eq!((is_woken(&a), is_woken(&b)), (true, false));

        let (graph, affected) = graph.apply(&vec![entry_set(1, "/spire/agent/a", "/w", "s")].into());
        hub.wake(&affected);
        assert_eq!((is_woken(&a), is_woken(&b)), (false, false), "nothing changed");

        // An agent's own record concerns it: it may be banned.
        let (_, affected) = graph.apply(&vec![record_set("/spire/agent/b", &[])].into());
        hub.wake(&affected);
        assert_eq!((is_woken(&a), is_woken(&b)), (false, true));

        hub.wake_all();
        assert_eq!((is_woken(&a), is_woken(&b)), (true, true));
    }

    #[test]
    fn the_oldest_of_too_many_places_is_taken() {
        let hub = Hub::default();
        let agent = id("/spire/agent/a");
        let places: Vec<Place> = (0..=PER_AGENT).map(|_| hub.enter(&agent)).collect();

        let replaced: Vec<bool> =
            places.iter().map(|place| place.replaced().now_or_never().is_some()).collect();
        assert_eq!(replaced.iter().filter(|replaced| **replaced).count(), 1);
        assert!(replaced[0]);

        drop(places);
        assert!(hub.is_empty());
        assert_eq!(hub.locked().count, 0);
    }
}
