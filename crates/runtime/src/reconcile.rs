//! Background duties: run on a timer and when poked, never fed.
//!
//! A duty looks at the state and makes it what it should be; a poke carries nothing, so a missed one
//! costs time and never correctness.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::health::Check;
use crate::{BoxError, chain};

/// A wake-up call. Any number of them before the duty looks count as one. Cheap to clone; clones wake
/// the same duty.
#[derive(Clone, Debug, Default)]
pub struct Poke(Arc<Notify>);

impl Poke {
    /// A wake-up call that nobody waits for yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes the duty, now or as soon as it waits.
    pub fn poke(&self) {
        self.0.notify_one();
    }

    /// Ends at the next poke, at once where one came since the last. Cancel-safe.
    pub async fn poked(&self) {
        self.0.notified().await;
    }
}

/// A background duty: how it is called and how often it runs.
#[derive(Clone, Debug)]
pub struct Reconciler {
    /// The name that logs give.
    pub name: &'static str,
    /// The time between two runs that nobody asked for. A run that failed is repeated earlier.
    pub every: Duration,
    /// What makes it run at once.
    pub poke: Poke,
    /// Shows the failure of the last run, as degraded.
    pub health: Option<Check>,
}

impl Reconciler {
    /// A duty by this name.
    #[must_use]
    pub fn new(name: &'static str, every: Duration) -> Self {
        Self { name, every, poke: Poke::new(), health: None }
    }

    /// Runs it: at once, then by timer and poke until the token is cancelled. A failed run is logged,
    /// told to the health check and repeated with back-off; it never ends the loop. A run in progress
    /// is dropped when the token is cancelled, so each of its steps must be whole.
    ///
    /// # Errors
    /// None: the type fits [`crate::tasks::Tasks::spawn`].
    pub async fn run<F, E>(
        self,
        clock: Arc<dyn Clock>,
        token: CancellationToken,
        mut step: impl FnMut() -> F,
    ) -> Result<(), BoxError>
    where
        F: Future<Output = Result<(), E>>,
        E: Into<BoxError>,
    {
        let mut backoff = Backoff::new(FIRST_RETRY.min(self.every)).with_cap(self.every);
        loop {
            let outcome = tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                outcome = step() => outcome.map_err(Into::into),
            };
            let pause = match outcome {
                Ok(()) => {
                    backoff.reset();
                    self.tell(None);
                    self.every
                }
                Err(error) => {
                    let text = chain(error.as_ref());
                    tracing::warn!(task = self.name, error = text, "Background task failed, retrying");
                    self.tell(Some(text));
                    backoff.next()
                }
            };
            tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                () = self.poke.poked() => {}
                () = clock.sleep(pause) => {}
            }
        }
    }

    fn tell(&self, failure: Option<String>) {
        if let Some(check) = &self.health {
            match failure {
                Some(text) => check.degraded(self.name, text),
                None => check.cleared(self.name),
            }
        }
    }
}

const FIRST_RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::UNIX_EPOCH;

    use tokio::sync::mpsc;

    use super::*;
    use crate::clock::ManualClock;

    #[tokio::test]
    async fn it_runs_at_once_by_timer_by_poke_and_again_after_a_failure() {
        let clock = ManualClock::new(UNIX_EPOCH);
        let token = CancellationToken::new();
        let (ran, mut runs) = mpsc::channel(1);
        let duty = Reconciler::new("duty", Duration::from_secs(60));
        let poke = duty.poke.clone();
        let mut count = 0;
        let running = duty.run(Arc::new(clock.clone()), token.clone(), move || {
            count += 1;
            let (ran, run) = (ran.clone(), count);
            async move {
                ran.send(run).await.unwrap();
                if run == 3 { Err(io::Error::other("no luck")) } else { Ok(()) }
            }
        });
        let observer = async {
            assert_eq!(runs.recv().await, Some(1));
            poke.poke();
            assert_eq!(runs.recv().await, Some(2));
            settle(&mut runs).await;
            clock.advance(Duration::from_secs(60));
            assert_eq!(runs.recv().await, Some(3));
            settle(&mut runs).await;
            clock.advance(Duration::from_secs(2));
            assert_eq!(runs.recv().await, Some(4));
            token.cancel();
        };

        let (ended, ()) = tokio::join!(running, observer);

        ended.unwrap();
    }

    /// Lets the duty go to sleep, which it does before this task is polled again.
    async fn settle(runs: &mut mpsc::Receiver<i32>) {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        runs.try_recv().unwrap_err();
    }
}
