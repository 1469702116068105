//! The datastore through its public API.

mod schema;
mod support;
mod writes;
