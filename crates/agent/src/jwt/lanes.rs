//! Whose request to the server is next.
//!
//! A server signs so many tokens a second for an agent and lets the rest wait. An identity that asked for
//! ever new audiences would have all others wait behind its requests, so only so many are under way at
//! once, and behind those the identities are in a line, not their requests: who comes first has one of
//! its requests go, and goes to the end if it has more. Identities count, not users: which there are is
//! for the operator to say, while a user may become another one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use spiffe::SpiffeId;
use tokio::sync::oneshot;

/// The requests of an agent. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(super) struct Lanes(Arc<Mutex<Line>>);

struct Line {
    /// How many more may be under way.
    free: usize,
    /// The identities that wait, each once.
    order: VecDeque<SpiffeId>,
    waiting: HashMap<SpiffeId, VecDeque<oneshot::Sender<Turn>>>,
}

/// A request may be under way for as long as this is there.
pub(super) struct Turn(Option<Lanes>);

impl Lanes {
    pub(super) fn new(at_once: usize) -> Self {
        Self(Arc::new(Mutex::new(Line { free: at_once, order: VecDeque::new(), waiting: HashMap::new() })))
    }

    /// Waits for the turn of a request for `id`. Cancel-safe.
    pub(super) async fn turn(&self, id: &SpiffeId) -> Turn {
        let given = {
            let mut line = self.line();
            if let Some(free) = line.free.checked_sub(1) {
                line.free = free;
                return Turn(Some(self.clone()));
            }
            let (give, given) = oneshot::channel();
            let queue = line.waiting.entry(id.clone()).or_default();
            let is_first = queue.is_empty();
            queue.push_back(give);
            if is_first {
                line.order.push_back(id.clone());
            }
            given
        };
        // Who gives turns is there as long as who waits for one.
        given.await.unwrap_or(Turn(None))
    }

    fn line(&self) -> std::sync::MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Who waited longest of those whose identity is next.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let id = self.order.pop_front()?;
        let queue = self.waiting.get_mut(&id)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&id);
        } else {
            self.order.push_back(id);
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(lanes) = self.0.take() else { return };
        let mut line = lanes.line();
        while let Some(next) = line.next() {
            match next.send(Self(Some(lanes.clone()))) {
                Ok(()) => return,
                // Nobody waits for it any more.
                Err(mut unwanted) => unwanted.0 = None,
            }
        }
        line.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap()
    }

    #[tokio::test]
    async fn r08_identities_take_turns_however_much_one_of_them_asks_for() {
        let lanes = Lanes::new(2);
        let (many, one) = (id("/many"), id("/one"));
        let first = lanes.turn(&many).await;
        let _second = lanes.turn(&many).await;
        let mut crowd: Vec<_> = (0..100).map(|_| Box::pin(lanes.turn(&many))).collect();
        assert!(crowd.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let mut single = Box::pin(lanes.turn(&one));
        assert!((&mut single).now_or_never().is_none());

        drop(first);
        let next = crowd.remove(0).now_or_never().expect("the first in line");
        assert!((&mut single).now_or_never().is_none());
        drop(next);

        assert!(single.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_turn_that_nobody_wants_any_more_goes_to_the_next() {
        let lanes = Lanes::new(1);
        let other = id("/b");
        let held = lanes.turn(&id("/a")).await;
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(lanes.turn(&other))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));

        // One left before its turn came, one after.
        drop(waiting.remove(0));
        drop(held);
        drop(waiting.remove(0));

        assert!(waiting.remove(0).now_or_never().is_some());
        assert!(lanes.turn(&id("/c")).now_or_never().is_some());
        assert!(lanes.line().waiting.is_empty() && lanes.line().order.is_empty());
    }
}
