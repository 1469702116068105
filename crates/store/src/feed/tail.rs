//! One event table, followed by ids that are given in one order and committed in another.
//!
//! A transaction takes its id when it inserts and shows it when it commits; one that is rolled back
//! never shows it. So an id that was passed over is a *hole*: asked for with every poll until it turns
//! up or its time is over. Holes are ranges, since a sequence that was set forward by a million is one
//! hole, not a million of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use super::Limits;
use crate::Event;

/// What to ask an event table for: one query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventAsk {
    /// The rows with the highest ids, at most so many: where to begin, whatever the table holds.
    Latest(u32),
    /// The rows above an id or within one of these ranges (both ends belong to it), lowest ids first, at
    /// most `limit`.
    Since {
        /// Everything above.
        after: i64,
        /// And these, each below it; in order.
        holes: Vec<(i64, i64)>,
        /// No more rows than this.
        limit: u32,
    },
}

impl EventAsk {
    /// The most rows that an answer may have.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        match self {
            Self::Latest(limit) | Self::Since { limit, .. } => *limit,
        }
    }
}

/// How far an event table was read.
#[derive(Clone, Debug)]
pub(super) struct Tail {
    limits: Limits,
    /// The highest id seen; `None` before the first answer.
    last: Option<i64>,
    /// First id to hole; they do not overlap.
    holes: BTreeMap<i64, Hole>,
    /// What ids there can be: one server in a cluster of `MySQL` may give every third number only.
    stride: Stride,
    forgotten: Option<Forgotten>,
}

/// Ids that were passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hole {
    last: i64,
    since: SystemTime,
}

/// Holes that were given up for want of room. What shows in them is found by reading everything again
/// once their time is over.
#[derive(Clone, Copy, Debug)]
struct Forgotten {
    due: SystemTime,
    until: SystemTime,
}

/// The ids that a table can hold.
#[derive(Clone, Debug)]
struct Stride {
    step: i64,
    /// The remainders of the ids that were seen.
    seen: BTreeSet<i64>,
}

impl Tail {
    pub(super) const fn new(limits: Limits) -> Self {
        let stride = Stride { step: 1, seen: BTreeSet::new() };
        Self { limits, last: None, holes: BTreeMap::new(), stride, forgotten: None }
    }

    /// What to ask for next.
    pub(super) fn ask(&self) -> EventAsk {
        match self.last {
            None => EventAsk::Latest(self.limits.window),
            Some(after) => EventAsk::Since {
                after,
                holes: self.holes.iter().map(|(first, hole)| (*first, hole.last)).collect(),
                limit: self.limits.rows,
            },
        }
    }

