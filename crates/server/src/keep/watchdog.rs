//! Finds rows that were changed without an event: by hand, or by a program that writes none.
//!
//! Every five minutes the fingerprint of the tables is compared with that of the graph. They may differ
//! by rows that cannot be understood, which the graph leaves out; so what counts is that the difference
//! changes, twice over.

use std::time::{Duration, Instant};

use graph::Fingerprint as Held;
use store::feed::Fingerprint as Stored;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(300);

/// Looks now and then.
pub(super) struct Watchdog {
    next: Instant,
    /// The difference that is known and harmless; `None` until it was seen once.
    accepted: Option<Difference>,
    /// Another one, seen the last time.
    suspect: Option<Difference>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Difference([i64; 4]);

impl Watchdog {
    /// One that looks at once, to learn what is harmless.
    pub(super) const fn new(now: Instant) -> Self {
        Self { next: now, accepted: None, suspect: None }
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Everything was read: what differs now is harmless.
    pub(super) const fn reset(&mut self) {
        (self.accepted, self.suspect) = (None, None);
    }

    /// Compares what is stored with what is held, both as of one moment. Whether everything must be read.
    pub(super) fn compare(&mut self, stored: Stored, held: Held, now: Instant) -> bool {
        let difference = Difference([
            stored.entries.wrapping_sub(held.entries),
            stored.last_row.wrapping_sub(held.last_row),
            stored.revisions.wrapping_sub(held.revisions),
            stored.agents.wrapping_sub(held.agents),
        ]);
        let accepted = *self.accepted.get_or_insert(difference);
        if difference == accepted {
            self.next = now + EVERY;
            self.suspect = None;
            return false;
        }
        // Due again with the next turn.
        if self.suspect.replace(difference) != Some(difference) {
            return false;
        }
        tracing::warn!("Entries or agents were changed without an event; reading all of them");
        true
    }
}

#[cfg(test)]
mod tests {
    use runtime::clock::{Clock as _, SystemClock};

    use super::*;

    #[test]
    fn a_difference_counts_when_it_is_new_and_stays() {
        let start = SystemClock.instant();
        let held = Held { entries: 5, last_row: 9, revisions: 3, agents: 1 };
        let stored = |entries| Stored { entries, last_row: 9, revisions: 3, agents: 1 };
        let mut watchdog = Watchdog::new(start);

        assert!(watchdog.is_due(start));
        // One row that cannot be understood.
        assert!(!watchdog.compare(stored(6), held, start));
        assert!(!watchdog.is_due(start + EVERY / 2));
        assert!(!watchdog.compare(stored(7), held, start + EVERY));
        assert!(!watchdog.compare(stored(8), held, start + EVERY));
        assert!(watchdog.is_due(start + EVERY));
        assert!(watchdog.compare(stored(8), held, start + EVERY));

        watchdog.reset();
        assert!(!watchdog.compare(stored(8), held, start + EVERY));
        assert!(!watchdog.is_due(start + EVERY));
    }
}
