//! The tasks of a program: named, supervised, ended together. No other place starts a task.
//!
//! [`Tasks`] holds the few that make up a program, known by name, where one failure ends all. [`Group`]
//! holds any number of short ones, such as connections, whose failure is their own affair.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::oneshot;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BoxError;

/// The tasks of a program. The first that fails, or panics, cancels the token that all have been given.
/// Dropped, it aborts those still running.
#[derive(Debug)]
pub struct Tasks {
    running: JoinSet<Result<(), BoxError>>,
    names: HashMap<Id, &'static str>,
    token: CancellationToken,
    grace: Duration,
}

/// What the threads run: one kind of task, or each would have code of its own there.
type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The task that failed first, and why.
#[derive(Debug, thiserror::Error)]
#[error("{name} failed")]
pub struct TaskFailed {
    /// The name of the task.
    pub name: &'static str,
    /// What it ended with.
    #[source]
    pub source: BoxError,
}

/// Why a task ended that returned nothing.
#[derive(Debug, thiserror::Error)]
enum Abnormal {
    #[error("panicked: {0}")]
    Panicked(String),
    #[error("did not end within {0:?} of being told to")]
    Overdue(Duration),
}

impl Tasks {
    /// No tasks yet; cancelling `token` is what tells them to end.
    #[must_use]
    pub fn new(token: CancellationToken) -> Self {
        Self { running: JoinSet::new(), names: HashMap::new(), token, grace: GRACE }
    }

    /// How long tasks may take to end once the token is cancelled, before they are aborted.
    #[must_use]
    pub const fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Starts a task. It should end, with `Ok`, once the token is cancelled.
    pub fn spawn<E: Into<BoxError>>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let task: Boxed<Result<(), BoxError>> = Box::pin(async move { task.await.map_err(Into::into) });
        let handle = self.running.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// The token that tells the tasks to end.
    #[must_use]
    pub const fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Waits until all tasks have ended.
    ///
    /// # Errors
    /// The task that failed first.
    pub async fn join(mut self) -> Result<(), TaskFailed> {
        let mut failed = None;
        while let Some(ended) = self.next().await {
            match ended {
                Ok(()) => {}
                Err(failure) if failed.is_none() => {
                    failed = Some(failure);
                    self.token.cancel();
                }
                Err(failure) => {
                    tracing::warn!(task = failure.name, error = %failure.source, "Task failed while stopping");
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The next end of a task; once the token is cancelled only for as long as the grace lasts.
    async fn next(&mut self) -> Option<Result<(), TaskFailed>> {
        if !self.token.is_cancelled() {
            let token = self.token.clone();
            tokio::select! {
                biased;
                ended = self.running.join_next_with_id() => return self.name(ended?),
                () = token.cancelled() => {}
            }
        }
        match tokio::time::timeout(self.grace, self.running.join_next_with_id()).await {
            Ok(ended) => self.name(ended?),
            Err(_elapsed) => {
                let overdue = self.names.values().min().copied();
                self.running.abort_all();
                self.running.detach_all();
                let name = overdue?;
                Some(Err(TaskFailed { name, source: Abnormal::Overdue(self.grace).into() }))
            }
        }
    }

    fn name(
        &mut self,
        ended: Result<(Id, Result<(), BoxError>), JoinError>,
    ) -> Option<Result<(), TaskFailed>> {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => (error.id(), Err(Abnormal::Panicked(panic_of(error)).into())),
        };
        let name = self.names.remove(&id).unwrap_or("task");
        Some(outcome.map_err(|source| TaskFailed { name, source }))
    }
}

/// Any number of tasks of which each may fail by itself. Cheap to clone; clones are the same group.
#[derive(Clone, Debug)]
pub struct Group {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Group {
    /// No tasks yet. Cancelling `token` tells them to end; it does not abort them.
    #[must_use]
    pub fn new(token: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), token }
    }

    /// Starts a task. A panic ends it alone, and is logged with the name.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let task: Boxed<()> = Box::pin(task);
        self.spawn_unboxed(name, task);
    }

    /// The same for small tasks of which there are very many: the code that runs it is its own.
    pub(crate) fn spawn_unboxed(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(alone(name, task));
    }

    /// A task for somebody else to poll: it counts as one of the group's until it has ended.
    pub(crate) fn counted<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        task: F,
    ) -> impl Future<Output = ()> + Send + use<F> {
        self.tracker.track_future(alone(name, task))
    }

    /// The token that tells the tasks to end.
    #[must_use]
    pub const fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// How many tasks are running.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether no task is running.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits until no task is running. Cancel-safe.
    pub async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Has a task end by itself if it panics.
async fn alone(name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
        tracing::error!(task = name, error = text_of(panic.as_ref()), "Task panicked");
    }
}

