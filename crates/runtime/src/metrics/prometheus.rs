//! The page that Prometheus reads (text exposition format 0.0.4), as SPIRE's library fills it: parts
//! joined by underscores, counters without `_total`, samples as summaries, the name as help. A series
//! is shown from its first value on, and for ever.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::float::exposed;
use super::summary::{QUANTILES, Summary};
use super::{Kind, Named, process};
use crate::clock::{Clock, SystemClock};

/// What the page is.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// All series, by name and labels.
#[derive(Debug, Default)]
pub(super) struct Prometheus(Mutex<BTreeMap<String, Family>>);

#[derive(Debug)]
struct Family {
    kind: Kind,
    series: BTreeMap<Vec<(String, String)>, Arc<Series>>,
}

/// One series.
#[derive(Debug, Default)]
pub(super) struct Series {
    has_value: AtomicBool,
    /// The count of a counter, the bits of a gauge.
    value: AtomicU64,
    summary: Mutex<Summary>,
}

impl Prometheus {
    /// The series; `None` where the name is taken by another kind, which Prometheus could not read.
    pub(super) fn series(&self, named: &Named) -> Option<Arc<Series>> {
        let name = name(&named.parts);
        let labels: BTreeMap<String, String> = named.labels.iter().cloned().collect();
        let mut families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let family = match families.entry(name) {
            Entry::Vacant(vacant) => vacant.insert(Family { kind: named.kind, series: BTreeMap::new() }),
            Entry::Occupied(taken) if taken.get().kind == named.kind => taken.into_mut(),
            Entry::Occupied(taken) => {
                tracing::error!(metric = taken.key(), "Metric has two kinds; the second is not shown");
                return None;
            }
        };
        Some(Arc::clone(family.series.entry(labels.into_iter().collect()).or_default()))
    }

    /// The page.
    pub(super) fn text(&self) -> String {
        let mut page = String::new();
        {
            let families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, family) in &*families {
                family.write(&mut page, name);
            }
        }
        process::write(&mut page);
        page
    }
}

impl Family {
    fn write(&self, page: &mut String, name: &str) {
        let shown = |series: &&Arc<Series>| series.has_value.load(Ordering::Acquire);
        if !self.series.values().any(|series| shown(&series)) {
            return;
        }
        heading(
            page,
            name,
            name,
            match self.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Sample | Kind::Timer => "summary",
            },
        );
        for (labels, series) in self.series.iter().filter(|(_, series)| shown(series)) {
            match self.kind {
                Kind::Counter => {
                    line(page, name, labels, None, series.value.load(Ordering::Relaxed) as f64);
                }
                Kind::Gauge => {
                    line(page, name, labels, None, f64::from_bits(series.value.load(Ordering::Relaxed)));
                }
                Kind::Sample | Kind::Timer => series.write_summary(page, name, labels),
            }
        }
    }
}

impl Series {
    pub(super) fn add(&self, count: u64) {
        self.value.fetch_add(count, Ordering::Relaxed);
        self.shown();
    }

    pub(super) fn set(&self, value: f64) {
        self.value.store(value.to_bits(), Ordering::Relaxed);
        self.shown();
    }

    pub(super) fn observe(&self, value: f64) {
        let now = SystemClock.instant();
        self.summary.lock().unwrap_or_else(PoisonError::into_inner).observe(value, now);
        self.shown();
    }

    fn shown(&self) {
        // Written once only, so that the line is shared between processors afterwards.
        if !self.has_value.load(Ordering::Relaxed) {
            self.has_value.store(true, Ordering::Release);
        }
    }

    fn write_summary(&self, page: &mut String, name: &str, labels: &[(String, String)]) {
        let now = SystemClock.instant();
        let (quantiles, sum, count) = {
            let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
            (summary.quantiles(now), summary.sum, summary.count)
        };
        for (quantile, value) in QUANTILES.iter().zip(quantiles) {
            line(page, name, labels, Some(*quantile), value);
        }
        line(page, &format!("{name}_sum"), labels, None, sum);
        line(page, &format!("{name}_count"), labels, None, count as f64);
    }
}

/// The two lines above the series of a name.
pub(super) fn heading(page: &mut String, name: &str, help: &str, kind: &str) {
    append(page, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
}

/// One series.
pub(super) fn line(
    page: &mut String,
    name: &str,
    labels: &[(String, String)],
    quantile: Option<f64>,
    value: f64,
) {
    page.push_str(name);
    let mut separator = '{';
    for (label, text) in labels {
        page.push(separator);
        append(page, format_args!("{label}=\"{}\"", escaped(text)));
        separator = ',';
    }
    if let Some(quantile) = quantile {
        page.push(separator);
        append(page, format_args!("quantile=\"{quantile}\""));
        separator = ',';
    }
    if separator == ',' {
        page.push('}');
    }
    append(page, format_args!(" {}\n", exposed(value)));
}

fn append(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    page.write_fmt(text).ok();
}

fn name(parts: &[String]) -> String {
    let is_foreign = |character: char| matches!(character, ' ' | '.' | '=' | '-' | '/');
    parts.join("_").replace(is_foreign, "_")
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
