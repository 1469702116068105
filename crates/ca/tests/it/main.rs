//! Tests of the authority engine through its public API.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

extern crate finial_ca as ca;

mod composed;
mod issue;
mod journal;
mod slots;
mod upstream;
