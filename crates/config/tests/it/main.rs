//! Configuration texts, replayed, generated and damaged.
#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod fuzz;
mod hcl;
