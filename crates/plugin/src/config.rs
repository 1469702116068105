//! What a plugin is given when it is loaded: its configuration and what the host offers.

use std::pin::Pin;
use std::sync::Arc;

use runtime::clock::{Clock, SystemClock};
use spiffe::{Bundle, TrustDomain};

use crate::PluginError;

/// The configuration of one plugin.
#[derive(Clone, Debug)]
pub struct PluginConfig {
    /// Its name.
    pub name: String,
    /// The trust domain of the program.
    pub trust_domain: TrustDomain,
    /// What stands in `plugin_data`, or in the file that `plugin_data_file` names, as HCL text;
    /// empty when there is neither.
    pub data: String,
}

/// What the program offers its plugins. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The program's own trust bundle as it is now; `None` before there is one.
    pub own_bundle: Arc<dyn Fn() -> Option<Arc<Bundle>> + Send + Sync>,
}

impl Host {
    /// A host with a clock and nothing else, for agents and tests.
    #[must_use]
    pub fn bare() -> Self {
        Self { clock: Arc::new(SystemClock), own_bundle: Arc::new(|| None) }
    }
}

/// A plugin being loaded.
pub type Loading<T> = Pin<Box<dyn Future<Output = Result<Arc<T>, PluginError>> + Send>>;

/// A plugin that is part of the program.
pub struct BuiltIn<T: ?Sized> {
    /// Its name in configurations.
    pub name: &'static str,
    /// Reads the configuration and makes the plugin.
    pub load: fn(PluginConfig, Host) -> Loading<T>,
}
