//! Key managers of the server.

pub mod disk;
pub mod memory;
