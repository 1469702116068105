//! A connection that counts its statements and caches them, and the writer's transaction on it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Params, Row};
use spiffe::UnixSecs;
use time::OffsetDateTime;

use crate::{Change, StoreError, stamp};

/// One connection, used by one thread.
pub(crate) struct Conn {
    raw: Connection,
    statements: Arc<AtomicU64>,
    zone: Cell<Option<i64>>,
    local: bool,
}

impl Conn {
    pub(crate) fn new(raw: Connection, statements: Arc<AtomicU64>) -> Self {
        raw.set_prepared_statement_cache_capacity(256);
        let mut conn = Self { raw, statements, zone: Cell::new(Some(0)), local: false };
        // A zone that is UTC in winter and in summer needs no look-up per instant.
        conn.local = [1_767_225_600, 1_782_864_000].iter().any(|at| conn.ask_offset(*at) != 0);
        conn
    }

    /// Runs a statement that gives no rows; the number of rows it touched.
    pub(crate) fn execute(&self, sql: &str, params: impl Params) -> Result<usize, StoreError> {
        self.count();
        Ok(self.raw.prepare_cached(sql)?.execute(params)?)
    }

    /// Runs an insert; the id of the new row.
    pub(crate) fn insert(&self, sql: &str, params: impl Params) -> Result<i64, StoreError> {
        self.count();
        Ok(self.raw.prepare_cached(sql)?.insert(params)?)
    }

    /// Feeds every row of a query to `take`.
    pub(crate) fn each(
        &self,
        sql: &str,
        params: impl Params,
        mut take: impl FnMut(&Row<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.count();
        let mut statement = self.raw.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        while let Some(row) = rows.next()? {
            take(row)?;
        }
        Ok(())
    }

    /// All rows of a query.
    pub(crate) fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
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
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.count();
        let mut statement = self.raw.prepare_cached(sql)?;
        statement.query_row(params, |row| Ok(read(row))).optional()?.transpose()
    }

    /// Whether no transaction is open: the database may end one by itself when it fails.
    pub(crate) fn is_idle(&self) -> bool {
        self.raw.is_autocommit()
    }

    /// An instant as this database's columns hold it.
    pub(crate) fn stamp(&self, at: OffsetDateTime) -> String {
        let offset = if self.local { self.ask_offset(at.unix_timestamp()) } else { 0 };
        stamp::format(at, offset)
    }

    /// Seconds east of UTC at an instant, as the machine's zone has it.
    fn ask_offset(&self, at: i64) -> i64 {
        let sql = "SELECT unixepoch(?1, 'unixepoch', 'localtime') - ?1";
        let asked = self.raw.prepare_cached(sql).and_then(|mut s| s.query_row([at], |r| r.get(0)));
        let offset = asked.ok().or_else(|| self.zone.get()).unwrap_or(0);
        self.zone.set(Some(offset));
        offset
    }

    fn count(&self) {
        self.statements.fetch_add(1, Ordering::Relaxed);
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

    /// The time of the operation as columns hold it.
    pub(crate) fn stamp(&self) -> String {
        self.conn.stamp(self.now)
    }

    pub(crate) fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}

/// A column's text; empty for NULL.
pub(crate) fn text(row: &Row<'_>, column: usize) -> Result<String, StoreError> {
    Ok(optional_text(row, column)?.unwrap_or_default())
}

/// A column's text.
fn optional_text(row: &Row<'_>, column: usize) -> Result<Option<String>, StoreError> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
    })
}

/// A column's number; 0 for NULL and for what is none.
pub(crate) fn int(row: &Row<'_>, column: usize) -> Result<i64, StoreError> {
    #[expect(clippy::cast_possible_truncation, reason = "a saturating cast is as good as any")]
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(number) => number,
        ValueRef::Real(number) => number as i64,
        ValueRef::Text(bytes) => {
            std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
        }
        ValueRef::Null | ValueRef::Blob(_) => 0,
    })
}

/// A column's truth; false for NULL.
pub(crate) fn flag(row: &Row<'_>, column: usize) -> Result<bool, StoreError> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) => matches!(bytes, b"1" | b"t" | b"true" | b"TRUE"),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => {
            int(row, column)? != 0
        }
    })
}

/// A column's bytes; empty for NULL.
pub(crate) fn blob(row: &Row<'_>, column: usize) -> Result<Vec<u8>, StoreError> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => Vec::new(),
    })
}

/// A column's instant; `None` for NULL and for what is none.
pub(crate) fn instant(row: &Row<'_>, column: usize) -> Result<Option<OffsetDateTime>, StoreError> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(seconds) => Some(stamp::instant_of(UnixSecs(seconds))),
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).ok().and_then(stamp::parse),
        ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_) => None,
    })
}
