//! Test fixtures with behaviour; a dev-dependency only.

use std::fs;
use std::io::Write as _;

pub mod database;
pub mod fuzz;

/// Notes a check that cannot be made here, in the file that `FINIAL_SKIPS` names, where such are counted.
///
/// # Panics
/// In CI, where nothing may be skipped, unless it is counted.
#[expect(clippy::print_stderr, reason = "test support talks to the one who runs the tests")]
pub fn skip(what: &str) {
    eprintln!("skipped: {what}");
    let Some(path) = std::env::var_os("FINIAL_SKIPS") else {
        assert!(std::env::var_os("CI").is_none(), "{what}; in CI a skip is a failure");
        return;
    };
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    let noted = file.and_then(|mut file| writeln!(file, "{what}"));
    assert!(noted.is_ok(), "the list of skipped checks cannot be written: {noted:?}");
}
