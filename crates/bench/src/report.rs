//! What a run found: for programs as JSON, for people as a table.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::histogram::Histogram;
use crate::machine::{Calibration, Machine};
use crate::settings::Settings;

/// One command on one target.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The command.
    pub command: String,
    /// When it began, in seconds since 1970.
    pub began_at: i64,
    /// Where.
    pub machine: Machine,
    /// What the cryptography of one X.509-SVID takes here.
    pub calibration: Calibration,
    /// On what.
    pub target: TargetFacts,
    /// With which settings.
    pub settings: Settings,
    /// What each step found.
    pub phases: Vec<Phase>,
    /// What memory did.
    pub memory: Vec<Memory>,
}

/// One command on two targets.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The suite on the first.
    pub first: Vec<Report>,
    /// The suite on the second.
    pub second: Vec<Report>,
}

/// What the target tells about itself.
#[derive(Clone, Debug, Serialize)]
pub struct TargetFacts {
    /// How it is called here.
    pub label: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// The program of the process that is measured.
    pub program: String,
    /// What that program says its version is.
    pub version: String,
    /// Its process.
    pub pid: i32,
}

/// One step of a command.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// What was done.
    pub name: String,
    /// What is counted.
    pub unit: &'static str,
    /// Calls a second that were asked for; none where each caller goes on as soon as it is answered.
    pub asked_rate: Option<f64>,
    /// Calls that were answered.
    pub calls: u64,
    /// What they brought.
    pub items: u64,
    /// Calls that failed.
    pub failures: u64,
    /// How the first of them failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failure: Option<String>,
    /// Items that were checked in full.
    pub checked: u64,
    /// How long it took.
    pub seconds: f64,
    /// Items a second.
    pub rate: f64,
    /// Processor time of the target for one item, in microseconds.
    pub cpu_us: Option<f64>,
    /// What part of a core the target was busy.
    pub cores_busy: Option<f64>,
    /// What an item may cost, in microseconds of processor time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_us: Option<f64>,
    /// How long callers waited.
    pub latency: Option<Latency>,
}

/// How long callers waited, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// The shortest time.
    pub least: f64,
    /// Half were no longer.
    pub p50: f64,
    /// Nine in ten were no longer.
    pub p90: f64,
    /// 99 in 100.
    pub p99: f64,
    /// 999 in 1,000.
    pub p999: f64,
    /// The longest.
    pub most: f64,
}

/// Memory of the target around something: resident, and its own.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// Around what.
    pub what: String,
    /// Before, in bytes.
    pub before: u64,
    /// With it, in bytes.
    pub after: u64,
    /// Of how many things.
    pub count: u64,
    /// More bytes for each of them.
    pub each: f64,
}

impl Latency {
    /// Out of all times.
    pub(crate) fn of(histogram: &Histogram) -> Option<Self> {
        let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
        (histogram.count() > 0).then(|| Self {
            least: millis(histogram.least()),
            p50: millis(histogram.quantile(500)),
            p90: millis(histogram.quantile(900)),
            p99: millis(histogram.quantile(990)),
            p999: millis(histogram.quantile(999)),
            most: millis(histogram.most()),
        })
    }
}

impl Memory {
    /// Around `count` things.
    pub(crate) fn of(what: String, before: u64, after: u64, count: usize) -> Self {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let each = (as_float(after) - as_float(before)) / as_float(count.max(1));
        Self { what, before, after, count, each }
    }
}

impl Report {
    /// The report for people.
    #[must_use]
    pub fn pretty(&self) -> String {
        let mut text = self.heading();
        let rows: Vec<[String; 10]> = self.phases.iter().map(row).collect();
        text.push_str(&table(&HEADS, &rows));
        for failure in self.phases.iter().filter_map(|phase| phase.first_failure.as_ref()) {
            line(&mut text, format_args!("first failure: {failure}"));
        }
        for memory in &self.memory {
            let Memory { what, before, after, count, each } = memory;
            line(
                &mut text,
                format_args!(
                    "memory: {what}: {} -> {}, {count} of {} each",
                    bytes(as_float(*before)),
                    bytes(as_float(*after)),
                    bytes(*each)
                ),
            );
        }
        text
    }

    fn heading(&self) -> String {
        let Machine { processor, cores, cores_of_client, client_optimised, load, kernel } = &self.machine;
        let Calibration { csr_check_us, signature_us, budget_us } = self.calibration;
        let TargetFacts { label, trust_domain, program, version, pid } = &self.target;
        let mut text = String::new();
        let build = if *client_optimised { "" } else { ", the client not optimised" };
        line(&mut text, format_args!("{} of {label} ({trust_domain})", self.command));
        line(&mut text, format_args!("target   {program}, {version}, process {pid}"));
        line(
            &mut text,
            format_args!(
                "machine  {processor}, {cores} cores ({cores_of_client} for the client{build}), load {load:.2}, Linux {kernel}"
            ),
        );
        line(
            &mut text,
            format_args!(
                "P-256    request checked {csr_check_us:.1} us, signature {signature_us:.1} us; an X.509-SVID may cost {budget_us:.1} us\n"
            ),
        );
        text
    }
}

