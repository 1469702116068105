//! Test fixtures with behaviour; a dev-dependency only.

pub mod fuzz;
