//! Databases and values for the tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use finial_store::{NewEntry, Now, Options, Store};
use spiffe::{Selector, SpiffeId};

/// 2027-01-01: after the fixtures were recorded.
pub(crate) const NOW: u64 = 1_798_761_600;

pub(crate) fn clock() -> Now {
    Arc::new(|| UNIX_EPOCH + Duration::from_secs(NOW))
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/datastore/sqlite").join(name)
}

pub(crate) fn options(file: &Path) -> Options {
    Options::new(file.to_str().unwrap(), clock())
}

pub(crate) fn open(file: &Path) -> Store {
    Store::open(&options(file)).unwrap()
}

/// A copy of the database that SPIRE wrote.
pub(crate) fn recorded(dir: &Path) -> PathBuf {
    let file = dir.join("datastore.sqlite3");
    std::fs::copy(fixture("datastore.sqlite3"), &file).unwrap();
    file
}

/// A database made from a dump.
pub(crate) fn from_dump(dir: &Path, name: &str) -> PathBuf {
    let file = dir.join("datastore.sqlite3");
    let raw = rusqlite::Connection::open(&file).unwrap();
    raw.execute_batch(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap();
    file
}

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap()
}

pub(crate) fn selector(text: &str) -> Selector {
    let (kind, value) = text.split_once(':').unwrap();
    Selector::new(kind, value)
}

pub(crate) fn entry(path: &str, selectors: &[&str]) -> NewEntry {
    let selectors = selectors.iter().map(|text| selector(text)).collect();
    NewEntry::new(id(path), id("/node"), selectors)
}
