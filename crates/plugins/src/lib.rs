//! Every built-in plugin, one file each.
//!
//! [`tables`] lists them by type; a program hands its table to the catalog. Both halves of a protocol
//! live together under `shared`, so that they cannot drift. A plugin decides nothing about policy: it
//! answers what it was asked and leaves the judging to the caller. None of this may print, start a
//! task of its own, or keep a secret longer than the call that needs it, key managers excepted.

pub mod agent;
pub mod server;
mod shared;
pub mod tables;