    /// Takes the answer to [`Self::ask`], in order of the ids, that was asked for at `now`. Gives the
    /// subjects of the events that are new, each event once; none for the first answer, after which
    /// everything is read anyway.
    pub(super) fn take<'a>(&mut self, now: SystemTime, step: i64, rows: &'a [Event]) -> Vec<&'a str> {
        self.stride.set(step);
        for hole in self.holes.values_mut() {
            // A clock that was put back must not keep a hole open for as long.
            hole.since = hole.since.min(now);
        }
        let Some(asked_after) = self.last else {
            self.begin(now, rows);
            return Vec::new();
        };
        let whole = rows.len() < self.limits.rows as usize;
        let new = rows.iter().filter(|event| self.note(now, event.id)).map(|event| &*event.subject).collect();
        if whole {
            let timeout = self.limits.event_timeout;
            // What was noticed just now was not asked for yet.
            self.holes.retain(|first, hole| *first > asked_after || !is_over(hole.since, timeout, now));
        }
        self.make_room(now);
        new
    }

    /// Whether everything must be read again, since holes were given up.
    pub(super) fn is_unsure(&self, now: SystemTime) -> bool {
        self.forgotten.is_some_and(|forgotten| forgotten.due <= now)
    }

    /// Whether the last answer may not have been all there is.
    pub(super) fn has_more(&self, rows: &[Event]) -> bool {
        self.last.is_some() && rows.len() >= self.limits.rows as usize
    }

    /// Everything is being read again from `now` on.
    pub(super) fn reassure(&mut self, now: SystemTime) {
        self.forgotten = self
            .forgotten
            .filter(|forgotten| forgotten.until > now)
            .map(|forgotten| Forgotten { due: forgotten.until, ..forgotten });
    }

    /// The highest id seen, if there was any event.
    pub(super) fn last(&self) -> Option<i64> {
        self.last.filter(|last| *last > 0)
    }

    /// How many ids are waited for.
    pub(super) fn missing(&self) -> u64 {
        let count = |(first, hole): (&i64, &Hole)| u64::try_from(hole.last - first + 1).unwrap_or_default();
        self.holes.iter().map(count).fold(0, u64::saturating_add)
    }

    /// How many ranges of ids are waited for.
    pub(super) fn holes(&self) -> usize {
        self.holes.len()
    }

    /// Starts from the rows with the highest ids. Below the lowest of them are ids of transactions that
    /// are still under way only if these are all the rows there are.
    fn begin(&mut self, now: SystemTime, rows: &[Event]) {
        let first = rows.first().map_or(0, |event| event.id);
        let is_all = rows.len() < self.limits.window as usize;
        self.last = Some(if is_all { 0 } else { first.saturating_sub(1) });
        for event in rows {
            self.stride.see(event.id);
        }
        for event in rows {
            self.note(now, event.id);
        }
        self.make_room(now);
    }

    /// Whether an id is new.
    fn note(&mut self, now: SystemTime, id: i64) -> bool {
        let last = self.last.unwrap_or(0);
        if id > last {
            self.stride.see(id);
            self.open(now, last.saturating_add(1), id.saturating_sub(1));
            self.last = Some(id);
            return true;
        }
        let Some((&first, &hole)) = self.holes.range(..=id).next_back() else { return false };
        if id > hole.last {
            return false;
        }
        self.holes.remove(&first);
        self.open(hole.since, first, id - 1);
        self.open(hole.since, id + 1, hole.last);
        true
    }

    /// Opens a hole, unless no id can be in it.
    fn open(&mut self, since: SystemTime, first: i64, last: i64) {
        if first <= last && self.stride.has_any(first, last) {
            self.holes.insert(first, Hole { last, since });
        }
    }

    /// Gives up the holes that have been open longest, if there are too many.
    fn make_room(&mut self, now: SystemTime) {
        let Some(excess) = self.holes.len().checked_sub(self.limits.holes).filter(|excess| *excess > 0)
        else {
            return;
        };
        let mut by_age: Vec<(SystemTime, i64)> =
            self.holes.iter().map(|(first, hole)| (hole.since, *first)).collect();
        by_age.sort_unstable();
        for (since, first) in by_age.into_iter().take(excess) {
            self.holes.remove(&first);
            let until = since + self.limits.event_timeout;
            let forgotten = self.forgotten.get_or_insert_with(|| Forgotten { due: until.max(now), until });
            forgotten.until = forgotten.until.max(until);
        }
    }
}

impl Stride {
    fn set(&mut self, step: i64) {
        let step = step.max(1);
        if step != self.step {
            self.step = step;
            self.seen.clear();
        }
    }

    fn see(&mut self, id: i64) {
        self.seen.insert(id.rem_euclid(self.step));
    }

    /// Whether an id of a remainder that was seen is within the range.
    fn has_any(&self, first: i64, last: i64) -> bool {
        if last.saturating_sub(first) >= self.step - 1 {
            return true;
        }
        (first..=last).any(|id| self.seen.contains(&id.rem_euclid(self.step)))
    }
}

