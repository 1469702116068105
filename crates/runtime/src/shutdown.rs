//! The end of a program: asked for by a signal or by the program itself.
//!
//! The first signal cancels the token, and everybody drains; the second ends the process at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::flag;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What tells a program to end. Cheap to clone; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    /// A signal told it to end.
    is_told: Arc<AtomicBool>,
    /// A signal that does ends it at once.
    is_done: Arc<AtomicBool>,
}

impl Shutdown {
    /// A program that is not to end yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells the program to end.
    pub fn trigger(&self) {
        self.token.cancel();
    }

    /// The token that is cancelled when the program is to end.
    #[must_use]
    pub const fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Whether the program was told to end.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Ends when the program was told to. Cancel-safe.
    pub async fn triggered(&self) {
        self.token.cancelled().await;
    }

    /// Whether a signal told the program to end, for who has drained and is about to become another program:
    /// a signal that comes from now on ends the process at once, with exit code 0. So none is lost: one that
    /// comes later still is the other program's.
    #[must_use]
    pub fn is_told_at_last(&self) -> bool {
        self.is_done.store(true, Ordering::SeqCst);
        self.is_told.load(Ordering::SeqCst)
    }

    /// From now on SIGTERM and SIGINT trigger it, and a second of them ends the process at once, with
    /// the exit code that shells give for a process killed by that signal. To be called within a
    /// Tokio runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen_to_signals(&self) -> io::Result<()> {
        let mut signals = Signals::new()?;
        for ending in [SignalKind::terminate(), SignalKind::interrupt()].map(|kind| kind.as_raw_value()) {
            flag::register(ending, Arc::clone(&self.is_told))?;
            flag::register_conditional_shutdown(ending, 0, Arc::clone(&self.is_done))?;
        }
        // Whoever listens to these does so later, or not at all; by themselves they would end the process.
        for asking in [SignalKind::user_defined1(), SignalKind::user_defined2()] {
            drop(signal(asking)?);
        }
        let token = self.token.clone();
        #[expect(clippy::disallowed_methods, reason = "outlives all tasks: the second signal must be heard")]
        tokio::spawn(async move {
            signals.next().await;
            token.cancel();
            let number = signals.next().await;
            std::process::exit(128 + number);
        });
        Ok(())
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn a_signal_that_asks_for_something_does_not() {
        let shutdown = Shutdown::new();
        shutdown.listen_to_signals().unwrap();

        kill_process(getpid(), Signal::USR1).unwrap();
        kill_process(getpid(), Signal::USR2).unwrap();

        assert!(!shutdown.is_triggered(), "and the process has not ended");
    }

    #[tokio::test]
    async fn a_signal_triggers_it() {
        let shutdown = Shutdown::new();
        shutdown.listen_to_signals().unwrap();
        assert!(!shutdown.is_triggered());

        kill_process(getpid(), Signal::TERM).unwrap();

        shutdown.triggered().await;
        assert!(shutdown.token().is_cancelled());
    }
}
