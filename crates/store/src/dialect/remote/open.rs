//! Opening a database server's database.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use uuid::Uuid;

use super::conn::{Conn, Role};
use super::listener::Listener;
use super::target::{Place, Target};
use crate::dialect::{self, Dialect, Tasks, int, mysql, postgres, text, values};
use crate::migrate::{self, Found, Plan};
use crate::{DatabaseType, News, Options, StoreError};

/// How many connections read, at most. What is asked often is answered from memory, so these few wait for
/// the database most of the time.
const READERS: u32 = 8;

/// An open database.
pub(crate) struct Remote {
    pub(crate) tasks: Tasks,
    /// Absent where nobody notifies.
    listener: Option<Listener>,
}

impl Remote {
    /// Where the database says that another server wrote.
    pub(crate) fn news(&self) -> News {
        self.listener.as_ref().map_or_else(News::none, Listener::news)
    }

    /// Connects, creates or migrates the schema, and starts the threads. On a thread of its own: each
    /// connection is driven by whoever uses it, which the caller's thread may not be allowed to do.
    pub(crate) fn open(options: &Options) -> Result<Self, StoreError> {
        let opened = std::thread::scope(|scope| scope.spawn(|| Self::open_here(options)).join());
        opened.unwrap_or(Err(StoreError::Closed))
    }

    /// Connects to the replica, with one connection that reads. Nothing is prepared there.
    pub(crate) fn open_replica(options: &Options) -> Result<Self, StoreError> {
        let open = || {
            let string = &options.ro_connection_string;
            let target = Arc::new(Target::new(place(options, string)?)?);
            let statements = Arc::new(AtomicU64::new(0));
            let role = Role::Reader { keeps: true };
            let conn = Conn::new(target, role, Arc::clone(&statements), options.conn_max_lifetime)?;
            conn.connect_first()?;
            let changes = Options { changes: None, ..options.clone() };
            let tasks = Tasks::start(dialect::Conn::Remote(conn), Vec::new(), statements, &changes)?;
            Ok(Self { tasks, listener: None })
        };
        let opened = std::thread::scope(|scope| scope.spawn(open).join());
        opened.unwrap_or(Err(StoreError::Closed))
    }

    fn open_here(options: &Options) -> Result<Self, StoreError> {
        if !options.ro_connection_string.is_empty() {
            // What is no connection string is refused before anything is written.
            place(options, &options.ro_connection_string)?;
        }
        let string = &options.connection_string;
        let target = Arc::new(Target::new(place(options, string)?)?);
        let statements = Arc::new(AtomicU64::new(0));
        let conn =
            |role| Conn::new(Arc::clone(&target), role, Arc::clone(&statements), options.conn_max_lifetime);

        // One connection writes. Where that is the only one, it reads too; the third listens.
        let most = if options.max_open_conns == 0 { READERS + 2 } else { options.max_open_conns };
        let notifies = options.notifications && target.dialect() == Dialect::Postgres;
        let listens = notifies && most > 2;
        let mine = Uuid::new_v4().simple().to_string();

        let mut writer = conn(Role::Writer { keeps: true })?;
        if notifies {
            writer = writer.telling(&mine);
        }
        writer.connect_first()?;
        let writer = dialect::Conn::Remote(writer);
        prepare(&writer, options)?;

        let readers = (1..(most - u32::from(listens)).min(READERS + 1))
            .map(|number| {
                Ok(dialect::Conn::Remote(conn(Role::Reader { keeps: number < options.max_idle_conns })?))
            })
            .collect::<Result<_, StoreError>>()?;
        let tasks = Tasks::start(writer, readers, statements, options)?;
        let listener =
            listens.then(|| Listener::start(target, mine, options.conn_max_lifetime)).transpose()?;
        Ok(Self { tasks, listener })
    }
}

fn place(options: &Options, string: &str) -> Result<Place, StoreError> {
    let environment = |name: &str| std::env::var(name).ok();
    Ok(match options.database {
        DatabaseType::Postgres => Place::Postgres(postgres::Locator::parse(string, &environment)?),
        DatabaseType::MySql => Place::MySql(mysql::Locator::parse(string, &options.tls)?),
        DatabaseType::Sqlite => return Err(StoreError::Open("SQLite is no database server".to_owned())),
    })
}

/// Creates or migrates the schema, alone: several servers may start at once.
fn prepare(conn: &dialect::Conn, options: &Options) -> Result<(), StoreError> {
    let (take, release) = match conn.dialect() {
        Dialect::MySql => ("SELECT get_lock('finial-schema', 8)", "SELECT release_lock('finial-schema')"),
        Dialect::Postgres | Dialect::Sqlite => {
            ("SELECT pg_advisory_lock(7310868735356594017)", "SELECT pg_advisory_unlock(7310868735356594017)")
        }
    };
    conn.rows(take, values![], |_| Ok(()))?;
    let outcome = look(conn).and_then(|found| migrate::plan(found, options)).and_then(|plan| {
        if plan == Plan::Nothing { Ok(()) } else { migrate::carry_out(conn, &plan, options) }
    });
    let released = conn.rows(release, values![], |_| Ok(())).map(drop);
    outcome.and(released).map_err(|error| {
        if matches!(error, StoreError::Open(_) | StoreError::Unavailable(_)) {
            return error;
        }
        StoreError::Open(format!("cannot prepare the schema: {error}"))
    })
}

/// What the version row says; `None` if the database is new.
fn look(conn: &dialect::Conn) -> Result<Option<Found>, StoreError> {
    let sql = match conn.dialect() {
        Dialect::MySql => {
            "SELECT count(*) FROM information_schema.tables \
             WHERE table_schema = database() AND table_name = 'migrations'"
        }
        Dialect::Postgres | Dialect::Sqlite => {
            "SELECT count(*) FROM information_schema.tables \
             WHERE table_schema = current_schema() AND table_name = 'migrations'"
        }
    };
    if conn.first(sql, values![], |row| int(row, 0))?.unwrap_or(0) == 0 {
        return Ok(None);
    }
    let read = conn.first(migrate::VERSION_ROW, values![], |row| {
        Ok(Found { version: int(row, 0)?, code_version: text(row, 1)? })
    })?;
    Ok(Some(read.unwrap_or_default()))
}
