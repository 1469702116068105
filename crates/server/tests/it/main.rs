//! The server as its clients see it: real sockets, a real database, nothing in between.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

extern crate finial_server as server;

mod agents;
mod authorities;
mod bundles;
mod callers;
mod downstream;
mod entries;
mod hostile;
mod matrix;
mod metrics;
mod rotation;
mod signing;
mod start;
mod support;
mod sync;
mod upstream;
