//! `join_token`: a secret made on the server, used once.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use plugin::{AgentNodeAttestor, AgentStream, BuiltIn, Plugin, PluginError, PluginInfo, PluginKind};
use zeroize::Zeroizing;

const NAME: &str = "join_token";

/// The plugin as a configuration declares it: without a token, which the agent is given elsewhere.
pub const BUILT_IN: BuiltIn<dyn AgentNodeAttestor> = BuiltIn {
    name: NAME,
    load: |config, _| {
        Box::pin(async move {
            if config.data.is_empty() {
                return Ok(Arc::new(JoinToken::new(None)) as Arc<_>);
            }
            Err(PluginError::invalid_argument("no supported configuration interface found"))
        })
    },
};

/// The attestor that shows `token`; it stands in for whichever is configured.
#[must_use]
pub fn with_token(token: Zeroizing<String>) -> Arc<dyn AgentNodeAttestor> {
    Arc::new(JoinToken::new(Some(token)))
}

struct JoinToken {
    info: PluginInfo,
    token: Option<Zeroizing<String>>,
}

impl JoinToken {
    fn new(token: Option<Zeroizing<String>>) -> Self {
        Self { info: PluginInfo::new(PluginKind::NodeAttestor, NAME), token }
    }
}

impl Plugin for JoinToken {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl AgentNodeAttestor for JoinToken {
    async fn attest(&self, server: &mut dyn AgentStream) -> Result<(), PluginError> {
        let Some(token) = &self.token else {
            return Err(PluginError::invalid_argument("join token was not provided"));
        };
        match server.send_payload(Bytes::copy_from_slice(token.as_bytes())).await? {
            None => Ok(()),
            Some(_) => Err(PluginError::internal("the server challenged a join token")),
        }
    }
}
