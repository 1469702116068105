//! The protocols against recorded facts: the tables in `conformance/wire` and the exchanges in
//! `conformance/wire-exchanges`.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail loudly"
)]

extern crate finial_proto as proto;

mod entries;
mod exchanges;
mod packed;
mod raw;
mod tables;

use std::path::PathBuf;

/// A file or directory below `conformance/`.
fn conformance(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../conformance", path].iter().collect()
}
