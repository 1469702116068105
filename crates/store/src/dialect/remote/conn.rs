//! A connection to a database server, which breaks and is made again.
//!
//! Inside a transaction a broken connection is an error ([`Trouble::Lost`]); between transactions it is
//! made again. No answer within [`PATIENCE`] counts as broken.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use sqlx_core::Error;
use sqlx_core::executor::Executor;
use sqlx_core::query::query_with;
use sqlx_core::raw_sql::raw_sql;
use sqlx_core::sql_str::{AssertSqlSafe, SqlSafeStr, SqlStr};
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout};

use super::target::{Link, Target, runtime, words};
use crate::StoreError;
use crate::dialect::translate::translate;
use crate::dialect::{Dialect, Row, Trouble, Value, mysql, postgres};

/// How long the database may be silent while it owes an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many parameters one statement has at most; the databases allow a little more.
const MOST_PARAMETERS: usize = 32_000;

/// How many rows one statement inserts at most.
const MOST_ROWS: usize = 1_000;

/// For how long nothing is notified after the database refused it.
const SILENCE: Duration = Duration::from_secs(60);

/// What a connection is for.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    Writer { keeps: bool },
    Reader { keeps: bool },
}

/// One connection, used by one thread.
pub(crate) struct Conn {
    runtime: Runtime,
    target: Arc<Target>,
    role: Role,
    lifetime: Option<Duration>,
    link: RefCell<Option<Link>>,
    made: Cell<Option<Instant>>,
    statements: Arc<AtomicU64>,
    in_transaction: Cell<bool>,
    trouble: Cell<Option<Trouble>>,
    loss: RefCell<Option<String>>,
    touched: Cell<bool>,
    failed: Cell<bool>,
    at_end: RefCell<Vec<(&'static str, Vec<Value<'static>>)>>,
    /// How a commit is notified to other servers, if it is.
    telling: Option<String>,
    /// Until when it is not, all the same.
    silent_until: Cell<Option<Instant>>,
}

