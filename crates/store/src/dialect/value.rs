//! What statements are given and what rows hold, whatever the database.

use std::borrow::Cow;

use spiffe::UnixSecs;
use sqlx_mysql::MySqlRow;
use sqlx_postgres::PgRow;
use time::OffsetDateTime;

use super::{mysql, postgres, sqlite};
use crate::{StoreError, stamp};

/// A parameter of a statement.
#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    /// A number.
    Int(i64),
    /// A truth.
    Bool(bool),
    /// A text.
    Text(Cow<'a, str>),
    /// Bytes, or NULL in a column of bytes.
    Bytes(Option<Cow<'a, [u8]>>),
    /// An instant to be stored, or NULL in a column of instants.
    Instant(Option<OffsetDateTime>),
    /// An instant to compare `unixepoch(column)` with.
    Moment(UnixSecs),
    /// Row ids, for `IN (SELECT value FROM json_each(?N))`.
    Ids(&'a [i64]),
    /// Texts, for the same.
    Texts(&'a [&'a str]),
}

/// The parameters of a statement, each as a [`Value`].
macro_rules! values {
    ($($value:expr),* $(,)?) => {
        &[$($crate::dialect::Value::from($value)),*] as &[$crate::dialect::Value<'_>]
    };
}
pub(crate) use values;

macro_rules! from {
    ($($type:ty => $make:expr;)*) => {
        $(impl<'a> From<$type> for Value<'a> {
            fn from(value: $type) -> Self {
                ($make)(value)
            }
        })*
    };
}

from! {
    i64 => Value::Int;
    i32 => |value| Value::Int(i64::from(value));
    u32 => |value| Value::Int(i64::from(value));
    bool => Value::Bool;
    &'a str => |value| Value::Text(Cow::Borrowed(value));
    &'a String => |value: &'a String| Value::Text(Cow::Borrowed(value));
    String => |value| Value::Text(Cow::Owned(value));
    &'a [u8] => |value| Value::Bytes(Some(Cow::Borrowed(value)));
    Vec<u8> => |value| Value::Bytes(Some(Cow::Owned(value)));
    Option<Vec<u8>> => |value: Option<Vec<u8>>| Value::Bytes(value.map(Cow::Owned));
    OffsetDateTime => |value| Value::Instant(Some(value));
    Option<OffsetDateTime> => Value::Instant;
    &'a [i64] => Value::Ids;
    &'a Vec<i64> => |value: &'a Vec<i64>| Value::Ids(value);
    &'a [&'a str] => Value::Texts;
    &'a Vec<&'a str> => |value: &'a Vec<&'a str>| Value::Texts(value);
}

/// A row of an answer.
pub(crate) enum Row<'a> {
    Sqlite(&'a rusqlite::Row<'a>),
    Postgres(&'a PgRow),
    MySql(&'a MySqlRow),
}

/// What is in one column of a row. Columns hold what another program wrote, perhaps long ago, so a type
/// is what the value has, not what the column says.
pub(crate) enum Cell<'a> {
    Null,
    Int(i64),
    Real(f64),
    Text(&'a [u8]),
    Bytes(&'a [u8]),
    Instant(OffsetDateTime),
}

impl Row<'_> {
    fn cell(&self, column: usize) -> Result<Cell<'_>, StoreError> {
        match self {
            Self::Sqlite(row) => sqlite::cell(row, column),
            Self::Postgres(row) => postgres::cell(row, column),
            Self::MySql(row) => mysql::cell(row, column),
        }
    }
}

/// A column's text; empty for NULL.
pub(crate) fn text(row: &Row<'_>, column: usize) -> Result<String, StoreError> {
    borrowed_text(row, column).map(Cow::into_owned)
}

/// The same, where it stands in the row if it can.
pub(crate) fn borrowed_text<'row>(row: &'row Row<'_>, column: usize) -> Result<Cow<'row, str>, StoreError> {
    Ok(match row.cell(column)? {
        Cell::Null => Cow::Borrowed(""),
        Cell::Int(number) => number.to_string().into(),
        Cell::Real(number) => number.to_string().into(),
        Cell::Text(bytes) | Cell::Bytes(bytes) => String::from_utf8_lossy(bytes),
        Cell::Instant(at) => stamp::format(at, 0).into(),
    })
}

/// The same, and `None` for bytes that are no text. [`text`] puts a mark in the place of those, and then two
/// values that differ may read alike.
pub(crate) fn readable_text<'row>(
    row: &'row Row<'_>,
    column: usize,
) -> Result<Option<Cow<'row, str>>, StoreError> {
    match row.cell(column)? {
        Cell::Text(bytes) | Cell::Bytes(bytes) => Ok(std::str::from_utf8(bytes).ok().map(Cow::Borrowed)),
        Cell::Null | Cell::Int(_) | Cell::Real(_) | Cell::Instant(_) => borrowed_text(row, column).map(Some),
    }
}

/// A column's number; 0 for NULL, and `None` for what is none.
pub(crate) fn readable_int(row: &Row<'_>, column: usize) -> Result<Option<i64>, StoreError> {
    match row.cell(column)? {
        Cell::Text(bytes) => Ok(std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok())),
        Cell::Bytes(_) => Ok(None),
        Cell::Null | Cell::Int(_) | Cell::Real(_) | Cell::Instant(_) => int(row, column).map(Some),
    }
}

/// A column's number; 0 for NULL and for what is none.
pub(crate) fn int(row: &Row<'_>, column: usize) -> Result<i64, StoreError> {
    #[expect(clippy::cast_possible_truncation, reason = "a saturating cast is as good as any")]
    Ok(match row.cell(column)? {
        Cell::Int(number) => number,
        Cell::Real(number) => number as i64,
        Cell::Text(bytes) => std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
        Cell::Instant(at) => at.unix_timestamp(),
        Cell::Null | Cell::Bytes(_) => 0,
    })
}

/// A column's truth; false for NULL.
pub(crate) fn flag(row: &Row<'_>, column: usize) -> Result<bool, StoreError> {
    Ok(match row.cell(column)? {
        Cell::Text(bytes) => matches!(bytes, b"1" | b"t" | b"true" | b"TRUE"),
        Cell::Int(number) => number != 0,
        Cell::Real(number) => number != 0.0,
        Cell::Null | Cell::Bytes(_) | Cell::Instant(_) => false,
    })
}

/// A column's bytes; empty for NULL.
pub(crate) fn blob(row: &Row<'_>, column: usize) -> Result<Vec<u8>, StoreError> {
    Ok(match row.cell(column)? {
        Cell::Text(bytes) | Cell::Bytes(bytes) => bytes.to_vec(),
        Cell::Null | Cell::Int(_) | Cell::Real(_) | Cell::Instant(_) => Vec::new(),
    })
}

/// A column's instant; `None` for NULL and for what is none.
pub(crate) fn instant(row: &Row<'_>, column: usize) -> Result<Option<OffsetDateTime>, StoreError> {
    Ok(match row.cell(column)? {
        Cell::Int(seconds) => Some(stamp::instant_of(UnixSecs(seconds))),
        Cell::Text(bytes) => std::str::from_utf8(bytes).ok().and_then(stamp::parse),
        Cell::Instant(at) => Some(at),
        Cell::Null | Cell::Real(_) | Cell::Bytes(_) => None,
    })
}
