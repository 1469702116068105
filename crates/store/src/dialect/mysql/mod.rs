//! MySQL and `MariaDB`: their connection strings, their values, their errors.

mod locator;

use sqlx_core::Error;
use sqlx_core::arguments::Arguments as _;
use sqlx_core::decode::Decode;
use sqlx_core::row::Row as _;
use sqlx_core::type_info::TypeInfo as _;
use sqlx_core::value::ValueRef as _;
use sqlx_mysql::{MySql, MySqlArguments, MySqlDatabaseError, MySqlRow};
use time::{OffsetDateTime, PrimitiveDateTime};

use super::translate::Source;
use super::{Cell, Value};
use crate::{StoreError, stamp};

pub(crate) use locator::Locator;

/// What a statement is given. Columns hold whole seconds; they are rounded here, as MySQL does and
/// `MariaDB` does not, so that what is written is known without reading it.
pub(crate) fn arguments(params: &[Value<'_>], sources: &[Source]) -> Result<MySqlArguments, Error> {
    let mut arguments = MySqlArguments::default();
    for source in sources {
        let Some(value) = params.get(source.param) else { continue };
        let item = source.item.unwrap_or(0);
        match value {
            Value::Int(number) => arguments.add(*number),
            Value::Bool(truth) => arguments.add(*truth),
            Value::Text(text) => arguments.add(&**text),
            Value::Bytes(bytes) => arguments.add(bytes.as_deref()),
            Value::Instant(at) => arguments.add(at.map(|at| wall(stamp::instant_of(stamp::rounded(at))))),
            Value::Moment(at) => arguments.add(wall(stamp::instant_of(*at))),
            Value::Ids(ids) => arguments.add(ids.get(item).copied()),
            Value::Texts(texts) => arguments.add(texts.get(item).copied()),
        }
        .map_err(Error::Encode)?;
    }
    Ok(arguments)
}

/// What a clock in UTC shows: columns hold no zone.
fn wall(at: OffsetDateTime) -> PrimitiveDateTime {
    let at = at.to_offset(time::UtcOffset::UTC);
    PrimitiveDateTime::new(at.date(), at.time())
}

/// What a column of a row holds.
pub(crate) fn cell(row: &MySqlRow, column: usize) -> Result<Cell<'_>, StoreError> {
    let failed = |error: &dyn std::fmt::Display| StoreError::sql(&error.to_string());
    let value = row.try_get_raw(column).map_err(|error| failed(&error))?;
    if value.is_null() {
        return Ok(Cell::Null);
    }
    let info = value.type_info().into_owned();
    let kind = info.name();
    Ok(match kind {
        "DATETIME" | "TIMESTAMP" => {
            let read = <PrimitiveDateTime as Decode<MySql>>::decode(value).map_err(|error| failed(&error))?;
            Cell::Instant(read.assume_utc())
        }
        _ if kind == "BOOLEAN" || kind.contains("INT") => {
            let read = if kind.ends_with("UNSIGNED") {
                <u64 as Decode<MySql>>::decode(value).map(|number| i64::try_from(number).unwrap_or(i64::MAX))
            } else {
                <i64 as Decode<MySql>>::decode(value)
            };
            Cell::Int(read.map_err(|error| failed(&error))?)
        }
        _ => {
            let bytes = <&[u8] as Decode<MySql>>::decode(value).map_err(|error| failed(&error))?;
            if kind.contains("BLOB") || kind.contains("BINARY") {
                Cell::Bytes(bytes)
            } else {
                Cell::Text(bytes)
            }
        }
    })
}

/// An error of the database in the words of the driver that SPIRE uses.
pub(crate) fn words(error: &Error) -> Option<String> {
    let said = said(error)?;
    let state = said.code().map(|state| format!(" ({state})")).unwrap_or_default();
    Some(format!("Error {}{state}: {}", said.number(), said.message()))
}

/// Whether the database may accept connections later that it refuses now.
pub(crate) fn is_passing(error: &Error) -> bool {
    // Too many connections, of all or of this user; shutting down.
    said(error).is_some_and(|said| matches!(said.number(), 1040 | 1053 | 1203 | 1226))
}

/// What an error says: another transaction was in the way; the connection is at its end; what was to be
/// written is there already.
pub(crate) fn meaning(error: &Error) -> (bool, bool, bool) {
    let number = said(error).map_or(0, MySqlDatabaseError::number);
    // A server that only reads now is no longer the one to write to.
    let ended = matches!(number, 1053 | 1290 | 1792 | 1836 | 1927 | 3024 | 4031);
    (matches!(number, 1205 | 1213), ended, number == 1062)
}

fn said(error: &Error) -> Option<&MySqlDatabaseError> {
    let Error::Database(said) = error else { return None };
    said.try_downcast_ref::<MySqlDatabaseError>()
}
