//! Where the database is, how to get there, and whether it is away.

use std::future::Future;
use std::io::ErrorKind;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use runtime::memory::Zeroing;
use sqlx_core::Error;
use sqlx_core::connection::Connection as _;
use sqlx_mysql::MySqlConnection;
use sqlx_postgres::PgConnection;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::StoreError;
use crate::dialect::postgres::Listening;
use crate::dialect::{Dialect, mysql, postgres, tasks};

/// How long it may take to connect, unless the connection string says.
const CONNECT: Duration = Duration::from_secs(3);

/// How often a database that is away is tried.
const PROBE: Duration = Duration::from_secs(1);

/// A connection string, read.
pub(crate) enum Place {
    Postgres(postgres::Locator),
    MySql(mysql::Locator),
}

/// An open connection.
pub(crate) enum Link {
    Postgres(PgConnection),
    MySql(MySqlConnection),
}

/// Why there is no connection.
pub(crate) enum Failed {
    /// Nobody is there, or nobody who has time: later there may be.
    Away(String),
    /// The database said no.
    Refused(String),
}

impl Place {
    pub(crate) const fn dialect(&self) -> Dialect {
        match self {
            Self::Postgres(_) => Dialect::Postgres,
            Self::MySql(_) => Dialect::MySql,
        }
    }

    /// The database in words, without any secret.
    fn name(&self) -> String {
        match self {
            Self::Postgres(place) => place.to_string(),
            Self::MySql(place) => place.to_string(),
        }
    }

    fn patience(&self) -> Duration {
        match self {
            Self::Postgres(place) => place.connect_timeout.unwrap_or(CONNECT),
            Self::MySql(place) => place.connect_timeout.unwrap_or(CONNECT),
        }
    }

    async fn connect(&self) -> Result<Link, Error> {
        Ok(match self {
            Self::Postgres(place) => Link::Postgres(place.connect().await?),
            Self::MySql(place) => Link::MySql(place.connect().await?),
        })
    }
}

/// A database server, as all connections to it share it.
pub(crate) struct Target {
    /// Holds the password: the one copy of it that is kept.
    place: Arc<Place>,
    away: Arc<Away>,
    probe: Option<JoinHandle<()>>,
}

/// Whether the database is away, and why.
#[derive(Default)]
struct Away {
    state: Mutex<State>,
    changed: Condvar,
    /// Counts connections that broke, and returns of the database.
    stirred: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    why: Option<String>,
    closing: bool,
}

impl Target {
    /// The database at `place`, which is taken to be there.
    pub(crate) fn new(place: Place) -> Result<Self, StoreError> {
        let (place, away) = (Arc::new(place), Arc::new(Away::default()));
        let runtime = runtime()?;
        let (sought, seen) = (Arc::clone(&place), Arc::clone(&away));
        let probe = tasks::spawn("store-probe", move || watch(&runtime, &sought, &seen))?;
        Ok(Self { place, away, probe: Some(probe) })
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.place.dialect()
    }

    /// Connects, unless the database is known to be away.
    pub(crate) fn connect(&self, runtime: &Runtime) -> Result<Link, StoreError> {
        if let Some(why) = &self.state().why {
            return Err(StoreError::Unavailable(why.clone()));
        }
        match attempt(runtime, &self.place) {
            Ok(link) => Ok(link),
            Err(Failed::Away(why) | Failed::Refused(why)) => Err(StoreError::Unavailable(self.lost(&why))),
        }
    }

    /// Connects for the first time: what the database refuses then is an error of the configuration.
    pub(crate) fn connect_first(&self, runtime: &Runtime) -> Result<Link, StoreError> {
        attempt(runtime, &self.place).map_err(|failed| match failed {
            Failed::Away(why) => StoreError::Unavailable(format!("{} is away: {why}", self.place.name())),
            Failed::Refused(why) => StoreError::Open(format!("cannot open {}: {why}", self.place.name())),
        })
    }

    /// Connects to hear what other servers notify; an error says why not.
    pub(crate) async fn listen(&self) -> Result<Listening, String> {
        match &*self.place {
            Place::Postgres(place) => {
                place.listen(self.place.patience()).await.map_err(|error| words(&error))
            }
            Place::MySql(_) => Err("MySQL notifies nobody".to_owned()),
        }
    }

