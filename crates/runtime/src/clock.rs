//! The time: the only place that reads it.

use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

/// Something that tells the time and wakes after a while.
pub trait Clock: Send + Sync {
    /// The time of day.
    fn now(&self) -> SystemTime;

    /// A point on a scale that never goes back, for measuring how long something takes.
    fn instant(&self) -> Instant {
        #[expect(clippy::disallowed_methods, reason = "this is the one place")]
        Instant::now()
    }

    /// Ends after `duration`. Cancel-safe.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        #[expect(clippy::disallowed_methods, reason = "this is the one place")]
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that stands still until a test moves it. Cheap to clone; clones are the same clock.
#[derive(Clone)]
pub struct ManualClock(Arc<Mutex<Manual>>);

struct Manual {
    now: SystemTime,
    /// Moves with [`ManualClock::advance`] alone: setting the time of day does not touch it.
    instant: Instant,
    sleepers: BinaryHeap<Sleeper>,
}

impl ManualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn new(now: SystemTime) -> Self {
        let instant = SystemClock.instant();
        Self(Arc::new(Mutex::new(Manual { now, instant, sleepers: BinaryHeap::new() })))
    }

    /// Moves the clock forward and wakes who slept until then, in order.
    pub fn advance(&self, duration: Duration) {
        let mut manual = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        manual.now += duration;
        manual.instant += duration;
        let reached = manual.instant;
        while manual.sleepers.peek().is_some_and(|sleeper| sleeper.until <= reached) {
            if let Some(sleeper) = manual.sleepers.pop() {
                // A sleeper that gave up needs no waking.
                sleeper.wake.send(()).ok();
            }
        }
    }

    /// Sets the clock, backwards too; nobody is woken.
    pub fn set(&self, now: SystemTime) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).now = now;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).now
    }

    fn instant(&self) -> Instant {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).instant
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut manual = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (wake, woken) = oneshot::channel();
        let until = manual.instant + duration;
        if duration.is_zero() {
            // Nothing to wait for; the receiver is still there, so this cannot fail.
            wake.send(()).ok();
        } else {
            manual.sleepers.push(Sleeper { until, wake });
        }
        Box::pin(async move { drop(woken.await) })
    }
}

struct Sleeper {
    until: Instant,
    wake: oneshot::Sender<()>,
}

/// The earliest is the greatest, as the heap gives the greatest first.
impl Ord for Sleeper {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.until.cmp(&self.until)
    }
}

impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Sleeper {
    fn eq(&self, other: &Self) -> bool {
        self.until == other.until
    }
}

impl Eq for Sleeper {}

/// Ends with what `future` gives, or with `None` after `duration`. Cancel-safe if `future` is.
pub async fn within<T>(clock: &dyn Clock, duration: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = clock.sleep(duration) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[tokio::test]
    async fn sleepers_wake_when_the_clock_reaches_them() {
        let clock = ManualClock::new(UNIX_EPOCH);
        let short = clock.sleep(Duration::from_secs(5));
        let mut long = clock.sleep(Duration::from_secs(50));

        clock.advance(Duration::from_secs(10));

        short.await;
        assert!(futures::poll!(&mut long).is_pending());
        clock.advance(Duration::from_secs(40));
        long.await;
        assert_eq!(clock.now(), UNIX_EPOCH + Duration::from_secs(50));
    }

    #[tokio::test]
    async fn setting_the_time_of_day_back_wakes_nobody_and_holds_nobody_up() {
        let clock = ManualClock::new(UNIX_EPOCH + Duration::from_secs(1000));
        let mut sleeper = clock.sleep(Duration::from_secs(5));

        clock.set(UNIX_EPOCH);

        assert!(futures::poll!(&mut sleeper).is_pending());
        clock.advance(Duration::from_secs(5));
        sleeper.await;
    }
}
