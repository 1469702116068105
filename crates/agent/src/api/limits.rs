//! How often workloads may call: a bucket of tokens per method and set of selectors.
//!
//! A bucket holds as many tokens as the limit and gains as many each second, so one that was left alone
//! for a second is full, and a full one need not be kept.
//!
//! Refusals are counted in the same way: whoever is refused so often too, and asks on, is let wait for each
//! further one. So a caller that asks without end, by mistake or not, costs the machine next to nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime::backoff::Random;
use runtime::clock::Clock;
use spiffe::SelectorSet;

/// How long until buckets that nobody takes from are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// About how long who asks on and on waits for being refused, and by what part of it more or less: all at
/// once they would ask again all at once.
const LATE: (Duration, f64) = (Duration::from_millis(750), 1.0 / 3.0);

/// A call that is beyond its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beyond {
    /// When to say so.
    pub(crate) after: Duration,
}

/// The limit of one method.
pub(crate) struct Limit {
    per_second: f64,
    clock: Arc<dyn Clock>,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    by_selectors: HashMap<SelectorSet, Pair>,
    swept_at: Instant,
    chance: Random,
}

/// The buckets of one set of selectors.
struct Pair {
    calls: Bucket,
    refusals: Bucket,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Limit {
    /// So many calls a second; with 0 there is no limit.
    pub(crate) fn new(per_second: u32, clock: &Arc<dyn Clock>) -> Option<Self> {
        let buckets =
            Buckets { by_selectors: HashMap::new(), swept_at: clock.instant(), chance: Random::new() };
        let clock = Arc::clone(clock);
        (per_second > 0).then(|| Self {
            per_second: f64::from(per_second),
            clock,
            buckets: Mutex::new(buckets),
        })
    }

    /// Takes a token of callers with these selectors.
    ///
    /// # Errors
    /// [`Beyond`] if there is none.
    pub(crate) fn take(&self, selectors: &SelectorSet) -> Result<(), Beyond> {
        let (now, most) = (self.clock.instant(), self.per_second);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(buckets.swept_at) >= SWEEP {
            buckets.swept_at = now;
            buckets.by_selectors.retain(|_, pair| !pair.is_full(most, now));
        }
        let Buckets { by_selectors, chance, .. } = &mut *buckets;
        let full = Bucket { tokens: most, at: now };
        let pair = match by_selectors.get_mut(selectors) {
            Some(pair) => pair,
            None => by_selectors.entry(selectors.clone()).or_insert(Pair { calls: full, refusals: full }),
        };
        if pair.calls.take(most, now) {
            Ok(())
        } else if pair.refusals.take(most, now) {
            Err(Beyond { after: Duration::ZERO })
        } else {
            Err(Beyond { after: chance.spread(LATE.0, LATE.1) })
        }
    }
}

impl Pair {
    fn is_full(&self, most: f64, now: Instant) -> bool {
        [self.calls, self.refusals].iter().all(|bucket| bucket.filled(most, now) >= most)
    }
}

impl Bucket {
    fn take(&mut self, most: f64, now: Instant) -> bool {
        let tokens = self.filled(most, now);
        let is_there = tokens >= 1.0;
        *self = Self { tokens: if is_there { tokens - 1.0 } else { tokens }, at: now };
        is_there
    }

    fn filled(self, most: f64, now: Instant) -> f64 {
        let gained = now.duration_since(self.at).as_secs_f64() * most;
        (self.tokens + gained).min(most)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use runtime::clock::ManualClock;
    use spiffe::Selector;

    use super::*;

    fn set(value: &str) -> SelectorSet {
        [Selector::new("unix", value)].into_iter().collect()
    }

    fn allows(limit: &Limit, value: &str) -> bool {
        limit.take(&set(value)).is_ok()
    }

    fn limit(per_second: u32) -> (Limit, ManualClock) {
        let clock = ManualClock::new(UNIX_EPOCH);
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        (Limit::new(per_second, &shared).unwrap(), clock)
    }

    #[test]
    fn each_set_of_selectors_has_its_own_bucket() {
        let (limit, clock) = limit(2);

        assert!(allows(&limit, "a") && allows(&limit, "a") && !allows(&limit, "a"));
        assert!(allows(&limit, "b") && limit.take(&SelectorSet::default()).is_ok());
        clock.advance(Duration::from_millis(500));

        assert!(allows(&limit, "a") && !allows(&limit, "a"));
    }

    #[test]
    fn a_bucket_never_holds_more_than_a_second_gives() {
        let (limit, clock) = limit(3);
        clock.advance(Duration::from_secs(3600));

        let allowed = (0..10).filter(|_| allows(&limit, "a")).count();

        assert_eq!(allowed, 3);
    }

    #[test]
    fn r00_r08_who_is_refused_as_often_again_and_asks_on_waits_for_further_refusals() {
        let (limit, clock) = limit(2);
        let refusal = || limit.take(&set("a")).unwrap_err().after;
        assert!(allows(&limit, "a") && allows(&limit, "a"));

        assert_eq!([refusal(), refusal()], [Duration::ZERO; 2]);
        for _ in 0..100 {
            let after = refusal();
            assert!(after >= Duration::from_millis(499) && after <= Duration::from_secs(1), "{after:?}");
        }

        // What was refused counts for nothing, and is forgotten as soon.
        clock.advance(Duration::from_millis(500));
        assert!(allows(&limit, "a"));
        assert_eq!(refusal(), Duration::ZERO);
        assert!(refusal() > Duration::ZERO);
        assert!(allows(&limit, "b"));
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let (limit, clock) = limit(1);
        for number in 0..100 {
            assert!(allows(&limit, &number.to_string()));
        }
        clock.advance(SWEEP);

        assert!(allows(&limit, "a"));

        assert_eq!(limit.buckets.lock().unwrap().by_selectors.len(), 1);
    }

    #[test]
    fn no_limit_is_none() {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(UNIX_EPOCH));

        assert!(Limit::new(0, &clock).is_none());
    }
}
