//! A plugin's configuration: text to a struct.

use config::hcl;
use plugin::{PluginConfig, PluginError};
use serde::de::DeserializeOwned;

/// Decodes `plugin_data`; `what` starts the error text. Unknown keys are ignored, as SPIRE ignores
/// them for the plugins that use this.
pub(crate) fn decode<T: DeserializeOwned>(config: &PluginConfig, what: &str) -> Result<T, PluginError> {
    hcl::from_str(&config.data).map_err(|error| PluginError::invalid_argument(format!("{what}: {error}")))
}

/// As [`decode`], with the words of the plugins whose settings SPIRE validates apart.
pub(crate) fn decode_plainly<T: DeserializeOwned>(config: &PluginConfig) -> Result<T, PluginError> {
    hcl::from_str(&config.data)
        .map_err(|_| PluginError::invalid_argument("plugin configuration is malformed"))
}
