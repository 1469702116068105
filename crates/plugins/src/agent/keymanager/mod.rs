//! Key managers of the agent.

pub mod disk;
pub mod memory;