impl Conn {
    pub(crate) fn new(
        target: Arc<Target>,
        role: Role,
        statements: Arc<AtomicU64>,
        lifetime: Option<Duration>,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            runtime: runtime()?,
            target,
            role,
            lifetime,
            link: RefCell::new(None),
            made: Cell::new(None),
            statements,
            in_transaction: Cell::new(false),
            trouble: Cell::new(None),
            loss: RefCell::new(None),
            touched: Cell::new(false),
            failed: Cell::new(false),
            at_end: RefCell::new(Vec::new()),
            telling: None,
            silent_until: Cell::new(None),
        })
    }

    /// The same, which notifies other servers of what it commits, under this name.
    pub(crate) fn telling(mut self, name: &str) -> Self {
        self.telling = Some(format!("NOTIFY {}, '{name}'; COMMIT", postgres::CHANNEL));
        self
    }

    /// Connects at start, where a refusal is told as such.
    pub(crate) fn connect_first(&self) -> Result<(), StoreError> {
        let link = self.target.connect_first(&self.runtime)?;
        self.adopt(link)
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.target.dialect()
    }

    /// Begins a transaction, on a connection that is made if there is none.
    pub(crate) fn begin(&self) -> Result<(), StoreError> {
        self.trouble.set(None);
        self.touched.set(false);
        self.failed.set(false);
        self.at_end.borrow_mut().clear();
        let is_old = |made: Instant| self.lifetime.is_some_and(|lifetime| made.elapsed() >= lifetime);
        if self.made.get().is_some_and(is_old) {
            self.leave();
        }
        if self.link.borrow().is_none() {
            let link = self.target.connect(&self.runtime)?;
            self.adopt(link)?;
        }
        self.steer(match (self.role, self.dialect()) {
            (Role::Writer { .. }, Dialect::Postgres) => "BEGIN ISOLATION LEVEL READ COMMITTED",
            (Role::Writer { .. }, Dialect::MySql | Dialect::Sqlite) => "START TRANSACTION",
            (Role::Reader { .. }, Dialect::Postgres) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            (Role::Reader { .. }, Dialect::MySql | Dialect::Sqlite) => "START TRANSACTION READ ONLY",
        })?;
        self.in_transaction.set(true);
        Ok(())
    }

    /// Ends a transaction. One in which a statement failed cannot be committed: `PostgreSQL` would take it
    /// back and call that a success.
    pub(crate) fn end(&self, word: &'static str) -> Result<(), StoreError> {
        self.in_transaction.set(false);
        let failed = self.failed.replace(false) && word == "COMMIT";
        let mut ended = self.steer(if failed { "ROLLBACK" } else { word });
        if failed {
            ended = ended.and_then(|()| Err(StoreError::sql("a statement of the transaction failed")));
        }
        if !self.keeps() {
            self.leave();
        }
        ended
    }

    /// Commits what other servers want to know, and notifies them, if this connection does: with the commit,
    /// in one round trip. The databases that call themselves `PostgreSQL` do not all have it, and its queue
    /// can be full: then it is left out for a while, and the transaction is run again.
    pub(crate) fn commit_news(&self) -> Result<(), StoreError> {
        let is_silent = self.silent_until.get().is_some_and(|until| Instant::now() < until);
        let Some(telling) = self.telling.as_ref().filter(|_| !is_silent && !self.failed.get()) else {
            return self.end("COMMIT");
        };
        self.in_transaction.set(false);
        let ended = self.steer_with(|| statement(telling.clone()));
        if let Err(error) = &ended
            && self.trouble.get().is_none()
        {
            tracing::warn!(
                %error,
                "Other servers cannot be notified of changes, and will poll; \
                 experimental.finial.database_notifications = false ends the attempts"
            );
            self.silent_until.set(Some(Instant::now() + SILENCE));
            self.steer("ROLLBACK")?;
            self.trouble.set(Some(Trouble::Raced));
        }
        if !self.keeps() {
            self.leave();
        }
        ended
    }

    /// Inserts the rows that were noted, those of one table with one statement.
    pub(crate) fn insert_noted(&self) -> Result<(), StoreError> {
        let noted = std::mem::take(&mut *self.at_end.borrow_mut());
        let mut heads: Vec<&'static str> = noted.iter().map(|(head, _)| *head).collect();
        heads.sort_unstable();
        heads.dedup();
        for head in heads {
            let rows = noted.iter().filter(|(other, _)| *other == head);
            let rows: Vec<Vec<Value<'_>>> = rows.map(|(_, row)| row.clone()).collect();
            self.insert_rows(head, &rows)?;
        }
        Ok(())
    }

    pub(crate) fn insert_at_end(&self, head: &'static str, row: Vec<Value<'static>>) {
        self.at_end.borrow_mut().push((head, row));
    }

    pub(crate) fn noted(&self) -> usize {
        self.at_end.borrow().len()
    }

    pub(crate) fn forget_noted(&self, but: usize) {
        self.at_end.borrow_mut().truncate(but);
    }

    /// Goes back to a savepoint: what failed since is forgotten.
    pub(crate) fn go_back(&self, word: &'static str) -> Result<(), StoreError> {
        self.steer(word)?;
        self.failed.set(false);
        Ok(())
    }

    /// Runs a statement that has no parameters and gives nothing.
    pub(crate) fn steer(&self, word: &'static str) -> Result<(), StoreError> {
        self.steer_with(|| word.into_sql_str())
    }

    fn steer_with(&self, word: impl FnOnce() -> SqlStr) -> Result<(), StoreError> {
        self.count();
        self.with_link(|runtime, link| {
            runtime.block_on(async {
                match link {
                    Link::Postgres(link) => within(link.execute(raw_sql(word()))).await.map(drop),
                    Link::MySql(link) => within(link.execute(raw_sql(word()))).await.map(drop),
                }
            })
        })
    }

    const fn keeps(&self) -> bool {
        match self.role {
            Role::Writer { keeps } | Role::Reader { keeps } => keeps,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        !self.in_transaction.get()
    }

    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.trouble.get()
    }

    pub(crate) fn loss(&self) -> Option<String> {
        self.loss.borrow().clone()
    }

    /// Notes that another transaction was in the way.
    pub(crate) fn lost_race(&self) {
        self.trouble.set(Some(Trouble::Raced));
    }

    pub(crate) fn take_touched(&self) -> bool {
        self.touched.replace(false)
    }

    /// Waits a little, a little longer each time, never as long as another server that does the same.
    pub(crate) fn pause(&self, times: u32) {
        let spread = u64::from(uuid::Uuid::new_v4().as_bytes().first().copied().unwrap_or(0)) / 16;
        let pause = Duration::from_millis(u64::from(times) * 4 + spread);
        self.runtime.block_on(async { tokio::time::sleep(pause).await });
    }

    pub(crate) fn execute(&self, sql: &str, params: &[Value<'_>]) -> Result<usize, StoreError> {
        self.touched.set(true);
        let (affected, _) = self.run(sql, params)?;
        Ok(usize::try_from(affected).unwrap_or(usize::MAX))
    }

    pub(crate) fn insert(&self, sql: &str, params: &[Value<'_>]) -> Result<i64, StoreError> {
        self.touched.set(true);
        if self.dialect() == Dialect::MySql {
            let (_, id) = self.run(sql, params)?;
            return Ok(i64::try_from(id).unwrap_or(i64::MAX));
        }
        let mut id = 0;
        self.each(&format!("{sql} RETURNING id"), params, &mut |row| {
            id = crate::dialect::int(row, 0)?;
            Ok(())
        })?;
        Ok(id)
    }

    pub(crate) fn insert_rows(&self, head: &str, rows: &[Vec<Value<'_>>]) -> Result<(), StoreError> {
        let Some(width) = rows.first().map(Vec::len).filter(|width| *width > 0) else { return Ok(()) };
        let row = format!("({})", vec!["?"; width].join(", "));
        for some in rows.chunks(MOST_ROWS.min(MOST_PARAMETERS / width)) {
            let sql = format!("{head} VALUES {}", vec![row.as_str(); some.len()].join(", "));
            let params: Vec<Value<'_>> = some.iter().flatten().cloned().collect();
            self.execute(&sql, &params)?;
        }
        Ok(())
    }

    pub(crate) fn each(
        &self,
        sql: &str,
        params: &[Value<'_>],
        take: &mut dyn FnMut(&Row<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.count();
        let (text, sources) = translate(sql, params, self.dialect());
        let mut taken: Result<(), StoreError> = Ok(());
        self.with_link(|runtime, link| match link {
            Link::Postgres(link) => {
                let arguments = postgres::arguments(params, &sources)?;
                runtime.block_on(async {
                    let mut rows = query_with(statement(text), arguments).fetch(link);
                    while let Some(row) = within(rows.try_next()).await? {
                        taken = take(&Row::Postgres(&row));
                        if taken.is_err() {
                            break;
                        }
                    }
                    Ok(())
                })
            }
            Link::MySql(link) => {
                let arguments = mysql::arguments(params, &sources)?;
                runtime.block_on(async {
                    let mut rows = query_with(statement(text), arguments).fetch(link);
                    while let Some(row) = within(rows.try_next()).await? {
                        taken = take(&Row::MySql(&row));
                        if taken.is_err() {
                            break;
                        }
                    }
                    Ok(())
                })
            }
        })?;
        taken
    }

    /// Runs a statement; the rows it touched and the id of the last one it inserted, where the database says.
    fn run(&self, sql: &str, params: &[Value<'_>]) -> Result<(u64, u64), StoreError> {
        self.count();
        let (text, sources) = translate(sql, params, self.dialect());
        self.with_link(|runtime, link| match link {
            Link::Postgres(link) => {
                let query = query_with(statement(text), postgres::arguments(params, &sources)?);
                let done = runtime.block_on(async { within(query.execute(link)).await })?;
                Ok((done.rows_affected(), 0))
            }
            Link::MySql(link) => {
                let query = query_with(statement(text), mysql::arguments(params, &sources)?);
                let done = runtime.block_on(async { within(query.execute(link)).await })?;
                Ok((done.rows_affected(), done.last_insert_id()))
            }
        })
    }

    /// Takes a fresh connection into use.
    fn adopt(&self, link: Link) -> Result<(), StoreError> {
        *self.link.borrow_mut() = Some(link);
        *self.loss.borrow_mut() = None;
        self.made.set(Some(Instant::now()));
        if self.dialect() == Dialect::MySql {
            self.steer(match self.role {
                // Without gaps that nobody may insert into: those of several servers end in deadlocks.
                Role::Writer { .. } if self.may_log_rows()? => {
                    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
                }
                Role::Writer { .. } | Role::Reader { .. } => {
                    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ"
                }
            })?;
        }
        Ok(())
    }

    /// Whether MySQL accepts writes that are not repeatable: not where its log keeps statements.
    fn may_log_rows(&self) -> Result<bool, StoreError> {
        let mut may = true;
        self.each("SELECT @@log_bin, @@binlog_format", &[], &mut |row| {
            let format = crate::dialect::text(row, 1)?;
            may = !(crate::dialect::flag(row, 0)? && format.eq_ignore_ascii_case("STATEMENT"));
            Ok(())
        })?;
        Ok(may)
    }

    fn with_link<T>(
        &self,
        work: impl FnOnce(&Runtime, &mut Link) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let mut link = self.link.borrow_mut();
        let Some(open) = link.as_mut() else {
            self.trouble.set(Some(Trouble::Lost));
            return Err(StoreError::Unavailable(self.loss().unwrap_or_default()));
        };
        work(&self.runtime, open).map_err(|error| self.explain(&mut link, &error))
    }

    /// What an error means to the caller; notes what it means for the transaction.
    fn explain(&self, link: &mut Option<Link>, error: &Error) -> StoreError {
        self.touched.set(true);
        self.failed.set(true);
        let text = words(error);
        let Error::Database(said) = error else {
            if matches!(error, Error::Encode(_) | Error::Decode(_) | Error::ColumnDecode { .. }) {
                return StoreError::sql(&text);
            }
            return self.lose(link, &text);
        };
        let code = said.code().unwrap_or_default();
        let (raced, ended, taken) = match self.dialect() {
            Dialect::MySql => mysql::meaning(error),
            Dialect::Postgres | Dialect::Sqlite => postgres::meaning(&code),
        };
        if ended {
            return self.lose(link, &text);
        }
        if raced {
            self.trouble.set(Some(Trouble::Raced));
        }
        if taken {
            StoreError::AlreadyExists(format!("datastore-sql: {text}"))
        } else {
            StoreError::sql(&text)
        }
    }

    fn lose(&self, link: &mut Option<Link>, text: &str) -> StoreError {
        // Not a word more to it: it may be in the middle of anything.
        *link = None;
        self.made.set(None);
        self.in_transaction.set(false);
        self.trouble.set(Some(Trouble::Lost));
        self.target.stir();
        let why = format!("connection lost: {text}");
        *self.loss.borrow_mut() = Some(why.clone());
        StoreError::Unavailable(why)
    }

    fn leave(&self) {
        self.made.set(None);
        if let Some(link) = self.link.borrow_mut().take() {
            link.leave(&self.runtime);
        }
    }

    fn count(&self) {
        self.statements.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A statement of this crate: its text holds no value from outside, those are parameters.
fn statement(text: String) -> SqlStr {
    AssertSqlSafe(text).into_sql_str()
}

async fn within<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("no answer within {} s", PATIENCE.as_secs()),
        ))),
    }
}
