//! Work on items by the thousand, beside calls that take microseconds: on a thread of its own, which gives
//! way to those that answer.
//!
//! Where a server has one processor, who asks for one thing waits for the next of many short steps
//! of such work, not for its end: the kernel takes the processor away from it, which tasks of one thread
//! cannot do to each other.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, resume_unwind};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::BoxError;
use crate::process::give_way_to_other_threads;

/// Where work is handed in. Cheap to clone; clones share the thread.
#[derive(Clone)]
pub struct Bulk(mpsc::UnboundedSender<BoxFuture<'static, ()>>);

/// The other end, which does the work.
pub struct Worker(mpsc::UnboundedReceiver<BoxFuture<'static, ()>>);

impl Bulk {
    /// Both ends.
    #[must_use]
    pub fn new() -> (Self, Worker) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), Worker(receiver))
    }

    /// Has the work done beside other such work, in turns where it waits; `None` if the worker is gone. It is
    /// for the caller to bound how much is handed in at once. Dropped, it ends the work where that waits.
    ///
    /// # Panics
    /// If the work did.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (mut tell, told) = oneshot::channel::<Result<T, Box<dyn Any + Send>>>();
        let work = async move {
            let done = tokio::select! {
                biased;
                () = tell.closed() => return,
                done = AssertUnwindSafe(work).catch_unwind() => done,
            };
            // Nobody may be interested any more.
            tell.send(done).ok();
        };
        self.0.send(Box::pin(work)).ok()?;
        match told.await.ok()? {
            Ok(done) => Some(done),
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bulk")
    }
}

impl Worker {
    /// Does the work until the token is cancelled, on this thread, which gives way to others from now on: for
    /// [`apart`](crate::tasks::apart).
    ///
    /// # Errors
    /// None.
    pub async fn run(mut self, token: CancellationToken) -> Result<(), BoxError> {
        if let Err(error) = give_way_to_other_threads() {
            tracing::debug!(%error, "Work in bulk is done with the priority of all other threads");
        }
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                Some(()) = running.next() => {}
                work = self.0.recv() => match work {
                    Some(work) => running.push(work),
                    None => return Ok(()),
                },
            }
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Worker")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::tasks::{Tasks, apart};

    fn started() -> (Bulk, Tasks, CancellationToken) {
        let (bulk, worker) = Bulk::new();
        let token = CancellationToken::new();
        let mut tasks = Tasks::new(token.clone());
        let until = token.clone();
        tasks.spawn("bulk", apart("bulk", move || worker.run(until)));
        (bulk, tasks, token)
    }

    #[tokio::test]
    async fn work_is_done_elsewhere_and_its_result_handed_back() {
        let (bulk, _tasks, token) = started();
        let name = || std::thread::current().name().map(str::to_owned);

        let (one, other) = tokio::join!(bulk.run(async move { name() }), bulk.run(async { 2 }));

        assert_eq!((one.flatten().as_deref(), other), (Some("bulk"), Some(2)));
        token.cancel();
    }

    #[tokio::test]
    async fn work_that_waits_holds_nothing_up() {
        let (bulk, _tasks, token) = started();
        let (go, wait) = oneshot::channel::<i32>();

        let (waited, ()) = tokio::join!(bulk.run(wait), async {
            bulk.run(async {}).await.unwrap();
            go.send(7).unwrap();
        });

        assert_eq!(waited, Some(Ok(7)));
        token.cancel();
    }

    #[tokio::test]
    async fn a_panic_is_the_callers() {
        let (bulk, _tasks, token) = started();

        let outcome = AssertUnwindSafe(bulk.run(async { panic!("planted") })).catch_unwind().await;

        let panic: Option<()> =
            outcome.map_err(|panic| assert_eq!(panic.downcast_ref(), Some(&"planted"))).unwrap_or(None);
        assert_eq!(panic, None);
        assert_eq!(bulk.run(async { 1 }).await, Some(1));
        token.cancel();
    }

    #[tokio::test]
    async fn who_leaves_ends_the_work_and_an_end_of_the_worker_is_told() {
        let (bulk, tasks, token) = started();
        let left = Arc::new(AtomicBool::new(false));
        let at_end = OnDrop(Arc::clone(&left));
        let (entered, is_entered) = oneshot::channel::<()>();
        let work = bulk.run(async move {
            let _at_end = at_end;
            entered.send(()).unwrap();
            std::future::pending::<()>().await;
        });

        tokio::select! {
            _ = work => unreachable!(),
            _ = is_entered => {}
        }
        bulk.run(async {}).await.unwrap();
        assert!(left.load(Ordering::SeqCst));

        token.cancel();
        drop(tasks);
        let (bulk, worker) = Bulk::new();
        drop(worker);
        assert_eq!(bulk.run(async { 1 }).await, None);
    }

    struct OnDrop(Arc<AtomicBool>);

    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}
