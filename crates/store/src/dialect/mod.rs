//! The databases, each behind the same small door: run this in the writer's transaction, run that
//! on a reader.

pub(crate) mod sqlite;
