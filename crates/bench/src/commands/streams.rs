//! Many streams of workloads at one agent, over few connections or one each: what they take of its memory,
//! and how soon each of them has a new X.509-SVID. And what an X.509-SVID takes that nobody asks for.

use std::pin::Pin;
use std::time::{Duration, Instant};

use client::{Address, Dialer, WorkloadApi};
use futures::stream::{SelectAll, select_all};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use proto::spire::agent::debug::GetInfoRequest;
use proto::spire::agent::debug::debug_client::DebugClient;
use proto::spire::server::entry::BatchUpdateEntryRequest;
use proto::spire::types;
use runtime::clock::{Clock, SystemClock, within};

use super::workloads::{Resident, unanswered};
use super::{Bench, Found, one_by_one};
use crate::fleet::unable;
use crate::histogram::Histogram;
use crate::process::Process;
use crate::report::{Memory, Phase};
use crate::{BenchError, Settings, Trouble, calls, check_item};

/// The leaf that a stream tells, with the stream's number.
type Leaves = Pin<Box<dyn Stream<Item = (usize, Result<Vec<u8>, BenchError>)> + Send>>;

/// Streams that are open, each of which has told its first answer.
struct Streams<'a> {
    resident: &'a Resident,
    leaves: SelectAll<Leaves>,
    count: usize,
    /// What all of them have told.
    leaf: Vec<u8>,
}

/// When one rotation was told, to each stream.
struct Told {
    since_change: Histogram,
    since_first: Histogram,
}

/// Opens the streams and has what they tell change.
pub(super) async fn hold(
    bench: &Bench<'_>,
    resident: &Resident,
    agent: &Process,
    found: &mut Found,
) -> Result<(), BenchError> {
    let Settings { streams, connections, rotations, patience, .. } = bench.settings;
    let connections = connections.unwrap_or(*streams).min(*streams);
    bench.target.say(&format!("opening {streams} streams on {connections} connections"));
    let before = agent.memory();
    let mut open = Streams::open(bench, resident, *streams, connections).await?;
    let what = match connections == *streams {
        true => "open streams".to_owned(),
        false => format!("open streams on {connections} connections"),
    };
    found.memory.push(Memory::of(what, before, agent.memory(), open.count));

    let clock = SystemClock;
    let (usage, start) = (agent.usage(), clock.instant());
    let mut told = Told { since_change: Histogram::default(), since_first: Histogram::default() };
    for number in 1..=*rotations {
        bench.target.say(&format!("rotation {number} of {rotations}"));
        let rotated = within(&clock, *patience, open.rotate(bench, number, &mut told)).await;
        let overdue =
            || BenchError::Overdue(format!("a stream was not told of a rotation within {patience:?}"));
        rotated.ok_or_else(overdue)??;
    }
    let seconds = clock.instant().saturating_duration_since(start).as_secs_f64();
    let cpu = agent.usage().since(&usage).as_secs_f64();
    let streams = |phase: Phase| Phase { unit: "streams", ..phase };
    let name = "entry changed to X.509-SVID on each stream".to_owned();
    found.phases.push(streams(one_by_one(name, &told.since_change, seconds, cpu)));
    if told.since_first.count() > 0 {
        let name = "X.509-SVID on the first stream to each other".to_owned();
        found.phases.push(streams(one_by_one(name, &told.since_first, seconds, cpu)));
    }
    Ok(())
}

impl<'a> Streams<'a> {
    async fn open(
        bench: &Bench<'_>,
        resident: &'a Resident,
        count: usize,
        connections: usize,
    ) -> Result<Self, BenchError> {
        let apis: Vec<WorkloadApi> =
            (0..connections).map(|_| bench.target.workload()).collect::<Result<_, _>>()?;
        let id = &resident.id;
        let open = |(number, api): (usize, &WorkloadApi)| {
            let api = api.clone();
            async move {
                let opened = api.watch_x509_svids().await;
                let updates = opened.map_err(|error| unanswered("open a stream", &error))?;
                let id = id.clone();
                let mut leaves: Leaves = Box::pin(updates.map(move |update| {
                    let leaf =
                        update.map_err(|error| unanswered("read a stream", &error)).and_then(|update| {
                            let svid = update.svids.into_iter().find(|svid| svid.id == id);
                            let leaf = svid.and_then(|svid| svid.chain.into_iter().next());
                            let missing = || BenchError::Wrong(format!("a stream gave no SVID of {id}"));
                            leaf.map(|leaf| leaf.to_vec()).ok_or_else(missing)
                        });
                    (number, leaf)
                }));
                match leaves.next().await {
                    Some((_, first)) => first.map(|leaf| (leaf, leaves)),
                    None => Err(BenchError::Unreached("the agent ended a stream".to_owned())),
                }
            }
        };
        let places = apis.iter().cycle().take(count).enumerate();
        let opened: Vec<(Vec<u8>, Leaves)> =
            stream::iter(places).map(open).buffer_unordered(16).try_collect().await?;
        let leaf = opened.last().map(|(leaf, _)| leaf.clone()).unwrap_or_default();
        let leaves = opened.into_iter().map(|(_, leaves)| leaves);
        Ok(Self { resident, count, leaves: select_all(leaves), leaf })
    }

