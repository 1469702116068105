//! Calls under load: as many as callers can make, or so many a second whatever becomes of them.
//!
//! At a set rate the call number n is due n / rate seconds after the start, and its time counts from
//! then, also if no caller was free: a target that stalls for a second at 1,000 calls a second has kept a
//! thousand of them waiting, not one (Tene's "coordinated omission"). A free caller is there before its
//! call is due and waits out the rest awake, since timers are too coarse for calls of microseconds; that
//! takes a core of the client, not of the target.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use futures::future::join_all;
use runtime::clock::{Clock, SystemClock};

use crate::histogram::Histogram;
use crate::judge::Judge;
use crate::process::Process;
use crate::report::{Latency, Phase, as_float};
use crate::{BenchError, Progress, Settings, Trouble};

/// How calls follow each other, and when they end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Calls a second; none: each caller goes on as soon as it is answered.
    pub(crate) rate: Option<f64>,
    /// How many calls are under way at a time, at most.
    pub(crate) callers: usize,
    pub(crate) until: Until,
}

/// When no further call is made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// After this time.
    Passed(Duration),
    /// After so many calls.
    Made(u64),
}

/// One call to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    /// Counts from 0.
    pub(crate) number: u64,
    /// Who makes it.
    pub(crate) caller: usize,
}

/// What is measured while calls are made.
#[derive(Clone)]
pub(crate) struct Stage<'a> {
    pub(crate) process: &'a Process,
    pub(crate) judge: &'a Judge<'a>,
    pub(crate) progress: &'a Progress,
}

#[derive(Default)]
struct Tally {
    histogram: Histogram,
    items: u64,
    failures: u64,
    first_failure: Option<String>,
    wrong: Option<String>,
}

impl Stage<'_> {
    /// Measures calls that come as `settings` say: at the set rate; or first as many as there can be, then
    /// half as many for the time they take. `call` says how many items it brought.
    ///
    /// # Errors
    /// An answer was wrong, or no call succeeded.
    pub(crate) async fn measure(
        &self,
        name: &str,
        unit: &'static str,
        settings: &Settings,
        call: impl AsyncFn(Ticket) -> Result<u64, Trouble>,
    ) -> Result<Vec<Phase>, BenchError> {
        let free = Load { rate: None, callers: settings.callers, until: Until::Passed(settings.duration) };
        let warm_up = Load { until: Until::Passed((settings.duration / 10).min(WARM_UP)), ..free };
        self.warm_up(warm_up, &call).await?;
        let mut phases = Vec::new();
        let rate = match settings.rate {
            Some(rate) => rate,
            None => {
                let phase = self.drive(name, unit, free, &call).await?;
                let calls_a_second = as_float(phase.calls) / phase.seconds.max(f64::EPSILON);
                phases.push(phase);
                calls_a_second / 2.0
            }
        };
        let open = Load { rate: Some(rate.max(1.0)), ..free };
        phases.push(self.drive(&format!("{name}, at a rate"), unit, open, &call).await?);
        Ok(phases)
    }

    /// Makes calls that do not count.
    async fn warm_up(
        &self,
        load: Load,
        call: &impl AsyncFn(Ticket) -> Result<u64, Trouble>,
    ) -> Result<(), BenchError> {
        let tally = RefCell::new(Tally::default());
        play(load, call, &tally).await;
        self.judge.take_checked();
        match tally.into_inner().wrong {
            Some(wrong) => Err(BenchError::Wrong(wrong)),
            None => Ok(()),
        }
    }

    /// Measures calls under one load.
    ///
    /// # Errors
    /// An answer was wrong, or no call succeeded.
    pub(crate) async fn drive(
        &self,
        name: &str,
        unit: &'static str,
        load: Load,
        call: &impl AsyncFn(Ticket) -> Result<u64, Trouble>,
    ) -> Result<Phase, BenchError> {
        let clock = SystemClock;
        let tally = RefCell::new(Tally::default());
        let (before, start) = (self.process.usage(), clock.instant());
        let telling = async {
            loop {
                clock.sleep(BETWEEN_LINES).await;
                let tally = tally.borrow();
                let passed = clock.instant().saturating_duration_since(start).as_secs_f64();
                let (items, failures) = (tally.items, tally.failures);
                let rate = as_float(items) / passed;
                (self.progress)(&format!(
                    "{name}: {passed:.0} s, {items} {unit} ({rate:.0}/s), {failures} failed"
                ));
            }
        };
        tokio::select! {
            () = play(load, call, &tally) => {}
            () = telling => {}
        }
        let seconds = clock.instant().saturating_duration_since(start).as_secs_f64();
        let cpu = self.process.usage().since(&before).as_secs_f64();

        let Tally { histogram, items, failures, first_failure, wrong } = tally.into_inner();
        if let Some(wrong) = wrong {
            return Err(BenchError::Wrong(wrong));
        }
        if let (0, Some(first)) = (histogram.count(), first_failure.clone()) {
            return Err(BenchError::NothingWorked { phase: name.to_owned(), calls: failures, first });
        }
        Ok(Phase {
            name: name.to_owned(),
            unit,
            asked_rate: load.rate,
            calls: histogram.count(),
            items,
            failures,
            first_failure,
            checked: self.judge.take_checked(),
            seconds,
            rate: as_float(items) / seconds.max(f64::EPSILON),
            cpu_us: (items > 0).then(|| cpu * 1e6 / as_float(items)),
            cores_busy: Some(cpu / seconds.max(f64::EPSILON)),
            budget_us: None,
            latency: Latency::of(&histogram),
        })
    }
}

