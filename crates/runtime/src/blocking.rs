//! Work that would hold up other tasks: on threads of its own, so many at a time, or in place.

use std::sync::Arc;

use tokio::runtime::{Handle, RuntimeFlavor};
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

/// Does work that takes some milliseconds where it is asked for, while another thread goes on with the other
/// tasks of this one; where there are no others, they wait.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    let has_others =
        Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if has_others { tokio::task::block_in_place(work) } else { work() }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::tasks::Group;

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

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_is_done_in_place_holds_up_nobody() {
        let (tell, told) = mpsc::channel();
        let (answer, answered) = mpsc::channel();
        let group = Group::new(CancellationToken::new());

        // On the only thread, before the other task, which needs one.
        group.spawn("waits", async move { answer.send(in_place(|| told.recv())).unwrap() });
        group.spawn("tells", async move { tell.send(7).unwrap() });
        group.ended().await;

        assert_eq!(answered.recv().unwrap(), Ok(7));
    }

    #[tokio::test]
    async fn on_the_only_thread_there_is_work_is_done_in_place_too() {
        assert_eq!(in_place(|| 7), 7);
    }
}
