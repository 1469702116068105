//! The databases, each behind the same small door: run this in the writer's transaction, run that
//! on a reader.
//!
//! [`sqlite`] is a file of this process. [`remote`] is a database server that others use too,
//! [`postgres`] or [`mysql`]: connections that come and go, transactions that race.

mod conn;
mod group;
mod mysql;
mod percent;
mod postgres;
mod readers;
pub(crate) mod remote;
pub(crate) mod sqlite;
mod tasks;
mod translate;
mod value;

pub(crate) use conn::{Conn, Dialect, Trouble, Tx};
pub(crate) use tasks::Tasks;
pub(crate) use value::{
    Cell, Row, Value, blob, borrowed_text, flag, instant, int, readable_int, readable_text, text, values,
};
