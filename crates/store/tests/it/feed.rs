//! The feed beside the truth: histories of transactions that take ids in one order and commit in
//! another, or not at all, while polls succeed, fail and stay away. After every good poll what the feed
//! made of the hints must be what is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use finial_store::Event;
use finial_store::feed::{Answer, Ask, BundleStamp, EventAsk, Feed, Hints, Limits, Next};
use proptest::collection::vec;
use proptest::prelude::*;
use spiffe::{EntryId, TrustDomain};

/// Small bounds, so that histories meet them.
const LIMITS: Limits = Limits { window: 6, rows: 5, holes: 6, ..Limits::DEFAULT };
const KEPT: Duration = Limits::DEFAULT.events_kept;
const TIMEOUT: Duration = Limits::DEFAULT.event_timeout;

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// A transaction changes these entries.
    Begin(Vec<u8>),
    /// One of those under way, by its place, ends.
    Commit(usize),
    RollBack(usize),
    /// Somebody writes a bundle, or deletes it.
    SetBundle(u8),
    DeleteBundle(u8),
    /// The sequence of ids is set forward.
    Skip(i64),
    Pass(u64),
    Prune,
    /// A poll: good, lost before the answer, or lost before the rows were read.
    Poll(Fate),
    /// The server is started anew.
    Restart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Good,
    NoAnswer,
    NoRows,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => vec(0_u8..8, 1..3).prop_map(Step::Begin),
        6 => (0_usize..8).prop_map(Step::Commit),
        1 => (0_usize..8).prop_map(Step::RollBack),
        1 => (0_u8..3).prop_map(Step::SetBundle),
        1 => (0_u8..3).prop_map(Step::DeleteBundle),
        1 => prop_oneof![Just(1_i64), Just(1_000_000)].prop_map(Step::Skip),
        2 => prop_oneof![4 => 0_u64..10, 2 => 60_u64..400, 1 => 800_u64..2000, 1 => Just(13 * 3600)]
            .prop_map(Step::Pass),
        1 => Just(Step::Prune),
        6 => prop_oneof![6 => Just(Fate::Good), 1 => Just(Fate::NoAnswer), 1 => Just(Fate::NoRows)]
            .prop_map(Step::Poll),
        1 => Just(Step::Restart),
    ];
    vec(step, 1..60)
}

/// A transaction under way: its events, and when it began.
struct Open {
    began: SystemTime,
    events: Vec<(i64, u8)>,
}

/// The database.
struct Database {
    now: SystemTime,
    increment: i64,
    next_id: i64,
    open: Vec<Open>,
    events: BTreeMap<i64, (u8, SystemTime)>,
    /// How often an entry was changed.
    rows: BTreeMap<u8, u64>,
    /// Row, stamp and contents of each bundle.
    bundles: BTreeMap<u8, (i64, u64, u64)>,
    writes: u64,
}

/// A server that follows it.
struct Server {
    feed: Feed,
    rows: BTreeMap<u8, u64>,
    bundles: BTreeMap<u8, (i64, u64)>,
    /// Ids that are not waited for any more.
    lost: BTreeSet<i64>,
    /// Entries that such an event was about: right again at the next event or reload.
    excused: BTreeSet<u8>,
    /// Ids that this feed told of.
    told: BTreeSet<i64>,
}

impl Database {
    fn new(increment: i64) -> Self {
        Self {
            now: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            increment,
            next_id: increment,
            open: Vec::new(),
            events: BTreeMap::new(),
            rows: BTreeMap::new(),
            bundles: BTreeMap::new(),
            writes: 0,
        }
    }

    /// The ids that were taken and not committed.
    fn under_way(&self) -> impl Iterator<Item = i64> {
        self.open.iter().flat_map(|open| &open.events).map(|(id, _)| *id)
    }

