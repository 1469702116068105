//! An agent's parts through their public API, over real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail loudly"
)]

extern crate finial_agent as agent;

mod admin;
mod attestation;
mod authority;
mod child;
mod config;
mod delegated;
mod jwt;
mod public;
mod recorded;
mod secrets;
mod signer;
mod streams;
mod workload;
mod world;
