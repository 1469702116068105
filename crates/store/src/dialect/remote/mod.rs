//! Database servers: `PostgreSQL` and MySQL (or `MariaDB`).
//!
//! They are somewhere else and other programs write to them too. So connections are made when they are
//! needed and made again when they break, a database that is away is told at once to whoever asks, and
//! a probe notices when it is back. Every thread that has a connection drives it itself.

mod conn;
mod listener;
mod open;
mod target;

pub(crate) use conn::Conn;
pub(crate) use open::Remote;
