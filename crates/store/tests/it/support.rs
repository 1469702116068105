//! Databases and values for the tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use finial_store::{DatabaseType, NewEntry, Now, Options, Store, StoreError};
use rusqlite::types::ValueRef;
use spiffe::{Selector, SpiffeId};
use tempfile::TempDir;
use testkit::database::{Database, Make, Server};

/// 2027-01-01: after the fixtures were recorded.
pub(crate) const NOW: u64 = 1_798_761_600;

pub(crate) fn clock() -> Now {
    Arc::new(|| UNIX_EPOCH + Duration::from_secs(NOW))
}

/// A database of a test's own, empty at first.
pub(crate) struct Home {
    place: Place,
}

enum Place {
    File(TempDir),
    Server(DatabaseType, Database<'static>),
}

impl Home {
    /// A database of this type; `None` where its server cannot be had.
    pub(crate) fn new(database: DatabaseType) -> Option<Self> {
        let make = match database {
            DatabaseType::Sqlite => return Some(Self { place: Place::File(tempfile::tempdir().unwrap()) }),
            DatabaseType::Postgres => Make::Postgres,
            DatabaseType::MySql => Make::MariaDb,
        };
        let made = Server::shared(make)?.database().unwrap();
        Some(Self { place: Place::Server(database, made) })
    }

    pub(crate) fn database(&self) -> DatabaseType {
        match &self.place {
            Place::File(_) => DatabaseType::Sqlite,
            Place::Server(database, _) => *database,
        }
    }

    pub(crate) fn options(&self) -> Options {
        match &self.place {
            Place::File(dir) => options(&dir.path().join("datastore.sqlite3")),
            Place::Server(database, made) => {
                Options { database: *database, ..Options::new(made.connection_string(), clock()) }
            }
        }
    }

    pub(crate) fn open(&self) -> Store {
        Store::open(&self.options()).unwrap()
    }

    /// Runs SQL by hand; the rows of its answers, columns between tabs.
    pub(crate) fn sql(&self, sql: &str) -> String {
        match &self.place {
            Place::File(dir) => {
                let raw = rusqlite::Connection::open(dir.path().join("datastore.sqlite3")).unwrap();
                let mut answers = String::new();
                if sql.starts_with("SELECT ") {
                    let mut statement = raw.prepare(sql).unwrap();
                    let width = statement.column_count();
                    let mut rows = statement.query([]).unwrap();
                    while let Some(row) = rows.next().unwrap() {
                        let cell = |place| match row.get_ref_unwrap(place) {
                            ValueRef::Integer(number) => number.to_string(),
                            ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                            other @ (ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_)) => {
                                format!("{other:?}")
                            }
                        };
                        answers.push_str(&(0..width).map(cell).collect::<Vec<_>>().join("\t"));
                        answers.push('\n');
                    }
                } else {
                    raw.execute_batch(sql).unwrap();
                }
                answers
            }
            Place::Server(_, made) => made.run(sql).unwrap(),
        }
    }

    /// What SPIRE recorded for this type of database.
    pub(crate) fn fixture(&self, name: &str) -> String {
        let folder = match self.database() {
            DatabaseType::Sqlite => "sqlite",
            DatabaseType::Postgres => "postgres",
            DatabaseType::MySql => "mysql",
        };
        let path = fixture(folder).join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Fills the database from a dump that SPIRE recorded.
    pub(crate) fn restore(&self, name: &str) {
        // `PostgreSQL` gets what belongs to its default schema; the dump starts without a path to it.
        self.sql(&self.fixture(name));
    }

    /// Asserts that a row was refused because its key is taken: of these columns, by this index.
    pub(crate) fn assert_taken(&self, error: &StoreError, columns: &str, index: &str) {
        assert!(matches!(error, StoreError::AlreadyExists(_)), "{error:?}");
        let text = error.to_string();
        match self.database() {
            DatabaseType::Sqlite => {
                assert_eq!(text, format!("datastore-sql: UNIQUE constraint failed: {columns}"));
            }
            DatabaseType::Postgres => assert_eq!(
                text,
                format!(
                    "datastore-sql: pq: duplicate key value violates unique constraint \"{index}\" (23505)"
                )
            ),
            DatabaseType::MySql => {
                let begin = "datastore-sql: Error 1062 (23000): Duplicate entry '";
                assert!(text.starts_with(begin) && text.ends_with(&format!("' for key '{index}'")), "{text}");
            }
        }
    }
}

/// Tests that hold for every database: each is given an empty one of its own, and runs once for each type.
macro_rules! on_each_database {
    ($($(#[$meta:meta])* async fn $name:ident($home:ident: &Home) $body:block)*) => { $(
        mod $name {
            #[allow(unused_imports, reason = "not every test needs all that its file imports")]
            use super::*;

            $(#[$meta])*
            async fn check($home: &crate::support::Home) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                run(finial_store::DatabaseType::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                run(finial_store::DatabaseType::Postgres).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mysql() {
                run(finial_store::DatabaseType::MySql).await;
            }

            async fn run(database: finial_store::DatabaseType) {
                if let Some(home) = crate::support::Home::new(database) {
                    check(&home).await;
                }
            }
        }
    )* };
}
pub(crate) use on_each_database;

/// A recorded file, by its path in the folder of recordings.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/datastore").join(name)
}

pub(crate) fn options(file: &Path) -> Options {
    Options::new(file.to_str().unwrap(), clock())
}

pub(crate) fn open(file: &Path) -> Store {
    Store::open(&options(file)).unwrap()
}

/// A copy of the `SQLite` database that SPIRE wrote.
pub(crate) fn recorded(dir: &Path) -> PathBuf {
    let file = dir.join("datastore.sqlite3");
    std::fs::copy(fixture("sqlite/datastore.sqlite3"), &file).unwrap();
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
