//! What the files say: every key that there is, as written, with what is not known set aside.
//!
//! A key that is not in the file is empty, zero or false, and counts as not set; only where SPIRE tells
//! the two apart is there an `Option`.

pub(crate) mod agent;
pub(crate) mod server;
pub(crate) mod shared;