impl Comparison {
    /// Both side by side: what an item costs, how many there were, how long half of the callers waited.
    #[must_use]
    pub fn pretty(&self) -> String {
        let mut text = String::new();
        let label = |reports: &[Report]| {
            reports.first().map_or_else(String::new, |report| {
                format!("{} ({})", report.target.label, report.target.version)
            })
        };
        let (first, second) = (label(&self.first), label(&self.second));
        if let Some(report) = self.first.first() {
            text.push_str(&report.heading());
        }
        line(&mut text, format_args!("first    {first}\nsecond   {second}\n"));
        let mut rows = Vec::new();
        for report in &self.first {
            for phase in &report.phases {
                let twin = self
                    .second
                    .iter()
                    .filter(|other| other.command == report.command)
                    .flat_map(|other| &other.phases)
                    .find(|other| other.name == phase.name);
                rows.push(paired(phase, twin));
            }
        }
        text.push_str(&table(&PAIR_HEADS, &rows));
        text
    }
}

const HEADS: [&str; 10] = [
    "step",
    "calls",
    "failed",
    "checked",
    "rate/s",
    "CPU us each",
    "budget us",
    "p50 ms",
    "p99 ms",
    "max ms",
];

fn row(phase: &Phase) -> [String; 10] {
    let latency =
        |of: fn(&Latency) -> f64| phase.latency.as_ref().map_or_else(dash, |latency| short(of(latency)));
    [
        format!("{} [{}]", phase.name, phase.unit),
        phase.calls.to_string(),
        phase.failures.to_string(),
        phase.checked.to_string(),
        short(phase.rate),
        phase.cpu_us.map_or_else(dash, short),
        phase.budget_us.map_or_else(dash, short),
        latency(|latency| latency.p50),
        latency(|latency| latency.p99),
        latency(|latency| latency.most),
    ]
}

const PAIR_HEADS: [&str; 8] =
    ["step", "CPU us, first", "second", "second/first", "rate/s, first", "second", "p50 ms, first", "second"];

fn paired(phase: &Phase, twin: Option<&Phase>) -> [String; 8] {
    let cpu = |phase: Option<&Phase>| phase.and_then(|phase| phase.cpu_us);
    let ratio = cpu(Some(phase)).zip(cpu(twin)).filter(|(first, _)| *first > 0.0);
    let p50 = |phase: Option<&Phase>| phase?.latency.map(|latency| short(latency.p50));
    [
        format!("{} [{}]", phase.name, phase.unit),
        cpu(Some(phase)).map_or_else(dash, short),
        cpu(twin).map_or_else(dash, short),
        ratio.map_or_else(dash, |(first, second)| format!("{:.1}", second / first)),
        short(phase.rate),
        twin.map_or_else(dash, |twin| short(twin.rate)),
        p50(Some(phase)).unwrap_or_else(dash),
        p50(twin).unwrap_or_else(dash),
    ]
}

/// Columns as wide as they must be; the first to the left, numbers to the right.
fn table<const N: usize>(heads: &[&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(heads.get(column).map(|head| head.len())).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    let mut put = |cells: &mut dyn Iterator<Item = &str>| {
        let mut written = String::new();
        for (column, (cell, width)) in cells.zip(&widths).enumerate() {
            // Writing to a string cannot fail.
            let _written = match column {
                0 => write!(written, "{cell:width$}"),
                _ => write!(written, "  {cell:>width$}"),
            };
        }
        line(&mut text, format_args!("{}", written.trim_end()));
    };
    put(&mut heads.iter().copied());
    for row in rows {
        put(&mut row.iter().map(String::as_str));
    }
    text
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _written = writeln!(text, "{arguments}");
}

fn dash() -> String {
    "-".to_owned()
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn bytes(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{} MB", short(value / 1e6)),
        size if size >= 1e3 => format!("{} kB", short(value / 1e3)),
        _ => format!("{value:.0} B"),
    }
}

/// Counts fit a float far beyond what a machine can count in a run.
#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
pub(crate) const fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a".to_owned(), "1.00".to_owned()], ["longer".to_owned(), "200".to_owned()]];

        assert_eq!(table(&["what", "us"], &rows), "what      us\na       1.00\nlonger   200\n");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.1234, 12.345, 12345.6].map(short), ["0.12", "12.3", "12346"]);
        assert_eq!([12.0, 24_000.0, 700e6].map(bytes), ["12 B", "24.0 kB", "700 MB"]);
    }

    #[test]
    fn memory_can_shrink() {
        assert!((Memory::of("x".to_owned(), 100, 50, 10).each + 5.0).abs() < 1e-9);
    }
}
