//! Opening and closing the database.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use super::conn::{Conn, Tx};
use super::group::{Operation, Queued, Writer};
use super::locator::Locator;
use super::readers::{self, Read};
use crate::migrate::{self, Plan};
use crate::{Committed, Options, StoreError};

/// How many operations may wait: enough to fill two groups, few enough to notice a dead disk.
const QUEUE: usize = 1024;

/// How long to wait for a program that has the file open at start.
const PATIENCE: Duration = Duration::from_secs(5);

/// An open database.
pub(crate) struct Sqlite {
    writes: Option<mpsc::Sender<Box<dyn Queued>>>,
    /// Absent for a database in memory: there the writer reads too.
    reads: Option<mpsc::Sender<Read>>,
    statements: Arc<AtomicU64>,
    commits: Arc<AtomicU64>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Let go last: a file handle that is closed earlier would take the database's locks with it.
    _lock: Option<File>,
}

impl Sqlite {
    /// Opens the database, creates or migrates its schema, and starts its threads.
    pub(crate) fn open(options: &Options) -> Result<Self, StoreError> {
        let locator = Locator::parse(&options.connection_string)?;
        let statements = Arc::new(AtomicU64::new(0));
        let commits = Arc::new(AtomicU64::new(0));
        let name = locator.file.clone().unwrap_or_else(|| PathBuf::from("(memory)"));
        let lock = locator.file.as_deref().map(lock).transpose()?;
        let failed = |error: rusqlite::Error| explain(&name, &error);

        let raw = connect(&locator).map_err(failed)?;
        if locator.file.is_some() {
            alone(&raw, &name)?;
        }
        let plan = migrate::plan(&raw, options).map_err(|error| error.into_store(&name))?;
        // Only now, with a schema that will be used, is anything written.
        let raw = if locator.file.is_some() {
            drop(raw);
            connect(&locator).map_err(failed)?
        } else {
            raw
        };
        configure(&raw, locator.file.is_some()).map_err(failed)?;
        if plan != Plan::Nothing {
            migrate::carry_out(&raw, &plan, options).map_err(|error| error.into_store(&name))?;
        }

        let (writes, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            conn: Conn::new(raw, Arc::clone(&statements)),
            now: Arc::clone(&options.now),
            subscriber: options.changes.clone(),
            sequence: 0,
            commits: Arc::clone(&commits),
        };
        let mut threads = vec![spawn("store-writer", move || writer.run(queue))?];
        let mut reads = None;
        if locator.file.is_some() {
            let (sender, queue) = mpsc::channel(QUEUE);
            let queue = Arc::new(Mutex::new(queue));
            let count = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4));
            for _ in 0..count {
                let raw = connect(&locator).map_err(failed)?;
                configure(&raw, false).map_err(failed)?;
                raw.pragma_update(None, "query_only", true).map_err(failed)?;
                let conn = Conn::new(raw, Arc::clone(&statements));
                let queue = Arc::clone(&queue);
                threads.push(spawn("store-reader", move || readers::run(&conn, &queue))?);
            }
            reads = Some(sender);
        }
        Ok(Self {
            writes: Some(writes),
            reads,
            statements,
            commits,
            threads: Mutex::new(threads),
            _lock: lock,
        })
    }

    /// Queues a write and waits until it is on disk.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<Committed<T>, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (caller, answer) = oneshot::channel();
        let queue = self.writes.as_ref().ok_or(StoreError::Closed)?;
        let operation = Box::new(Operation::new(work, caller));
        queue.send(operation).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
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

impl Drop for Sqlite {
    /// Waits for what is queued, so that the file is whole and free when the store is gone.
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

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| StoreError::Open(format!("cannot start datastore thread: {error}")))
}

fn connect(locator: &Locator) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let raw = Connection::open_with_flags(&locator.uri, flags)?;
    raw.busy_timeout(PATIENCE)?;
    Ok(raw)
}

/// The settings of every connection. WAL is a property of the file: one connection sets it.
fn configure(raw: &Connection, file: bool) -> rusqlite::Result<()> {
    if file {
        raw.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
    }
    raw.pragma_update(None, "synchronous", "FULL")?;
    raw.pragma_update(None, "foreign_keys", true)?;
    raw.pragma_update(None, "cache_size", -65_536)?;
    raw.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(())
}

/// Keeps a second Finial away from the file.
fn lock(file: &Path) -> Result<File, StoreError> {
    let mut name = file.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let handle =
        OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(|error| {
            StoreError::Open(format!("cannot open datastore file {}: {error}", file.display()))
        })?;
    match handle.try_lock() {
        Ok(()) => Ok(handle),
        Err(TryLockError::WouldBlock) => Err(in_use(file)),
        Err(TryLockError::Error(error)) => {
            Err(StoreError::Open(format!("cannot lock datastore file {}: {error}", file.display())))
        }
    }
}

/// Finds out whether another program has the database open, by asking for it alone once.
fn alone(raw: &Connection, name: &Path) -> Result<(), StoreError> {
    let probe = || -> rusqlite::Result<()> {
        raw.query_row("PRAGMA locking_mode=EXCLUSIVE", [], |_| Ok(()))?;
        // Any read takes the lock; in exclusive mode it is the one that excludes all others.
        raw.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
        raw.execute_batch("BEGIN EXCLUSIVE; ROLLBACK")
    };
    probe().map_err(|error| explain(name, &error))
}

fn in_use(file: &Path) -> StoreError {
    StoreError::Open(format!("datastore file {} is in use by another process; stop it first", file.display()))
}

/// One line for the operator.
pub(crate) fn explain(name: &Path, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => in_use(name),
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            StoreError::Corrupt { path: name.to_owned(), reason: error.to_string() }
        }
        _ => StoreError::Open(format!("cannot open datastore file {}: {error}", name.display())),
    }
}
