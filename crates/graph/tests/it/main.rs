//! The graph through its public API: against a naive model, and what it answers on the wire.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

extern crate finial_graph as graph;

mod draft;
mod naive;
mod rules;
mod wire;
