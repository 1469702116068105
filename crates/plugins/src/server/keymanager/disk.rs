//! `disk`: keys in the file `keys_path`, as SPIRE's server stores them.

use std::path::PathBuf;
use std::sync::Arc;

use plugin::{BuiltIn, KeyManager, PluginConfig, PluginError};
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
    keys_path: String,
}

fn load(config: &PluginConfig) -> Result<KeyRing, PluginError> {
    let settings: Settings = settings::decode(config, "unable to decode configuration")?;
    if settings.keys_path.is_empty() {
        return Err(PluginError::invalid_argument("keys_path is required"));
    }
    KeyRing::on_disk(&config.name, PathBuf::from(settings.keys_path))
}
