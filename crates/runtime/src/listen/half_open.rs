//! Connections that are not open yet: shaking hands, or silent since.
//!
//! There is room for so many. When it is full the oldest has to go, and the new one is let in: an
//! honest client is done within milliseconds, so the oldest is the one that holds its place for
//! nothing. Were the new ones refused instead, whoever opens connections and is silent would lock
//! everybody out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// The places of one listener. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct HalfOpen {
    places: Arc<Mutex<Places>>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    taken: BTreeMap<u64, CancellationToken>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    lost: CancellationToken,
    of: HalfOpen,
}

impl HalfOpen {
    pub(super) fn new(limit: usize) -> Self {
        Self { places: Arc::default(), limit: limit.max(1) }
    }

    /// A place for a new connection.
    pub(super) fn enter(&self) -> Place {
        let lost = CancellationToken::new();
        let number = self.locked(|places| {
            if places.taken.len() >= self.limit
                && let Some((_, oldest)) = places.taken.pop_first()
            {
                oldest.cancel();
            }
            places.next += 1;
            places.taken.insert(places.next, lost.clone());
            places.next
        });
        Place { number, lost, of: self.clone() }
    }

    fn locked<T>(&self, act: impl FnOnce(&mut Places) -> T) -> T {
        act(&mut self.places.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Place {
    /// Ends when the place was given to another. Cancel-safe.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.locked(|places| places.taken.remove(&self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let half_open = HalfOpen::new(2);
        let first = half_open.enter();
        let second = half_open.enter();
        assert!(!first.lost.is_cancelled());

        let third = half_open.enter();

        assert!(first.lost.is_cancelled());
        assert!(!second.lost.is_cancelled() && !third.lost.is_cancelled());
    }

    #[test]
    fn a_place_given_back_is_free() {
        let half_open = HalfOpen::new(2);
        let first = half_open.enter();
        drop(half_open.enter());

        let _second = half_open.enter();

        assert!(!first.lost.is_cancelled());
    }
}
