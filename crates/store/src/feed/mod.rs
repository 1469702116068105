//! What other servers changed.
//!
//! Servers that share a database tell each other by rows in the event tables which rows to read again.
//! [`Feed`] is the reader's half of that, and decides without doing: it says what to ask
//! ([`Feed::next`]), takes the answer ([`Feed::take`]), and keeps what is to be read ([`Feed::pending`])
//! until it was read ([`Feed::done`]). [`Store::follow`](crate::Store::follow) does it. Events are hints; the row is the truth, and a row that is gone was
//! deleted. Bundles have no events and are told apart by [`BundleStamp`]s.
//!
//! Invariants: one query per table and poll; a poll whose answer got lost loses nothing; what is held is
//! bounded, whatever the tables hold; how long a start takes does not depend on the number of events.
//!
//! On `SQLite` this process owns the file, so nobody else changes anything and there is nothing to poll.

mod read;
mod stamps;
mod tail;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use spiffe::{EntryId, SpiffeId, TrustDomain};

use crate::Event;

pub use read::{Federating, Fingerprint, Followed, Rows};
pub use stamps::BundleStamp;
pub use tail::EventAsk;

use stamps::Stamps;
use tail::Tail;

/// The bounds that a feed keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a transaction may take from the insertion of its event to its commit.
    pub event_timeout: Duration,
    /// How long events stay in the tables: after longer without a poll some are missed.
    pub events_kept: Duration,
    /// How many events are looked at when the feed begins.
    pub window: u32,
    /// How many events one answer has at most.
    pub rows: u32,
    /// How many holes in the ids of a table are remembered.
    pub holes: usize,
}

impl Limits {
    /// SPIRE's times, and bounds that nobody meets in practice.
    pub const DEFAULT: Self = Self {
        event_timeout: Duration::from_secs(15 * 60),
        events_kept: Duration::from_secs(12 * 3600),
        window: 1000,
        rows: 10_000,
        holes: 512,
    };
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask this, in one transaction.
    Poll(Ask),
    /// Changes may have been missed: read everything ([`Feed::reload`]).
    Reload,
}

/// One poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Of `registered_entries_events`.
    pub entries: EventAsk,
    /// Of `attested_node_entries_events`.
    pub agents: EventAsk,
}

/// What a poll found.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Events of entries, lowest ids first.
    pub entries: Vec<Event>,
    /// Events of agents, lowest ids first.
    pub agents: Vec<Event>,
    /// All bundles.
    pub bundles: Vec<BundleStamp>,
    /// The distance between two ids that the database gives: 1 but for clusters of `MySQL`.
    pub step: i64,
}

/// Rows that may be others than those in memory: read them again; gone means deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Entries.
    pub entries: BTreeSet<EntryId>,
    /// Agents.
    pub agents: BTreeSet<SpiffeId>,
    /// Bundles.
    pub bundles: BTreeSet<TrustDomain>,
}

impl Hints {
    /// Whether there is nothing to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.agents.is_empty() && self.bundles.is_empty()
    }

    /// Adds what `more` has.
    pub fn extend(&mut self, more: Self) {
        self.entries.extend(more.entries);
        self.agents.extend(more.agents);
        self.bundles.extend(more.bundles);
    }
}

/// What an answer came to, besides [`Feed::pending`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bundles that are gone, or were deleted and made anew. SPIRE deletes or changes the entries that
    /// federate with a bundle without an event: hint them.
    pub bundles_gone: Vec<TrustDomain>,
    /// There may be more: ask again at once.
    pub has_more: bool,
}

/// Follows what other servers change. Begins before everything is read, so that nothing falls between.
#[derive(Clone, Debug)]
pub struct Feed {
    limits: Limits,
    entries: Tail,
    agents: Tail,
    bundles: Stamps,
    pending: Hints,
    /// When the last answer was asked for.
    good: Option<SystemTime>,
}

impl Feed {
    /// A feed that has not begun: the first answer it takes is where it begins.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let tail = Tail::new(limits);
        let (bundles, pending) = (Stamps::default(), Hints::default());
        Self { limits, entries: tail.clone(), agents: tail, bundles, pending, good: None }
    }

    /// What to do at `now`.
    #[must_use]
    pub fn next(&self, now: SystemTime) -> Next {
        if self.is_too_late(now) || self.entries.is_unsure(now) || self.agents.is_unsure(now) {
            return Next::Reload;
        }
        Next::Poll(self.ask())
    }

    /// What to ask.
    #[must_use]
    pub fn ask(&self) -> Ask {
        Ask { entries: self.entries.ask(), agents: self.agents.ask() }
    }

    /// Everything is about to be read from `now` on. What is asked next must be asked and taken before;
    /// after so long a silence that events are gone that is where the feed begins anew.
    pub fn reload(&mut self, now: SystemTime) {
        if self.is_too_late(now) {
            *self = Self::new(self.limits);
        }
        self.entries.reassure(now);
        self.agents.reassure(now);
    }

    /// Takes the answer to what was asked at `now`.
    pub fn take(&mut self, now: SystemTime, answer: Answer) -> Taken {
        let has_more = self.entries.has_more(&answer.entries) || self.agents.has_more(&answer.agents);
        let entries = self.entries.take(now, answer.step, &answer.entries);
        self.pending.entries.extend(entries.into_iter().map(EntryId::new));
        let agents = self.agents.take(now, answer.step, &answer.agents);
        // An agent whose id cannot be read is in no snapshot either.
        self.pending.agents.extend(agents.into_iter().filter_map(|id| SpiffeId::parse(id).ok()));
        let different = self.bundles.take(now, answer.bundles);
        self.pending.bundles.extend(different.changed);
        self.pending.bundles.extend(different.gone.iter().cloned());
        self.good = Some(now);
        Taken { bundles_gone: different.gone, has_more }
    }

    /// Adds rows that may have changed for another reason than an event.
    pub fn hint(&mut self, now: SystemTime, hints: Hints) {
        for trust_domain in &hints.bundles {
            self.bundles.doubt(trust_domain, now);
        }
        self.pending.extend(hints);
    }

    /// What is to be read.
    #[must_use]
    pub const fn pending(&self) -> &Hints {
        &self.pending
    }

    /// These were read since they were hinted last.
    pub fn done(&mut self, read: &Hints) {
        self.pending.entries.retain(|id| !read.entries.contains(id));
        self.pending.agents.retain(|id| !read.agents.contains(id));
        self.pending.bundles.retain(|trust_domain| !read.bundles.contains(trust_domain));
    }

    /// The last events that were seen, of entries and of agents, if there was any of both.
    #[must_use]
    pub fn last(&self) -> Option<(i64, i64)> {
        Some((self.entries.last()?, self.agents.last()?))
    }

    /// How many ids of events are waited for that were passed over: of entries, of agents.
    #[must_use]
    pub fn missing(&self) -> (u64, u64) {
        (self.entries.missing(), self.agents.missing())
    }

    /// How many ranges of ids are waited for: of entries, of agents.
    #[must_use]
    pub fn holes(&self) -> (usize, usize) {
        (self.entries.holes(), self.agents.holes())
    }

    /// Whether events may have been pruned that were never seen. Those of transactions that take long are
    /// older than they look.
    fn is_too_late(&self, now: SystemTime) -> bool {
        let patience = self.limits.events_kept.saturating_sub(self.limits.event_timeout);
        self.good.is_some_and(|good| now.duration_since(good).is_ok_and(|silence| silence >= patience))
    }
}
