//! Metrics, as SPIRE gives them: keys of several parts with labels, sent to any number of sinks.
//!
//! [`Metrics`] is resolved to a handle once ([`Counter`], [`Gauge`], [`Sample`], [`Call`]), where the
//! emitting part is made; names are put together then, and not at each emission. A handle that no sink
//! wants does nothing: it reads no clock and allocates nothing. Names, labels and their order are those
//! that `go-metrics` makes of SPIRE's keys, since dashboards and alerts know them by these.
//!
//! Labels must be bounded: a status, a kind, a trust domain. Neither a SPIFFE ID nor anything that a
//! client sends stands in one. The number of series is capped all the same.

mod calls;
mod float;
mod lines;
mod m3;
mod memory;
mod names;
mod process;
mod prometheus;
mod summary;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::BoxError;
use crate::clock::{Clock, SystemClock};
use crate::pages::Page;

pub use tonic::Code;

pub use calls::{Call, InFlight, Running, observed, rpc_key};

use lines::Lines;
use m3::M3;
use memory::Memory;
use names::Filter;
use prometheus::Prometheus;

/// Where metrics go and what they are called.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The first part of each key, such as `spire_server`.
    pub prefix: String,
    /// The name of the program where a sink asks for one, whatever the prefix.
    pub service: &'static str,
    /// The value of the label `trust_domain`, if there is to be one.
    pub trust_domain: Option<String>,
    /// Whether there is to be the label `host`.
    pub has_host: bool,
    /// Keys that begin with one of these, parts joined by dots, are let through.
    pub allowed_prefixes: Vec<String>,
    /// Keys that begin with one of these are not. The longest that fits decides.
    pub blocked_prefixes: Vec<String>,
    /// If there are any: only these labels are given.
    pub allowed_labels: Vec<String>,
    /// These labels are not given.
    pub blocked_labels: Vec<String>,
    /// A page for Prometheus is wanted.
    pub has_page: bool,
    /// Addresses of `DogStatsD` servers.
    pub dogstatsd: Vec<String>,
    /// Addresses of `StatsD` servers.
    pub statsd: Vec<String>,
    /// Addresses and environments of M3 collectors.
    pub m3: Vec<(String, String)>,
    /// What happened lately is to be kept for a signal.
    pub in_memory: bool,
}

/// What keeps a sink from being set up.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// An address is none.
    #[error("telemetry.{sink}: {reason}")]
    Address {
        /// The sink.
        sink: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// M3 wants to know the environment.
    #[error("telemetry.M3: env must be set")]
    NoEnvironment,
}

/// The metrics of a program. Cheap to clone; clones are the same.
#[derive(Clone, Default)]
pub struct Metrics(Option<Arc<Registry>>);

/// Counts what happens.
#[derive(Clone, Default)]
pub struct Counter(Cells);

/// Has a value that goes up and down.
#[derive(Clone, Default)]
pub struct Gauge(Cells);

/// Has values of which the distribution matters: durations in milliseconds, numbers.
#[derive(Clone, Default)]
pub struct Sample(Cells);

/// What one series is to each sink that wants it.
type Cells = Option<Arc<[Cell]>>;

enum Cell {
    Page(Arc<prometheus::Series>),
    Line(lines::Series),
    M3(Arc<m3::Series>),
    Memory(Arc<memory::Series>),
}

/// What a series is, which decides how sinks show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Counter,
    Gauge,
    Sample,
    /// A sample in milliseconds.
    Timer,
}

/// A key and labels as a sink gets them: prefixed, sanitised, filtered.
struct Named {
    kind: Kind,
    parts: Vec<String>,
    labels: Vec<(String, String)>,
}

struct Registry {
    options: Options,
    host: Option<String>,
    filter: Filter,
    page: Option<Prometheus>,
    lines: Vec<Arc<Lines>>,
    m3: Vec<Arc<M3>>,
    memory: Option<Arc<Memory>>,
    series: Mutex<HashMap<Key, Cells>>,
}

type Key = (Kind, Vec<String>, Vec<(String, String)>);

