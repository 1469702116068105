//! Group commit: the writer thread and what is queued for it.
//!
//! All operations that wait share one transaction and so one fsync; each has a savepoint of its own,
//! so that a refused operation takes back only itself. On a database server, where a savepoint is a
//! round trip, the group is first tried without: nearly always nothing is refused. If the transaction as a
//! whole fails, each operation is run again alone: only the culprit fails. One that met another
//! server's transaction is run again; one whose connection broke is run again if it cannot have been
//! committed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot};

use super::conn::{Conn, Dialect, Trouble, Tx};
use crate::{Change, Changes, Committed, StoreError};

/// No group is larger: the first of a group waits for the last.
pub(super) const LARGEST_GROUP: usize = 512;

/// How often a transaction that met another server's is tried again before its operations are run singly.
const MOST_RACES: u32 = 5;

/// One queued operation.
pub(crate) trait Queued: Send {
    /// Runs it inside a transaction; whether it may be committed. May be run again.
    fn run(&mut self, conn: &Conn, now: SystemTime) -> bool;
    /// Whether it wrote to a bundle when it ran last.
    fn wrote_bundle(&self) -> bool;
    /// What it changed when it ran last.
    fn changes(&mut self) -> Vec<Change>;
    /// Answers the caller, once what it did is on disk (or it failed by itself).
    fn answer(self: Box<Self>, changes: Option<Changes>);
    /// Answers the caller that the transaction failed.
    fn fail(self: Box<Self>, error: StoreError);
}

/// What an operation came to.
type Answer<T> = Result<Committed<T>, StoreError>;

/// The answers to operations that one caller waits for together: it is woken once, when the last of them is
/// done, and not for each. That is the case when the last operation that holds this is gone.
pub(crate) struct Answers<T> {
    places: Mutex<Vec<Option<Answer<T>>>>,
    caller: Option<oneshot::Sender<Vec<Answer<T>>>>,
}

impl<T> Answers<T> {
    /// Places for this many.
    pub(crate) fn new(count: usize, caller: oneshot::Sender<Vec<Answer<T>>>) -> Arc<Self> {
        let places = std::iter::repeat_with(|| None).take(count).collect();
        Arc::new(Self { places: Mutex::new(places), caller: Some(caller) })
    }

    fn put(&self, place: usize, answer: Answer<T>) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(empty) = places.get_mut(place) {
            *empty = Some(answer);
        }
    }
}

impl<T> Drop for Answers<T> {
    fn drop(&mut self) {
        let places = std::mem::take(self.places.get_mut().unwrap_or_else(PoisonError::into_inner));
        let answers = places.into_iter().map(|answer| answer.unwrap_or(Err(StoreError::Closed))).collect();
        // A caller that went away does not take its changes back.
        self.caller.take().map(|caller| caller.send(answers));
    }
}

/// An operation, its outcome and where it is answered.
pub(crate) struct Operation<T, F> {
    work: F,
    outcome: Option<Result<T, StoreError>>,
    changes: Vec<Change>,
    answers: Arc<Answers<T>>,
    place: usize,
}

impl<T, F> Operation<T, F> {
    pub(crate) const fn new(work: F, answers: Arc<Answers<T>>, place: usize) -> Self {
        Self { work, outcome: None, changes: Vec::new(), answers, place }
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

    fn wrote_bundle(&self) -> bool {
        self.changes.iter().any(|change| matches!(change, Change::BundleSet(_) | Change::BundleDeleted(_)))
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
        self.answers.put(self.place, answer);
    }

    fn fail(self: Box<Self>, error: StoreError) {
        self.answers.put(self.place, Err(error));
    }
}

/// The single writer.
pub(crate) struct Writer {
    pub(crate) conn: Conn,
    pub(crate) now: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    pub(crate) subscriber: Option<mpsc::Sender<Vec<Changes>>>,
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
        let mut savepoints = self.conn.dialect() == Dialect::Sqlite;
        let (mut races, mut losses) = (0, 0);
        loop {
            let Err(failure) = self.attempt(&mut group, savepoints) else {
                return self.acknowledge(group);
            };
            match failure {
                Failure::Refused => savepoints = true,
                Failure::Raced(_) if races < MOST_RACES => {
                    races += 1;
                    self.conn.pause(races);
                }
                Failure::Lost(_) if losses == 0 => losses += 1,
                Failure::Lost(error) | Failure::Unknown(error) => {
                    for operation in group {
                        operation.fail(StoreError::Unavailable(error.clone()));
                    }
                    return;
                }
                Failure::Raced(error) | Failure::Broken(error) if group.len() == 1 => {
                    for operation in group {
                        operation.fail(StoreError::sql(&error));
                    }
                    return;
                }
                Failure::Raced(error) | Failure::Broken(error) => {
                    tracing::warn!(%error, operations = group.len(), "group commit failed, replaying singly");
                    for operation in group {
                        self.commit(vec![operation]);
                    }
                    return;
                }
            }
        }
    }

