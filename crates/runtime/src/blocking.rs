//! Work that would hold up other tasks: on threads of its own, so many at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// A bound on work that takes more than a millisecond: password hashing, RSA keys, large decodings.
/// Who comes when all places are taken waits in order. Cheap to clone; clones share the bound.
#[derive(Clone, Debug)]
pub struct Blocking(Arc<Semaphore>);

/// The work panicked.
#[derive(Debug, thiserror::Error)]
#[error("a computation did not come to its end")]
pub struct Interrupted;

impl Blocking {
    /// At most so many at a time, at least one.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Semaphore::new(places.max(1))))
    }

    /// As many as the machine has processors.
    #[must_use]
    pub fn per_processor() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
    }

    /// Does the work. Dropping the future before the work began prevents it; later the work goes on and
    /// its result is lost.
    ///
    /// # Errors
    /// [`Interrupted`] if the work panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Interrupted> {
        let place = Arc::clone(&self.0).acquire_owned().await.map_err(|_closed| Interrupted)?;
        let working = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(place);
            result
        });
        working.await.map_err(|_panicked| Interrupted)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn no_more_than_the_bound_run_at_once() {
        let blocking = Blocking::new(1);
        let (release, released) = mpsc::channel::<()>();
        let mut first = Box::pin(blocking.run(move || released.recv()));
        assert!(futures::poll!(&mut first).is_pending());
        let mut second = Box::pin(blocking.run(|| 2));

        assert!(futures::poll!(&mut second).is_pending());
        release.send(()).unwrap();

        first.await.unwrap().unwrap();
        assert_eq!(second.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_panic_frees_its_place() {
        let blocking = Blocking::new(1);

        blocking.run(|| panic!("on purpose")).await.unwrap_err();

        assert_eq!(blocking.run(|| 1).await.unwrap(), 1);
    }
}
