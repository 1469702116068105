//! The in-memory entry graph: authorisation views, deltas, pre-encoded replies.
//!
//! [`EntryGraph`] is one version of all entries and agents. [`EntryGraph::apply`] makes the next one
//! from a [`ChangeBatch`] and says which agents it concerns ([`Affected`]); versions share all that
//! did not change, so readers keep theirs as long as they like. [`EntryGraph::view`] is what an agent
//! is authorised for: a [`View`] of shared buckets, whose replies are encoded once for all agents.
//!
//! Inside, from the bottom up: a persistent map (`tree`), indexes from values to rows (`index`),
//! pages of neighbouring entries with their encodings (`page`), buckets of pages by parent
//! (`bucket`).
//!
//! Invariants: a page and a bucket never change once published; an entry is in one bucket at most, and
//! there only if agents may see it; a bucket knows exactly the buckets below it.
//!
//! This crate must never wait, do I/O, or know of SQL: the datastore is the truth, this is its image.

mod affected;
mod agents;
mod batch;
mod bucket;
mod delta;
mod graph;
mod index;
mod order;
mod page;
mod reply;
mod token;
mod tree;
mod view;

pub use affected::Affected;
pub use agents::AgentRecord;
pub use batch::{Change, ChangeBatch};
pub use delta::Delta;
pub use graph::{Counts, Edit, EntryGraph, Fingerprint};
pub use reply::PAGE_SIZE;
pub use token::Token;
pub use view::{Footprint, View};
