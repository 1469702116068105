//! Everything at once, for long: agents sign and sync while administrators write.

use std::cell::Cell;

use futures::future::try_join;
use proto::spire::server::entry::BatchDeleteEntryRequest;

use super::credentials::{Items, new_jwt, new_x509};
use super::{Bench, Found};
use crate::calls;
use crate::fleet::{Fleet, Request};
use crate::judge::Judge;
use crate::load::{Load, Stage, Ticket, Until};
use crate::report::{Memory, Phase, as_float};
use crate::{BenchError, Settings, Trouble, check_item};

/// X.509-SVIDs of one call.
const BATCH: usize = 10;
const KEYS: usize = 200;
/// Of a hundred calls so many are of each kind: signatures, tokens, polls, writes.
const SHARES: [f64; 4] = [0.4, 0.2, 0.3, 0.1];

/// A mixed load. Every kind of call is measured for itself; the processor time is that of all.
pub(super) async fn soak(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let Settings { entries, agents, duration, callers, rate, patience, check_every, .. } = bench.settings;
    let mut fleet = Fleet::gather(bench.target, bench.traces, "soak", *agents).await?;
    let furnished = fleet.furnish(bench.target, bench.traces, Settings::first(entries), *patience).await?;
    fleet.connect().await?;
    let requests = Request::make(KEYS, None)?;
    let judge = || Judge::new(bench.target, *check_every);
    let [signing, tokens, polling, writing] = [judge()?, judge()?, judge()?, judge()?];
    let callers = callers.div_ceil(SHARES.len());
    let load = |share: f64| Load {
        rate: rate.map(|rate| (rate * share).max(0.1)),
        callers,
        until: Until::Passed(*duration),
    };
    let stage = |judge| Stage { judge, ..bench.stage() };
    let [signs, asks, polls, writes] = SHARES;

    let sign = async |ticket: Ticket| {
        let items = Items { entries: &furnished, requests: &requests, batch: BATCH, number: ticket.number };
        new_x509(&fleet.turn(ticket.number)?.clients, &signing, items).await
    };
    let ask = async |ticket: Ticket| {
        new_jwt(&fleet.turn(ticket.number)?.clients, &tokens, &furnished, ticket.number).await
    };
    let poll = async |ticket: Ticket| {
        polling.is_due();
        let agent = fleet.turn(ticket.number)?;
        calls::poll(&agent.clients, &agent.known).await?;
        Ok(1)
    };
    let serial = Cell::new(0_usize);
    let write = async |_: Ticket| {
        writing.is_due();
        let number = serial.get();
        serial.set(number + 1);
        come_and_go(bench, number).await
    };

    let before = bench.target.server.memory();
    let used = bench.target.server.usage();
    let ((mut first, mut second), (mut third, mut fourth)) = try_join(
        try_join(
            stage(&signing).drive("X.509-SVIDs, 10 a call", "SVIDs", load(signs), &sign),
            stage(&tokens).drive("JWT-SVIDs", "SVIDs", load(asks), &ask),
        ),
        try_join(
            stage(&polling).drive("polls of agents", "polls", load(polls), &poll),
            stage(&writing).drive("entries created and deleted", "entries", load(writes), &write),
        ),
    )
    .await?;
    let cpu = bench.target.server.usage().since(&used).as_secs_f64();
    for phase in [&mut first, &mut second, &mut third, &mut fourth] {
        // Whose the time was cannot be told.
        phase.cpu_us = None;
        phase.cores_busy = None;
    }
    let mut phases = vec![first, second, third, fourth];
    phases.push(total(&phases, cpu));
    let after = bench.target.server.memory();
    let calls = phases.last().map_or(0, |phase| phase.calls);
    let memory = Memory::of("calls".to_owned(), before, after, usize::try_from(calls).unwrap_or_default());
    Ok(Found { phases, memory: vec![memory] })
}

/// An entry of nobody that is there for a moment.
async fn come_and_go(bench: &Bench<'_>, number: usize) -> Result<u64, Trouble> {
    let id = |path: &str| bench.target.id(path).map_err(|error| Trouble::Failed(error.to_string()));
    let parent = id(&format!("/bench/{}/nobody", bench.target.run))?;
    let entry = calls::entry(&id(&format!("/bench/{}/passing/{number}", bench.target.run))?, &parent, number);
    let ids = calls::create(&bench.target.admin, vec![entry]).await?;
    ids.iter().for_each(|id| bench.traces.entry(id.clone()));
    let request = BatchDeleteEntryRequest { ids: ids.clone() };
    let results = bench.target.admin.entry().batch_delete_entry(request).await?.into_inner().results;
    for result in results {
        check_item(result.status.as_ref())?;
    }
    ids.iter().for_each(|id| bench.traces.entry_is_gone(id));
    Ok(1)
}

/// All kinds together.
fn total(phases: &[Phase], cpu: f64) -> Phase {
    let sum = |of: fn(&Phase) -> u64| phases.iter().map(of).sum::<u64>();
    let seconds = phases.iter().map(|phase| phase.seconds).fold(0.0, f64::max);
    let calls = sum(|phase| phase.calls);
    Phase {
        name: "all of it".to_owned(),
        unit: "calls",
        asked_rate: None,
        calls,
        items: calls,
        failures: sum(|phase| phase.failures),
        first_failure: None,
        checked: sum(|phase| phase.checked),
        seconds,
        rate: as_float(calls) / seconds.max(f64::EPSILON),
        cpu_us: (calls > 0).then(|| cpu * 1e6 / as_float(calls)),
        cores_busy: Some(cpu / seconds.max(f64::EPSILON)),
        budget_us: None,
        latency: None,
    }
}