/// Makes all calls of a load.
async fn play(load: Load, call: &impl AsyncFn(Ticket) -> Result<u64, Trouble>, tally: &RefCell<Tally>) {
    let clock = SystemClock;
    let (next, start) = (Cell::new(0_u64), clock.instant());
    let limit = match load.until {
        Until::Passed(duration) => start.checked_add(duration),
        Until::Made(_) => None,
    };
    let is_over = |at: Instant| limit.is_some_and(|limit| at >= limit);
    let (next, is_over) = (&next, &is_over);
    join_all((0..load.callers.max(1)).map(|caller| async move {
        loop {
            let number = next.get();
            if tally.borrow().wrong.is_some() || matches!(load.until, Until::Made(most) if number >= most) {
                return;
            }
            let due = load.rate.map(|rate| start + Duration::from_secs_f64(as_float(number) / rate));
            // One call is made however short the time.
            if number > 0 && is_over(due.unwrap_or_else(|| clock.instant())) {
                return;
            }
            next.set(number + 1);
            let begin = match due {
                Some(due) => {
                    wait_until(due).await;
                    due
                }
                None => clock.instant(),
            };
            let outcome = call(Ticket { number, caller }).await;
            let took = clock.instant().saturating_duration_since(begin);
            tally.borrow_mut().count(outcome, took);
        }
    }))
    .await;
}

/// Waits for an instant, the last stretch awake.
async fn wait_until(due: Instant) {
    let clock = SystemClock;
    loop {
        let left = due.saturating_duration_since(clock.instant());
        if left.is_zero() {
            return;
        }
        match left.checked_sub(TIMER_SLACK) {
            Some(asleep) if !asleep.is_zero() => clock.sleep(asleep).await,
            _ => tokio::task::yield_now().await,
        }
    }
}

impl Tally {
    fn count(&mut self, outcome: Result<u64, Trouble>, took: Duration) {
        match outcome {
            Ok(items) => {
                self.items += items;
                self.histogram.record(took);
            }
            Err(Trouble::Failed(why)) => {
                self.failures += 1;
                self.first_failure.get_or_insert(why);
            }
            Err(Trouble::Wrong(why)) => self.wrong = Some(why),
        }
    }
}

/// The longest time that is not measured at the start of each step.
const WARM_UP: Duration = Duration::from_secs(1);
const BETWEEN_LINES: Duration = Duration::from_secs(2);
/// Timers of the runtime tell milliseconds.
const TIMER_SLACK: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
    }

    #[test]
    fn a_call_that_could_not_be_made_in_time_counts_from_when_it_was_due() {
        let tally = RefCell::new(Tally::default());
        let load = Load { rate: Some(1000.0), callers: 1, until: Until::Made(50) };
        // The first call stalls the only caller: those behind it wait with it.
        let call = async |ticket: Ticket| {
            if ticket.number == 0 {
                SystemClock.sleep(Duration::from_millis(60)).await;
            }
            Ok(1)
        };

        block_on(play(load, &call, &tally));

        let tally = tally.into_inner();
        assert_eq!((tally.items, tally.histogram.count()), (50, 50));
        // The call number 25 was due after 25 ms and made after 60.
        assert!(
            tally.histogram.quantile(500) >= Duration::from_millis(30),
            "{:?}",
            tally.histogram.quantile(500)
        );
    }

    #[test]
    fn as_many_calls_as_asked_for_by_as_many_callers() {
        let tally = RefCell::new(Tally::default());
        let callers = RefCell::new(std::collections::BTreeSet::new());
        let call = async |ticket: Ticket| {
            callers.borrow_mut().insert(ticket.caller);
            tokio::task::yield_now().await;
            Ok(2)
        };

        block_on(play(Load { rate: None, callers: 3, until: Until::Made(10) }, &call, &tally));

        assert_eq!((tally.borrow().items, tally.borrow().histogram.count()), (20, 10));
        assert_eq!(callers.into_inner().len(), 3);
    }

    #[test]
    fn failures_are_counted_and_a_wrong_answer_is_the_end() {
        let tally = RefCell::new(Tally::default());
        let call = async |ticket: Ticket| match ticket.number {
            0..3 => Err(Trouble::Failed(format!("failure {}", ticket.number))),
            3 => Err(Trouble::Wrong("two and two is five".to_owned())),
            _ => Ok(1),
        };

        block_on(play(Load { rate: None, callers: 1, until: Until::Made(1000) }, &call, &tally));

        let tally = tally.into_inner();
        assert_eq!((tally.failures, tally.first_failure.as_deref()), (3, Some("failure 0")));
        assert_eq!((tally.items, tally.wrong.as_deref()), (0, Some("two and two is five")));
    }
}