    fn seconds(&self) -> u64 {
        self.now.duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    fn begin(&mut self, entries: &[u8]) {
        let mut events = Vec::new();
        for entry in entries {
            events.push((self.next_id, *entry));
            self.next_id += self.increment;
        }
        self.open.push(Open { began: self.now, events });
    }

    /// Commits a transaction. Says which of its events came when nobody waited any more.
    fn commit(&mut self, place: usize, lost: &BTreeSet<i64>) -> Vec<u8> {
        let Some(open) = take(&mut self.open, place) else { return Vec::new() };
        let is_late = self.now.duration_since(open.began).unwrap() >= TIMEOUT;
        for (id, entry) in &open.events {
            self.events.insert(*id, (*entry, open.began));
            *self.rows.entry(*entry).or_default() += 1;
        }
        let missed = open.events.iter().filter(|(id, _)| is_late || lost.contains(id));
        missed.map(|(_, entry)| *entry).collect()
    }

    fn set_bundle(&mut self, bundle: u8) {
        self.writes += 1;
        let (seconds, writes) = (self.seconds(), self.writes);
        let row = self.bundles.get(&bundle).map_or_else(|| i64::try_from(writes).unwrap(), |held| held.0);
        self.bundles.insert(bundle, (row, seconds, writes));
    }

    fn prune(&mut self) {
        let oldest = self.now - KEPT;
        self.events.retain(|_, (_, at)| *at > oldest);
    }

    fn select(&self, ask: &EventAsk) -> Vec<Event> {
        let event =
            |(id, (entry, _)): (&i64, &(u8, SystemTime))| Event { id: *id, subject: entry.to_string() };
        let limit = ask.limit() as usize;
        match ask {
            EventAsk::Latest(_) => {
                let mut rows: Vec<Event> = self.events.iter().rev().take(limit).map(event).collect();
                rows.reverse();
                rows
            }
            EventAsk::Since { after, holes, .. } => {
                let is_asked =
                    |id: &i64| id > after || holes.iter().any(|(first, last)| (first..=last).contains(&id));
                self.events.iter().filter(|(id, _)| is_asked(id)).take(limit).map(event).collect()
            }
        }
    }

    fn answer(&self, ask: &Ask) -> Answer {
        let stamp = |(bundle, (row_id, seconds, _)): (&u8, &(i64, u64, u64))| BundleStamp {
            trust_domain: trust_domain(*bundle),
            row_id: *row_id,
            updated_at: seconds.to_string(),
            length: 100,
        };
        Answer {
            entries: self.select(&ask.entries),
            agents: Vec::new(),
            bundles: self.bundles.iter().map(stamp).collect(),
            step: self.increment,
        }
    }
}

impl Server {
    fn start(database: &Database) -> Self {
        let mut server = Self {
            feed: Feed::new(LIMITS),
            rows: BTreeMap::new(),
            bundles: BTreeMap::new(),
            lost: BTreeSet::new(),
            excused: BTreeSet::new(),
            told: BTreeSet::new(),
        };
        server.load(database);
        server
    }

    /// Reads everything. If the feed begins, transactions under way are waited for that began no further
    /// back than it looks.
    fn load(&mut self, database: &Database) {
        self.feed.reload(database.now);
        let ask = self.feed.ask();
        let answer = database.answer(&ask);
        if matches!(ask.entries, EventAsk::Latest(_)) {
            let is_all = answer.entries.len() < LIMITS.window as usize;
            let floor = answer.entries.first().map_or(0, |event| if is_all { 0 } else { event.id });
            self.lost = database.under_way().filter(|id| *id < floor).collect();
            self.told.clear();
        }
        self.told.extend(answer.entries.iter().map(|event| event.id));
        self.feed.take(database.now, answer);
        self.excuse_forgotten(database);
        self.excused.clear();
        self.rows.clone_from(&database.rows);
        self.bundles = database.bundles.iter().map(|(id, held)| (*id, (held.0, held.2))).collect();
    }

    /// Where holes may have been given up for want of room, a reload that comes later puts things right.
    fn excuse_forgotten(&mut self, database: &Database) {
        if self.feed.holes().0 >= LIMITS.holes {
            self.lost.extend(database.under_way());
            let untold = database.events.iter().filter(|(id, _)| !self.told.contains(id));
            self.excused.extend(untold.map(|(_, (entry, _))| *entry));
        }
    }

    /// Polls as a server does. Afterwards, if nothing went wrong, it knows what is committed.
    fn poll(&mut self, database: &Database, fate: Fate) {
        loop {
            let ask = match self.feed.next(database.now) {
                Next::Reload => return self.load(database),
                Next::Poll(ask) => ask,
            };
            if fate == Fate::NoAnswer {
                return;
            }
            let answer = database.answer(&ask);
            for event in &answer.entries {
                assert!(self.told.insert(event.id), "event {} was asked for again", event.id);
            }
            self.excuse_forgotten(database);
            let taken = self.feed.take(database.now, answer);
            self.excuse_forgotten(database);
            assert!(self.feed.holes().0 <= LIMITS.holes);
            for gone in taken.bundles_gone {
                // Whoever federated with it would be hinted here; that is another's test.
                assert!(self.feed.pending().bundles.contains(&gone));
            }
            if fate == Fate::NoRows {
                return;
            }
            self.read(database);
            if !taken.has_more {
                break;
            }
        }
        for (entry, version) in &database.rows {
            let is_right = self.rows.get(entry) == Some(version);
            assert!(is_right || self.excused.contains(entry), "entry {entry} is stale");
        }
        let bundles: BTreeMap<u8, (i64, u64)> =
            database.bundles.iter().map(|(id, held)| (*id, (held.0, held.2))).collect();
        assert_eq!(self.bundles, bundles);
    }