/// Does `work` on a thread of its own, with all that it starts there. For work of many short steps that
/// hand on to each other: between the threads of a program each step might wake another one, which takes
/// longer than the step. What it does must never hold that thread up.
///
/// Dropped, it ends the work where that waits.
///
/// # Errors
/// What the work ends with, or there is no thread.
pub async fn apart<T, F>(name: &str, work: impl FnOnce() -> F + Send + 'static) -> Result<T, BoxError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, BoxError>>,
{
    let (tell, told) = oneshot::channel();
    let (_awaited, left) = oneshot::channel::<()>();
    let on_thread = move || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let ended = match builder.event_interval(TASKS_BETWEEN_LOOKS).enable_all().build() {
            Ok(runtime) => {
                let ended = runtime.block_on(async {
                    let work = async { AssertUnwindSafe(work()).catch_unwind().await };
                    tokio::select! {
                        ended = work => Some(ended),
                        _ = left => None,
                        () = beat() => None,
                    }
                });
                // What blocks a thread of the pool is not waited for.
                runtime.shutdown_background();
                ended
            }
            Err(error) => Some(Ok(Err(error.into()))),
        };
        if let Some(ended) = ended {
            // Nobody may be interested any more.
            tell.send(ended).ok();
        }
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(on_thread)?;
    match told.await? {
        Ok(ended) => ended,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A timer that is due before those that connections set. Setting one that is due before all others has the
/// thread woken, also where it is the thread itself that sets it: two system calls for each connection.
async fn beat() {
    loop {
        tokio::time::sleep(BEAT).await;
    }
}

fn panic_of(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => text_of(panic.as_ref()).to_owned(),
        Err(error) => error.to_string(),
    }
}

/// What a panic said.
pub(crate) fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

/// After how many tasks a thread that serves alone looks for who else has come, while it has more to do. A
/// look takes a hundredth of what they take; with Tokio's 61 who comes would wait for a millisecond.
const TASKS_BETWEEN_LOOKS: u32 = 2;

/// Shorter than connections wait for anything.
const BEAT: Duration = Duration::from_secs(5);

/// Longer than the ten seconds that listeners give their streams.
const GRACE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[tokio::test]
    async fn the_first_failure_ends_all_and_is_named() {
        let mut tasks = Tasks::new(CancellationToken::new());
        let token = tasks.token().clone();
        tasks.spawn("feed", async move {
            token.cancelled().await;
            Ok::<_, io::Error>(())
        });
        tasks.spawn("endpoints", async { Err(io::Error::other("port in use")) });

        let failed = tasks.join().await.unwrap_err();

        assert_eq!(failed.name, "endpoints");
        assert_eq!(failed.source.to_string(), "port in use");
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("graph", async {
            assert_eq!(1, 2, "sums are wrong");
            Ok::<_, io::Error>(())
        });

        let failed = tasks.join().await.unwrap_err();

        assert_eq!(failed.name, "graph");
        assert!(failed.source.to_string().contains("sums are wrong"), "{}", failed.source);
    }

    #[tokio::test]
    async fn tasks_that_end_well_end_nothing_else() {
        let mut tasks = Tasks::new(CancellationToken::new());
        let token = tasks.token().clone();
        tasks.spawn("once", async { Ok::<_, io::Error>(()) });

        tasks.join().await.unwrap();

        assert!(!token.is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_does_not_end_is_aborted_and_named() {
        let token = CancellationToken::new();
        let mut tasks = Tasks::new(token.clone()).with_grace(Duration::from_millis(1));
        tasks.spawn("stubborn", std::future::pending::<Result<(), io::Error>>());
        token.cancel();

        let failed = tasks.join().await.unwrap_err();

        assert_eq!(failed.name, "stubborn");
    }

    #[tokio::test]
    async fn work_apart_runs_on_its_own_thread_and_says_how_it_ended() {
        let here = std::thread::current().id();

        let there = apart("apart", || async { Ok(std::thread::current().id()) }).await.unwrap();
        let failed = apart("apart", || async { Err::<(), _>("no luck".into()) }).await.unwrap_err();

        assert_ne!(there, here);
        assert_eq!(failed.to_string(), "no luck");
    }

    #[tokio::test]
    async fn a_panic_apart_is_that_of_the_task() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("door", apart::<(), _>("apart", || async { panic!("hinges are gone") }));

        let failed = tasks.join().await.unwrap_err();

        assert!(failed.source.to_string().contains("hinges are gone"), "{}", failed.source);
    }

    #[tokio::test]
    async fn work_apart_ends_when_nobody_waits_for_it() {
        let (began, begun) = oneshot::channel();
        let (held, ended) = oneshot::channel::<()>();
        let mut waiting = Box::pin(apart("apart", move || async move {
            began.send(()).unwrap();
            std::future::pending::<()>().await;
            drop(held);
            Ok(())
        }));
        assert!(futures::poll!(&mut waiting).is_pending());
        begun.await.unwrap();

        drop(waiting);

        ended.await.unwrap_err();
    }

    #[tokio::test]
    async fn a_panic_in_a_group_stays_with_its_task() {
        let group = Group::new(CancellationToken::new());
        let (tell, told) = oneshot::channel();
        group.spawn("bad", async { panic!("on purpose") });
        group.spawn("good", async move { tell.send(()).unwrap() });

        told.await.unwrap();
        group.ended().await;

        assert!(group.is_empty());
    }
}
