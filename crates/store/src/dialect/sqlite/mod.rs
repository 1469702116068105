//! `SQLite`: one file, owned by this process while it is open.
//!
//! WAL with `synchronous=FULL`: a commit is on disk before it is acknowledged. A lock file beside
//! the database keeps a second Finial out; a probe at start refuses a file that another program has
//! open, since nobody would tell us of its writes.

mod conn;
mod locator;
mod open;

pub(crate) use conn::{Conn, cell};
pub(crate) use open::Sqlite;