    fn read(&mut self, database: &Database) {
        let hints: Hints = self.feed.pending().clone();
        for id in &hints.entries {
            let entry: u8 = id.as_str().parse().unwrap();
            self.rows.insert(entry, database.rows[&entry]);
            self.excused.remove(&entry);
        }
        for bundle in 0..3 {
            if hints.bundles.contains(&trust_domain(bundle)) {
                match database.bundles.get(&bundle) {
                    Some(held) => _ = self.bundles.insert(bundle, (held.0, held.2)),
                    None => _ = self.bundles.remove(&bundle),
                }
            }
        }
        self.feed.done(&hints);
    }
}

fn take(open: &mut Vec<Open>, place: usize) -> Option<Open> {
    (!open.is_empty()).then(|| open.remove(place % open.len()))
}

fn trust_domain(bundle: u8) -> TrustDomain {
    static NAMES: LazyLock<[TrustDomain; 3]> =
        LazyLock::new(|| ["b0.test", "b1.test", "b2.test"].map(|name| TrustDomain::parse(name).unwrap()));
    NAMES[usize::from(bundle)].clone()
}

fn play(increment: i64, steps: &[Step]) {
    let mut database = Database::new(increment);
    let mut server = Server::start(&database);
    for step in steps {
        match step {
            Step::Begin(entries) => database.begin(entries),
            Step::Commit(place) => {
                server.excused.extend(database.commit(*place, &server.lost));
            }
            Step::RollBack(place) => drop(take(&mut database.open, *place)),
            Step::SetBundle(bundle) => database.set_bundle(*bundle),
            Step::DeleteBundle(bundle) => _ = database.bundles.remove(bundle),
            Step::Skip(ids) => database.next_id += ids * database.increment,
            Step::Pass(seconds) => database.now += Duration::from_secs(*seconds),
            Step::Prune => database.prune(),
            Step::Poll(fate) => server.poll(&database, *fate),
            Step::Restart => server = Server::start(&database),
        }
    }
    // Whatever happened: with everybody done, a reload puts everything right.
    while !database.open.is_empty() {
        server.excused.extend(database.commit(0, &server.lost));
    }
    server.poll(&database, Fate::Good);
    server.load(&database);
    server.poll(&database, Fate::Good);
    assert_eq!(server.rows, database.rows);
}

fn histories() -> u32 {
    // `cargo xtask soak` asks for more.
    std::env::var("FINIAL_FEED_HISTORIES").map_or(1000, |number| number.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: histories(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_committed_is_known_after_the_next_poll(
        increment in prop_oneof![3 => Just(1_i64), 1 => Just(3_i64)],
        steps in steps(),
    ) {
        play(increment, &steps);
    }
}

#[test]
fn a_start_asks_the_same_however_many_events_there_are() {
    let feed = Feed::new(Limits::DEFAULT);

    let Next::Poll(ask) = feed.next(SystemTime::UNIX_EPOCH) else { panic!("a new feed polls") };

    assert_eq!((&ask.entries, &ask.agents), (&EventAsk::Latest(1000), &EventAsk::Latest(1000)));
}

#[test]
fn a_feed_that_was_silent_for_as_long_as_events_are_kept_reads_everything() {
    let mut database = Database::new(1);
    let mut server = Server::start(&database);
    database.now += KEPT - TIMEOUT - Duration::from_secs(1);
    assert!(matches!(server.feed.next(database.now), Next::Poll(_)));
    server.poll(&database, Fate::Good);

    database.begin(&[1]);
    database.commit(0, &BTreeSet::new());
    database.now += KEPT + Duration::from_secs(1);
    database.prune();

    assert_eq!(server.feed.next(database.now), Next::Reload);
    server.poll(&database, Fate::Good);
    assert_eq!(server.rows, BTreeMap::from([(1, 1)]));
}

#[test]
fn a_hint_stays_until_its_row_was_read() {
    let mut feed = Feed::new(Limits::DEFAULT);
    let now = SystemTime::UNIX_EPOCH;
    feed.take(now, Answer { step: 1, ..Answer::default() });
    let event = Event { id: 1, subject: "a".to_owned() };
    feed.take(now, Answer { entries: vec![event], step: 1, ..Answer::default() });

    let hints = Hints { entries: BTreeSet::from([EntryId::new("a")]), ..Hints::default() };

    assert_eq!(*feed.pending(), hints);
    feed.take(now, Answer { step: 1, ..Answer::default() });
    assert_eq!(*feed.pending(), hints);
    feed.done(&hints);
    assert!(feed.pending().is_empty());
}
