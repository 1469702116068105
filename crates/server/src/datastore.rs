//! The `DataStore "sql"` block: which database, and how to open it.

use std::path::PathBuf;
use std::sync::Arc;

use config::{PluginBlock, PluginData};
use runtime::clock::Clock;
use runtime::metrics::Metrics;
use serde::Deserialize;
use store::{Changes, Options, Store, StoreError};
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
    #[error("failed to configure plugin \"sql\": failed to load plugin data: open {}: {reason}", path.display())]
    DataFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The settings are wrong.
    #[error("failed to configure plugin \"sql\": rpc error: code = InvalidArgument desc = {0}")]
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
    database_type: String,
    connection_string: String,
    disable_migration: bool,
}

/// Opens the datastore that the plugin blocks declare; `changes` gets what is committed.
///
/// # Errors
/// Any of [`DatastoreError`].
pub(crate) async fn open(
    plugins: &[PluginBlock],
    clock: &Arc<dyn Clock>,
    changes: mpsc::Sender<Changes>,
    metrics: &Metrics,
) -> Result<Datastore, DatastoreError> {
    let settings = settings(plugins)?;
    let clock = Arc::clone(clock);
    let mut options = Options::new(settings.connection_string, Arc::new(move || clock.now()));
    options.disable_migration = settings.disable_migration;
    SPIRE_RELEASE.clone_into(&mut options.code_version);
    options.changes = Some(changes);
    let opened = runtime::blocking::Blocking::new(1).run(move || Store::open(&options)).await;
    Ok(Datastore::new(opened.map_err(|_| DatastoreError::Interrupted)??, metrics))
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
    let settings: Settings = config::hcl::from_str(&text)
        .map_err(|error| DatastoreError::Settings(format!("unable to decode configuration: {error}")))?;
    let refused = |text: &str| Err(DatastoreError::Settings(text.to_owned()));
    match settings.database_type.as_str() {
        "sqlite3" => {}
        "" => return refused("database_type must be set"),
        "mysql" | "postgres" | "aws_mysql" | "aws_postgres" => {
            return Err(DatastoreError::Settings(format!(
                "database_type {:?} is not part of this version; use \"sqlite3\"",
                settings.database_type
            )));
        }
        other => return Err(DatastoreError::Settings(format!("unsupported database_type: {other}"))),
    }
    if settings.connection_string.is_empty() {
        return refused("connection_string must be set");
    }
    Ok(settings)
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

    #[test]
    fn the_block_says_which_database() {
        let good = block("sql", "database_type = \"sqlite3\"\nconnection_string = \"/x.sqlite3\"");

        assert_eq!(settings(std::slice::from_ref(&good)).unwrap().connection_string, "/x.sqlite3");
        let refused = |blocks: &[PluginBlock]| settings(blocks).err().unwrap().to_string();
        assert_eq!(refused(&[]), "expecting a DataStore plugin");
        assert_eq!(refused(&[good.clone(), good]), "only one DataStore plugin is allowed");
        assert!(refused(&[block("mine", "")]).starts_with("pluggability"));
        let other = refused(&[block("sql", "database_type = \"postgres\"\nconnection_string = \"x\"")]);
        assert!(other.contains("not part of this version"), "{other}");
    }
}
