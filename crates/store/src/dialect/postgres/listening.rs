//! A connection on which `PostgreSQL` passes on what other sessions notify.

use std::time::Duration;

use runtime::memory::Zeroing;
use sqlx_core::Error;
use sqlx_core::executor::Executor as _;
use sqlx_core::raw_sql::raw_sql;
use sqlx_core::row::Row as _;
use sqlx_postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use uuid::Uuid;

use super::Locator;

/// What all of this program's servers notify, and listen to.
pub(crate) const CHANNEL: &str = "finial_changes";

/// A setting of the session that means nothing to the database: whose value comes back talks to a session
/// of its own.
const MARK: &str = "finial.listener";

/// How long the connection is silent before the database's system looks whether it is there still, in
/// seconds. Between servers that write little there may be something that forgets silent connections.
const KEEPALIVE: &str = "60";

/// A connection that listens.
pub(crate) struct Listening {
    listener: PgListener,
    /// The only way to have a listener; it holds no other connection.
    pool: PgPool,
}

impl Locator {
    /// Connects to the first host that answers and lets listen.
    ///
    /// A pooler that lends sessions for one transaction each would take the wish to listen, and leave it
    /// behind in a session of others, who do not expect notifications. It does not pass on unknown settings:
    /// where the mark is missing nothing is said.
    pub(crate) async fn listen(&self, within: Duration) -> Result<Listening, Error> {
        let mut failed = Error::Configuration("no host".into());
        for (host, port) in &self.hosts {
            match self.listen_at(host, *port, within).await {
                Ok(listening) => return Ok(listening),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn listen_at(&self, host: &str, port: u16, within: Duration) -> Result<Listening, Error> {
        let mark = Uuid::new_v4().simple().to_string();
        let _zeroing = Zeroing::begin();
        let options = self.options(host, port).options([(MARK, &*mark), ("tcp_keepalives_idle", KEEPALIVE)]);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(within)
            .acquire_slow_threshold(within)
            .connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await?;
        // It makes no other connection, and needs the password no more.
        pool.set_connect_options(PgConnectOptions::new_without_pgpass().password(""));
        listener.eager_reconnect(false);
        let row = listener.fetch_one(raw_sql("SELECT current_setting('finial.listener', true)")).await?;
        if row.try_get::<Option<&str>, _>(0)? != Some(&mark) {
            return Err(Error::Protocol("there is a pooler before the database".to_owned()));
        }
        listener.listen(CHANNEL).await?;
        Ok(Listening { listener, pool })
    }
}

impl Listening {
    /// What was notified next; `None` if the connection is lost. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, Error> {
        let notification = self.listener.try_recv().await?;
        Ok(notification.map(|notification| notification.payload().to_owned()))
    }

    /// Says good-bye.
    pub(crate) async fn leave(self) {
        drop(self.listener);
        self.pool.close().await;
    }
}
