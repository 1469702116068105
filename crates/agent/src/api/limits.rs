//! How often workloads may call: a bucket of tokens per method and set of selectors.
//!
//! A bucket holds as many tokens as the limit and gains as many each second, so one that was left alone
//! for a second is full, and a full one need not be kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime::clock::Clock;
use spiffe::SelectorSet;

/// How long until buckets that nobody takes from are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// The limit of one method.
pub(crate) struct Limit {
    per_second: f64,
    clock: Arc<dyn Clock>,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    by_selectors: HashMap<SelectorSet, Bucket>,
    swept_at: Instant,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Limit {
    /// So many calls a second; with 0 there is no limit.
    pub(crate) fn new(per_second: u32, clock: &Arc<dyn Clock>) -> Option<Self> {
        let buckets = Buckets { by_selectors: HashMap::new(), swept_at: clock.instant() };
        let clock = Arc::clone(clock);
        (per_second > 0).then(|| Self {
            per_second: f64::from(per_second),
            clock,
            buckets: Mutex::new(buckets),
        })
    }

    /// Takes a token of callers with these selectors, if there is one.
    pub(crate) fn allows(&self, selectors: &SelectorSet) -> bool {
        let now = self.clock.instant();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(buckets.swept_at) >= SWEEP {
            buckets.swept_at = now;
            buckets.by_selectors.retain(|_, bucket| bucket.filled(self.per_second, now) < self.per_second);
        }
        let full = Bucket { tokens: self.per_second, at: now };
        let bucket = match buckets.by_selectors.get_mut(selectors) {
            Some(bucket) => bucket,
            None => buckets.by_selectors.entry(selectors.clone()).or_insert(full),
        };
        let tokens = bucket.filled(self.per_second, now);
        let is_allowed = tokens >= 1.0;
        *bucket = Bucket { tokens: if is_allowed { tokens - 1.0 } else { tokens }, at: now };
        is_allowed
    }
}

impl Bucket {
    fn filled(self, per_second: f64, now: Instant) -> f64 {
        let gained = now.duration_since(self.at).as_secs_f64() * per_second;
        (self.tokens + gained).min(per_second)
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

    fn limit(per_second: u32) -> (Limit, ManualClock) {
        let clock = ManualClock::new(UNIX_EPOCH);
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        (Limit::new(per_second, &shared).unwrap(), clock)
    }

    #[test]
    fn each_set_of_selectors_has_its_own_bucket() {
        let (limit, clock) = limit(2);

        assert!(limit.allows(&set("a")) && limit.allows(&set("a")) && !limit.allows(&set("a")));
        assert!(limit.allows(&set("b")) && limit.allows(&SelectorSet::default()));
        clock.advance(Duration::from_millis(500));

        assert!(limit.allows(&set("a")) && !limit.allows(&set("a")));
    }

    #[test]
    fn a_bucket_never_holds_more_than_a_second_gives() {
        let (limit, clock) = limit(3);
        clock.advance(Duration::from_secs(3600));

        let allowed = (0..10).filter(|_| limit.allows(&set("a"))).count();

        assert_eq!(allowed, 3);
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let (limit, clock) = limit(1);
        for number in 0..100 {
            assert!(limit.allows(&set(&number.to_string())));
        }
        clock.advance(SWEEP);

        assert!(limit.allows(&set("a")));

        assert_eq!(limit.buckets.lock().unwrap().by_selectors.len(), 1);
    }

    #[test]
    fn no_limit_is_none() {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(UNIX_EPOCH));

        assert!(Limit::new(0, &clock).is_none());
    }
}
