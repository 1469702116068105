//! The built-in plugins by program and type.

use plugin::catalog::{AgentBuiltIns, ServerBuiltIns};

use crate::{agent, server};

/// The plugins of the server.
pub const SERVER: ServerBuiltIns = ServerBuiltIns {
    key_managers: &[server::keymanager::disk::BUILT_IN, server::keymanager::memory::BUILT_IN],
    node_attestors: &[server::nodeattestor::join_token::BUILT_IN, server::nodeattestor::x509pop::BUILT_IN],
    upstream_authorities: &[
        server::upstreamauthority::disk::BUILT_IN,
        server::upstreamauthority::spire::BUILT_IN,
    ],
    credential_composers: &[server::credentialcomposer::uniqueid::BUILT_IN],
};

/// The plugins of the agent.
pub const AGENT: AgentBuiltIns = AgentBuiltIns {
    key_managers: &[agent::keymanager::disk::BUILT_IN, agent::keymanager::memory::BUILT_IN],
    node_attestors: &[agent::nodeattestor::join_token::BUILT_IN, agent::nodeattestor::x509pop::BUILT_IN],
    workload_attestors: &[agent::workloadattestor::unix::BUILT_IN],
};
