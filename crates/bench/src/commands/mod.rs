//! The commands: what each asks of a target, and in which order.

mod agents;
mod beside;
mod credentials;
mod entries;
mod readback;
mod soak;
mod storm;
mod streams;
mod watch;
mod workloads;

use runtime::clock::{Clock, SystemClock};
use spiffe::UnixSecs;

use crate::histogram::Histogram;
use crate::judge::Judge;
use crate::load::Stage;
use crate::machine::{Calibration, Machine};
use crate::report::{Latency, Memory, Phase, Report, as_float};
use crate::target::Target;
use crate::traces::Traces;
use crate::{BenchError, Settings, Surroundings};

pub use beside::compare;

/// What to do to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Entries to stay, spread below many parents.
    Seed,
    /// X.509-SVIDs for agents, in batches.
    X509,
    /// JWT-SVIDs for agents.
    Jwt,
    /// SVIDs for administrators.
    Mint,
    /// Agents that join, each on a connection of its own.
    Attest,
    /// Entries created, changed and deleted, in batches and one by one.
    Entry,
    /// Agents that ask what they are authorised for, when nothing has changed.
    Sync,
    /// Many agents with nothing to do.
    Idle,
    /// Many agents that are told of changes, one at a time.
    Watch,
    /// From the creation of an entry to the workload's identity.
    Propagate,
    /// What workloads ask of an agent.
    Workload,
    /// All agents at once, after a restart of the server.
    Storm,
    /// Everything at once, for long.
    Soak,
    /// Reads back everything.
    Verify,
}

impl Command {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Seed => "seed",
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Mint => "mint",
            Self::Attest => "attest",
            Self::Entry => "entry",
            Self::Sync => "sync",
            Self::Idle => "idle",
            Self::Watch => "watch",
            Self::Propagate => "propagate",
            Self::Workload => "workload",
            Self::Storm => "storm",
            Self::Soak => "soak",
            Self::Verify => "verify",
        }
    }
}

/// A run under way.
struct Bench<'a> {
    target: &'a Target,
    settings: &'a Settings,
    traces: &'a Traces,
    judge: Judge<'a>,
    calibration: Calibration,
}

/// What a command found.
#[derive(Default)]
struct Found {
    phases: Vec<Phase>,
    memory: Vec<Memory>,
}

/// Carries out a command, and takes away what it made.
///
/// # Errors
/// Any of [`BenchError`].
pub async fn run(command: Command, settings: &Settings, around: &Surroundings) -> Result<Report, BenchError> {
    runtime::process::raise_file_limit()
        .map_err(|error| BenchError::Setting(format!("cannot raise the limit of open files: {error}")))?;
    let began_at = UnixSecs::from(SystemClock.now()).0;
    let machine = Machine::here();
    let target = Target::reach(&settings.target, around).await?;
    // The process may be another one in the end.
    let facts = target.facts().await;
    let calibration = Calibration::measure()?;
    let traces = Traces::default();
    let judge = Judge::new(&target, settings.check_every)?;
    let bench = Bench { target: &target, settings, traces: &traces, judge, calibration };

    let outcome = tokio::select! {
        biased;
        () = around.shutdown.triggered() => Err(BenchError::Interrupted),
        outcome = bench.play(command) => outcome,
    };
    if !settings.keep {
        // What went wrong before explains more than what does now.
        let removed = traces.remove(&target).await;
        if outcome.is_ok() {
            removed?;
        }
    }
    let Found { phases, memory } = outcome?;
    let command = command.as_str().to_owned();
    Ok(Report {
        command,
        began_at,
        machine,
        calibration,
        target: facts,
        settings: settings.clone(),
        phases,
        memory,
    })
}

impl<'a> Bench<'a> {
    async fn play(&self, command: Command) -> Result<Found, BenchError> {
        match command {
            Command::Seed => entries::seed(self).await,
            Command::Entry => entries::entry(self).await,
            Command::X509 => credentials::x509(self).await,
            Command::Jwt => credentials::jwt(self).await,
            Command::Mint => credentials::mint(self).await,
            Command::Attest => agents::attest(self).await,
            Command::Sync => agents::sync(self).await,
            Command::Idle => agents::idle(self).await,
            Command::Storm => storm::storm(self).await,
            Command::Soak => soak::soak(self).await,
            Command::Watch => watch::watch(self).await,
            Command::Propagate => workloads::propagate(self).await,
            Command::Workload => workloads::workload(self).await,
            Command::Verify => readback::verify(self).await,
        }
    }

    /// Where the server is what is measured.
    const fn stage(&'a self) -> Stage<'a> {
        Stage { process: &self.target.server, judge: &self.judge, progress: &self.target.progress }
    }
}

/// What things came to that were done one after the other.
fn one_by_one(name: String, histogram: &Histogram, seconds: f64, cpu: f64) -> Phase {
    let calls = histogram.count();
    Phase {
        name,
        unit: "entries",
        asked_rate: None,
        calls,
        items: calls,
        failures: 0,
        first_failure: None,
        checked: calls,
        seconds,
        rate: as_float(calls) / seconds.max(f64::EPSILON),
        cpu_us: (calls > 0).then(|| cpu * 1e6 / as_float(calls)),
        cores_busy: Some(cpu / seconds.max(f64::EPSILON)),
        budget_us: None,
        latency: Latency::of(histogram),
    }
}
