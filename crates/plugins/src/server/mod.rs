//! Plugins of the server.

pub mod credentialcomposer;
pub mod keymanager;
pub mod nodeattestor;
pub mod upstreamauthority;
