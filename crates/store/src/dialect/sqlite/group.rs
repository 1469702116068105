//! Group commit: the writer thread and what is queued for it.
//!
//! All operations that wait share one transaction and so one fsync; each has a savepoint of its own,
//! so that a refused operation takes back only itself. If the transaction as a whole fails, each
//! operation is run again alone: only the culprit fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot};

use super::conn::{Conn, Tx};
use crate::{Change, Changes, Committed, StoreError};

/// No group is larger: the first of a group waits for the last.
const LARGEST_GROUP: usize = 512;

/// One queued operation.
pub(crate) trait Queued: Send {
    /// Runs it inside a transaction; whether it may be committed. May be run again.
    fn run(&mut self, conn: &Conn, now: SystemTime) -> bool;
    /// What it changed when it ran last.
    fn changes(&mut self) -> Vec<Change>;
    /// Answers the caller, once what it did is on disk (or it failed by itself).
    fn answer(self: Box<Self>, changes: Option<Changes>);
    /// Answers the caller that the transaction failed.
    fn fail(self: Box<Self>, error: StoreError);
}

/// An operation, its outcome and who waits for it.
pub(crate) struct Operation<T, F> {
    work: F,
    outcome: Option<Result<T, StoreError>>,
    changes: Vec<Change>,
    caller: oneshot::Sender<Result<Committed<T>, StoreError>>,
}

impl<T, F> Operation<T, F> {
    pub(crate) const fn new(work: F, caller: oneshot::Sender<Result<Committed<T>, StoreError>>) -> Self {
        Self { work, outcome: None, changes: Vec::new(), caller }
    }
}

impl<T, F> Queued for Operation<T, F>
where
    T: Send,
    F: FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, conn: &Conn, now: SystemTime) -> bool {
        let mut tx = Tx::new(conn, now);
        let outcome = (self.work)(&mut tx);
        let good = outcome.is_ok();
        self.changes = if good { tx.into_changes() } else { Vec::new() };
        self.outcome = Some(outcome);
        good
    }

    fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    fn answer(self: Box<Self>, changes: Option<Changes>) {
        let answer = match self.outcome {
            Some(Ok(value)) => Ok(Committed { value, changes }),
            Some(Err(error)) => Err(error),
            None => Err(StoreError::Closed),
        };
        // A caller that went away does not take its change back.
        drop(self.caller.send(answer));
    }

    fn fail(self: Box<Self>, error: StoreError) {
        drop(self.caller.send(Err(error)));
    }
}

/// The single writer.
pub(crate) struct Writer {
    pub(crate) conn: Conn,
    pub(crate) now: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    pub(crate) subscriber: Option<mpsc::Sender<Changes>>,
    pub(crate) sequence: u64,
    pub(crate) commits: Arc<AtomicU64>,
}

impl Writer {
    /// Commits what is queued until the queue is closed.
    pub(crate) fn run(mut self, mut queue: mpsc::Receiver<Box<dyn Queued>>) {
        while let Some(first) = queue.blocking_recv() {
            let mut group = vec![first];
            while group.len() < LARGEST_GROUP {
                let Ok(next) = queue.try_recv() else { break };
                group.push(next);
            }
            self.commit(group);
        }
    }

    fn commit(&mut self, mut group: Vec<Box<dyn Queued>>) {
        match self.attempt(&mut group) {
            Ok(()) => {
                for operation in group {
                    self.acknowledge(operation);
                }
            }
            Err(error) if group.len() == 1 => {
                for operation in group {
                    operation.fail(StoreError::sql(strip(&error)));
                }
            }
            Err(error) => {
                tracing::warn!(%error, operations = group.len(), "group commit failed, replaying singly");
                for operation in group {
                    self.commit(vec![operation]);
                }
            }
        }
    }

    /// One transaction for the group. An error means that nothing of it was committed.
    fn attempt(&self, group: &mut [Box<dyn Queued>]) -> Result<(), Failure> {
        self.conn.execute("BEGIN IMMEDIATE", [])?;
        let tried = self.steps(group);
        if tried.is_err() && !self.conn.is_idle() {
            self.conn.execute("ROLLBACK", [])?;
        }
        tried
    }

    fn steps(&self, group: &mut [Box<dyn Queued>]) -> Result<(), Failure> {
        let now = (self.now)();
        let mut anything = false;
        for operation in group.iter_mut() {
            self.conn.execute("SAVEPOINT operation", [])?;
            let good = operation.run(&self.conn, now);
            if self.conn.is_idle() {
                return Err(Failure("the database gave up the transaction".to_owned()));
            }
            if !good {
                self.conn.execute("ROLLBACK TO operation", [])?;
            }
            self.conn.execute("RELEASE operation", [])?;
            anything |= good;
        }
        if !anything {
            self.conn.execute("ROLLBACK", [])?;
            return Ok(());
        }
        self.conn.execute("COMMIT", [])?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn acknowledge(&mut self, mut operation: Box<dyn Queued>) {
        let list = operation.changes();
        if list.is_empty() {
            return operation.answer(None);
        }
        self.sequence += 1;
        let changes = Changes { sequence: self.sequence, list: list.into() };
        if let Some(subscriber) = &self.subscriber {
            // Waits for room: a snapshot that fell behind must slow writers down, never miss a
            // change. A subscriber that is gone needs none.
            if subscriber.blocking_send(changes.clone()).is_err() {
                self.subscriber = None;
            }
        }
        operation.answer(Some(changes));
    }
}

/// Why a whole transaction failed.
struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

fn strip(failure: &Failure) -> &str {
    failure.0.strip_prefix("datastore-sql: ").unwrap_or(&failure.0)
}