fn is_over(since: SystemTime, timeout: Duration, now: SystemTime) -> bool {
    now.duration_since(since).is_ok_and(|age| age >= timeout)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const LIMITS: Limits = Limits { window: 4, rows: 10, holes: 3, ..Limits::DEFAULT };

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn events(ids: &[i64]) -> Vec<Event> {
        ids.iter().map(|id| Event { id: *id, subject: format!("e{id}") }).collect()
    }

    fn begun(ids: &[i64], step: i64) -> Tail {
        let mut tail = Tail::new(LIMITS);
        tail.take(at(0), step, &events(ids));
        tail
    }

    fn check(tail: &mut Tail, seconds: u64, step: i64, ids: &[i64], new: &[&str], holes: &[(i64, i64)]) {
        let rows = events(ids);
        assert_eq!(tail.take(at(seconds), step, &rows), new, "{ids:?}");
        let EventAsk::Since { holes: asked, .. } = tail.ask() else { panic!("has begun") };
        assert_eq!(asked, holes, "{ids:?}");
    }

    #[test]
    fn an_id_that_was_passed_over_is_asked_for_until_it_shows() {
        let mut tail = begun(&[], 1);

        check(&mut tail, 1, 1, &[1, 2], &["e1", "e2"], &[]);
        check(&mut tail, 2, 1, &[6], &["e6"], &[(3, 5)]);
        check(&mut tail, 3, 1, &[4], &["e4"], &[(3, 3), (5, 5)]);
        check(&mut tail, 4, 1, &[3, 7], &["e3", "e7"], &[(5, 5)]);
        check(&mut tail, 5, 1, &[7], &[], &[(5, 5)]);
    }

    #[test]
    fn a_hole_is_given_up_by_the_first_good_poll_after_its_time() {
        let mut tail = begun(&[], 1);
        check(&mut tail, 1, 1, &[1, 3], &["e1", "e3"], &[(2, 2)]);

        check(&mut tail, 900, 1, &[], &[], &[(2, 2)]);
        // The database was away for an hour: asked once more, late.
        check(&mut tail, 4500, 1, &[2], &["e2"], &[]);
        check(&mut tail, 4501, 1, &[5], &["e5"], &[(4, 4)]);
        check(&mut tail, 5401, 1, &[], &[], &[]);
    }

    #[test]
    fn at_the_start_ids_below_the_first_are_asked_for_while_they_may_be_under_way() {
        let few = begun(&[7, 9], 1);
        let many = begun(&[101, 102, 104, 105], 1);

        assert_eq!(few.ask(), EventAsk::Since { after: 9, holes: vec![(1, 6), (8, 8)], limit: 10 });
        assert_eq!(many.ask(), EventAsk::Since { after: 105, holes: vec![(103, 103)], limit: 10 });
    }

    #[test]
    fn numbers_that_no_server_gives_are_no_holes() {
        let mut tail = begun(&[3, 6], 3);

        check(&mut tail, 1, 3, &[9, 15], &["e9", "e15"], &[(10, 14)]);
        // A second server of the cluster begins to write.
        check(&mut tail, 2, 3, &[16, 19], &["e16", "e19"], &[(10, 14), (17, 18)]);
    }

    #[test]
    fn an_answer_that_may_go_on_gives_up_no_hole() {
        let mut tail = begun(&[], 1);
        check(&mut tail, 0, 1, &[2], &["e2"], &[(1, 1)]);
        let full: Vec<i64> = (3..13).collect();

        assert!(tail.has_more(&events(&full)));
        tail.take(at(2000), 1, &events(&full));

        assert_eq!(tail.ask(), EventAsk::Since { after: 12, holes: vec![(1, 1)], limit: 10 });
        check(&mut tail, 2001, 1, &[], &[], &[]);
    }

    #[test]
    fn with_too_many_holes_the_oldest_are_left_to_a_reload() {
        let mut tail = begun(&[], 1);

        check(&mut tail, 0, 1, &[2, 4, 6], &["e2", "e4", "e6"], &[(1, 1), (3, 3), (5, 5)]);
        check(&mut tail, 10, 1, &[8, 10], &["e8", "e10"], &[(5, 5), (7, 7), (9, 9)]);

        assert!(!tail.is_unsure(at(899)));
        assert!(tail.is_unsure(at(900)));
        tail.reassure(at(901));
        assert!(!tail.is_unsure(at(902)));
    }

    #[test]
    fn a_clock_that_is_put_back_keeps_no_hole_open() {
        let mut tail = begun(&[], 1);
        check(&mut tail, 50_000, 1, &[2], &["e2"], &[(1, 1)]);

        check(&mut tail, 10, 1, &[], &[], &[(1, 1)]);
        check(&mut tail, 910, 1, &[], &[], &[]);
    }
}
