//! `memory`: keys that go with the process. Anything in its configuration is ignored.

use std::sync::Arc;

use plugin::{BuiltIn, KeyManager};

use crate::shared::keyring::KeyRing;

/// The plugin.
pub const BUILT_IN: BuiltIn<dyn KeyManager> = BuiltIn {
    name: "memory",
    load: |config, _| Box::pin(async move { Ok(Arc::new(KeyRing::in_memory(&config.name)) as Arc<_>) }),
};
