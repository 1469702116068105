//! Agents that watch (`finial.sync.v1`): who waits for changes, and what each has still to be told.
//!
//! [`Hub`] knows the agents that wait; the owner of the snapshots wakes those whom a change concerns and
//! nobody else. [`Told`] is what one agent was told last; compared with the snapshots it gives the
//! [`Push`] that tells the rest. Both know nothing of connections: `api::sync` has those.

mod hub;
mod push;

pub(crate) use hub::{Hub, Place};
#[cfg(test)]
pub(crate) use push::tests;
pub(crate) use push::{Next, Now, Push, Told, heartbeat};