    /// One transaction for the group. An error means that nothing of it was committed, but for
    /// [`Failure::Unknown`].
    fn attempt(&self, group: &mut [Box<dyn Queued>], savepoints: bool) -> Result<(), Failure> {
        self.conn.begin_write().map_err(|error| self.failure(&error))?;
        let tried = self.steps(group, savepoints);
        if tried.is_err() && !self.conn.is_idle() {
            self.conn.rollback().map_err(|error| self.failure(&error))?;
        }
        tried
    }

    fn steps(&self, group: &mut [Box<dyn Queued>], savepoints: bool) -> Result<(), Failure> {
        let now = (self.now)();
        let steer = |word| self.conn.steer(word).map_err(|error| self.failure(&error));
        let mut anything = false;
        for operation in group.iter_mut() {
            // Where a server has one processor, who waits for it waits for one operation, not for the end of
            // the time that the kernel gives to a thread.
            std::thread::yield_now();
            if savepoints {
                steer("SAVEPOINT operation")?;
            }
            let _: bool = self.conn.take_touched();
            let noted = self.conn.noted();
            let good = operation.run(&self.conn, now);
            if self.conn.trouble().is_some() || self.conn.is_idle() {
                return Err(self.failure(&StoreError::sql("the database gave up the transaction")));
            }
            if !good {
                self.conn.forget_noted(noted);
            }
            if !good && !savepoints && self.conn.take_touched() {
                return Err(Failure::Refused);
            }
            if !good && savepoints {
                self.conn.roll_back_to().map_err(|error| self.failure(&error))?;
            }
            if savepoints {
                steer("RELEASE SAVEPOINT operation")?;
            }
            anything |= good;
        }
        if !anything {
            return self.conn.rollback().map_err(|error| self.failure(&error));
        }
        // What others read when they follow: events, which are noted, and bundles.
        let is_news = self.conn.noted() > 0 || group.iter().any(|operation| operation.wrote_bundle());
        self.conn.insert_noted().map_err(|error| self.failure(&error))?;
        let committed = if is_news { self.conn.commit_news() } else { self.conn.commit() };
        committed.map_err(|error| match self.failure(&error) {
            Failure::Lost(error) => {
                Failure::Unknown(format!("{error}; whether the last writes were committed is unknown"))
            }
            failure @ (Failure::Refused | Failure::Raced(_) | Failure::Unknown(_) | Failure::Broken(_)) => {
                failure
            }
        })?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// What an error means for the whole transaction.
    fn failure(&self, error: &StoreError) -> Failure {
        let text = error.to_string();
        let text = text.strip_prefix("datastore-sql: ").unwrap_or(&text).to_owned();
        match (self.conn.trouble(), error) {
            (Some(Trouble::Raced), _) => Failure::Raced(text),
            (Some(Trouble::Lost), _) | (None, StoreError::Unavailable(_)) => {
                Failure::Lost(self.conn.loss().unwrap_or(text))
            }
            (None, _) => Failure::Broken(text),
        }
    }

    /// Answers all of a group, once the subscriber has what they changed.
    fn acknowledge(&mut self, mut group: Vec<Box<dyn Queued>>) {
        let each: Vec<_> = group.iter_mut().map(|operation| self.numbered(operation.changes())).collect();
        if let Some(subscriber) = &self.subscriber {
            let changes: Vec<_> = each.iter().flatten().cloned().collect();
            // Waits for room: a snapshot that fell behind must slow writers down, never miss a
            // change. A subscriber that is gone needs none.
            if !changes.is_empty() && subscriber.blocking_send(changes).is_err() {
                self.subscriber = None;
            }
        }
        for (operation, changes) in group.into_iter().zip(each) {
            operation.answer(changes);
        }
    }

    /// Changes with their number, if there are any.
    fn numbered(&mut self, list: Vec<Change>) -> Option<Changes> {
        if list.is_empty() {
            return None;
        }
        self.sequence += 1;
        Some(Changes { sequence: self.sequence, list: list.into() })
    }
}

/// Why a whole transaction failed.
enum Failure {
    /// An operation was refused after it wrote, and has no savepoint to go back to.
    Refused,
    /// Another server's transaction was in the way.
    Raced(String),
    /// The connection broke before the end.
    Lost(String),
    /// The connection broke at the end: it may be committed.
    Unknown(String),
    /// The database failed.
    Broken(String),
}
