//! Waiting until the snapshots show what any server committed.
//!
//! Whoever waits draws a number. A reading of the database that begins later answers all numbers drawn
//! before, so it is shared by all who wait, and nobody is answered by one that began too early.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use runtime::clock::{self, Clock};
use runtime::reconcile::Poke;
use store::StoreError;
use tokio::sync::watch;

/// How long anybody waits: what takes longer is an outage.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where one waits. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Fresh(Option<Waiting>);

#[derive(Clone)]
struct Waiting {
    drawn: Arc<AtomicU64>,
    poke: Poke,
    read: watch::Receiver<Read>,
    clock: Arc<dyn Clock>,
}

/// How far the database was read.
#[derive(Clone, Debug, Default)]
struct Read {
    /// All numbers up to this one are answered.
    good: u64,
    /// Up to this one it was tried; and what went wrong.
    tried: u64,
    why: Arc<str>,
    /// Whether that was that the database is away.
    away: bool,
    /// When the last good reading began.
    at: Option<Instant>,
}

/// The other side: who reads, and says so.
pub(crate) struct Readings {
    drawn: Arc<AtomicU64>,
    poke: Poke,
    read: watch::Sender<Read>,
}

/// The numbers that a reading answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drawn(u64);

impl Readings {
    pub(crate) fn new() -> Self {
        let (read, _) = watch::channel(Read::default());
        Self { drawn: Arc::default(), poke: Poke::new(), read }
    }

    /// Where others wait for readings.
    pub(crate) fn fresh(&self, clock: &Arc<dyn Clock>) -> Fresh {
        let (drawn, poke, read) = (Arc::clone(&self.drawn), self.poke.clone(), self.read.subscribe());
        Fresh(Some(Waiting { drawn, poke, read, clock: Arc::clone(clock) }))
    }

    /// Ends when somebody waits for a reading. Cancel-safe.
    pub(crate) async fn asked(&self) {
        loop {
            if self.drawn.load(Ordering::SeqCst) > self.read.borrow().tried {
                return;
            }
            self.poke.poked().await;
        }
    }

    /// What a reading that begins now will answer.
    pub(crate) fn drawn(&self) -> Drawn {
        Drawn(self.drawn.load(Ordering::SeqCst))
    }

    /// A reading that began at `at` came to its end, and the snapshots show it.
    pub(crate) fn done(&self, drawn: Drawn, at: Instant) {
        self.read.send_modify(|read| {
            (read.good, read.tried, read.at) = (drawn.0, drawn.0, Some(at));
        });
    }

    /// A reading failed.
    pub(crate) fn failed(&self, drawn: Drawn, why: &StoreError) {
        let (away, why) = if let StoreError::Unavailable(why) = why {
            (true, why.as_str().into())
        } else {
            (false, why.to_string().into())
        };
        self.read.send_modify(|read| (read.tried, read.why, read.away) = (drawn.0, why, away));
    }
}

impl Fresh {
    /// For a database that nobody else writes to: always fresh.
    pub(crate) const fn alone() -> Self {
        Self(None)
    }

    /// Waits until the snapshots show whatever was committed before this call, by any server.
    /// Cancel-safe.
    ///
    /// # Errors
    /// If the database cannot be read; `Unavailable` if it is away.
    pub(crate) async fn wait(&self) -> Result<(), StoreError> {
        let Some(waiting) = &self.0 else { return Ok(()) };
        let number = waiting.drawn.fetch_add(1, Ordering::SeqCst) + 1;
        waiting.poke.poke();
        let mut read = waiting.read.clone();
        let answered = read.wait_for(|read| read.good >= number || read.tried >= number);
        let answered = clock::within(&*waiting.clock, PATIENCE, answered).await;
        match answered {
            Some(Ok(read)) if read.good >= number => Ok(()),
            Some(Ok(read)) if read.away => Err(StoreError::Unavailable(read.why.to_string())),
            Some(Ok(read)) => Err(StoreError::Database(read.why.to_string())),
            Some(Err(_gone)) => Err(StoreError::Closed),
            None => Err(StoreError::Database("the datastore does not answer".to_owned())),
        }
    }

