//! `join_token`: the name only. Tokens are rows of the datastore, so the server judges them itself;
//! the plugin is there to be configured.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use plugin::{
    Attested, BuiltIn, Challenger, Plugin, PluginConfig, PluginError, PluginInfo, PluginKind,
    ServerNodeAttestor,
};
use serde::Deserialize;

use crate::shared::settings;

/// The plugin.
pub const BUILT_IN: BuiltIn<dyn ServerNodeAttestor> = BuiltIn {
    name: "join_token",
    load: |config, _| Box::pin(async move { Ok(Arc::new(load(&config)?) as Arc<_>) }),
};

struct JoinToken {
    info: PluginInfo,
}

#[derive(Deserialize)]
struct Settings {}

fn load(config: &PluginConfig) -> Result<JoinToken, PluginError> {
    let Settings {} = settings::decode(config, "plugin configuration is malformed")?;
    Ok(JoinToken { info: PluginInfo::new(PluginKind::NodeAttestor, &config.name) })
}

impl Plugin for JoinToken {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl ServerNodeAttestor for JoinToken {
    async fn attest(&self, _: Bytes, _: &mut dyn Challenger) -> Result<Attested, PluginError> {
        Err(PluginError::unimplemented("join token attestation is currently implemented within the server"))
    }
}
