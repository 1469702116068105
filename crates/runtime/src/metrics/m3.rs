//! M3: batches in Thrift's compact protocol over UDP, each second what changed in it.
//!
//! Counters are sent as what was added, gauges as what they were set to last, samples as counters of
//! the buckets that they fell into. The first two parts of a key, prefix and type, are left out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::lines::{connect, host_and_port};
use super::{Kind, Named, SinkError};
use crate::clock::{Clock, SystemClock};
use crate::in_system_words;

/// One collector.
pub(super) struct M3 {
    address: String,
    /// Of every batch: the program and its environment.
    common: Vec<(String, String)>,
    series: Mutex<Vec<Arc<Series>>>,
}

/// One series, and what it has been since the last report.
pub(super) struct Series {
    name: String,
    tags: Vec<(String, String)>,
    state: State,
}

enum State {
    Counter(AtomicU64),
    Gauge { bits: AtomicU64, is_new: AtomicBool },
    Histogram { buckets: &'static [Bucket], counts: Vec<AtomicU64> },
}

/// A bucket's upper bound, and its name as the collector knows it.
struct Bucket {
    up_to: f64,
    name: &'static str,
}

/// One metric of a batch.
struct Metric<'a> {
    name: &'a str,
    tags: Vec<(&'a str, &'a str)>,
    value: Value,
}

enum Value {
    Count(i64),
    Gauge(f64),
}

impl M3 {
    pub(super) fn new(address: &str, service: &str, env: &str) -> Result<Arc<Self>, SinkError> {
        // None is this machine's, as Go's library has it.
        let address = if address.is_empty() { ":0" } else { address };
        host_and_port(address).map_err(|reason| SinkError::Address { sink: "M3", reason })?;
        if env.is_empty() {
            return Err(SinkError::NoEnvironment);
        }
        let common = vec![("service".to_owned(), service.to_owned()), ("env".to_owned(), env.to_owned())];
        Ok(Arc::new(Self { address: address.to_owned(), common, series: Mutex::default() }))
    }

    pub(super) fn series(&self, named: &Named) -> Arc<Series> {
        let histogram = |buckets: &'static [Bucket]| State::Histogram {
            buckets,
            counts: (0..=buckets.len()).map(|_| AtomicU64::new(0)).collect(),
        };
        let series = Arc::new(Series {
            name: named.parts.get(2..).unwrap_or_default().join("_"),
            tags: named.labels.clone(),
            state: match named.kind {
                Kind::Counter => State::Counter(AtomicU64::new(0)),
                Kind::Gauge => State::Gauge { bits: AtomicU64::new(0), is_new: AtomicBool::new(false) },
                Kind::Sample => histogram(&VALUES),
                Kind::Timer => histogram(&DURATIONS),
            },
        });
        self.series.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&series));
        series
    }

    /// Reports each second until `stop` is cancelled, then once more.
    pub(super) async fn run(&self, stop: &CancellationToken) {
        let mut socket: Option<UdpSocket> = None;
        loop {
            let is_last = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                () = SystemClock.sleep(REPORT_EVERY) => false,
            };
            let batches = self.batches();
            if let Err(error) = self.send(&mut socket, &batches).await {
                socket = None;
                let error = in_system_words(&error.to_string());
                tracing::error!(sink = "M3", address = self.address, error, "Cannot send metrics");
            }
            if is_last {
                return;
            }
        }
    }

    async fn send(&self, socket: &mut Option<UdpSocket>, batches: &[Vec<u8>]) -> std::io::Result<()> {
        if socket.is_none() && !batches.is_empty() {
            *socket = Some(connect(&self.address).await?);
        }
        let Some(socket) = socket else { return Ok(()) };
        for batch in batches {
            socket.send(batch).await?;
        }
        Ok(())
    }

    /// What changed since the last call, as messages.
    fn batches(&self) -> Vec<Vec<u8>> {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = SystemClock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        let mut batches = Vec::new();
        let (mut encoded, mut count) = (Vec::new(), 0);
        for metric in series.iter().flat_map(|series| series.changed()) {
            let start = encoded.len();
            thrift::metric(&mut encoded, &metric, now);
            if encoded.len() > PACKET && start > 0 {
                let rest = encoded.split_off(start);
                batches.push(thrift::message(&encoded, count, &self.common));
                (encoded, count) = (rest, 0);
            }
            count += 1;
        }
        if count > 0 {
            batches.push(thrift::message(&encoded, count, &self.common));
        }
        batches
    }
}

