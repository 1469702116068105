//! Workload attestation: what all attestors together find out about a caller.
//!
//! They run at once, each under a deadline. One that fails takes only its own selectors away; if all
//! fail nothing is known of the caller, who is refused. The caller is looked at again when they are
//! done: what they found is true of the process that connected, or is not used.
//!
//! Nothing is remembered: each call finds out anew. So many run at once for one user; the others of
//! the same user wait, and those of other users do not.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use plugin::{PluginError, WorkloadAttestor};
use runtime::clock::{Clock, within};
use runtime::keyed::Keyed;
use runtime::metrics::{Call, Code};
use runtime::peer::{Caller, CallerError};
use spiffe::{Selector, SelectorSet};
use tokio::sync::Semaphore;
use tracing::{debug, error};

use crate::meters::Meters;

/// How long one attestor may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How many attestations run at once for one user.
const PER_USER: usize = 64;

/// The workload attestors of an agent.
pub struct Attestors {
    plugins: Vec<Arc<dyn WorkloadAttestor>>,
    clock: Arc<dyn Clock>,
    queues: Keyed<u32, Semaphore>,
    meters: Arc<Meters>,
    /// By plugin, in their order.
    calls: Vec<Call>,
    own_pid: i32,
}

/// Why nothing is known of a caller. The caller is told only that it is so.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// No attestor could say anything.
    #[error("every workload attestor failed")]
    AllFailed,
    /// It is gone, or is not what connected any more.
    #[error("could not verify existence of the original caller")]
    Caller(#[from] CallerError),
}

impl Attestors {
    /// These attestors.
    #[must_use]
    pub fn new(plugins: Vec<Arc<dyn WorkloadAttestor>>, clock: Arc<dyn Clock>) -> Self {
        let calls = plugins.iter().map(|_| Call::default()).collect();
        let own_pid = i32::try_from(std::process::id()).unwrap_or_default();
        Self { plugins, clock, queues: Keyed::default(), meters: Arc::default(), calls, own_pid }
    }

    /// Measures what it does.
    #[must_use]
    pub fn measured(self, meters: Arc<Meters>) -> Self {
        let calls =
            self.plugins.iter().map(|plugin| meters.workload_attestor(plugin.info().name())).collect();
        Self { meters, calls, ..self }
    }

    /// The selectors of `caller`. Cancel-safe.
    ///
    /// # Errors
    /// [`AttestError`]; what each attestor said is in the log.
    pub async fn attest(&self, caller: &Caller) -> Result<SelectorSet, AttestError> {
        let running = self.meters.attestation.start();
        let outcome = self.found(caller).await;
        if caller.process.pid() == self.own_pid {
            // The agent looks whether it works.
            running.discard();
            return outcome;
        }
        running.done(outcome.as_ref().map_or(Code::Unknown, |_| Code::Ok));
        if let Ok(selectors) = &outcome
            && self.meters.selectors.is_on()
        {
            self.meters.selectors.observe(selectors.iter().count() as f64);
        }
        outcome
    }

    /// What each attestor says of `caller`, by their names. Whether that still is who was looked at has to
    /// be checked by who asks. Cancel-safe.
    pub async fn each(&self, caller: &Caller) -> Vec<(&str, Result<Vec<Selector>, PluginError>)> {
        let queue = self.queue(caller.uid);
        // A queue is never closed.
        let _turn = queue.acquire().await;
        let names = self.plugins.iter().map(|plugin| plugin.info().name());
        names.zip(self.ask_all(caller).await).collect()
    }

    async fn ask_all(&self, caller: &Caller) -> Vec<Result<Vec<Selector>, PluginError>> {
        match self.plugins.as_slice() {
            [only] => vec![self.ask(&**only, self.calls.first(), caller).await],
            several => {
                let calls = several.iter().zip(&self.calls);
                join_all(calls.map(|(plugin, call)| self.ask(&**plugin, Some(call), caller))).await
            }
        }
    }

    async fn found(&self, caller: &Caller) -> Result<SelectorSet, AttestError> {
        let queue = self.queue(caller.uid);
        // A queue is never closed.
        let _turn = queue.acquire().await;
        let pid = caller.process.pid();
        let found = self.ask_all(caller).await;
        caller.verify()?;

        let mut failures = Vec::new();
        let mut selectors = Vec::new();
        for (plugin, outcome) in self.plugins.iter().zip(found) {
            match outcome {
                Ok(some) if selectors.is_empty() => selectors = some,
                Ok(some) => selectors.extend(some),
                Err(reason) => {
                    let name = plugin.info().name();
                    error!(pid, error = %reason, subsystem_name = SUBSYSTEM, "workload attestor {name:?} failed");
                    failures.push(format!("workload attestor {name:?} failed: {reason}"));
                }
            }
        }
        if !failures.is_empty() && failures.len() == self.plugins.len() {
            return Err(AttestError::AllFailed);
        }
        if !failures.is_empty() {
            let error = failures.join("\n");
            error!(error, subsystem_name = SUBSYSTEM, "Failed to collect all selectors");
        }
        // Selectors themselves tell too much of a workload to stand in a log.
        debug!(pid, count = selectors.len(), subsystem_name = SUBSYSTEM, "PID attested to have selectors");
        Ok(selectors.into_iter().collect())
    }

    async fn ask(
        &self,
        plugin: &dyn WorkloadAttestor,
        call: Option<&Call>,
        caller: &Caller,
    ) -> Result<Vec<Selector>, PluginError> {
        let measured = call.filter(|_| caller.process.pid() != self.own_pid).map(Call::start);
        let answer = within(&*self.clock, DEADLINE, plugin.attest(&caller.process)).await;
        let answer = answer.unwrap_or_else(|| {
            Err(PluginError::new(plugin::Code::DeadlineExceeded, "context deadline exceeded"))
        });
        if let Some(measured) = measured {
            let code = answer.as_ref().map_or_else(|error| error.code.number(), |_| 0);
            measured.done(Code::from_i32(code));
        }
        answer
    }

    /// Where the attestations of one user wait for their turn.
    fn queue(&self, user: u32) -> Arc<Semaphore> {
        self.queues.get_or_insert_with(user, || Semaphore::new(PER_USER))
    }
}

const SUBSYSTEM: &str = "workload_attestor";