    /// The same, unless the snapshots showed it not longer than `age` ago.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub(crate) async fn within(&self, age: Duration) -> Result<(), StoreError> {
        if self.was_within(age) {
            return Ok(());
        }
        self.wait().await
    }

    /// Whether the snapshots showed what was committed not longer than `age` ago.
    pub(crate) fn was_within(&self, age: Duration) -> bool {
        let Some(waiting) = &self.0 else { return true };
        let last = waiting.read.borrow().at;
        let now = waiting.clock.instant();
        last.is_some_and(|at| now.saturating_duration_since(at) < age)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use runtime::clock::ManualClock;

    use super::*;

    fn place() -> (Readings, Fresh, ManualClock) {
        let clock = ManualClock::new(UNIX_EPOCH);
        let readings = Readings::new();
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let fresh = readings.fresh(&shared);
        (readings, fresh, clock)
    }

    #[tokio::test]
    async fn a_reading_answers_all_who_asked_before_it_began_and_nobody_else() {
        let (readings, fresh, clock) = place();
        let (mut first, mut second) = (Box::pin(fresh.wait()), Box::pin(fresh.wait()));
        assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());

        readings.asked().await;
        let drawn = readings.drawn();
        let mut late = Box::pin(fresh.wait());
        assert!(futures::poll!(&mut late).is_pending());
        readings.done(drawn, clock.instant());

        first.await.unwrap();
        second.await.unwrap();
        assert!(futures::poll!(&mut late).is_pending());
        readings.asked().await;
        readings.done(readings.drawn(), clock.instant());
        late.await.unwrap();
        let mut asked = Box::pin(readings.asked());
        assert!(futures::poll!(&mut asked).is_pending(), "nobody waits any more");
    }

    #[tokio::test]
    async fn a_reading_that_fails_is_told_to_those_who_waited_for_it() {
        let (readings, fresh, clock) = place();
        let mut waiter = Box::pin(fresh.wait());
        assert!(futures::poll!(&mut waiter).is_pending());

        readings.failed(readings.drawn(), &StoreError::Database("no route".to_owned()));

        assert_eq!(waiter.await.unwrap_err().to_string(), "no route");
        let mut waiter = Box::pin(fresh.wait());
        assert!(futures::poll!(&mut waiter).is_pending());
        readings.failed(readings.drawn(), &StoreError::Unavailable("db is away".to_owned()));
        assert!(matches!(waiter.await, Err(StoreError::Unavailable(why)) if why == "db is away"));
        assert!(!fresh.was_within(Duration::from_secs(3600)), "nothing was read yet");
        let mut next = Box::pin(fresh.wait());
        assert!(futures::poll!(&mut next).is_pending());
        readings.done(readings.drawn(), clock.instant());
        next.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_young_enough_is_not_waited_for() {
        let (readings, fresh, clock) = place();
        readings.done(readings.drawn(), clock.instant());
        clock.advance(Duration::from_secs(5));

        fresh.within(Duration::from_secs(6)).await.unwrap();
        let mut older = Box::pin(fresh.within(Duration::from_secs(5)));

        assert!(futures::poll!(&mut older).is_pending());
        Fresh::alone().within(Duration::ZERO).await.unwrap();
        let mut never = Box::pin(fresh.within(Duration::ZERO));
        assert!(futures::poll!(&mut never).is_pending());
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let (_readings, fresh, clock) = place();
        let mut waiter = Box::pin(fresh.wait());
        assert!(futures::poll!(&mut waiter).is_pending());

        clock.advance(PATIENCE);

        assert_eq!(waiter.await.unwrap_err().to_string(), "the datastore does not answer");
    }
}
