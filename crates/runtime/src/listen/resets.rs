//! Calls that their client takes back.
//!
//! A call costs the server something before its client is heard again, and a client that takes it back at
//! once is free to begin the next: the limit on calls at once does not hold it (CVE-2023-44487). The
//! HTTP/2 library bounds those that were taken back before they were looked at; here the others are
//! counted, as far as they were taken back before an answer began, and a connection that takes back too many
//! in a second is given up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What one connection has taken back. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Resets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    per_second: u32,
    counted: Mutex<Counted>,
    too_many: CancellationToken,
}

#[derive(Debug)]
struct Counted {
    since: Instant,
    resets: u32,
}

/// A call that counts as taken back if it is dropped before its answer has begun.
#[derive(Debug)]
pub(super) struct Begun {
    resets: Resets,
    has_ended: bool,
}

impl Resets {
    pub(super) fn new(per_second: u32) -> Self {
        let counted = Mutex::new(Counted { since: Instant::now(), resets: 0 });
        Self(Arc::new(Inner { per_second, counted, too_many: CancellationToken::new() }))
    }

    /// A call begins.
    pub(super) fn begin(&self) -> Begun {
        Begun { resets: self.clone(), has_ended: false }
    }

    /// Ends when there were too many in a second.
    pub(super) async fn too_many(&self) {
        self.0.too_many.cancelled().await;
    }

    fn count(&self) {
        let mut counted = self.0.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.since.elapsed() >= SECOND {
            *counted = Counted { since: Instant::now(), resets: 0 };
        }
        counted.resets = counted.resets.saturating_add(1);
        if counted.resets > self.0.per_second {
            self.0.too_many.cancel();
        }
    }
}

impl Begun {
    /// Its answer has begun, or needs no more.
    pub(super) const fn end(&mut self) {
        self.has_ended = true;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.has_ended {
            self.resets.count();
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn take_back(resets: &Resets, count: u32) {
        for _ in 0..count {
            drop(resets.begin());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_in_a_second_are_told_and_as_many_over_two_are_not() {
        let resets = Resets::new(200);

        for _ in 0..20 {
            take_back(&resets, 200);
            tokio::time::advance(SECOND).await;
        }
        assert!(resets.too_many().now_or_never().is_none());

        take_back(&resets, 201);
        assert!(resets.too_many().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_is_not_taken_back() {
        let resets = Resets::new(0);

        resets.begin().end();

        assert!(resets.too_many().now_or_never().is_none());
    }
}
