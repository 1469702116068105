//! `PostgreSQL`: its connection strings, its values, its errors, its notifications.

mod listening;
mod locator;
mod password;

use sqlx_core::Error;
use sqlx_core::arguments::Arguments as _;
use sqlx_core::row::Row as _;
use sqlx_core::type_info::TypeInfo as _;
use sqlx_core::value::ValueRef as _;
use sqlx_postgres::{PgArguments, PgDatabaseError, PgRow, PgValueFormat};
use time::{Duration, OffsetDateTime};

use super::translate::Source;
use super::{Cell, Value};
use crate::{StoreError, stamp};

pub(crate) use listening::{CHANNEL, Listening};
pub(crate) use locator::Locator;

/// What a statement is given.
pub(crate) fn arguments(params: &[Value<'_>], sources: &[Source]) -> Result<PgArguments, Error> {
    let mut arguments = PgArguments::default();
    for source in sources {
        let Some(value) = params.get(source.param) else { continue };
        match value {
            Value::Int(number) => arguments.add(*number),
            Value::Bool(truth) => arguments.add(*truth),
            Value::Text(text) => arguments.add(&**text),
            Value::Bytes(bytes) => arguments.add(bytes.as_deref()),
            Value::Instant(at) => arguments.add(*at),
            Value::Moment(at) => arguments.add(stamp::instant_of(*at)),
            Value::Ids(ids) => arguments.add(*ids),
            Value::Texts(texts) => arguments.add(*texts),
        }
        .map_err(Error::Encode)?;
    }
    Ok(arguments)
}

/// What a column of a row holds.
pub(crate) fn cell(row: &PgRow, column: usize) -> Result<Cell<'_>, StoreError> {
    let value = row.try_get_raw(column).map_err(|error| StoreError::sql(&error.to_string()))?;
    if value.is_null() {
        return Ok(Cell::Null);
    }
    let bytes = value.as_bytes().map_err(|error| StoreError::sql(&error.to_string()))?;
    if value.format() == PgValueFormat::Text {
        return Ok(Cell::Text(bytes));
    }
    let kind = value.type_info();
    Ok(match kind.name() {
        "BOOL" | "INT2" | "INT4" | "INT8" => Cell::Int(number(bytes)),
        "TIMESTAMPTZ" | "TIMESTAMP" => moment(number(bytes)).map_or(Cell::Null, Cell::Instant),
        "BYTEA" => Cell::Bytes(bytes),
        _ => Cell::Text(bytes),
    })
}

/// A number of up to eight bytes, most significant first.
fn number(bytes: &[u8]) -> i64 {
    let start = if bytes.first().is_some_and(|byte| byte & 0x80 != 0) && bytes.len() > 1 { -1 } else { 0 };
    bytes.iter().fold(start, |number: i64, byte| (number << 8) | i64::from(*byte))
}

/// An instant, given as microseconds since 2000.
fn moment(microseconds: i64) -> Option<OffsetDateTime> {
    const Y2K: i64 = 946_684_800;
    let start = OffsetDateTime::from_unix_timestamp(Y2K).ok()?;
    start.checked_add(Duration::microseconds(microseconds))
}

/// An error of the database in the words of the driver that SPIRE uses.
pub(crate) fn words(error: &Error) -> Option<String> {
    let Error::Database(said) = error else { return None };
    let said = said.try_downcast_ref::<PgDatabaseError>()?;
    Some(format!("pq: {} ({})", said.message(), said.code()))
}

/// What an error code says: another transaction was in the way; the connection is at its end; what was
/// to be written is there already.
pub(crate) fn meaning(code: &str) -> (bool, bool, bool) {
    let raced = matches!(code, "40001" | "40P01" | "55P03");
    // A server that only reads now is no longer the one to write to.
    let ended = code.starts_with("57P") || code.starts_with("08") || code == "25006" || code == "25P03";
    (raced, ended, code.starts_with("23"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_width() {
        assert_eq!(number(&[1]), 1);
        assert_eq!(number(&7_i16.to_be_bytes()), 7);
        assert_eq!(number(&(-7_i32).to_be_bytes()), -7);
        assert_eq!(number(&i64::MIN.to_be_bytes()), i64::MIN);
        assert_eq!(number(&i64::MAX.to_be_bytes()), i64::MAX);
    }

    #[test]
    fn instants_count_from_2000() {
        let at = moment(848_736_355_687_291).unwrap();

        assert_eq!(at.unix_timestamp_nanos(), 1_795_421_155_687_291_000);
        assert_eq!(moment(i64::MAX), None);
    }
}
