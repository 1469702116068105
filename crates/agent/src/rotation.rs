//! When credentials are replaced. Pure: times in, times out.
//!
//! Half of the lifetime, give or take a tenth of it, drawn once per credential so that a fleet which
//! started together does not renew together. SPIRE draws anew at each check, so that in effect all
//! renew at 55 % of what is left.

use std::time::{Duration, SystemTime};

use runtime::backoff::Random;
use spiffe::UnixSecs;

/// A credential must live so much longer than the availability target for the target to count.
const LEAST_MARGIN: Duration = Duration::from_secs(12 * 60 * 60);
/// How far renewals by the availability target are spread.
const TARGET_SPREAD: Duration = Duration::from_secs(10 * 60);
/// How far renewals at half the lifetime are spread, as part of it.
const HALF_SPREAD: f64 = 0.1;

/// The rule by which an agent renews.
#[derive(Clone, Debug)]
pub struct RotationRule {
    availability_target: Option<Duration>,
    random: Random,
}

impl RotationRule {
    /// Half-life, and if there is an `availability_target`, early enough to live through an outage
    /// of that length.
    #[must_use]
    pub fn new(availability_target: Option<Duration>) -> Self {
        Self { availability_target, random: Random::new() }
    }

    /// When to replace an X.509-SVID that holds from `not_before` to `not_after`.
    pub fn x509(&mut self, not_before: UnixSecs, not_after: UnixSecs) -> SystemTime {
        let at_half = self.jwt(not_before, not_after);
        let lifetime = lifetime(not_before, not_after);
        match self.availability_target {
            Some(target) if lifetime.saturating_sub(target) > LEAST_MARGIN => {
                let ahead = target + TARGET_SPREAD.mul_f64(self.random.unit());
                at_half.min(not_after.to_system_time() - ahead)
            }
            _ => at_half,
        }
    }

    /// Whether an X.509-SVID of this lifetime is too short for the availability target.
    #[must_use]
    pub fn falls_short(&self, not_before: UnixSecs, not_after: UnixSecs) -> bool {
        let lifetime = lifetime(not_before, not_after);
        self.availability_target.is_some_and(|target| lifetime.saturating_sub(target) <= LEAST_MARGIN)
    }

    /// When to replace a JWT-SVID that holds from `issued_at` to `expires_at`.
    pub fn jwt(&mut self, issued_at: UnixSecs, expires_at: UnixSecs) -> SystemTime {
        let half = lifetime(issued_at, expires_at) / 2;
        expires_at.to_system_time() - self.random.spread(half, HALF_SPREAD)
    }
}

fn lifetime(from: UnixSecs, to: UnixSecs) -> Duration {
    Duration::from_secs(u64::try_from(to.since(from)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 60 * 60;

    /// The seconds left when a credential of `lifetime` seconds is renewed, over many draws.
    fn left(target: Option<i64>, lifetime: i64) -> (i64, i64) {
        let target = target.map(|seconds| Duration::from_secs(seconds.unsigned_abs()));
        let mut rule = RotationRule::new(target);
        let end = UnixSecs(1_000_000 + lifetime);
        let draws: Vec<i64> =
            (0..2000).map(|_| end.since(UnixSecs::from(rule.x509(UnixSecs(1_000_000), end)))).collect();
        (*draws.iter().min().unwrap(), *draws.iter().max().unwrap())
    }

    fn check(target: Option<i64>, lifetime: i64, least: i64, most: i64) {
        let (low, high) = left(target, lifetime);
        let slack = (most - least) / 20 + 1;
        assert!(low >= least && low <= least + slack, "{low} is not just above {least}");
        // A time between two seconds counts as the earlier, so there may be one more second left.
        assert!(high <= most + 1 && high >= most - slack, "{high} is not just below {most}");
    }

    #[test]
    fn half_of_the_life_is_left_give_or_take_a_tenth() {
        check(None, 30, 13, 17);
        check(None, HOUR, 1620, 1980);
        check(Some(24 * HOUR), HOUR, 1620, 1980);
    }

    #[test]
    fn an_availability_target_needs_twelve_hours_to_spare() {
        let day = 24 * HOUR;

        check(Some(day), day, 38_880, 47_520);
        check(Some(day), 36 * HOUR, 58_320, 71_280);
        check(Some(day), 36 * HOUR + 1, day, day + 600);
        check(Some(day), 100 * HOUR, 162_000, 198_000);
        let rule = RotationRule::new(Some(Duration::from_secs(day.unsigned_abs())));
        assert!(rule.falls_short(UnixSecs(0), UnixSecs(36 * HOUR)));
        assert!(!rule.falls_short(UnixSecs(0), UnixSecs(36 * HOUR + 1)));
        assert!(!RotationRule::new(None).falls_short(UnixSecs(0), UnixSecs(1)));
    }

    #[test]
    fn a_life_that_ended_before_it_began_is_renewed_at_its_end() {
        let mut rule = RotationRule::new(None);

        assert_eq!(rule.jwt(UnixSecs(10), UnixSecs(5)), UnixSecs(5).to_system_time());
    }
}
