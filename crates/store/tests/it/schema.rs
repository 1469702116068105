//! New, old, newer and broken databases.

use std::collections::BTreeMap;
use std::path::Path;

use finial_store::{EntryFilter, Store, StoreError};

use crate::support::{entry, fixture, from_dump, open, options, recorded};

/// Name and text of everything in a database.
fn schema_of(file: &Path) -> BTreeMap<String, Option<String>> {
    let raw = rusqlite::Connection::open(file).unwrap();
    let mut statement = raw.prepare("SELECT name, sql FROM sqlite_master").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

fn version_row(file: &Path) -> (i64, String) {
    let raw = rusqlite::Connection::open(file).unwrap();
    raw.query_row("SELECT version, code_version FROM migrations", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
}

#[test]
fn a_new_database_has_the_schema_of_spire() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("new.sqlite3");

    drop(open(&file));

    assert_eq!(schema_of(&file), schema_of(&recorded(dir.path())));
    assert_eq!(version_row(&file), (25, "1.15.3".to_owned()));
}

#[tokio::test]
async fn old_schemas_are_migrated() {
    for dump in ["v23.sql", "v24.sql"] {
        let dir = tempfile::tempdir().unwrap();
        let file = from_dump(dir.path(), dump);

        let store = open(&file);
        let count = store.count_entries(EntryFilter::default()).await.unwrap();
        store.create_entry(entry("/after", &["unix:uid:0"])).await.unwrap();
        drop(store);

        assert_eq!(count, 35, "{dump}");
        assert_eq!(version_row(&file), (25, "1.15.3".to_owned()), "{dump}");
    }
}

#[test]
fn schemas_that_are_too_old_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let file = from_dump(dir.path(), "v22.sql");
    let before = std::fs::read(&file).unwrap();

    let error = Store::open(&options(&file)).unwrap_err();

    assert_eq!(
        error.to_string(),
        "datastore-sql: migrating from schema version 22 requires a previous SPIRE release; \
         please follow the upgrade strategy at doc/upgrading.md"
    );
    assert!(before == std::fs::read(&file).unwrap());
}

#[test]
fn newer_schemas_are_opened_within_one_minor_release() {
    let dir = tempfile::tempdir().unwrap();
    let file = recorded(dir.path());
    let set = |version: i64, code: &str| {
        let raw = rusqlite::Connection::open(&file).unwrap();
        raw.execute("UPDATE migrations SET version = ?1, code_version = ?2", (version, code)).unwrap();
    };
    let refused = |disabled: bool| {
        let options = finial_store::Options { disable_migration: disabled, ..options(&file) };
        Store::open(&options).err().map(|error| error.to_string())
    };

    set(26, "1.16.0");
    assert_eq!(refused(false), None);
    assert_eq!(version_row(&file), (26, "1.16.0".to_owned()));

    set(26, "1.17.0");
    let text = "datastore-sql: incompatible DB schema and code version";
    assert_eq!(refused(false).as_deref(), Some(text));

    set(24, "1.13.0");
    let text = "datastore-sql: auto-migration must be enabled for current DB";
    assert_eq!(refused(true).as_deref(), Some(text));

    set(25, "one");
    let text = "datastore-sql: error getting DB code version: unable to parse code version from DB";
    assert!(refused(false).is_some_and(|error| error.starts_with(text)));

    set(25, "");
    assert_eq!(refused(false), None);
    assert_eq!(version_row(&file), (25, "1.15.3".to_owned()));

    set(25, "1.15.9");
    assert_eq!(refused(false), None);
    assert_eq!(version_row(&file), (25, "1.15.9".to_owned()));
}

#[test]
fn a_file_is_opened_by_one_process_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("datastore.sqlite3");
    let store = open(&file);

    let error = Store::open(&options(&file)).unwrap_err();
    drop(store);

    assert_eq!(
        error.to_string(),
        format!("datastore file {} is in use by another process; stop it first", file.display())
    );
    drop(open(&file));
}

#[test]
fn a_broken_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garbage.sqlite3");
    std::fs::write(&garbage, "this is no database, but long enough to look at ".repeat(100)).unwrap();
    let torn = dir.path().join("torn.sqlite3");
    let mut bytes = std::fs::read(fixture("datastore.sqlite3")).unwrap();
    for byte in bytes.iter_mut().skip(100).take(3000) {
        *byte = 0xff;
    }
    std::fs::write(&torn, &bytes).unwrap();

    for file in [garbage, torn] {
        let error = Store::open(&options(&file)).unwrap_err();

        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(file.to_str().unwrap()), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

#[tokio::test]
async fn a_database_can_live_in_memory() {
    let options = finial_store::Options::new("file:memdb?mode=memory&cache=shared", crate::support::clock());
    let store = Store::open(&options).unwrap();

    store.create_entry(entry("/w", &["unix:uid:0"])).await.unwrap();

    assert_eq!(store.count_entries(EntryFilter::default()).await.unwrap(), 1);
}
