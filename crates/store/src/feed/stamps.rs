//! The bundles: a table without events, so its rows are told apart by what changes when they do.
//!
//! A row says when it was written, in the writer's time, on `MySQL` to the second. Two writes within a
//! second that leave the same length look the same, so a bundle that changed is read again until that
//! second is over for certain.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use spiffe::TrustDomain;

/// For how long a bundle may still change without showing it.
const UNSETTLED: Duration = Duration::from_secs(2);

/// What is seen of a bundle without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleStamp {
    /// Whose it is.
    pub trust_domain: TrustDomain,
    /// Its row: another one means that it was deleted and made anew.
    pub row_id: i64,
    /// When it was written, as the column holds it.
    pub updated_at: String,
    /// How many bytes it has.
    pub length: i64,
}

/// The bundles as they were seen last.
#[derive(Clone, Debug, Default)]
pub(super) struct Stamps {
    known: BTreeMap<TrustDomain, Known>,
    has_begun: bool,
}

#[derive(Clone, Debug)]
struct Known {
    stamp: BundleStamp,
    /// When this stamp was first seen, while it may hide a second write.
    unsettled: Option<SystemTime>,
}

/// What is different.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Different {
    /// To be read.
    pub(super) changed: Vec<TrustDomain>,
    /// Not there any more, or deleted and made anew: entries that federated with them changed too, and
    /// nobody says so.
    pub(super) gone: Vec<TrustDomain>,
}

impl Stamps {
    /// Compares with all rows, as they were at `now`. The first time nothing has changed: everything is
    /// read then anyway.
    pub(super) fn take(&mut self, now: SystemTime, stamps: Vec<BundleStamp>) -> Different {
        let mut different = Different::default();
        let mut known = BTreeMap::new();
        for stamp in stamps {
            let trust_domain = stamp.trust_domain.clone();
            let held = self.known.remove(&trust_domain);
            let is_same = held.as_ref().is_some_and(|held| held.stamp == stamp);
            let since = match &held {
                Some(held) if is_same => held.unsettled.map(|since| since.min(now)),
                Some(_) | None => Some(now),
            };
            if self.has_begun && (!is_same || since.is_some()) {
                different.changed.push(trust_domain.clone());
            }
            if held.is_some_and(|held| held.stamp.row_id != stamp.row_id) {
                different.gone.push(trust_domain.clone());
            }
            let unsettled = since.filter(|since| now.duration_since(*since).is_ok_and(|age| age < UNSETTLED));
            known.insert(trust_domain, Known { stamp, unsettled });
        }
        different.gone.extend(self.known.keys().cloned());
        self.known = known;
        self.has_begun = true;
        different
    }

    /// The bundle may be another one than the last reading of it says: it is read again.
    pub(super) fn doubt(&mut self, trust_domain: &TrustDomain, now: SystemTime) {
        if let Some(known) = self.known.get_mut(trust_domain) {
            known.unsettled = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn stamp(name: &str, row_id: i64, updated_at: &str) -> BundleStamp {
        let trust_domain = TrustDomain::parse(name).unwrap();
        BundleStamp { trust_domain, row_id, updated_at: updated_at.to_owned(), length: 100 }
    }

    fn check(stamps: &mut Stamps, seconds: u64, rows: &[BundleStamp], changed: &[&str], gone: &[&str]) {
        let different = stamps.take(UNIX_EPOCH + Duration::from_secs(seconds), rows.to_vec());
        let names = |list: &[TrustDomain]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(&different.changed), changed, "changed at {seconds}");
        assert_eq!(names(&different.gone), gone, "gone at {seconds}");
    }

    #[test]
    fn a_bundle_is_read_until_its_second_is_over() {
        let mut stamps = Stamps::default();
        let old = [stamp("a.test", 1, "10"), stamp("b.test", 2, "10")];
        let new = [stamp("a.test", 1, "10"), stamp("b.test", 2, "20")];

        check(&mut stamps, 10, &old, &[], &[]);
        check(&mut stamps, 12, &old, &["a.test", "b.test"], &[]);
        check(&mut stamps, 13, &old, &[], &[]);
        check(&mut stamps, 20, &new, &["b.test"], &[]);
        check(&mut stamps, 21, &new, &["b.test"], &[]);
        check(&mut stamps, 22, &new, &["b.test"], &[]);
        check(&mut stamps, 23, &new, &[], &[]);
    }

    #[test]
    fn a_bundle_that_is_deleted_or_made_anew_is_gone() {
        let mut stamps = Stamps::default();
        check(&mut stamps, 0, &[stamp("a.test", 1, "1"), stamp("b.test", 2, "1")], &[], &[]);

        let anew = [stamp("a.test", 3, "1")];
        check(&mut stamps, 100, &anew, &["a.test"], &["a.test", "b.test"]);
        check(&mut stamps, 103, &anew, &["a.test"], &[]);
        check(&mut stamps, 104, &anew, &[], &[]);
    }

    #[test]
    fn a_bundle_in_doubt_is_read_again() {
        let mut stamps = Stamps::default();
        let rows = [stamp("a.test", 1, "1")];
        check(&mut stamps, 0, &rows, &[], &[]);
        check(&mut stamps, 100, &rows, &["a.test"], &[]);
        check(&mut stamps, 101, &rows, &[], &[]);

        stamps.doubt(&rows[0].trust_domain, UNIX_EPOCH + Duration::from_secs(101));

        check(&mut stamps, 102, &rows, &["a.test"], &[]);
    }
}
