//! The threads of an open database, and the queues to them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::conn::{Conn, Tx};
use super::group::{Answers, LARGEST_GROUP, Operation, Queued, Writer};
use super::readers::{self, Read};
use crate::{Committed, Options, StoreError};

/// How many operations may wait: enough to fill two groups, few enough to notice a dead disk.
const QUEUE: usize = 1024;

/// The writer, and the readers beside it.
pub(crate) struct Tasks {
    writes: Option<mpsc::Sender<Box<dyn Queued>>>,
    /// Absent where the writer reads too.
    reads: Option<mpsc::Sender<Read>>,
    statements: Arc<AtomicU64>,
    commits: Arc<AtomicU64>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Tasks {
    /// Starts the threads, one for each connection. `statements` counts for all of them.
    pub(crate) fn start(
        writer: Conn,
        readers: Vec<Conn>,
        statements: Arc<AtomicU64>,
        options: &Options,
    ) -> Result<Self, StoreError> {
        let commits = Arc::new(AtomicU64::new(0));
        let (writes, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            conn: writer,
            now: Arc::clone(&options.now),
            subscriber: options.changes.clone(),
            sequence: 0,
            commits: Arc::clone(&commits),
        };
        let write = move || {
            // Where a server has one processor, signing does not wait for entries that are created by the thousand.
            if let Err(error) = runtime::process::give_way_to_other_threads() {
                tracing::debug!(%error, "The datastore's writer has the priority of all other threads");
            }
            writer.run(queue);
        };
        let mut threads = vec![spawn("store-writer", write)?];
        let mut reads = None;
        if !readers.is_empty() {
            let (sender, queue) = mpsc::channel(QUEUE);
            let queue = Arc::new(Mutex::new(queue));
            for conn in readers {
                let queue = Arc::clone(&queue);
                threads.push(spawn("store-reader", move || readers::run(&conn, &queue))?);
            }
            reads = Some(sender);
        }
        Ok(Self { writes: Some(writes), reads, statements, commits, threads: Mutex::new(threads) })
    }

    /// Queues a write and waits until it is committed.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<Committed<T>, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.write_all([work]).await.pop().unwrap_or(Err(StoreError::Closed))
    }

    /// Queues writes one behind the other and waits until all are committed; what each came to, in their
    /// order. They have nothing to do with each other.
    pub(crate) async fn write_all<T, F>(
        &self,
        works: impl IntoIterator<Item = F, IntoIter: ExactSizeIterator + Send>,
    ) -> Vec<Result<Committed<T>, StoreError>>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let works = works.into_iter();
        let count = works.len();
        let (caller, answer) = oneshot::channel();
        let answers = Answers::new(count, caller);
        let place = |(place, work)| -> Box<dyn Queued> {
            Box::new(Operation::new(work, Arc::clone(&answers), place))
        };
        let mut operations: Vec<_> = works.enumerate().map(place).collect();
        drop(answers);
        if let Some(queue) = &self.writes {
            while !operations.is_empty() {
                // A group at a time, so that the writer does not begin with the few that came first.
                let next = operations.len().min(LARGEST_GROUP);
                let Ok(places) = queue.reserve_many(next).await else { break };
                for (place, operation) in places.zip(operations.drain(..next)) {
                    place.send(operation);
                }
            }
        }
        // Those that could not be queued are closed.
        drop(operations);
        answer.await.unwrap_or_default()
    }

    /// Runs a read beside the writer.
    pub(crate) async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Conn) -> Result<T, StoreError> + Send + 'static,
    {
        let Some(queue) = &self.reads else {
            return Ok(self.write(move |tx| work(tx.conn)).await?.value);
        };
        let (caller, answer) = oneshot::channel();
        let job: Read = Box::new(move |conn| {
            // Nobody waits for a read whose caller is gone.
            if !caller.is_closed() {
                drop(caller.send(readers::in_snapshot(conn, work)));
            }
        });
        queue.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// How many transactions were committed since the store was opened.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// How many SQL statements were run since the store was opened.
    pub(crate) fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }
}

impl Drop for Tasks {
    /// Waits for what is queued, so that the database is whole and free when the store is gone.
    fn drop(&mut self) {
        self.writes = None;
        self.reads = None;
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                tracing::error!("a datastore thread panicked");
            }
        }
    }
}

/// Starts a thread of the datastore.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| StoreError::Open(format!("cannot start datastore thread: {error}")))
}
