//! Accepting without end: what may go wrong with one connection must not end the listener.

use std::io;
use std::time::Duration;

/// What to do after the system refused to accept, and how often it did in a row.
#[derive(Debug, Default)]
pub(crate) struct Refusals(u32);

impl Refusals {
    /// Accepting works again.
    pub(crate) const fn over(&mut self) {
        self.0 = 0;
    }

    /// Waits before the next try. A client that is gone already costs nothing; where files or memory
    /// have run out the same error would come back at once, for as long as it takes.
    pub(crate) async fn wait(&mut self, error: &io::Error) {
        if is_of_one_client(error) {
            return;
        }
        if self.0 == 0 {
            tracing::error!(%error, "Cannot accept connections");
        }
        self.0 = self.0.saturating_add(1);
        tokio::time::sleep(PAUSE * self.0.min(LONGEST_IN_PAUSES)).await;
    }
}

fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

const PAUSE: Duration = Duration::from_millis(50);

/// A second at most.
const LONGEST_IN_PAUSES: u32 = 20;

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn r10_without_files_it_waits_longer_each_time_up_to_a_second() {
        let mut refusals = Refusals::default();
        let out_of_files = io::Error::from_raw_os_error(libc::EMFILE);
        let started = Instant::now();

        for _ in 0..40 {
            refusals.wait(&out_of_files).await;
        }

        // 50 ms, 100 ms, .. 1 s, and 20 more of 1 s.
        assert_eq!(started.elapsed().as_millis(), 10_500 + 20_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_left_costs_no_time() {
        let started = Instant::now();

        Refusals::default().wait(&io::Error::from_raw_os_error(libc::ECONNABORTED)).await;

        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
