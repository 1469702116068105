//! All agents at once: the server was restarted, and everybody wants back in.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures::future::join_all;
use runtime::clock::{Clock, SystemClock};

use super::{Bench, Found};
use crate::calls;
use crate::fleet::{Fleet, SimulatedAgent};
use crate::histogram::Histogram;
use crate::process::Process;
use crate::report::{Latency, Phase, as_float};
use crate::{BenchError, Settings, Trouble};

/// Between two attempts of an agent.
const RETRY: Duration = Duration::from_millis(100);

/// Restarts the server, or waits until somebody else does, and measures until every agent has synced on
/// a connection of its own again.
pub(super) async fn storm(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let Settings { entries, agents, patience, restart, .. } = bench.settings;
    let clock = SystemClock;
    let mut fleet = Fleet::gather(bench.target, bench.traces, "storm", *agents).await?;
    fleet.furnish(bench.target, bench.traces, Settings::first(entries), *patience).await?;
    fleet.connect().await?;

    let old = &bench.target.server;
    let gone = await_restart(bench, old, restart.as_deref(), *patience).await?;
    let deadline = gone + *patience;
    let first_answer = Cell::new(None);
    let back = join_all(fleet.agents.iter().map(|agent| {
        let first_answer = &first_answer;
        async move { return_to(bench, agent, first_answer, deadline).await }
    }))
    .await;

    let first = first_answer.get().ok_or_else(|| {
        BenchError::Overdue(format!("the server did not answer an agent within {patience:?} of its end"))
    })?;
    let mut histogram = Histogram::default();
    let mut failures = 0;
    for back in back {
        match back {
            Ok(Some(at)) => histogram.record(at.saturating_duration_since(first)),
            Ok(None) => failures += 1,
            Err(Trouble::Failed(why) | Trouble::Wrong(why)) => return Err(BenchError::Wrong(why)),
        }
    }
    let now = clock.instant();
    let new = bench.target.server_now().await;
    let cpu = new.as_ref().map(|new| new.usage().total().as_secs_f64());
    let seconds = histogram.most().as_secs_f64();
    let down = first.saturating_duration_since(gone);
    bench.target.say(&format!(
        "the first agent was back {down:?} after the server ended, the last {:?} after the first",
        histogram.most()
    ));
    let mut outage = Histogram::default();
    outage.record(down);
    let phase = |name: &str, unit, calls, failures, cpu_us, latency| Phase {
        name: name.to_owned(),
        unit,
        asked_rate: None,
        calls,
        items: calls,
        failures,
        first_failure: None,
        checked: calls,
        seconds: now.saturating_duration_since(gone).as_secs_f64(),
        rate: as_float(calls) / seconds.max(0.001),
        cpu_us,
        cores_busy: None,
        budget_us: None,
        latency,
    };
    let count = histogram.count();
    // The start of the server is in it.
    let cpu_us = cpu.filter(|_| count > 0).map(|cpu| cpu * 1e6 / as_float(count));
    Ok(Found {
        phases: vec![
            phase("end of the server to first answer", "restarts", 1, 0, None, Latency::of(&outage)),
            phase("first answer to agent synced", "agents", count, failures, cpu_us, Latency::of(&histogram)),
        ],
        ..Found::default()
    })
}

/// Waits for the end of the old process. The command must bring up the new one.
async fn await_restart(
    bench: &Bench<'_>,
    old: &Process,
    restart: Option<&str>,
    patience: Duration,
) -> Result<Instant, BenchError> {
    let clock = SystemClock;
    match restart {
        Some(command) => {
            bench.target.say("restarting the server");
            let mut shell = tokio::process::Command::new("sh");
            // It may go on for as long as the new server runs.
            let started = shell.args(["-c", command]).stdin(std::process::Stdio::null()).spawn();
            started.map_err(|error| BenchError::Setting(format!("cannot run {command:?}: {error}")))?;
        }
        None => bench.target.say("restart the server now"),
    }
    let start = clock.instant();
    while old.is_running() {
        if clock.instant().saturating_duration_since(start) > patience {
            return Err(BenchError::Overdue(format!("the server was not restarted within {patience:?}")));
        }
        clock.sleep(Duration::from_millis(1)).await;
    }
    Ok(clock.instant())
}

/// An agent's way back: when it had synced, or nothing if it had not by the deadline.
async fn return_to(
    bench: &Bench<'_>,
    agent: &SimulatedAgent,
    first_answer: &Cell<Option<Instant>>,
    deadline: Instant,
) -> Result<Option<Instant>, Trouble> {
    let clock = SystemClock;
    loop {
        let attempt = async { calls::poll(&agent.reconnect(bench.target).await?, &agent.known).await };
        match attempt.await {
            Ok(()) => {
                let now = clock.instant();
                if first_answer.get().is_none() {
                    first_answer.set(Some(now));
                }
                return Ok(Some(now));
            }
            Err(Trouble::Wrong(why)) => return Err(Trouble::Wrong(why)),
            Err(Trouble::Failed(_)) if clock.instant() > deadline => return Ok(None),
            Err(Trouble::Failed(_)) => clock.sleep(RETRY).await,
        }
    }
}
