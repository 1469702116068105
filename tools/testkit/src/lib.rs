//! Test fixtures with behaviour; a dev-dependency only.

pub mod database;
pub mod fuzz;
