//! A connection that counts its statements and caches them.

use std::borrow::Cow;
use std::cell::Cell as Slot;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::types::{ToSqlOutput, Value as Owned, ValueRef};
use rusqlite::{Connection, ToSql, params_from_iter};
use time::OffsetDateTime;

use crate::dialect::{Cell, Row, Value};
use crate::{StoreError, stamp};

/// One connection, used by one thread.
pub(crate) struct Conn {
    raw: Connection,
    statements: Arc<AtomicU64>,
    zone: Slot<Option<i64>>,
    local: bool,
}

impl Conn {
    pub(crate) fn new(raw: Connection, statements: Arc<AtomicU64>) -> Self {
        raw.set_prepared_statement_cache_capacity(256);
        let mut conn = Self { raw, statements, zone: Slot::new(Some(0)), local: false };
        // A zone that is UTC in winter and in summer needs no look-up per instant.
        conn.local = [1_767_225_600, 1_782_864_000].iter().any(|at| conn.ask_offset(*at) != 0);
        conn
    }

    pub(crate) fn execute(&self, sql: &str, params: &[Value<'_>]) -> Result<usize, StoreError> {
        self.count();
        Ok(self.raw.prepare_cached(sql)?.execute(params_from_iter(self.bound(params)))?)
    }

    /// Not from the cache of statements, which trims their texts.
    pub(crate) fn define(&self, sql: &str) -> Result<(), StoreError> {
        self.count();
        Ok(self.raw.execute_batch(sql)?)
    }

    pub(crate) fn insert(&self, sql: &str, params: &[Value<'_>]) -> Result<i64, StoreError> {
        self.count();
        Ok(self.raw.prepare_cached(sql)?.insert(params_from_iter(self.bound(params)))?)
    }

    /// Row by row: a statement is a function call here, not a round trip.
    pub(crate) fn insert_rows(&self, head: &str, rows: &[Vec<Value<'_>>]) -> Result<(), StoreError> {
        let Some(first) = rows.first() else { return Ok(()) };
        let sql = format!("{head} VALUES ({})", vec!["?"; first.len()].join(", "));
        let mut statement = self.raw.prepare_cached(&sql)?;
        for row in rows {
            self.count();
            statement.execute(params_from_iter(self.bound(row)))?;
        }
        Ok(())
    }

    pub(crate) fn each(
        &self,
        sql: &str,
        params: &[Value<'_>],
        mut take: impl FnMut(&Row<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.count();
        let mut statement = self.raw.prepare_cached(sql)?;
        let mut rows = statement.query(params_from_iter(self.bound(params)))?;
        while let Some(row) = rows.next()? {
            take(&Row::Sqlite(row))?;
        }
        Ok(())
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.raw.is_autocommit()
    }

    fn bound<'a>(&'a self, params: &'a [Value<'a>]) -> impl Iterator<Item = Bound<'a>> {
        params.iter().map(|value| Bound { value, conn: self })
    }

    /// An instant as this database's columns hold it.
    fn stamp(&self, at: OffsetDateTime) -> String {
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

/// A parameter in this database's own types.
struct Bound<'a> {
    value: &'a Value<'a>,
    conn: &'a Conn,
}

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let list = |json: serde_json::Result<String>| Owned::Text(json.unwrap_or_default());
        Ok(match self.value {
            Value::Int(number) => ToSqlOutput::Owned(Owned::Integer(*number)),
            Value::Bool(truth) => ToSqlOutput::Owned(Owned::Integer(i64::from(*truth))),
            Value::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Value::Bytes(bytes) => ToSqlOutput::Borrowed(
                bytes.as_ref().map_or(ValueRef::Null, |bytes: &Cow<'_, [u8]>| ValueRef::Blob(bytes)),
            ),
            Value::Instant(at) => {
                ToSqlOutput::Owned(at.map_or(Owned::Null, |at| Owned::Text(self.conn.stamp(at))))
            }
            Value::Moment(at) => ToSqlOutput::Owned(Owned::Integer(at.0)),
            Value::Ids(ids) => ToSqlOutput::Owned(list(serde_json::to_string(ids))),
            Value::Texts(texts) => ToSqlOutput::Owned(list(serde_json::to_string(texts))),
        })
    }
}

/// What a column of a row holds.
pub(crate) fn cell<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> Result<Cell<'a>, StoreError> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(number) => Cell::Int(number),
        ValueRef::Real(number) => Cell::Real(number),
        ValueRef::Text(bytes) => Cell::Text(bytes),
        ValueRef::Blob(bytes) => Cell::Bytes(bytes),
    })
}
