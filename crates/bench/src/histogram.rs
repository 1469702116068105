//! Durations in buckets whose width grows with the value, so that a microsecond and a minute are told
//! to within one in 128 from a few kilobytes.

use std::time::Duration;

/// How many durations fell where.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    least: u64,
    most: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Vec::new(), count: 0, least: u64::MAX, most: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub(crate) fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = bucket_of(nanos);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.count += 1;
        self.least = self.least.min(nanos);
        self.most = self.most.max(nanos);
    }

    /// How many there are.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// The shortest.
    pub(crate) fn least(&self) -> Duration {
        Duration::from_nanos(if self.count == 0 { 0 } else { self.least })
    }

    /// The longest.
    pub(crate) const fn most(&self) -> Duration {
        Duration::from_nanos(self.most)
    }

    /// The duration that `per_mille` of a thousand do not exceed; none if there are no durations.
    pub(crate) fn quantile(&self, per_mille: u64) -> Duration {
        let wanted = u128::from(self.count) * u128::from(per_mille.min(1000));
        let rank = u64::try_from(wanted.div_ceil(1000)).unwrap_or(self.count).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper_end(bucket).min(self.most));
            }
        }
        self.most()
    }
}

/// Values below this have a bucket each; above, every power of two has half as many.
const FINE: u64 = 1 << FINE_BITS;
const FINE_BITS: u32 = 8;

fn bucket_of(value: u64) -> usize {
    if value < FINE {
        return usize::try_from(value).unwrap_or_default();
    }
    // The leading eight bits say where in its power of two the value is.
    let shift = u64::BITS - value.leading_zeros() - FINE_BITS;
    let bucket = u64::from(shift) * (FINE / 2) + (value >> shift);
    usize::try_from(bucket).unwrap_or(usize::MAX)
}

/// The largest value in a bucket.
fn upper_end(bucket: usize) -> u64 {
    let bucket = u64::try_from(bucket).unwrap_or(u64::MAX);
    if bucket < FINE {
        return bucket;
    }
    let shift = bucket / (FINE / 2) - 1;
    let leading = bucket - shift * (FINE / 2);
    ((leading + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_are_narrow() {
        let mut expected = 0;
        for bucket in 0..5000 {
            let upper = upper_end(bucket);
            assert_eq!(bucket_of(upper), bucket, "{upper}");
            assert_eq!(bucket_of(expected), bucket, "{expected}");
            assert!((upper - expected) * 128 <= upper, "{bucket}: {expected}..={upper}");
            expected = upper + 1;
        }
    }

    #[test]
    fn quantiles_are_told_to_within_one_in_128() {
        let mut histogram = Histogram::default();
        for micros in 1..=10_000 {
            histogram.record(Duration::from_micros(micros));
        }

        for (per_mille, micros) in [(0, 1), (500, 5_000), (990, 9_900), (999, 9_990), (1000, 10_000)] {
            let told = histogram.quantile(per_mille).as_micros();
            assert!(told >= micros && told <= micros + micros / 128 + 1, "{per_mille}: {told}");
        }
        assert_eq!(histogram.most(), Duration::from_millis(10));
        assert_eq!(histogram.least(), Duration::from_micros(1));
    }

    #[test]
    fn nothing_is_no_duration() {
        assert_eq!(Histogram::default().quantile(500), Duration::ZERO);
        assert_eq!(Histogram::default().least(), Duration::ZERO);
    }
}
