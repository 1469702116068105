//! Plugins of the agent.

pub mod keymanager;
pub mod nodeattestor;
pub mod workloadattestor;
