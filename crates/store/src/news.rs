//! Hints that another server wrote.

use std::future::pending;

use tokio::sync::watch;

/// Where a database says that another server wrote to it, if it does. What comes is a hint, which may be
/// one too many or missing: whoever follows other servers reads now and then all the same.
#[derive(Clone, Debug)]
pub struct News(Option<watch::Receiver<u64>>);

impl News {
    /// From a database that says so.
    pub(crate) const fn of(heard: watch::Receiver<u64>) -> Self {
        Self(Some(heard))
    }

    /// From a database that says nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Ends when another server wrote since this or [`Self::seen`] ended last; never, if nobody says so.
    /// Cancel-safe.
    pub async fn heard(&mut self) {
        if let Some(heard) = &mut self.0
            && heard.changed().await.is_ok()
        {
            return;
        }
        pending().await
    }

    /// What was written until now is about to be read.
    pub fn seen(&mut self) {
        if let Some(heard) = &mut self.0 {
            heard.mark_unchanged();
        }
    }
}
