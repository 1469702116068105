//! Upstream authorities.

pub mod disk;
pub mod spire;
