//! Everything operational that is not about identity: clock, tasks, logs, health, listeners, peer
//! credentials.
//!
//! [`clock`] is the only reader of the time, [`tasks`] the only place that starts tasks, `sys` the only
//! one with unsafe code. Nothing in here knows SPIFFE's protocols, configuration files or plugins, and
//! nothing prints.

pub mod authority;
pub mod backoff;
pub mod blocking;
pub mod clock;
pub mod codes;
pub mod files;
pub mod health;
pub mod http;
pub mod json;
pub mod keyed;
pub mod listen;
pub mod log;
pub mod manager;
pub mod memory;
pub mod metrics;
pub mod pages;
pub mod peer;
pub mod process;
pub mod profile;
pub mod reconcile;
pub mod served;
pub mod shutdown;
pub mod snapshot;
#[expect(unsafe_code, reason = "the one place")]
mod sys;
pub mod tasks;
mod turns;
pub mod upgrade;

/// An error of any kind, as tasks and listeners end with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error and its causes as one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    #[test]
    fn an_error_is_told_with_its_causes() {
        let failed = crate::tasks::TaskFailed { name: "feed", source: io::Error::other("disk full").into() };

        assert_eq!(crate::chain(&failed), "feed failed: disk full");
    }
}
