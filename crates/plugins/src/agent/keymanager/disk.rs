//! `disk`: keys in `keys.json` below `directory`, as SPIRE's agent stores them.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plugin::{BuiltIn, Code, KeyManager, PluginConfig, PluginError};
use serde::Deserialize;

use crate::shared::keyring::KeyRing;
use crate::shared::settings;

/// The plugin.
pub const BUILT_IN: BuiltIn<dyn KeyManager> = BuiltIn {
    name: "disk",
    load: |config, _| Box::pin(async move { Ok(Arc::new(load(&config)?) as Arc<_>) }),
};

#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    directory: String,
}

fn load(config: &PluginConfig) -> Result<KeyRing, PluginError> {
    let settings: Settings = settings::decode(config, "unable to decode configuration")?;
    if settings.directory.is_empty() {
        return Err(PluginError::invalid_argument("directory must be configured"));
    }
    let directory = PathBuf::from(settings.directory);
    prepare(&directory).map_err(|error| {
        let directory = directory.display();
        PluginError::new(
            Code::FailedPrecondition,
            format!("directory validation failed: cannot write to {directory}: {error}"),
        )
    })?;
    KeyRing::on_disk(&config.name, directory.join("keys.json"))
}

/// Makes the directory if it is missing, and tries whether files can be made in it: better now than
/// when the first key is to be stored.
fn prepare(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let probe = directory.join(".probe");
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&probe)?;
    std::fs::remove_file(probe)
}
