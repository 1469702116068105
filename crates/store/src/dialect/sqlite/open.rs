//! Opening and closing the database.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::Conn;
use super::locator::Locator;
use crate::dialect::{self, Tasks};
use crate::migrate::{self, Found, Plan};
use crate::{Options, StoreError};

/// How long to wait for a program that has the file open at start.
const PATIENCE: Duration = Duration::from_secs(5);

/// An open database.
pub(crate) struct Sqlite {
    pub(crate) tasks: Tasks,
    /// Let go last: a file handle that is closed earlier would take the database's locks with it.
    _lock: Option<File>,
}

impl Sqlite {
    /// Opens the database, creates or migrates its schema, and starts its threads.
    pub(crate) fn open(options: &Options) -> Result<Self, StoreError> {
        let locator = Locator::parse(&options.connection_string)?;
        let statements = Arc::new(AtomicU64::new(0));
        let name = locator.file.clone().unwrap_or_else(|| PathBuf::from("(memory)"));
        let lock = locator.file.as_deref().map(lock).transpose()?;
        let failed = |error: rusqlite::Error| explain(&name, &error);

        let raw = connect(&locator).map_err(failed)?;
        if locator.file.is_some() {
            alone(&raw, &name)?;
        }
        let plan = migrate::plan(look(&raw).map_err(failed)?, options)?;
        // Only now, with a schema that will be used, is anything written.
        let raw = if locator.file.is_some() {
            drop(raw);
            connect(&locator).map_err(failed)?
        } else {
            raw
        };
        configure(&raw, locator.file.is_some()).map_err(failed)?;
        let writer = dialect::Conn::Sqlite(Conn::new(raw, Arc::clone(&statements)));
        if plan != Plan::Nothing {
            migrate::carry_out(&writer, &plan, options).map_err(|error| {
                StoreError::Open(format!("cannot write datastore file {}: {error}", name.display()))
            })?;
        }

        // A database in memory is the writer's alone: there it reads too.
        let mut readers = Vec::new();
        if locator.file.is_some() {
            let count = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4));
            for _ in 0..count {
                let raw = connect(&locator).map_err(failed)?;
                configure(&raw, false).map_err(failed)?;
                raw.pragma_update(None, "query_only", true).map_err(failed)?;
                readers.push(dialect::Conn::Sqlite(Conn::new(raw, Arc::clone(&statements))));
            }
        }
        Ok(Self { tasks: Tasks::start(writer, readers, statements, options)?, _lock: lock })
    }
}

/// What the version row says; `None` if the database is new.
fn look(raw: &Connection) -> rusqlite::Result<Option<Found>> {
    let there = raw
        .query_row("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'migrations'", [], |_| Ok(()))
        .optional()?;
    if there.is_none() {
        return Ok(None);
    }
    let row = raw
        .query_row(migrate::VERSION_ROW, [], |row| {
            let (version, code_version): (Option<i64>, Option<String>) = (row.get(0)?, row.get(1)?);
            Ok(Found { version: version.unwrap_or_default(), code_version: code_version.unwrap_or_default() })
        })
        .optional()?;
    Ok(Some(row.unwrap_or_default()))
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
fn explain(name: &Path, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => in_use(name),
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            StoreError::Corrupt { path: name.to_owned(), reason: error.to_string() }
        }
        _ => StoreError::Open(format!("cannot open datastore file {}: {error}", name.display())),
    }
}
