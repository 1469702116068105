//! The `DataStore "sql"` block: which database, and how to open it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use config::hcl::Kept;
use config::{PluginBlock, PluginData, ServerConfig};
use runtime::clock::Clock;
use runtime::health::Health;
use runtime::metrics::Metrics;
use serde::Deserialize;
use spiffe::quote::quoted;
use store::{Changes, DatabaseType, Options, Store, StoreError, TlsFiles};
use tokio::sync::mpsc;

use crate::measured::Datastore;

/// The release whose behaviour this server has, written to the version row of the datastore.
const SPIRE_RELEASE: &str = "1.15.3";
const KIND: &str = "DataStore";
const NAME: &str = "sql";

/// Why there is no datastore.
#[derive(Debug, thiserror::Error)]
pub enum DatastoreError {
    /// No block.
    #[error("expecting a DataStore plugin")]
    Missing,
    /// Several blocks.
    #[error("only one DataStore plugin is allowed")]
    Several,
    /// Another name than `sql`, or a program of its own.
    #[error("pluggability for the DataStore is deprecated; only the built-in \"sql\" plugin is supported")]
    Foreign,
    /// The file with the settings cannot be read.
    #[error("failed to load plugin data: open {}: {reason}", path.display())]
    DataFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The settings are wrong.
    #[error("{0}")]
    Settings(String),
    /// The database cannot be opened.
    #[error("failed to configure plugin \"sql\"")]
    Open(#[from] StoreError),
    /// Opening it panicked.
    #[error("failed to configure plugin \"sql\": opening the database did not come to its end")]
    Interrupted,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    database_type: Option<Kept>,
    connection_string: String,
    ro_connection_string: String,
    root_ca_path: String,
    client_cert_path: String,
    client_key_path: String,
    max_open_conns: Option<i64>,
    max_idle_conns: Option<i64>,
    conn_max_lifetime: Option<String>,
    disable_migration: bool,
}

/// How long to wait before a database that is away is tried again, at most.
const RETRY: Duration = Duration::from_secs(5);

/// Opens the datastore that the configuration declares, and its replica if there is one; `changes` gets what
/// is committed. A database server that is away is waited for: without it there is nothing to serve, and it
/// comes back.
///
/// # Errors
/// Any of [`DatastoreError`].
pub(crate) async fn open(
    config: &ServerConfig,
    clock: &Arc<dyn Clock>,
    health: &Health,
    changes: mpsc::Sender<Vec<Changes>>,
    metrics: &Metrics,
) -> Result<(Datastore, Option<Datastore>), DatastoreError> {
    let mut options = options(settings(&config.plugins)?, clock)?;
    options.notifications = config.finial.database_notifications;
    options.changes = Some(changes);
    let db_type = match options.database {
        DatabaseType::Sqlite => "sqlite3",
        DatabaseType::Postgres => "postgres",
        DatabaseType::MySql => "mysql",
    };
    tracing::info!(subsystem_name = "sql", db_type, "Opening SQL database");
    let check = health.check("catalog.datastore");
    let mut wait = Duration::from_millis(500);
    loop {
        let now = options.clone();
        let opened = runtime::blocking::Blocking::new(1).run(move || Store::open(&now)).await;
        match opened.map_err(|_| DatastoreError::Interrupted)? {
            Err(StoreError::Unavailable(why)) => {
                tracing::warn!(subsystem_name = "sql", reason = why, "Waiting for the datastore");
                check.failing("open_err", why);
            }
            opened => {
                check.cleared("open_err");
                let opened = Datastore::new(opened?, metrics);
                return Ok((opened, replica(options, metrics).await?));
            }
        }
        clock.sleep(wait).await;
        wait = (wait * 2).min(RETRY);
    }
}

/// The replica, if there is one; without it all is read from the primary database.
async fn replica(options: Options, metrics: &Metrics) -> Result<Option<Datastore>, DatastoreError> {
    let opened = runtime::blocking::Blocking::new(1).run(move || Store::open_replica(&options)).await;
    match opened.map_err(|_| DatastoreError::Interrupted)? {
        Ok(replica) => Ok(replica.map(|replica| Datastore::new(replica, metrics))),
        Err(error) => {
            tracing::warn!(%error, "The replica cannot be opened; reading the primary database");
            Ok(None)
        }
    }
}

/// What the settings mean.
fn options(settings: Settings, clock: &Arc<dyn Clock>) -> Result<Options, DatastoreError> {
    let refused = |text: &str| Err(DatastoreError::Settings(format!("datastore-sql: {text}")));
    let kind = match &settings.database_type {
        // A list is no word, though its text is kept like one.
        Some(Kept::Other(word)) if !word.starts_with('[') => word.trim_matches('"').to_owned(),
        Some(Kept::Items(_, text)) => {
            text.split([' ', '{', '=']).next().unwrap_or_default().trim_matches('"').to_owned()
        }
        Some(Kept::Other(_)) | None => {
            return Err(DatastoreError::Settings("malformed database type configuration".to_owned()));
        }
    };
    let database = match kind.as_str() {
        "sqlite3" => DatabaseType::Sqlite,
        "postgres" => DatabaseType::Postgres,
        "mysql" => DatabaseType::MySql,
        "" => return refused("database_type must be set"),
        "aws_mysql" | "aws_postgres" => {
            let plain = kind.trim_start_matches("aws_");
            return refused(&format!(
                "database_type {kind:?} is not part of this version of Finial; use {plain:?} with a password"
            ));
        }
        other => return refused(&format!("unsupported database_type: {other}")),
    };
    if settings.connection_string.is_empty() {
        return refused("connection_string must be set");
    }
    let lifetime = match settings.conn_max_lifetime.as_deref() {
        None => None,
        Some(text) => match config::duration(text) {
            Ok(lifetime) => Some(lifetime).filter(|lifetime| !lifetime.is_zero()),
            Err(why) => {
                let text = quoted(text);
                let why = format!("failed to parse conn_max_lifetime {text}: {why}");
                return Err(DatastoreError::Settings(why));
            }
        },
    };
    let file = |path: String| (!path.is_empty()).then(|| PathBuf::from(path));
    // As in Go: no limit is 0 or less for open connections, and that keeps none for idle ones.
    let count = |number: Option<i64>| u32::try_from(number.unwrap_or(100).max(0)).unwrap_or(u32::MAX);
    let now = Arc::clone(clock);
    let mut options = Options::new(settings.connection_string, Arc::new(move || now.now()));
    options.database = database;
    options.ro_connection_string = settings.ro_connection_string;
    options.tls = TlsFiles {
        root: file(settings.root_ca_path),
        client_certificate: file(settings.client_cert_path),
        client_key: file(settings.client_key_path),
    };
    options.max_open_conns = count(settings.max_open_conns);
    options.max_idle_conns = count(settings.max_idle_conns);
    options.conn_max_lifetime = lifetime;
    options.disable_migration = settings.disable_migration;
    SPIRE_RELEASE.clone_into(&mut options.code_version);
    Ok(options)
}

fn settings(plugins: &[PluginBlock]) -> Result<Settings, DatastoreError> {
    let mut blocks = plugins.iter().filter(|block| block.kind == KIND && block.enabled);
    let block = blocks.next().ok_or(DatastoreError::Missing)?;
    if blocks.next().is_some() {
        return Err(DatastoreError::Several);
    }
    if block.name != NAME || !block.command.is_empty() {
        return Err(DatastoreError::Foreign);
    }
    let text = match &block.data {
        PluginData::Absent => String::new(),
        PluginData::Inline(text) => text.clone(),
        PluginData::File(path) => std::fs::read_to_string(path)
            .map_err(|error| DatastoreError::DataFile { path: path.clone(), reason: error.to_string() })?,
    };
    config::hcl::from_str(&text).map_err(|error| DatastoreError::Settings(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str, data: &str) -> PluginBlock {
        PluginBlock {
            kind: KIND.to_owned(),
            name: name.to_owned(),
            command: String::new(),
            args: Vec::new(),
            checksum: String::new(),
            enabled: true,
            data: PluginData::Inline(data.to_owned()),
        }
    }

    fn read(data: &str) -> Result<Options, DatastoreError> {
        let clock: Arc<dyn Clock> = Arc::new(runtime::clock::SystemClock);
        options(settings(&[block("sql", data)])?, &clock)
    }

    #[test]
    fn the_block_says_which_database() {
        let good = block("sql", "database_type = \"sqlite3\"\nconnection_string = \"/x.sqlite3\"");

        assert_eq!(settings(std::slice::from_ref(&good)).unwrap().connection_string, "/x.sqlite3");
        let refused = |blocks: &[PluginBlock]| settings(blocks).err().unwrap().to_string();
        assert_eq!(refused(&[]), "expecting a DataStore plugin");
        assert_eq!(refused(&[good.clone(), good]), "only one DataStore plugin is allowed");
        assert!(refused(&[block("mine", "")]).starts_with("pluggability"));
    }

    #[test]
    fn every_setting_counts() {
        let text = "database_type = \"mysql\"\nconnection_string = \"me@/d?parseTime=true\"\n\
                    ro_connection_string = \"r\"\nroot_ca_path = \"/ca\"\nclient_cert_path = \"/c\"\n\
                    client_key_path = \"/k\"\nmax_open_conns = 3\nmax_idle_conns = 2\n\
                    conn_max_lifetime = \"1m30s\"\ndisable_migration = true";

        let options = read(text).unwrap();

        assert_eq!(options.database, DatabaseType::MySql);
        assert_eq!(options.ro_connection_string, "r");
        assert_eq!(options.tls.root, Some("/ca".into()));
        assert_eq!(options.tls.client_certificate, Some("/c".into()));
        assert_eq!(options.tls.client_key, Some("/k".into()));
        assert_eq!((options.max_open_conns, options.max_idle_conns), (3, 2));
        assert_eq!(options.conn_max_lifetime, Some(Duration::from_secs(90)));
        assert!(options.disable_migration);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, expected) in [
            ("", "malformed database type configuration"),
            ("database_type = [\"sqlite3\"]", "malformed database type configuration"),
            ("database_type = \"\"", "datastore-sql: database_type must be set"),
            ("connection_string = true", "At 1:21: root.connection_string: unknown type for string"),
            ("database_type = \"sqlite3\"", "datastore-sql: connection_string must be set"),
            ("database_type = \"oracle\"", "datastore-sql: unsupported database_type: oracle"),
            ("database_type \"aws_mysql\" { region = \"r\" }", "\"aws_mysql\" is not part of this version"),
            (
                "database_type = \"postgres\"\nconnection_string = \"x\"\nconn_max_lifetime = \"soon\"",
                "failed to parse conn_max_lifetime \"soon\"",
            ),
        ] {
            let error = read(text).err().unwrap().to_string();

            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("rpc error"), "{text}: {error}");
        }
    }
}
