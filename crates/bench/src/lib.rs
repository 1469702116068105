//! Load on a server and an agent from outside, and what it costs them: `finial bench`.
//!
//! [`run`] carries out a [`Command`] with [`Settings`] and hands back a [`Report`]. It speaks SPIRE's and
//! SPIFFE's own APIs and nothing else, so that it measures SPIRE's programs as it measures Finial's, and
//! [`compare`] sets the two side by side.
//!
//! What keeps the figures honest:
//! - The cost of an operation is the processor time of the measured process, not the time somebody waited.
//! - Where calls come at a set rate, a call's time counts from when it was due. A server that stalls is
//!   not spared the calls that could not be made meanwhile.
//! - One answer in a thousand is checked to the last signature, and all are counted. One wrong answer
//!   voids the run.
//!
//! This crate must never touch a machine that was not named twice (see [`TargetSettings::remote`]), leave
//! its entries and agents behind unless told to, or reach into the database of what it measures.

mod calls;
mod commands;
mod fleet;
mod histogram;
mod judge;
mod load;
mod machine;
mod process;
mod report;
mod settings;
mod target;
mod traces;

use std::sync::Arc;

use proto::spire::types;
use runtime::shutdown::Shutdown;
use tonic::Status;

pub use commands::{Command, compare, run};
pub use machine::{Calibration, Machine};
pub use report::{Comparison, Latency, Memory, Phase, Report, TargetFacts};
pub use settings::{Settings, TargetSettings};

/// Is told what goes on while it goes on, one line at a time.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A setting does not fit.
    #[error("{0}")]
    Setting(String),
    /// The target cannot be reached.
    #[error("{0}")]
    Unreached(String),
    /// The process to be measured is not there.
    #[error("there is no process {0} to measure")]
    NoProcess(i32),
    /// A call that everything else stands on failed.
    #[error("cannot {doing}: {} ({:?})", .status.message(), .status.code())]
    Call {
        /// What was being done.
        doing: &'static str,
        /// What the target said.
        status: Box<Status>,
    },
    /// Not one call of a phase succeeded.
    #[error("all {calls} calls of {phase:?} failed, the first with: {first}")]
    NothingWorked {
        /// The phase.
        phase: String,
        /// How many calls there were.
        calls: u64,
        /// How the first one failed.
        first: String,
    },
    /// The target answered something wrong, so that no figure of it counts.
    #[error("the run is void, the target answered something wrong: {0}")]
    Wrong(String),
    /// Something did not happen in time.
    #[error("{0}")]
    Overdue(String),
    /// The keys of simulated agents cannot be made.
    #[error("cannot make keys and requests: {0}")]
    Crypto(String),
    /// The person at the terminal ended it.
    #[error("interrupted")]
    Interrupted,
}

impl BenchError {
    fn crypto(error: impl std::fmt::Display) -> Self {
        Self::Crypto(error.to_string())
    }

    fn call(doing: &'static str) -> impl Fn(Status) -> Self + Copy {
        move |status| Self::Call { doing, status: Box::new(status) }
    }
}

/// What went wrong in one call under load.
#[derive(Debug)]
enum Trouble {
    /// It failed: counted, and the load goes on.
    Failed(String),
    /// It was answered wrongly: the end.
    Wrong(String),
}

impl From<Status> for Trouble {
    fn from(status: Status) -> Self {
        Self::Failed(format!("{} ({:?})", status.message(), status.code()))
    }
}

/// Takes the status of one item of a batch.
fn check_item(status: Option<&types::Status>) -> Result<(), Trouble> {
    match status {
        Some(status) if status.code == 0 => Ok(()),
        Some(status) => Err(Trouble::Failed(format!("{} (item, code {})", status.message, status.code))),
        None => Err(Trouble::Wrong("an item of a batch has no status".to_owned())),
    }
}

/// What a run needs from around it.
#[derive(Clone)]
pub struct Surroundings {
    /// Is told what goes on.
    pub progress: Progress,
    /// Ends the run early; what it made is removed even so.
    pub shutdown: Shutdown,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}
