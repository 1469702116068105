//! Quantiles of what was observed lately, in bounded memory.
//!
//! Values are counted in buckets whose bounds grow by two percent, so a quantile is right to one
//! percent of its value whatever was observed. The last ten seconds are kept, as five slots that are
//! forgotten one after the other; sum and count are of all time.

use std::time::{Duration, Instant};

/// The quantiles that are shown.
pub(super) const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];

/// The distribution of one series.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) count: u64,
    pub(super) sum: f64,
    slots: [Slot; SLOTS as usize],
    began: Option<Instant>,
}

/// The values of one stretch of time.
#[derive(Debug, Default)]
struct Slot {
    /// Which stretch, counted from the first observation.
    number: u64,
    count: u64,
    least: f64,
    most: f64,
    /// Counts by bucket, ascending.
    buckets: Vec<(i16, u64)>,
}

impl Summary {
    pub(super) fn observe(&mut self, value: f64, now: Instant) {
        self.count += 1;
        self.sum += value;
        let number = self.number(now);
        let Some(slot) = self.slots.get_mut((number % SLOTS) as usize) else { return };
        if slot.number != number || slot.count == 0 {
            *slot = Slot { number, count: 0, least: value, most: value, buckets: Vec::new() };
        }
        slot.count += 1;
        slot.least = slot.least.min(value);
        slot.most = slot.most.max(value);
        let bucket = bucket(value);
        match slot.buckets.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(found) => slot.buckets.get_mut(found).into_iter().for_each(|(_, count)| *count += 1),
            Err(place) => slot.buckets.insert(place, (bucket, 1)),
        }
    }

    /// The quantiles of the last ten seconds, in the order of [`QUANTILES`]; not a number where nothing
    /// was observed.
    pub(super) fn quantiles(&mut self, now: Instant) -> [f64; QUANTILES.len()] {
        let number = self.number(now);
        let fresh = |slot: &&Slot| slot.count > 0 && number.saturating_sub(slot.number) < SLOTS;
        let slots: Vec<&Slot> = self.slots.iter().filter(fresh).collect();
        let count: u64 = slots.iter().map(|slot| slot.count).sum();
        let least = slots.iter().map(|slot| slot.least).fold(f64::INFINITY, f64::min);
        let most = slots.iter().map(|slot| slot.most).fold(f64::NEG_INFINITY, f64::max);
        let mut merged: Vec<(i16, u64)> =
            slots.iter().flat_map(|slot| slot.buckets.iter().copied()).collect();
        merged.sort_unstable();
        QUANTILES.map(|quantile| {
            if count == 0 {
                return f64::NAN;
            }
            let rank = (quantile * count as f64).ceil() as u64;
            let mut seen = 0;
            let found = merged.iter().find(|(_, count)| {
                seen += count;
                seen >= rank
            });
            found.map_or(most, |(bucket, _)| middle(*bucket).clamp(least, most))
        })
    }

    fn number(&mut self, now: Instant) -> u64 {
        let began = *self.began.get_or_insert(now);
        now.saturating_duration_since(began).as_secs() / SLOT.as_secs()
    }
}

/// The bucket of a value: 0 and what is below the least stand in the first.
fn bucket(value: f64) -> i16 {
    if value <= LEAST {
        return i16::MIN;
    }
    // Within the range of the type for all numbers that there are.
    (value.ln() / GROWTH.ln()).ceil() as i16
}

fn middle(bucket: i16) -> f64 {
    if bucket == i16::MIN { 0.0 } else { 2.0 * GROWTH.powi(i32::from(bucket)) / (GROWTH + 1.0) }
}

const SLOTS: u64 = 5;
const SLOT: Duration = Duration::from_secs(2);
const GROWTH: f64 = 1.02;
const LEAST: f64 = 1e-9;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn quantiles_are_right_to_a_percent() {
        let (mut summary, now) = (Summary::default(), SystemClock.instant());
        for value in 1..=10_000 {
            summary.observe(f64::from(value), now);
        }

        let [half, nine, last] = summary.quantiles(now);

        for (found, right) in [(half, 5000.0), (nine, 9000.0), (last, 9900.0)] {
            assert!((found - right).abs() / right < 0.011, "{found} is not {right}");
        }
        assert_eq!((summary.count, summary.sum), (10_000, 50_005_000.0));
    }

    #[test]
    fn one_value_is_every_quantile() {
        let (mut summary, now) = (Summary::default(), SystemClock.instant());
        summary.observe(3.25, now);

        assert_eq!(summary.quantiles(now), [3.25; 3]);
    }

    #[test]
    fn zero_and_huge_values_are_kept_apart() {
        let (mut summary, now) = (Summary::default(), SystemClock.instant());
        for value in [0.0, 0.0, 1e18] {
            summary.observe(value, now);
        }

        let [half, nine, _] = summary.quantiles(now);

        assert_eq!(half, 0.0);
        assert!((nine / 1e18 - 1.0).abs() < 0.011);
    }

    #[test]
    fn what_is_older_than_ten_seconds_is_forgotten_but_counted() {
        let (mut summary, now) = (Summary::default(), SystemClock.instant());
        summary.observe(1.0, now);

        let later = summary.quantiles(now + Duration::from_secs(10));

        assert!(later.iter().all(|quantile| quantile.is_nan()));
        assert_eq!(summary.count, 1);
        summary.observe(5.0, now + Duration::from_secs(11));
        assert_eq!(summary.quantiles(now + Duration::from_secs(11)), [5.0; 3]);
    }
}
