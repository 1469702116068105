//! New, old, newer and broken databases.

use std::collections::BTreeMap;
use std::path::Path;

use finial_store::{DatabaseType, EntryFilter, Options, Store, StoreError};

use crate::support::{Home, entry, fixture, on_each_database, open, options, recorded};

/// Name and text of everything in an `SQLite` database.
fn schema_of(file: &Path) -> BTreeMap<String, Option<String>> {
    let raw = rusqlite::Connection::open(file).unwrap();
    let mut statement = raw.prepare("SELECT name, sql FROM sqlite_master").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// What a database server knows of the tables, columns and indexes.
fn description(home: &Home) -> String {
    let questions: &[&str] = match home.database() {
        DatabaseType::Sqlite => &["SELECT name, sql FROM sqlite_master ORDER BY name;"],
        DatabaseType::Postgres => &[
            "SELECT table_name, column_name, data_type, is_nullable, column_default \
             FROM information_schema.columns WHERE table_schema = 'public' \
             ORDER BY table_name, ordinal_position;",
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname;",
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint \
             WHERE connamespace = 'public'::regnamespace ORDER BY conname;",
        ],
        DatabaseType::MySql => &[
            "SELECT table_name, column_name, column_type, is_nullable, column_default, extra, collation_name \
             FROM information_schema.columns WHERE table_schema = database() \
             ORDER BY table_name, ordinal_position;",
            "SELECT table_name, index_name, non_unique, column_name, index_type \
             FROM information_schema.statistics WHERE table_schema = database() \
             ORDER BY table_name, index_name, seq_in_index;",
            "SELECT table_name, engine, row_format, table_collation FROM information_schema.tables \
             WHERE table_schema = database() ORDER BY table_name;",
        ],
    };
    questions.iter().map(|question| home.sql(question)).collect()
}

fn version_row(home: &Home) -> String {
    home.sql("SELECT version, code_version FROM migrations").trim().to_owned()
}

#[test]
fn a_new_file_has_the_schema_of_spire() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("new.sqlite3");

    drop(open(&file));

    assert_eq!(schema_of(&file), schema_of(&recorded(dir.path())));
}

on_each_database! {
    async fn a_new_database_has_the_schema_of_spire(home: &Home) {
        drop(home.open());

        assert_eq!(version_row(home), "25\t1.15.3");
        if home.database() != DatabaseType::Sqlite {
            let spire = Home::new(home.database()).unwrap();
            spire.restore("schema.sql");
            assert_eq!(description(home), description(&spire));
        }
    }

    async fn old_schemas_are_migrated(home: &Home) {
        for dump in ["v23.sql", "v24.sql"] {
            let home = Home::new(home.database()).unwrap();
            home.restore(dump);

            let store = home.open();
            let count = store.count_entries(EntryFilter::default()).await.unwrap();
            store.create_entry(entry("/after", &["unix:uid:0"])).await.unwrap();
            drop(store);

            assert_eq!(count, 35, "{dump}");
            assert_eq!(version_row(&home), "25\t1.15.3", "{dump}");
        }
    }

    async fn newer_schemas_are_opened_within_one_minor_release(home: &Home) {
        drop(home.open());
        let set = |version: i64, code: &str| {
            home.sql(&format!("UPDATE migrations SET version = {version}, code_version = '{code}';"));
        };
        let refused = |disabled: bool| {
            let options = Options { disable_migration: disabled, ..home.options() };
            Store::open(&options).err().map(|error| error.to_string())
        };

        set(26, "1.16.0");
        assert_eq!(refused(false), None);
        assert_eq!(version_row(home), "26\t1.16.0");

        set(26, "1.17.0");
        let text = "datastore-sql: incompatible DB schema and code version";
        assert_eq!(refused(false).as_deref(), Some(text));

        set(24, "1.13.0");
        let text = "datastore-sql: auto-migration must be enabled for current DB";
        assert_eq!(refused(true).as_deref(), Some(text));

        set(22, "1.7.2");
        let text = "datastore-sql: migrating from schema version 22 requires a previous SPIRE release; \
                    please follow the upgrade strategy at doc/upgrading.md";
        assert_eq!(refused(false).as_deref(), Some(text));

        set(25, "one");
        let text = "datastore-sql: error getting DB code version: unable to parse code version from DB";
        assert!(refused(false).is_some_and(|error| error.starts_with(text)));

        set(25, "");
        assert_eq!(refused(false), None);
        assert_eq!(version_row(home), "25\t1.15.3");

        set(25, "1.15.9");
        assert_eq!(refused(false), None);
        assert_eq!(version_row(home), "25\t1.15.9");
    }
}

#[test]
fn schemas_that_are_too_old_are_refused_untouched() {
    let home = Home::new(DatabaseType::Sqlite).unwrap();
    home.restore("v22.sql");
    let file = home.options().connection_string;
    let before = std::fs::read(&file).unwrap();

    assert!(Store::open(&home.options()).is_err());

    assert!(before == std::fs::read(&file).unwrap());
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
    let mut bytes = std::fs::read(fixture("sqlite/datastore.sqlite3")).unwrap();
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
    let options = Options::new("file:memdb?mode=memory&cache=shared", crate::support::clock());
    let store = Store::open(&options).unwrap();

    store.create_entry(entry("/w", &["unix:uid:0"])).await.unwrap();

    assert_eq!(store.count_entries(EntryFilter::default()).await.unwrap(), 1);
}
