//! A connection to any of the databases, and the writer's transaction on it.
//!
//! SQL is written once, in the words of `SQLite`; where another database says a thing differently,
//! [`super::translate`] does. A connection belongs to one thread.

use std::time::SystemTime;

use time::OffsetDateTime;

use super::{Row, Value, remote, sqlite};
use crate::{Change, StoreError, stamp};

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
    MySql,
}

/// What went wrong with a whole transaction, beside the operation that noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Another transaction was in the way: the same again may go well.
    Raced,
    /// The connection is gone, and the transaction with it.
    Lost,
}

/// One connection, used by one thread.
pub(crate) enum Conn {
    Sqlite(sqlite::Conn),
    Remote(remote::Conn),
}

impl Conn {
    /// Which database it is.
    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Remote(conn) => conn.dialect(),
        }
    }

    /// Runs a statement that gives no rows; the number of rows it touched (or would have, had they not
    /// been so already).
    pub(crate) fn execute(&self, sql: &str, params: &[Value<'_>]) -> Result<usize, StoreError> {
        match self {
            Self::Sqlite(conn) => conn.execute(sql, params),
            Self::Remote(conn) => conn.execute(sql, params),
        }
    }

    /// Runs a statement that changes the schema, whose text some databases keep as it is.
    pub(crate) fn define(&self, sql: &str) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => conn.define(sql),
            Self::Remote(conn) => conn.execute(sql, &[]).map(drop),
        }
    }

    /// Runs an insert into a table that has ids; the id of the new row.
    pub(crate) fn insert(&self, sql: &str, params: &[Value<'_>]) -> Result<i64, StoreError> {
        match self {
            Self::Sqlite(conn) => conn.insert(sql, params),
            Self::Remote(conn) => conn.insert(sql, params),
        }
    }

    /// Inserts rows of equal width in order; `head` ends before `VALUES`.
    pub(crate) fn insert_rows(&self, head: &str, rows: &[Vec<Value<'_>>]) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => conn.insert_rows(head, rows),
            Self::Remote(conn) => conn.insert_rows(head, rows),
        }
    }

    /// Feeds every row of a query to `take`.
    pub(crate) fn each(
        &self,
        sql: &str,
        params: &[Value<'_>],
        mut take: impl FnMut(&Row<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => conn.each(sql, params, take),
            Self::Remote(conn) => conn.each(sql, params, &mut take),
        }
    }

    /// All rows of a query.
    pub(crate) fn rows<T>(
        &self,
        sql: &str,
        params: &[Value<'_>],
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut all = Vec::new();
        self.each(sql, params, |row| {
            all.push(read(row)?);
            Ok(())
        })?;
        Ok(all)
    }

    /// The first row of a query.
    pub(crate) fn first<T>(
        &self,
        sql: &str,
        params: &[Value<'_>],
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut first = None;
        self.each(sql, params, |row| {
            if first.is_none() {
                first = Some(read(row)?);
            }
            Ok(())
        })?;
        Ok(first)
    }

    /// [`Self::first`], and nobody else may change that row until the transaction ends.
    pub(crate) fn first_locked<T>(
        &self,
        sql: &str,
        params: &[Value<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        match self.dialect() {
            // The one writer is alone there.
            Dialect::Sqlite => self.first(sql, params, read),
            Dialect::Postgres | Dialect::MySql => self.first(&format!("{sql} FOR UPDATE"), params, read),
        }
    }

    /// Begins the writer's transaction, connecting first where the connection is gone.
    pub(crate) fn begin_write(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => conn.execute("BEGIN IMMEDIATE", &[]).map(drop),
            Self::Remote(conn) => conn.begin(),
        }
    }

    /// Begins a transaction whose reads all see the same state.
    pub(crate) fn begin_read(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => conn.execute("BEGIN", &[]).map(drop),
            Self::Remote(conn) => conn.begin(),
        }
    }

    /// Ends a transaction, keeping what it did.
    pub(crate) fn commit(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => conn.execute("COMMIT", &[]).map(drop),
            Self::Remote(conn) => conn.end("COMMIT"),
        }
    }

    /// The same, of what other servers that share the database want to know: they are told, where that can
    /// be.
    pub(crate) fn commit_news(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(_) => self.commit(),
            Self::Remote(conn) => conn.commit_news(),
        }
    }

    /// Ends a transaction, taking back what it did.
    pub(crate) fn rollback(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => conn.execute("ROLLBACK", &[]).map(drop),
            Self::Remote(conn) => conn.end("ROLLBACK"),
        }
    }

    /// Runs one of the words that steer a transaction.
    pub(crate) fn steer(&self, word: &'static str) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => conn.execute(word, &[]).map(drop),
            Self::Remote(conn) => conn.steer(word),
        }
    }

    /// Takes back what was done since the savepoint of that name.
    pub(crate) fn roll_back_to(&self) -> Result<(), StoreError> {
        let word = "ROLLBACK TO SAVEPOINT operation";
        match self {
            Self::Sqlite(conn) => conn.execute(word, &[]).map(drop),
            Self::Remote(conn) => conn.go_back(word),
        }
    }

    /// Notes a row that the transaction inserts before it ends, together with others of the same `head`. For
    /// rows that nothing can refuse and nobody reads before.
    pub(crate) fn insert_at_end(
        &self,
        head: &'static str,
        row: Vec<Value<'static>>,
    ) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(conn) => conn.insert_rows(head, &[row]),
            Self::Remote(conn) => {
                conn.insert_at_end(head, row);
                Ok(())
            }
        }
    }

    /// Inserts the noted rows, those of one table with one statement.
    pub(crate) fn insert_noted(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Remote(conn) => conn.insert_noted(),
        }
    }

    /// How many rows are noted.
    pub(crate) fn noted(&self) -> usize {
        match self {
            Self::Sqlite(_) => 0,
            Self::Remote(conn) => conn.noted(),
        }
    }

    /// Forgets all noted rows but the first so many.
    pub(crate) fn forget_noted(&self, but: usize) {
        match self {
            Self::Sqlite(_) => {}
            Self::Remote(conn) => conn.forget_noted(but),
        }
    }

    /// Whether no transaction is open: the database may end one by itself when it fails.
    pub(crate) fn is_idle(&self) -> bool {
        match self {
            Self::Sqlite(conn) => conn.is_idle(),
            Self::Remote(conn) => conn.is_idle(),
        }
    }

    /// What is wrong with the transaction as a whole, if anything.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        match self {
            Self::Sqlite(_) => None,
            Self::Remote(conn) => conn.trouble(),
        }
    }

    /// Why the connection was lost, in a form that names the database.
    pub(crate) fn loss(&self) -> Option<String> {
        match self {
            Self::Sqlite(_) => None,
            Self::Remote(conn) => conn.loss(),
        }
    }

    /// Lets another server go first, for longer each time.
    pub(crate) fn pause(&self, times: u32) {
        match self {
            Self::Sqlite(_) => {}
            Self::Remote(conn) => conn.pause(times),
        }
    }

    /// Whether anything was written, or refused by the database, since this was asked last.
    pub(crate) fn take_touched(&self) -> bool {
        match self {
            Self::Sqlite(_) => true,
            Self::Remote(conn) => conn.take_touched(),
        }
    }
}

/// The writer's transaction, as one operation sees it.
pub(crate) struct Tx<'a> {
    /// Where its statements run.
    pub(crate) conn: &'a Conn,
    /// The time of the operation.
    pub(crate) now: OffsetDateTime,
    changes: Vec<Change>,
}

impl<'a> Tx<'a> {
    pub(crate) fn new(conn: &'a Conn, now: SystemTime) -> Self {
        Self { conn, now: stamp::instant(now), changes: Vec::new() }
    }

    /// Notes a change that holds once the transaction is committed.
    pub(crate) fn changed(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// For an insert after a look that found nothing: if the row is there now, another server was quicker,
    /// and the operation is run again.
    pub(crate) fn lost_race(&self, error: StoreError) -> StoreError {
        if let (Conn::Remote(conn), StoreError::AlreadyExists(_)) = (self.conn, &error) {
            conn.lost_race();
        }
        error
    }

    pub(crate) fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}