impl Metrics {
    /// Metrics that nobody wants.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Metrics for these sinks; none if there are none. Nothing is sent before [`Self::run`].
    ///
    /// # Errors
    /// [`SinkError`]
    pub fn new(options: Options) -> Result<Self, SinkError> {
        let statsd = options.statsd.iter().map(|address| Lines::statsd(address));
        let environment = |name: &str| std::env::var(name).ok();
        let dogstatsd = options.dogstatsd.iter().map(|address| Lines::dogstatsd(address, environment));
        let lines = statsd.map(Ok).chain(dogstatsd).collect::<Result<Vec<_>, _>>()?;
        let m3 = options.m3.iter().map(|(address, env)| M3::new(address, options.service, env));
        let m3 = m3.collect::<Result<Vec<_>, _>>()?;
        let page = options.has_page.then(Prometheus::default);
        let memory = options.in_memory.then(|| Arc::new(Memory::default()));
        if lines.is_empty() && m3.is_empty() && page.is_none() && memory.is_none() {
            return Ok(Self::none());
        }
        Ok(Self(Some(Arc::new(Registry {
            host: options.has_host.then(names::host).flatten(),
            filter: Filter::new(&options),
            options,
            page,
            lines,
            m3,
            memory,
            series: Mutex::default(),
        }))))
    }

    /// Whether any sink is there.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The counter with this key and these labels.
    #[must_use]
    pub fn counter(&self, key: &[&str], labels: &[(&str, &str)]) -> Counter {
        Counter(self.cells(Kind::Counter, key, labels))
    }

    /// The gauge with this key and these labels.
    #[must_use]
    pub fn gauge(&self, key: &[&str], labels: &[(&str, &str)]) -> Gauge {
        Gauge(self.cells(Kind::Gauge, key, labels))
    }

    /// The sample with this key and these labels.
    #[must_use]
    pub fn sample(&self, key: &[&str], labels: &[(&str, &str)]) -> Sample {
        Sample(self.cells(Kind::Sample, key, labels))
    }

    /// As [`Self::sample`], of durations.
    #[must_use]
    pub fn timer(&self, key: &[&str], labels: &[(&str, &str)]) -> Sample {
        Sample(self.cells(Kind::Timer, key, labels))
    }

    /// Calls counted under this key, with the code that each ends with as label, and timed under
    /// `<key>.elapsed_time`.
    #[must_use]
    pub fn call(&self, key: &[&str], labels: &[(&str, &str)]) -> Call {
        Call::new(self, key, labels)
    }

    /// The page for Prometheus, if it is wanted.
    #[must_use]
    pub fn page(&self) -> Option<Page> {
        let page = self.0.as_ref()?.page.as_ref()?;
        Some(crate::pages::page(prometheus::CONTENT_TYPE, page.text()))
    }

    /// Feeds the sinks that are not asked but told, and measures the process, until `stop` is
    /// cancelled: a task of the program. What failed is tried again.
    ///
    /// # Errors
    /// If signals cannot be listened to.
    pub fn run(self, stop: CancellationToken) -> BoxFuture<'static, Result<(), BoxError>> {
        Box::pin(self.feed(stop))
    }

    async fn feed(self, stop: CancellationToken) -> Result<(), BoxError> {
        let Some(registry) = &self.0 else { return Ok(()) };
        let lines = futures::future::join_all(registry.lines.iter().map(|lines| lines.run(&stop)));
        let m3 = futures::future::join_all(registry.m3.iter().map(|m3| m3.run(&stop)));
        let memory = async {
            match &registry.memory {
                Some(memory) => memory.run(&stop).await,
                None => Ok(()),
            }
        };
        let process = self.watch_process(&stop);
        let ((), _, _, ended) = tokio::join!(process, lines, m3, memory);
        ended
    }

    /// Measures the process each second, and how long it runs each ten.
    async fn watch_process(&self, stop: &CancellationToken) {
        let started = SystemClock.instant();
        let uptime = self.gauge(&["uptime_in_ms"], &[]);
        let gauges = process::Gauges::new(self);
        for second in 0_u32.. {
            if second % UPTIME_EVERY == 0 {
                let passed = SystemClock.instant().duration_since(started);
                uptime.set(passed.as_millis() as f64);
            }
            gauges.measure();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = SystemClock.sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    fn cells(&self, kind: Kind, key: &[&str], labels: &[(&str, &str)]) -> Cells {
        self.0.as_ref().and_then(|registry| registry.cells(kind, key, labels))
    }
}

impl Counter {
    /// Counts one more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts so many more.
    pub fn add(&self, count: u64) {
        for cell in cells(&self.0) {
            match cell {
                Cell::Page(series) => series.add(count),
                Cell::Line(series) => series.send_count(count),
                Cell::M3(series) => series.add(count),
                Cell::Memory(series) => series.observe(count as f64),
            }
        }
    }
}

impl Gauge {
    /// It has this value now.
    pub fn set(&self, value: f64) {
        for cell in cells(&self.0) {
            match cell {
                Cell::Page(series) => series.set(value),
                Cell::Line(series) => series.send(value),
                Cell::M3(series) => series.set(value),
                Cell::Memory(series) => series.set(value),
            }
        }
    }

    /// As [`Self::set`], of seconds, such as those since 1970.
    pub fn set_seconds(&self, seconds: i64) {
        self.set(seconds as f64);
    }

    /// As [`Self::set`], of a number of things.
    pub fn set_count(&self, count: usize) {
        self.set(count as f64);
    }
}

impl Sample {
    /// This was one value.
    pub fn observe(&self, value: f64) {
        for cell in cells(&self.0) {
            match cell {
                Cell::Page(series) => series.observe(value),
                Cell::Line(series) => series.send(value),
                Cell::M3(series) => series.observe(value),
                Cell::Memory(series) => series.observe(value),
            }
        }
    }

    /// As [`Self::observe`], in milliseconds.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(duration.as_secs_f64() * 1000.0);
    }

    /// Whether anybody wants to know.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }
}

