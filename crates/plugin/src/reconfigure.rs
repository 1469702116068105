//! Plugins whose configuration is a file of its own: it is read again whenever the program is asked to.
//!
//! A plugin is made anew with what the file says now, and takes the place of the one before it: calls
//! that begin go to the new one, those that run end where they began. What cannot be read, or is
//! refused, changes nothing. Key managers stay as they are, with the keys they hold.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA512, digest};
use runtime::snapshot::{Publisher, Snapshot};
use spiffe::TrustDomain;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{Host, Loading, Plugin, PluginConfig, PluginInfo, PluginKind};

/// Where a plugin is that may be replaced by another of the same name.
pub(crate) struct Slot<T: ?Sized> {
    now: Snapshot<Arc<T>>,
    info: PluginInfo,
}

impl<T: Plugin + ?Sized> Slot<T> {
    /// For a plugin that stays.
    pub(crate) fn fixed(plugin: Arc<T>) -> Self {
        let info = plugin.info().clone();
        Self { now: Snapshot::fixed(plugin), info }
    }

    /// The plugin as it is now.
    pub(crate) fn now(&self) -> Arc<T> {
        Arc::clone(&self.now.load())
    }

    /// What it is called, whichever it is.
    pub(crate) const fn info(&self) -> &PluginInfo {
        &self.info
    }
}

/// The plugins whose configuration can be read again.
#[derive(Default)]
pub struct Reconfigurables(Vec<Box<dyn Reconfigurable>>);

#[async_trait]
trait Reconfigurable: Send {
    async fn reconfigure(&mut self);
}

/// A plugin, and how it is made.
pub(crate) struct Made<T: ?Sized + 'static> {
    pub(crate) kind: PluginKind,
    pub(crate) name: String,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) host: Host,
    pub(crate) path: PathBuf,
    pub(crate) load: fn(PluginConfig, Host) -> Loading<T>,
}

struct Watched<T: ?Sized + 'static> {
    made: Made<T>,
    /// Of the configuration that it was made with.
    hash: String,
    place: Publisher<Arc<T>>,
}

impl Reconfigurables {
    /// A place for this plugin, which was made of what `data` says.
    pub(crate) fn watch<T>(&mut self, plugin: Arc<T>, made: Made<T>, data: &str) -> Slot<T>
    where
        T: Plugin + ?Sized + 'static,
    {
        let info = plugin.info().clone();
        let place = Publisher::new(plugin);
        let now = place.snapshot();
        self.0.push(Box::new(Watched { made, hash: hash(data), place }));
        Slot { now, info }
    }

    /// Reads them again at each SIGUSR1, until `stop` is cancelled.
    ///
    /// # Errors
    /// The system lets nobody listen to signals.
    pub async fn run(mut self, stop: CancellationToken) -> io::Result<()> {
        let mut signals = signal(SignalKind::user_defined1())?;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = signals.recv() => self.reconfigure().await,
            }
        }
    }

    /// Reads all configurations again, and makes anew those plugins whose own has changed. What came of
    /// it is in the log.
    pub async fn reconfigure(&mut self) {
        for plugin in &mut self.0 {
            plugin.reconfigure().await;
        }
    }
}

#[async_trait]
impl<T: Plugin + ?Sized + 'static> Reconfigurable for Watched<T> {
    async fn reconfigure(&mut self) {
        let Made { kind, name, trust_domain, host, path, load } = &self.made;
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(
                plugin_name = name,
                plugin_type = %kind,
                subsystem_name = "catalog",
                %error,
                "Failed to reconfigure plugin"
            );
        };
        let data = match read(path) {
            Ok(data) => data,
            Err(reason) => return failed(&format!("failed to load plugin data: {reason}")),
        };
        let new_hash = hash(&data);
        if new_hash == self.hash {
            tracing::info!(
                plugin_name = name,
                plugin_type = %kind,
                subsystem_name = "catalog",
                hash = new_hash,
                "Plugin not reconfigured since the config is unchanged"
            );
            return;
        }
        if *kind == PluginKind::KeyManager {
            return failed(&"a key manager keeps its keys and its configuration until the next start");
        }
        let config = PluginConfig { name: name.clone(), trust_domain: trust_domain.clone(), data };
        match load(config, host.clone()).await {
            Ok(plugin) => {
                self.place.publish(Arc::new(plugin));
                let old_hash = std::mem::replace(&mut self.hash, new_hash);
                tracing::info!(
                    plugin_name = name,
                    plugin_type = %kind,
                    subsystem_name = "catalog",
                    old_hash,
                    new_hash = self.hash,
                    "Plugin reconfigured"
                );
            }
            Err(error) => failed(&error),
        }
    }
}

/// Reads a plugin's own configuration; what the system says where it cannot.
pub(crate) fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| {
        let step = if error.kind() == io::ErrorKind::IsADirectory { "read" } else { "open" };
        format!("{step} {}: {}", path.display(), plain(&error))
    })
}

/// The system's words as other tools print them: without the number, in lower case.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// By which a configuration is known again, as SPIRE shows it: 16 bytes of SHA-512.
pub(crate) fn hash(data: &str) -> String {
    digest(&SHA512, data.as_bytes()).as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
