//! What agents ask of a server: to join, what they are authorised for, and the same again and again.

use spiffe::SpiffeId;

use super::{Bench, Found};
use crate::calls::{self, Known};
use crate::fleet::{Fleet, Request, attest as attest_once, id_of, join_tokens};
use crate::load::{Load, Ticket, Until};
use crate::report::{Memory, as_float};
use crate::{BenchError, Settings, Trouble};

/// Agents that join by token, each on a connection and from an address of its own.
pub(super) async fn attest(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let Settings { count, callers, rate, .. } = bench.settings;
    let tokens = join_tokens(bench.target, *count, None).await?;
    let requests = Request::make(*count, None)?;
    let first = bench.target.numbers(*count);
    let call = async |ticket: Ticket| {
        let index = usize::try_from(ticket.number).unwrap_or(usize::MAX);
        let pair = tokens.get(index).zip(requests.get(index));
        let (token, request) = pair.ok_or_else(|| Trouble::Failed("there are no more tokens".to_owned()))?;
        let svid = attest_once(bench.target, first + index, token, request).await?;
        let id = id_of(&svid)?;
        bench.traces.agent(id.clone());
        check_agent(bench, &id, token)?;
        if bench.judge.is_due() {
            bench.judge.x509(&svid, &id, request.key.public()).await?;
        }
        Ok(1)
    };
    let made = u64::try_from(*count).unwrap_or(u64::MAX);
    let load = Load { rate: *rate, callers: *callers, until: Until::Made(made) };
    let phase = bench.stage().drive("attestations by join token", "agents", load, &call).await?;
    Ok(Found { phases: vec![phase], ..Found::default() })
}

/// Whether an agent was given the id that its token stands for.
fn check_agent(bench: &Bench<'_>, id: &SpiffeId, token: &str) -> Result<(), Trouble> {
    let expected = format!("{}/spire/agent/join_token/{token}", bench.target.trust_domain.id());
    if id.as_str() == expected {
        return Ok(());
    }
    // The token itself is not told.
    Err(Trouble::Wrong("an agent was given another id than that of its token".to_owned()))
}

/// Agents that sync: at first everything, then nothing, at each number of authorised entries.
pub(super) async fn sync(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let Settings { entries, agents, count, callers, patience, .. } = bench.settings;
    let mut found = Found::default();
    for &size in entries {
        let mut fleet = Fleet::gather(bench.target, bench.traces, &format!("sync-{size}"), *agents).await?;
        fleet.furnish(bench.target, bench.traces, size, *patience).await?;
        fleet.connect().await?;
        let (fleet, nothing) = (&fleet, Known::default());

        let whole = async |ticket: Ticket| {
            let agent = fleet.turn(ticket.number)?;
            bench.judge.is_due();
            expect(agent.known.count, calls::sync(&agent.clients, &nothing).await?.sent)
        };
        let made = u64::try_from(*count).unwrap_or(u64::MAX);
        let load = Load { rate: None, callers: *callers, until: Until::Made(made) };
        let name = format!("first sync of {size} entries");
        found.phases.push(bench.stage().drive(&name, "syncs", load, &whole).await?);

        let unchanged = async |ticket: Ticket| {
            let agent = fleet.turn(ticket.number)?;
            let synced = calls::sync(&agent.clients, &agent.known).await?;
            bench.judge.is_due();
            expect(if agent.known.fits_a_page() { agent.known.count } else { 0 }, synced.sent)?;
            expect(agent.known.count, synced.known.count)
        };
        let name = format!("unchanged sync of {size} entries");
        found.phases.append(&mut bench.stage().measure(&name, "syncs", bench.settings, unchanged).await?);
    }
    Ok(found)
}

fn expect(wanted: usize, found: usize) -> Result<u64, Trouble> {
    if wanted == found {
        return Ok(1);
    }
    Err(Trouble::Wrong(format!("a sync brought {found} entries instead of {wanted}")))
}

/// Many agents with nothing to do: what their polls cost, and what their connections take of memory.
pub(super) async fn idle(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let Settings { entries, agents, interval, duration, callers, rate, patience, .. } = bench.settings;
    let mut fleet = Fleet::gather(bench.target, bench.traces, "idle", *agents).await?;
    fleet.furnish(bench.target, bench.traces, Settings::first(entries), *patience).await?;
    let before = bench.target.server.memory();
    fleet.connect().await?;
    let after = bench.target.server.memory();
    let memory = Memory::of("connected agents".to_owned(), before, after, *agents);

    let fleet = &fleet;
    let poll = async |ticket: Ticket| {
        bench.judge.is_due();
        let agent = fleet.turn(ticket.number)?;
        calls::poll(&agent.clients, &agent.known).await?;
        Ok(1)
    };
    let agents = as_float(u64::try_from(*agents).unwrap_or_default());
    let rate = rate.unwrap_or(agents / interval.as_secs_f64().max(0.001));
    let load = Load { rate: Some(rate), callers: *callers, until: Until::Passed(*duration) };
    let phase = bench.stage().drive("polls of idle agents", "polls", load, &poll).await?;
    Ok(Found { phases: vec![phase], memory: vec![memory] })
}
