//! What happened in the last hour, second by second, for who sends SIGUSR1: it is written to the log.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Kind, Named};
use crate::BoxError;
use crate::clock::{Clock, SystemClock};
use crate::log::ASKED_FOR;

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    series: Mutex<Vec<Arc<Series>>>,
    seconds: Mutex<VecDeque<Second>>,
}

/// One series, and what it has been in this second.
#[derive(Debug)]
pub(super) struct Series {
    name: String,
    kind: Kind,
    current: Mutex<Option<Seen>>,
}

/// What was seen in one second.
#[derive(Debug)]
struct Second {
    at: SystemTime,
    seen: Vec<(Arc<Series>, Seen)>,
}

/// What one series was in one second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    count: u64,
    sum: f64,
    squares: f64,
    least: f64,
    most: f64,
    /// Of a gauge: its value.
    last: f64,
    at: SystemTime,
}

impl Memory {
    pub(super) fn series(&self, named: &Named) -> Arc<Series> {
        let mut name = named.parts.join(".").replace(' ', "_");
        for (_, value) in &named.labels {
            name.push('.');
            name.push_str(&value.replace([' ', ':'], "_"));
        }
        let series = Arc::new(Series { name, kind: named.kind, current: Mutex::default() });
        self.series.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&series));
        series
    }

    /// Keeps what was seen, second by second, and tells it at each SIGUSR1, until `stop` is cancelled.
    pub(super) async fn run(&self, stop: &CancellationToken) -> Result<(), BoxError> {
        let mut signals = signal(SignalKind::user_defined1())?;
        loop {
            let now = SystemClock.now();
            let into_second = now.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
            let rest = Duration::from_secs(1).saturating_sub(Duration::from_nanos(into_second.into()));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = signals.recv() => {
                    self.told().lines().for_each(|line| tracing::info!(target: ASKED_FOR, "{line}"));
                }
                () = SystemClock.sleep(rest) => {
                    self.turn(now - Duration::from_nanos(into_second.into()));
                }
            }
        }
    }

    /// Ends the second that began at `at`.
    fn turn(&self, at: SystemTime) {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen: Vec<_> = series
            .into_iter()
            .filter_map(|series| {
                let seen = series.current.lock().unwrap_or_else(PoisonError::into_inner).take()?;
                Some((series, seen))
            })
            .collect();
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.is_empty() {
            seconds.push_back(Second { at, seen });
        }
        while seconds.front().is_some_and(|first| at.duration_since(first.at).is_ok_and(|age| age >= KEPT)) {
            seconds.pop_front();
        }
    }

    /// All seconds but the current one, a line per series.
    fn told(&self) -> String {
        let seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for Second { at, seen } in &*seconds {
            let at = written(*at, SECONDS);
            for order in [Kind::Gauge, Kind::Counter, Kind::Sample, Kind::Timer] {
                for (series, seen) in seen.iter().filter(|(series, _)| series.kind == order) {
                    // Writing to a string cannot fail.
                    writeln!(text, "[{at}][{}] '{}': {}", letter(order), series.name, seen.told(order)).ok();
                }
            }
        }
        text
    }
}

impl Series {
    pub(super) fn set(&self, value: f64) {
        self.observe(value);
    }

    pub(super) fn observe(&self, value: f64) {
        let at = SystemClock.now();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = current.get_or_insert(Seen {
            count: 0,
            sum: 0.0,
            squares: 0.0,
            least: value,
            most: value,
            last: value,
            at,
        });
        seen.count += 1;
        seen.sum += value;
        seen.squares = value.mul_add(value, seen.squares);
        seen.least = seen.least.min(value);
        seen.most = seen.most.max(value);
        seen.last = value;
        seen.at = at;
    }
}

impl Seen {
    fn told(&self, kind: Kind) -> String {
        if kind == Kind::Gauge {
            return format!("{:.3}", self.last);
        }
        let (count, sum, at) = (self.count as f64, self.sum, written(self.at, NANOSECONDS));
        let apart = if self.count > 1 {
            (count.mul_add(self.squares, -(sum * sum)) / (count * (count - 1.0))).max(0.0).sqrt()
        } else {
            0.0
        };
        if apart == 0.0 {
            return format!("Count: {} Sum: {sum:.3} LastUpdated: {at}", self.count);
        }
        format!(
            "Count: {} Min: {:.3} Mean: {:.3} Max: {:.3} Stddev: {apart:.3} Sum: {sum:.3} LastUpdated: {at}",
            self.count,
            self.least,
            sum / count,
            self.most
        )
    }
}

const fn letter(kind: Kind) -> char {
    match kind {
        Kind::Gauge => 'G',
        Kind::Counter => 'C',
        Kind::Sample | Kind::Timer => 'S',
    }
}

/// A time as Go prints it.
fn written(at: SystemTime, format: &[BorrowedFormatItem<'_>]) -> String {
    OffsetDateTime::from(at).format(format).unwrap_or_default()
}

const SECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000 UTC");
const NANOSECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond] +0000 UTC");
const KEPT: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn series(memory: &Memory, kind: Kind, name: &str) -> Arc<Series> {
        let labels = vec![("status".to_owned(), "OK".to_owned())];
        memory.series(&Named { kind, parts: vec!["spire_server".into(), name.into()], labels })
    }

    fn without_update(text: &str) -> Vec<&str> {
        text.lines().map(|line| line.split(" LastUpdated").next().unwrap()).collect()
    }

    #[test]
    fn each_second_is_told_by_itself() {
        let memory = Memory::default();
        let counter = series(&memory, Kind::Counter, "calls");
        let timer = series(&memory, Kind::Timer, "elapsed");
        let gauge = series(&memory, Kind::Gauge, "size");
        counter.observe(1.0);
        counter.observe(1.0);
        timer.observe(1.0);
        timer.observe(3.0);
        gauge.set(7.0);
        memory.turn(UNIX_EPOCH);
        counter.observe(1.0);
        memory.turn(UNIX_EPOCH + Duration::from_secs(1));
        memory.turn(UNIX_EPOCH + Duration::from_secs(2));

        assert_eq!(
            without_update(&memory.told()),
            [
                "[1970-01-01 00:00:00 +0000 UTC][G] 'spire_server.size.OK': 7.000",
                "[1970-01-01 00:00:00 +0000 UTC][C] 'spire_server.calls.OK': Count: 2 Sum: 2.000",
                "[1970-01-01 00:00:00 +0000 UTC][S] 'spire_server.elapsed.OK': Count: 2 Min: 1.000 Mean: \
                 2.000 Max: 3.000 Stddev: 1.414 Sum: 4.000",
                "[1970-01-01 00:00:01 +0000 UTC][C] 'spire_server.calls.OK': Count: 1 Sum: 1.000",
            ]
        );
    }

    #[test]
    fn an_hour_is_kept() {
        let memory = Memory::default();
        let counter = series(&memory, Kind::Counter, "calls");
        for second in 0..4000 {
            counter.observe(1.0);
            memory.turn(UNIX_EPOCH + Duration::from_secs(second));
        }

        assert_eq!(memory.seconds.lock().unwrap().len(), 3600);
    }
}
