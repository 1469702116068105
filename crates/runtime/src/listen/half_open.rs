//! Connections that are not open yet: shaking hands, or silent since.
//!
//! There is room for so many. When it is full somebody has to go, or a new one to wait. Were new ones
//! refused instead, whoever opens connections and is silent would lock everybody out; and if the oldest
//! always went, a crowd that comes back all at once, as after a restart, would push itself out: then
//! the oldest is not silent, it is that far back in the line. So an address that holds many places loses
//! its oldest at once. Where none does, a new one waits until a place is given back, or until the
//! oldest has had its time. On a Unix socket nobody waits: who holds most places loses the oldest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// The places of one listener. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct HalfOpen {
    places: Arc<Mutex<Places>>,
    /// A place was given back.
    freed: Arc<Notify>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    taken: BTreeMap<u64, Taken>,
    by_owner: HashMap<Owner, BTreeSet<u64>>,
}

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    /// An address of the network.
    Address(IpAddr),
    /// A user of this machine.
    User(u32),
}

#[derive(Debug)]
struct Taken {
    owner: Option<Owner>,
    since: Instant,
    lost: CancellationToken,
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
        Self { places: Arc::default(), freed: Arc::default(), limit: limit.max(1) }
    }

    /// A place for a new connection of this owner; of none where an address speaks for many. Cancel-safe.
    pub(super) async fn enter(&self, owner: Option<Owner>) -> Place {
        loop {
            let freed = self.freed.notified();
            match self.try_enter(owner) {
                Ok(place) => return place,
                // Whichever it was, it is looked again.
                Err(until) => timeout_at(until, freed).await.unwrap_or_default(),
            }
        }
    }

    /// A place for a new connection, for which the oldest makes room: of the owner that has most, where
    /// owners are known.
    pub(super) fn enter_at_once(&self, owner: Option<Owner>) -> Place {
        self.locked(|places| {
            if places.taken.len() >= self.limit
                && let Some(oldest) = places.greediest(0).or_else(|| places.oldest())
            {
                places.take_from(oldest);
            }
            self.place(places, owner)
        })
    }

    /// A place, or when to ask again at the latest.
    fn try_enter(&self, owner: Option<Owner>) -> Result<Place, Instant> {
        self.locked(|places| {
            if places.taken.len() >= self.limit {
                let loser = places.loser((self.limit / OWNERS_AT_LEAST).max(1), Instant::now())?;
                places.take_from(loser);
            }
            Ok(self.place(places, owner))
        })
    }

    fn place(&self, places: &mut Places, owner: Option<Owner>) -> Place {
        let (number, lost) = (places.next, CancellationToken::new());
        places.next += 1;
        places.taken.insert(number, Taken { owner, since: Instant::now(), lost: lost.clone() });
        if let Some(owner) = owner {
            places.by_owner.entry(owner).or_default().insert(number);
        }
        Place { number, lost, of: self.clone() }
    }

    fn locked<T>(&self, act: impl FnOnce(&mut Places) -> T) -> T {
        act(&mut self.places.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Places {
    fn oldest(&self) -> Option<u64> {
        self.taken.first_key_value().map(|(number, _)| *number)
    }

    /// The oldest of who has most, if that is more than this.
    fn greediest(&self, fair: usize) -> Option<u64> {
        let greedy = self.by_owner.values().filter(|places| places.len() > fair);
        greedy.max_by_key(|places| places.len()).and_then(BTreeSet::first).copied()
    }

    /// Whose place a new connection gets, or when somebody's time is over.
    fn loser(&self, fair: usize, now: Instant) -> Result<u64, Instant> {
        if let Some(number) = self.greediest(fair) {
            return Ok(number);
        }
        let Some((number, oldest)) = self.taken.first_key_value() else { return Err(now) };
        let until = oldest.since + PATIENCE;
        if until <= now { Ok(*number) } else { Err(until) }
    }

    fn remove(&mut self, number: u64) -> Option<Taken> {
        let taken = self.taken.remove(&number)?;
        if let Some(owner) = taken.owner
            && let Some(places) = self.by_owner.get_mut(&owner)
        {
            places.remove(&number);
            if places.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
        Some(taken)
    }

    fn take_from(&mut self, number: u64) {
        if let Some(taken) = self.remove(number) {
            taken.lost.cancel();
        }
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
        self.of.locked(|places| drop(places.remove(self.number)));
        self.of.freed.notify_one();
    }
}

/// As many addresses, or more, share the places: one that holds more than its part of them is greedy.
const OWNERS_AT_LEAST: usize = 128;

/// How long anybody may hold a place that others wait for.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u32) -> Option<Owner> {
        Some(Owner::Address(Ipv4Addr::from_bits(0x7f00_0000 + number).into()))
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_most_makes_room_at_once() {
        let half_open = HalfOpen::new(3);
        let honest = half_open.enter(address(1)).await;
        let first = half_open.enter(address(2)).await;
        let second = half_open.enter(address(2)).await;
        let began = Instant::now();

        let third = half_open.enter(address(3)).await;

        assert!(first.lost.is_cancelled());
        assert!([honest, second, third].iter().all(|place| !place.lost.is_cancelled()));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_holds_many_a_new_one_waits_for_a_place_that_is_given_back() {
        let half_open = HalfOpen::new(2);
        let first = half_open.enter(address(1)).await;
        let second = half_open.enter(address(2)).await;
        let mut third = std::pin::pin!(half_open.enter(address(3)));
        assert!(futures::poll!(&mut third).is_pending());

        drop(second);

        let _third = third.await;
        assert!(!first.lost.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_one_waits_no_longer_than_the_oldest_has_time() {
        let half_open = HalfOpen::new(2);
        let first = half_open.enter(None).await;
        tokio::time::advance(PATIENCE / 2).await;
        let second = half_open.enter(None).await;
        let began = Instant::now();

        let _third = half_open.enter(None).await;

        assert!(first.lost.is_cancelled() && !second.lost.is_cancelled());
        assert_eq!(began.elapsed(), PATIENCE / 2);
    }

    #[test]
    fn where_none_waits_the_oldest_makes_room() {
        let half_open = HalfOpen::new(2);
        let (first, second) = (half_open.enter_at_once(None), half_open.enter_at_once(None));
        assert!(!first.lost.is_cancelled());

        let third = half_open.enter_at_once(None);

        assert!(first.lost.is_cancelled());
        assert!(!second.lost.is_cancelled() && !third.lost.is_cancelled());
        drop(second);
        let _fourth = half_open.enter_at_once(None);
        assert!(!third.lost.is_cancelled());
    }

    #[test]
    fn r00_a_user_with_many_makes_room_for_others() {
        let half_open = HalfOpen::new(3);
        let user = |user| half_open.enter_at_once(Some(Owner::User(user)));
        let honest = user(7);
        let first = user(8);

        let rest: Vec<_> = (0..10).map(|_| user(8)).collect();

        assert!(!honest.lost.is_cancelled() && first.lost.is_cancelled());
        assert_eq!(rest.iter().filter(|place| !place.lost.is_cancelled()).count(), 2);
    }
}
