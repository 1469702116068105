//! The datastore through its public API.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

mod agents;
mod bundles;
mod durability;
mod feed;
mod follow;
mod hostile;
mod notifications;
mod replay;
mod rows;
mod schema;
mod servers;
mod support;
mod writes;