impl Registry {
    fn cells(&self, kind: Kind, key: &[&str], labels: &[(&str, &str)]) -> Cells {
        let owned = |text: &&str| (*text).to_owned();
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let key = (kind, key.iter().map(owned).collect::<Vec<_>>(), labels);
        let mut known = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cells) = known.get(&key) {
            return cells.clone();
        }
        if known.len() >= MOST_SERIES {
            return None;
        }
        let made = self.make(&key);
        known.insert(key, made.clone());
        made
    }

    fn make(&self, key: &Key) -> Cells {
        let mut cells = Vec::new();
        if let Some(named) = self.named(key, HasType::No) {
            if let Some(page) = &self.page {
                cells.extend(page.series(&named).map(Cell::Page));
            }
            cells.extend(self.lines.iter().map(|lines| Cell::Line(lines.series(&named))));
            if let Some(memory) = &self.memory {
                cells.push(Cell::Memory(memory.series(&named)));
            }
        }
        if !self.m3.is_empty()
            && let Some(named) = self.named(key, HasType::Yes)
        {
            cells.extend(self.m3.iter().map(|m3| Cell::M3(m3.series(&named))));
        }
        (!cells.is_empty()).then(|| cells.into())
    }

    /// What sinks get of a key; `None` if it is blocked.
    fn named(&self, (kind, key, labels): &Key, has_type: HasType) -> Option<Named> {
        let mut parts = vec![self.options.prefix.clone()];
        if has_type == HasType::Yes {
            parts.push(kind.name().to_owned());
        }
        parts.extend(key.iter().cloned());
        if !self.filter.allows(&parts.join(".")) {
            return None;
        }
        let own = self.options.trust_domain.iter().map(|name| ("trust_domain".to_owned(), name.clone()));
        let mut labels: Vec<_> = labels
            .iter()
            .cloned()
            .chain(own)
            .map(|(name, value)| (names::sanitised(&name), names::sanitised(&value)))
            .collect();
        // As it is: SPIRE's library adds it where SPIRE cannot change it any more.
        labels.extend(self.host.iter().map(|host| ("host".to_owned(), host.clone())));
        labels.retain(|(name, _)| self.filter.allows_label(name));
        Some(Named { kind: *kind, parts, labels })
    }
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Sample => "sample",
            Self::Timer => "timer",
        }
    }
}

/// Whether the type of a metric is part of its key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HasType {
    Yes,
    No,
}

fn cells(cells: &Cells) -> &[Cell] {
    cells.as_deref().unwrap_or_default()
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("is_on", &self.is_on()).finish()
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counter")
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauge")
    }
}

impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sample")
    }
}

/// More than a program has; a label that is not bounded after all must not eat the memory.
const MOST_SERIES: usize = 20_000;

/// In seconds.
const UPTIME_EVERY: u32 = 10;

#[cfg(test)]
mod tests;