    /// Whether the database is known to be away.
    pub(crate) fn is_away(&self) -> bool {
        self.state().why.is_some()
    }

    /// Notes that a connection broke that was in use: others may have, unnoticed.
    pub(crate) fn stir(&self) {
        self.away.stirred.send_modify(|times| *times += 1);
    }

    /// Changes when a connection broke, and when the database is back.
    pub(crate) fn stirred(&self) -> watch::Receiver<u64> {
        self.away.stirred.subscribe()
    }

    /// Notes that a connection broke or could not be made; in words.
    pub(crate) fn lost(&self, why: &str) -> String {
        let mut state = self.state();
        let why = state.why.get_or_insert_with(|| {
            tracing::warn!(reason = why, "Datastore is away: {}", self.place.name());
            format!("{} is away: {why}", self.place.name())
        });
        let why = why.clone();
        drop(state);
        self.away.changed.notify_all();
        why
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.away.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.state().closing = true;
        self.away.changed.notify_all();
        if self.probe.take().is_some_and(|probe| probe.join().is_err()) {
            tracing::error!("a datastore thread panicked");
        }
    }
}

/// Waits for the database to be away, then tries it until it is back, over and over.
fn watch(runtime: &Runtime, place: &Place, away: &Away) {
    let mut state = away.state.lock().unwrap_or_else(PoisonError::into_inner);
    let mut told = String::new();
    loop {
        if state.closing {
            return;
        }
        if state.why.is_none() {
            state = away.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        drop(state);
        let tried = attempt(runtime, place);
        state = away.state.lock().unwrap_or_else(PoisonError::into_inner);
        match tried {
            Ok(link) => {
                state.why = None;
                told.clear();
                tracing::info!("Datastore is back: {}", place.name());
                away.stirred.send_modify(|times| *times += 1);
                link.leave(runtime);
            }
            Err(Failed::Away(why) | Failed::Refused(why)) => {
                state.why = Some(format!("{} is away: {why}", place.name()));
                if why != told {
                    tracing::warn!(reason = why, "Datastore is still away: {}", place.name());
                    told = why;
                }
                let waited = away.changed.wait_timeout_while(state, PROBE, |state| !state.closing);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// Connects within the time. What the driver was told is zeroed when it is done.
fn attempt(runtime: &Runtime, place: &Place) -> Result<Link, Failed> {
    let _zeroing = Zeroing::begin();
    let within = place.patience();
    let connected = runtime.block_on(async { tokio::time::timeout(within, place.connect()).await });
    match connected {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(Failed::Away(format!("no connection within {} s", within.as_secs_f32()))),
    }
}

fn failed(error: &Error) -> Failed {
    let text = words(error);
    if let Error::Database(said) = error {
        let code = said.code().unwrap_or_default();
        // Starting up, shutting down, full.
        let passing = code.starts_with("57P") || code.starts_with("08") || code == "53300";
        return if passing || mysql::is_passing(error) { Failed::Away(text) } else { Failed::Refused(text) };
    }
    // A certificate that is not believed, on either side, comes as data that are not valid.
    let is_distrust = matches!(error, Error::Io(error) if error.kind() == ErrorKind::InvalidData);
    if is_distrust || matches!(error, Error::Configuration(_) | Error::Tls(_)) {
        return Failed::Refused(text);
    }
    Failed::Away(text)
}

/// An error in the words of the driver that SPIRE uses, where clients have seen them.
pub(crate) fn words(error: &Error) -> String {
    postgres::words(error).or_else(|| mysql::words(error)).unwrap_or_else(|| error.to_string())
}

impl Link {
    /// Says good-bye; not for long.
    pub(crate) fn leave(self, runtime: &Runtime) {
        const FAREWELL: Duration = Duration::from_millis(200);
        async fn within(leaving: impl Future<Output = Result<(), Error>>) {
            // A server that does not hear it notices the closed socket.
            drop(tokio::time::timeout(FAREWELL, leaving).await);
        }
        match self {
            Self::Postgres(link) => runtime.block_on(within(link.close())),
            Self::MySql(link) => runtime.block_on(within(link.close())),
        }
    }
}

/// What drives the connection of one thread.
pub(crate) fn runtime() -> Result<Runtime, StoreError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StoreError::Open(format!("cannot start datastore thread: {error}")))
}