    /// Changes the entry, so that a new SVID has to be made, and waits until each stream has it.
    async fn rotate(&mut self, bench: &Bench<'_>, number: usize, told: &mut Told) -> Result<(), BenchError> {
        let clock = SystemClock;
        let changed_at = clock.instant();
        self.resident.change(bench, number).await?;
        let mut has_it = vec![false; self.count];
        let mut newest: Option<(Vec<u8>, Instant)> = None;
        let mut missing = self.count;
        while missing > 0 {
            let Some((stream, leaf)) = self.leaves.next().await else {
                return Err(BenchError::Unreached("all streams have ended".to_owned()));
            };
            let (leaf, now) = (leaf?, clock.instant());
            if leaf == self.leaf {
                // The entry is another, its SVID is not yet.
                continue;
            }
            let is_first = newest.is_none();
            let (wanted, first_at) = newest.get_or_insert_with(|| (leaf.clone(), now));
            if *wanted != leaf {
                return Err(BenchError::Wrong("two streams of one workload tell different SVIDs".to_owned()));
            }
            if let Some(had) = has_it.get_mut(stream).filter(|had| !**had) {
                *had = true;
                missing -= 1;
                told.since_change.record(now.saturating_duration_since(changed_at));
                if !is_first {
                    told.since_first.record(now.saturating_duration_since(*first_at));
                }
            }
        }
        self.leaf = newest.map(|(leaf, _)| leaf).unwrap_or_default();
        bench.judge.is_due();
        Ok(())
    }
}

impl Resident {
    /// Has another SVID made of the entry: one that holds for another time.
    async fn change(&self, bench: &Bench<'_>, number: usize) -> Result<(), BenchError> {
        let ttl = LIFETIME + i32::try_from(number).unwrap_or_default();
        let entry = types::Entry { id: self.entry.clone(), x509_svid_ttl: ttl, ..types::Entry::default() };
        let request = BatchUpdateEntryRequest {
            entries: vec![entry],
            input_mask: Some(types::EntryMask { x509_svid_ttl: true, ..types::EntryMask::default() }),
            output_mask: Some(types::EntryMask::default()),
        };
        let answer = bench.target.admin.entry().batch_update_entry(request).await;
        let results = answer.map_err(BenchError::call("change an entry"))?.into_inner().results;
        let changed = check_item(results.first().and_then(|result| result.status.as_ref()));
        changed.map_err(|trouble| unable("change an entry", trouble))
    }
}

/// What X.509-SVIDs take that are held ready and that no workload asks for.
pub(super) async fn cache(
    bench: &Bench<'_>,
    resident: &Resident,
    agent: &Process,
    found: &mut Found,
) -> Result<(), BenchError> {
    let Some(socket) = &bench.settings.target.agent_admin_socket else { return Ok(()) };
    let count = Settings::first(&bench.settings.entries);
    let dialer = Dialer::new(Address::unix(socket));
    let channel = dialer.connect().await.map_err(|error| BenchError::Unreached(runtime::chain(&error)))?;
    let mut debug = DebugClient::new(channel);
    let mut held = async || {
        let info =
            debug.get_info(GetInfoRequest {}).await.map_err(BenchError::call("ask what the agent holds"))?;
        Ok::<_, BenchError>(usize::try_from(info.into_inner().cached_x509_svids_count).unwrap_or_default())
    };
    let clock = SystemClock;
    let (held_before, before) = (held().await?, agent.memory());
    bench.target.say(&format!("creating {count} entries"));
    for start in (0..count).step_by(BATCH) {
        let numbers = start..(start + BATCH).min(count);
        let entry = |number| {
            let id = bench.target.id(&format!("/bench/{}/cached/{number}", bench.target.run))?;
            Ok(calls::entry(&id, &resident.parent, number))
        };
        let entries = numbers.map(entry).collect::<Result<_, BenchError>>()?;
        let created = calls::create(&bench.target.admin, entries).await;
        let created = created.map_err(|trouble: Trouble| unable("create entries", trouble))?;
        created.into_iter().for_each(|entry| bench.traces.entry(entry));
    }
    let all_held = async {
        // What the agent says of itself may be some seconds old.
        while held().await? < held_before + count {
            clock.sleep(Duration::from_millis(500)).await;
        }
        Ok::<_, BenchError>(())
    };
    let patience = bench.settings.patience;
    let overdue =
        || BenchError::Overdue(format!("the agent does not hold {count} X.509-SVIDs within {patience:?}"));
    within(&clock, patience, all_held).await.ok_or_else(overdue)??;
    found.memory.push(Memory::of(
        "cached X.509-SVIDs with their entries".to_owned(),
        before,
        agent.memory(),
        count,
    ));
    Ok(())
}

/// The lifetime of the first SVID, in seconds: that of each change is another.
const LIFETIME: i32 = 3600;
const BATCH: usize = 1000;
