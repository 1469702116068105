//! The agent program: attestation, sync, SVID cache, Workload API.
//!
//! [`Agent::build`] reads what is stored and loads the plugins; [`Agent::run`] attests the node, keeps
//! what the server lets it serve up to date and serves it. One task owns [`state::AgentState`] and
//! publishes it; the others (sync, issuing, renewal of the agent's own SVID) send it changes and read
//! snapshots; the APIs read [`context::Context`].
//!
//! Invariants: a workload gets only an SVID that was checked against its entry, its key and the bundle;
//! one entry that the server will not sign for holds up no other; an SVID in use is replaced, never
//! withdrawn first; nothing is stored but the agent's own SVID, its key and its bundle.

pub mod api;
pub mod connection;
pub mod context;
#[cfg(test)]
mod fixtures;
pub mod jwt;
pub mod rotation;
pub mod state;
pub mod subscribe;

use std::sync::Arc;
use std::time::Instant;

use config::{AgentConfig, PluginBlock, PluginData};
use plugin::Host;
use plugin::catalog::{self, AgentPlugins, CatalogError, Data, Declaration};
use runtime::clock::Clock;
use runtime::health::Health;
use runtime::log::Log;

/// An agent that is ready to run.
#[expect(dead_code, reason = "read when it runs, which comes next")]
pub struct Agent {
    config: Arc<AgentConfig>,
    log: Log,
    clock: Arc<dyn Clock>,
    health: Health,
    plugins: AgentPlugins,
    started_at: Instant,
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A plugin cannot be loaded.
    #[error(transparent)]
    Plugins(#[from] CatalogError),
}

impl Agent {
    /// Reads what is stored and loads the plugins. Nothing is sent yet.
    ///
    /// # Errors
    /// Whatever would make every attempt to run fail.
    pub async fn build(config: AgentConfig, log: Log, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let host = Host { clock: Arc::clone(&clock), ..Host::bare() };
        let declarations: Vec<Declaration> = config.plugins.iter().map(declaration).collect();
        let plugins =
            catalog::load_agent(&declarations, plugins::tables::AGENT, &config.trust_domain, &host).await?;
        let started_at = clock.instant();
        Ok(Self { config: Arc::new(config), log, clock, health: Health::new(), plugins, started_at })
    }
}

fn declaration(block: &PluginBlock) -> Declaration {
    Declaration {
        kind: block.kind.clone(),
        name: block.name.clone(),
        command: block.command.clone(),
        enabled: block.enabled,
        data: match &block.data {
            PluginData::Absent => Data::Absent,
            PluginData::Inline(text) => Data::Inline(text.clone()),
            PluginData::File(path) => Data::File(path.clone()),
        },
    }
}
