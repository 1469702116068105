//! The store: one door for all operations, over a closed set of databases.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use crate::dialect::remote::Remote;
use crate::dialect::sqlite::Sqlite;
use crate::dialect::{Conn, Tasks, Tx};
use crate::{Changes, Committed, News, StoreError};

/// Where the store takes the time from.
pub type Now = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Which database a store is in: `database_type` of SPIRE's plugin `sql`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseType {
    /// A file of this process.
    Sqlite,
    /// A `PostgreSQL` server.
    Postgres,
    /// A MySQL or `MariaDB` server.
    MySql,
}

/// Files for the connection to a MySQL server, as the plugin's settings name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// `root_ca_path`.
    pub root: Option<PathBuf>,
    /// `client_cert_path`.
    pub client_certificate: Option<PathBuf>,
    /// `client_key_path`.
    pub client_key: Option<PathBuf>,
}

/// How to open a store.
#[derive(Clone)]
pub struct Options {
    /// Which database it is.
    pub database: DatabaseType,
    /// As `connection_string` of SPIRE's plugin `sql`.
    pub connection_string: String,
    /// As `ro_connection_string` there: for [`Store::open_replica`].
    pub ro_connection_string: String,
    /// For a MySQL server.
    pub tls: TlsFiles,
    /// As `max_open_conns` there; 0 = no limit. One connection writes, few others read, one listens.
    pub max_open_conns: u32,
    /// As `max_idle_conns` there.
    pub max_idle_conns: u32,
    /// As `conn_max_lifetime` there.
    pub conn_max_lifetime: Option<Duration>,
    /// Whether servers that share a `PostgreSQL` database notify each other of what they write.
    pub notifications: bool,
    /// As `disable_migration` there.
    pub disable_migration: bool,
    /// The SPIRE release whose behaviour this program has: written to the version row.
    pub code_version: String,
    /// The clock.
    pub now: Now,
    /// Gets every committed change, in commit order, and together what was committed together. A full
    /// channel makes writers wait, so whoever receives must not wait for a write.
    pub changes: Option<mpsc::Sender<Vec<Changes>>>,
}

impl Options {
    /// Options for a `SQLite` database at `connection_string`.
    #[must_use]
    pub fn new(connection_string: impl Into<String>, now: Now) -> Self {
        Self {
            database: DatabaseType::Sqlite,
            connection_string: connection_string.into(),
            ro_connection_string: String::new(),
            tls: TlsFiles::default(),
            max_open_conns: 100,
            max_idle_conns: 100,
            conn_max_lifetime: None,
            notifications: true,
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
        f.debug_struct("Options")
            .field("database", &self.database)
            .field("code_version", &self.code_version)
            .finish_non_exhaustive()
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
    Remote(Remote),
}

impl Backend {
    const fn tasks(&self) -> &Tasks {
        match self {
            Self::Sqlite(database) => &database.tasks,
            Self::Remote(database) => &database.tasks,
        }
    }
}

impl Store {
    /// Opens the datastore, creates or migrates its schema. Blocks: for the start of a program.
    ///
    /// # Errors
    /// One line that names the database and what to do; [`StoreError::Unavailable`] if a database server
    /// is away, which may pass.
    pub fn open(options: &Options) -> Result<Self, StoreError> {
        let backend = match options.database {
            DatabaseType::Sqlite => Backend::Sqlite(Sqlite::open(options)?),
            DatabaseType::Postgres | DatabaseType::MySql => Backend::Remote(Remote::open(options)?),
        };
        Ok(Self { backend: Arc::new(backend), now: Arc::clone(&options.now) })
    }

    /// Opens the replica of a database server's database, to read alone; `None` without one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_replica(options: &Options) -> Result<Option<Self>, StoreError> {
        if options.ro_connection_string.is_empty() || options.database == DatabaseType::Sqlite {
            return Ok(None);
        }
        let backend = Backend::Remote(Remote::open_replica(options)?);
        Ok(Some(Self { backend: Arc::new(backend), now: Arc::clone(&options.now) }))
    }

    /// How many SQL statements were run since the store was opened.
    #[must_use]
    pub fn statements(&self) -> u64 {
        self.backend.tasks().statements()
    }

    /// How many transactions were committed since the store was opened: fewer than writes, where
    /// writes come together.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.backend.tasks().commits()
    }

    /// Whether other servers may write to this datastore: then a [`Feed`](crate::feed::Feed) is needed.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        match &*self.backend {
            Backend::Sqlite(_) => false,
            Backend::Remote(_) => true,
        }
    }

    /// Where the database says that another server wrote.
    #[must_use]
    pub fn news(&self) -> News {
        match &*self.backend {
            Backend::Sqlite(_) => News::none(),
            Backend::Remote(database) => database.news(),
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
        self.backend.tasks().write(work).await
    }

    pub(crate) async fn write_all<T, F>(&self, works: Vec<F>) -> Vec<Result<Committed<T>, StoreError>>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.backend.tasks().write_all(works).await
    }

    pub(crate) async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Conn) -> Result<T, StoreError> + Send + 'static,
    {
        self.backend.tasks().read(work).await
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}
