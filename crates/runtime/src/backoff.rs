//! How long to wait before trying again: half as long again each time up to a cap, a tenth of chance
//! in it, as SPIRE waits.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The waits between tries.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    current: Duration,
    random: Random,
}

impl Backoff {
    /// Waits that start with about `first` and end at about 24 times that.
    #[must_use]
    pub fn new(first: Duration) -> Self {
        Self { first, cap: first * CAP_MULTIPLE, current: first, random: Random::new() }
    }

    /// The same with another longest wait.
    #[must_use]
    pub fn with_cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// The next wait.
    #[expect(clippy::should_implement_trait, reason = "it never ends: as an iterator it would mislead")]
    pub fn next(&mut self) -> Duration {
        let wait = self.random.spread(self.current, JITTER);
        self.current = self.current.mul_f64(GROWTH).min(self.cap);
        wait
    }

    /// The waits start again, as after a success.
    pub const fn reset(&mut self) {
        self.current = self.first;
    }
}

/// Chance for spreading load. Never for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Other numbers each time.
    #[must_use]
    pub fn new() -> Self {
        Self(RandomState::new().hash_one(0_u8))
    }

    /// A number of at least 0 and less than 1.
    pub fn unit(&mut self) -> f64 {
        // SplitMix64, of which the upper 53 bits fill a double.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let numerator = (mixed >> 11) as f64;
        numerator / 9_007_199_254_740_992.0
    }

    /// A duration that differs from `around` by at most that part of it.
    pub fn spread(&mut self, around: Duration, part: f64) -> Duration {
        around.mul_f64(2.0_f64.mul_add(part * self.unit(), 1.0 - part))
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}

const JITTER: f64 = 0.1;
const GROWTH: f64 = 1.5;
const CAP_MULTIPLE: u32 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_by_half_up_to_the_cap_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(6400));

        for around in [6400, 9600, 14400, 21600, 32400, 48600, 72900, 109_350, 153_600, 153_600] {
            check(backoff.next(), around);
        }
        backoff.reset();
        check(backoff.next(), 6400);
    }

    fn check(wait: Duration, around: u128) {
        let wait = wait.as_millis();
        assert!(wait >= around * 9 / 10 - 1 && wait <= around * 11 / 10 + 1, "{wait} is not around {around}");
    }

    #[test]
    fn chance_is_spread_over_the_whole_range() {
        let mut random = Random::new();
        let numbers: Vec<f64> = (0..1000).map(|_| random.unit()).collect();

        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        assert!(numbers.iter().any(|number| *number < 0.1) && numbers.iter().any(|number| *number > 0.9));
    }
}
