//! Listeners and HTTP over real sockets.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

mod callers;
mod drain;
mod health;
mod http;
mod tls;
mod unix;
mod web;