impl Series {
    pub(super) fn add(&self, count: u64) {
        if let State::Counter(value) = &self.state {
            value.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(super) fn set(&self, value: f64) {
        if let State::Gauge { bits, is_new } = &self.state {
            bits.store(value.to_bits(), Ordering::Relaxed);
            is_new.store(true, Ordering::Release);
        }
    }

    pub(super) fn observe(&self, value: f64) {
        if let State::Histogram { buckets, counts } = &self.state {
            let found = buckets.partition_point(|bucket| bucket.up_to < value);
            if let Some(count) = counts.get(found) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn changed(&self) -> Vec<Metric<'_>> {
        let tags = || self.tags.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let metric = |tags, value| Metric { name: &self.name, tags, value };
        match &self.state {
            State::Counter(added) => {
                let added = added.swap(0, Ordering::Relaxed);
                (added > 0).then(|| metric(tags(), Value::Count(signed(added)))).into_iter().collect()
            }
            State::Gauge { bits, is_new } => {
                let value = is_new.swap(false, Ordering::Acquire).then(|| bits.load(Ordering::Relaxed));
                value.map(|bits| metric(tags(), Value::Gauge(f64::from_bits(bits)))).into_iter().collect()
            }
            State::Histogram { buckets, counts } => {
                let names = buckets.iter().map(|bucket| bucket.name).chain([last(buckets)]);
                let mut changed = Vec::new();
                for (number, (name, count)) in names.zip(counts).enumerate() {
                    let count = count.swap(0, Ordering::Relaxed);
                    let Some(number) = NUMBERS.get(number).filter(|_| count > 0) else { continue };
                    let mut tags: Vec<_> = tags();
                    tags.extend([("bucketid", *number), ("bucket", name)]);
                    changed.push(metric(tags, Value::Count(signed(count))));
                }
                changed
            }
        }
    }
}

fn last(buckets: &[Bucket]) -> &'static str {
    if buckets.len() == DURATIONS.len() { "30s-infinity" } else { "10000.000000-infinity" }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Thrift's compact protocol, as far as a batch needs it.
mod thrift {
    use super::{Metric, Value};

    const I32: u8 = 5;
    const I64: u8 = 6;
    const DOUBLE: u8 = 7;
    const BINARY: u8 = 8;
    const LIST: u8 = 9;
    const STRUCT: u8 = 12;
    const STOP: u8 = 0;

    /// A call of `emitMetricBatchV2` that nobody answers, with these metrics.
    pub(super) fn message(metrics: &[u8], count: usize, common: &[(String, String)]) -> Vec<u8> {
        // The protocol, version 1 of a one-way call, number 0.
        let mut out = vec![0x82, 4 << 5 | 1, 0];
        text(&mut out, "emitMetricBatchV2");
        field(&mut out, 1, STRUCT);
        field(&mut out, 1, LIST);
        list(&mut out, count);
        out.extend_from_slice(metrics);
        field(&mut out, 1, LIST);
        list(&mut out, common.len());
        common.iter().for_each(|(name, value)| tag(&mut out, name, value));
        out.extend_from_slice(&[STOP, STOP]);
        out
    }

    pub(super) fn metric(out: &mut Vec<u8>, metric: &Metric<'_>, at: i64) {
        field(out, 1, BINARY);
        text(out, metric.name);
        field(out, 1, STRUCT);
        let (kind, count, gauge) = match metric.value {
            Value::Count(count) => (1, count, 0.0),
            Value::Gauge(gauge) => (2, 0, gauge),
        };
        field(out, 1, I32);
        number(out, kind);
        field(out, 1, I64);
        number(out, count);
        field(out, 1, DOUBLE);
        out.extend_from_slice(&f64::to_le_bytes(gauge));
        field(out, 1, I64);
        number(out, 0);
        out.push(STOP);
        field(out, 1, I64);
        number(out, at);
        if !metric.tags.is_empty() {
            field(out, 1, LIST);
            list(out, metric.tags.len());
            metric.tags.iter().for_each(|(name, value)| tag(out, name, value));
        }
        out.push(STOP);
    }

    fn tag(out: &mut Vec<u8>, name: &str, value: &str) {
        field(out, 1, BINARY);
        text(out, name);
        field(out, 1, BINARY);
        text(out, value);
        out.push(STOP);
    }

    /// A field so much after the last one of its struct.
    fn field(out: &mut Vec<u8>, after: u8, kind: u8) {
        out.push(after << 4 | kind);
    }

    /// A list of structs.
    fn list(out: &mut Vec<u8>, count: usize) {
        match u8::try_from(count) {
            Ok(few @ ..15) => out.push(few << 4 | STRUCT),
            _ => {
                out.push(0xf0 | STRUCT);
                length(out, count as u64);
            }
        }
    }

    fn text(out: &mut Vec<u8>, text: &str) {
        length(out, text.len() as u64);
        out.extend_from_slice(text.as_bytes());
    }

    fn number(out: &mut Vec<u8>, number: i64) {
        length(out, ((number << 1) ^ (number >> 63)) as u64);
    }

    fn length(out: &mut Vec<u8>, mut rest: u64) {
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
}

const fn bucket(up_to: f64, name: &'static str) -> Bucket {
    Bucket { up_to, name }
}

/// In milliseconds.
static DURATIONS: [Bucket; 20] = [
    bucket(0.0, "-infinity-0"),
    bucket(10.0, "0-10ms"),
    bucket(25.0, "10ms-25ms"),
    bucket(50.0, "25ms-50ms"),
    bucket(75.0, "50ms-75ms"),
    bucket(100.0, "75ms-100ms"),
    bucket(200.0, "100ms-200ms"),
    bucket(300.0, "200ms-300ms"),
    bucket(400.0, "300ms-400ms"),
    bucket(500.0, "400ms-500ms"),
    bucket(600.0, "500ms-600ms"),
    bucket(800.0, "600ms-800ms"),
    bucket(1000.0, "800ms-1s"),
    bucket(2000.0, "1s-2s"),
    bucket(5000.0, "2s-5s"),
    bucket(10_000.0, "5s-10s"),
    bucket(15_000.0, "10s-15s"),
    bucket(20_000.0, "15s-20s"),
    bucket(25_000.0, "20s-25s"),
    bucket(30_000.0, "25s-30s"),
];

static VALUES: [Bucket; 6] = [
    bucket(0.0, "-infinity-0.000000"),
    bucket(1.0, "0.000000-1.000000"),
    bucket(10.0, "1.000000-10.000000"),
    bucket(100.0, "10.000000-100.000000"),
    bucket(1000.0, "100.000000-1000.000000"),
    bucket(10_000.0, "1000.000000-10000.000000"),
];

static NUMBERS: [&str; 21] = [
    "0000", "0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011", "0012",
    "0013", "0014", "0015", "0016", "0017", "0018", "0019", "0020",
];

const REPORT_EVERY: Duration = Duration::from_secs(1);
/// What SPIRE's library sends at most at once, less what surrounds the metrics.
const PACKET: usize = 32_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn named(kind: Kind, labels: &[(&str, &str)]) -> Named {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Named {
            kind,
            parts: ["spire_server", kind.name(), "rpc", "x"].map(str::to_owned).to_vec(),
            labels: labels.iter().map(owned).collect(),
        }
    }

    #[test]
    fn a_batch_is_thrift_as_collectors_read_it() {
        let encoded = thrift::message(&[], 0, &[("env".to_owned(), "prod".to_owned())]);

        let mut expected = vec![0x82, 0x81, 0, 17];
        expected.extend_from_slice(b"emitMetricBatchV2");
        // The argument, an empty list of metrics, one common tag.
        expected.extend_from_slice(&[0x1c, 0x19, 0x0c, 0x19, 0x1c]);
        expected.extend_from_slice(b"\x18\x03env\x18\x04prod\x00\x00\x00");
        assert_eq!(encoded, expected);
    }

    #[test]
    fn only_what_changed_is_sent_and_only_once() {
        let m3 = M3::new("localhost:1", "spire_server", "test").unwrap();
        let counter = m3.series(&named(Kind::Counter, &[("status", "OK")]));
        let idle = m3.series(&named(Kind::Gauge, &[]));
        counter.add(2);
        counter.add(3);

        let changed = counter.changed();
        assert!(matches!(changed[..], [Metric { name: "rpc_x", value: Value::Count(5), .. }]));
        assert_eq!(changed[0].tags, [("status", "OK")]);
        assert!(counter.changed().is_empty() && idle.changed().is_empty());
        assert!(m3.batches().is_empty());
    }

    #[test]
    fn samples_fall_into_buckets() {
        let m3 = M3::new("localhost:1", "spire_server", "test").unwrap();
        let timer = m3.series(&named(Kind::Timer, &[]));
        for milliseconds in [0.0, 10.0, 10.1, 40_000.0] {
            timer.observe(milliseconds);
        }
        let sample = m3.series(&named(Kind::Sample, &[]));
        sample.observe(20_000.0);

        let buckets: Vec<_> = timer.changed().into_iter().map(|metric| metric.tags).collect();

        let expected =
            [("0000", "-infinity-0"), ("0001", "0-10ms"), ("0002", "10ms-25ms"), ("0020", "30s-infinity")];
        assert_eq!(buckets, expected.map(|(id, name)| vec![("bucketid", id), ("bucket", name)]));
        assert_eq!(sample.changed()[0].tags[1], ("bucket", "10000.000000-infinity"));
    }

    #[test]
    fn many_metrics_are_several_batches() {
        let m3 = M3::new("localhost:1", "spire_server", "test").unwrap();
        for number in 0..2000 {
            m3.series(&named(Kind::Counter, &[("number", &number.to_string())])).add(1);
        }

        let batches = m3.batches();

        assert!(batches.len() > 1);
        assert!(batches.iter().all(|batch| batch.len() < 32_768));
    }

    #[test]
    fn an_environment_is_asked_for() {
        let refused = M3::new("localhost:1", "spire_server", "").err().unwrap();

        assert_eq!(refused.to_string(), "telemetry.M3: env must be set");
    }
}
