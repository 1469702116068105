//! The process itself, as the system sees it.
//!
//! SPIRE's `runtime.*` gauges come from Go's runtime. Those that mean something here keep their names;
//! there is no garbage collector to measure.

use std::fs;

use super::prometheus::{heading, line};
use super::{Gauge, Metrics};
use crate::sys;

/// What is measured each second.
pub(super) struct Gauges {
    tasks: Gauge,
    in_use: Gauge,
    resident: Gauge,
    taken: Gauge,
    freed: Gauge,
    held: Gauge,
}

impl Gauges {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            tasks: metrics.gauge(&["runtime", "num_goroutines"], &[]),
            in_use: metrics.gauge(&["runtime", "alloc_bytes"], &[]),
            resident: metrics.gauge(&["runtime", "sys_bytes"], &[]),
            taken: metrics.gauge(&["runtime", "malloc_count"], &[]),
            freed: metrics.gauge(&["runtime", "free_count"], &[]),
            held: metrics.gauge(&["runtime", "heap_objects"], &[]),
        }
    }

    /// Tasks for goroutines, memory of its own for what is allocated, resident memory for what Go has
    /// from the system, the allocator's blocks for objects.
    pub(super) fn measure(&self) {
        self.tasks.set_count(tokio::runtime::Handle::current().metrics().num_alive_tasks());
        if let Some(memory) = memory() {
            self.in_use.set(memory.anonymous);
            self.resident.set(memory.resident);
        }
        if let Some((taken, freed)) = sys::memory::blocks() {
            self.taken.set(taken as f64);
            self.freed.set(freed as f64);
            self.held.set(taken.saturating_sub(freed) as f64);
        }
    }
}

/// What Prometheus' own libraries tell of a process.
pub(super) fn write(page: &mut String) {
    let mut gauge = |name: &str, help: &str, kind: &str, value: Option<f64>| {
        if let Some(value) = value {
            heading(page, name, help, kind);
            line(page, name, &[], None, value);
        }
    };
    let stat = stat();
    let seconds = |stat: &Stat| stat.ticks / TICKS_PER_SECOND;
    gauge(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        "counter",
        stat.as_ref().map(seconds),
    );
    gauge("process_max_fds", "Maximum number of open file descriptors.", "gauge", file_limit());
    gauge("process_open_fds", "Number of open file descriptors.", "gauge", open_files());
    gauge(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        "gauge",
        memory().map(|memory| memory.resident),
    );
    let started = stat.as_ref().and_then(|stat| Some(boot_time()? + stat.started / TICKS_PER_SECOND));
    gauge(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        "gauge",
        started,
    );
    gauge(
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
        "gauge",
        memory().map(|memory| memory.virtual_size),
    );
}

/// In bytes.
struct Memory {
    virtual_size: f64,
    resident: f64,
    /// What no file stands behind: heap and stacks.
    anonymous: f64,
}

fn memory() -> Option<Memory> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|number| number * 1024.0)
    };
    Some(Memory {
        virtual_size: kilobytes("VmSize")?,
        resident: kilobytes("VmRSS")?,
        anonymous: kilobytes("RssAnon")?,
    })
}

/// In ticks of the system.
struct Stat {
    ticks: f64,
    /// Since the machine started.
    started: f64,
}

fn stat() -> Option<Stat> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold anything; what follows it does not.
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Stat { ticks: field(14)? + field(15)?, started: field(22)? })
}

fn boot_time() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn open_files() -> Option<f64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64)
}

fn file_limit() -> Option<f64> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.map(|limit| limit as f64)
}

/// What Linux tells user programs on all its platforms.
const TICKS_PER_SECOND: f64 = 100.0;
