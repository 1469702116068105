//! The store: one door for all operations, over a closed set of databases.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;

use crate::dialect::sqlite::{Conn, Sqlite, Tx};
use crate::{Changes, Committed, StoreError};

/// Where the store takes the time from.
pub type Now = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// How to open a store.
#[derive(Clone)]
pub struct Options {
    /// As `connection_string` of SPIRE's plugin `sql`.
    pub connection_string: String,
    /// As `disable_migration` there.
    pub disable_migration: bool,
    /// The SPIRE release whose behaviour this program has: written to the version row.
    pub code_version: String,
    /// The clock.
    pub now: Now,
    /// Gets every committed change, in commit order. A full channel makes writers wait, so whoever
    /// receives must not wait for a write.
    pub changes: Option<mpsc::Sender<Changes>>,
}

impl Options {
    /// Options for a `SQLite` database at `connection_string`.
    #[must_use]
    pub fn new(connection_string: impl Into<String>, now: Now) -> Self {
        Self {
            connection_string: connection_string.into(),
            disable_migration: false,
            code_version: "1.15.3".to_owned(),
            now,
            changes: None,
        }
    }
}

impl fmt::Debug for Options {
    /// Without the connection string: it may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("code_version", &self.code_version).finish_non_exhaustive()
    }
}

/// An open datastore. Clones share it; the last one closes it.
#[derive(Clone)]
pub struct Store {
    backend: Arc<Backend>,
    now: Now,
}

enum Backend {
    Sqlite(Sqlite),
}

impl Store {
    /// Opens the datastore, creates or migrates its schema. Blocks: for the start of a program.
    ///
    /// # Errors
    /// One line that names the file and what to do.
    pub fn open(options: &Options) -> Result<Self, StoreError> {
        let backend = Backend::Sqlite(Sqlite::open(options)?);
        Ok(Self { backend: Arc::new(backend), now: Arc::clone(&options.now) })
    }

    /// How many SQL statements were run since the store was opened.
    #[must_use]
    pub fn statements(&self) -> u64 {
        match &*self.backend {
            Backend::Sqlite(database) => database.statements(),
        }
    }

    /// How many transactions were committed since the store was opened: fewer than writes, where
    /// writes come together.
    #[must_use]
    pub fn commits(&self) -> u64 {
        match &*self.backend {
            Backend::Sqlite(database) => database.commits(),
        }
    }

    /// The time by the store's clock.
    pub(crate) fn now(&self) -> SystemTime {
        (self.now)()
    }

    pub(crate) async fn write<T, F>(&self, work: F) -> Result<Committed<T>, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        match &*self.backend {
            Backend::Sqlite(database) => database.write(work).await,
        }
    }

    pub(crate) async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Conn) -> Result<T, StoreError> + Send + 'static,
    {
        match &*self.backend {
            Backend::Sqlite(database) => database.read(work).await,
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}
