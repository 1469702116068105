//! Plugins of the server.

pub mod keymanager;
pub mod nodeattestor;
