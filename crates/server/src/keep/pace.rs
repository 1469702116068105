//! When a turn is made because somebody said that there is news: at once, but not one after the other.
//!
//! News that comes while a turn is under way is read by the next one, however much it is.

use std::time::{Duration, Instant};

/// The shortest rest between two turns.
const REST: Duration = Duration::from_millis(5);

/// The longest.
const LONGEST: Duration = Duration::from_secs(1);

/// How turns follow one another.
#[derive(Default)]
pub(super) struct Pace {
    is_told: bool,
    rested: Option<Instant>,
}

impl Pace {
    /// Whether news would make a difference: not where the next turn was brought forward already.
    pub(super) const fn listens(&self) -> bool {
        !self.is_told
    }

    /// There is news; how long until the next turn.
    pub(super) fn told(&mut self, now: Instant) -> Duration {
        self.is_told = true;
        self.rested.map_or(Duration::ZERO, |rested| rested.saturating_duration_since(now))
    }

    /// A turn begins, which reads all that was told.
    pub(super) const fn begun(&mut self) {
        self.is_told = false;
    }

    /// It ended. A rest as long as the turn leaves half of the time to others, whatever is written
    /// elsewhere.
    pub(super) fn ended(&mut self, began: Instant, now: Instant) {
        let took = now.saturating_duration_since(began);
        self.rested = Some(now + took.clamp(REST, LONGEST));
    }
}

#[cfg(test)]
mod tests {
    use runtime::clock::{Clock as _, SystemClock};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn news_is_read_at_once_and_a_storm_of_it_with_rests() {
        let start = SystemClock.instant();
        let mut pace = Pace::default();
        assert_eq!(pace.told(start), Duration::ZERO);

        pace.begun();
        pace.ended(start, start + 2 * MS);
        assert_eq!(pace.told(start + 3 * MS), 4 * MS, "a short turn");
        assert!(!pace.listens(), "the next turn is due already");

        pace.begun();
        assert!(pace.listens());
        pace.ended(start + 7 * MS, start + 57 * MS);
        assert_eq!(pace.told(start + 57 * MS), 50 * MS, "a long one");

        pace.begun();
        pace.ended(start, start + 60_000 * MS);
        assert_eq!(pace.told(start + 60_500 * MS), 500 * MS, "a very long one");
        assert_eq!(pace.told(start + 70_000 * MS), Duration::ZERO, "long ago");
    }
}
