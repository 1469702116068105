//! The contract between the programs and their plugins.
//!
//! One trait per plugin type, always used as `Arc<dyn Trait>`: [`KeyManager`], [`ServerNodeAttestor`],
//! [`AgentNodeAttestor`], [`WorkloadAttestor`], [`UpstreamAuthority`], [`CredentialComposer`]. The
//! [`catalog`] loads what a configuration declares, checks how many plugins of each type there may be,
//! and hands the plugins out so that every error of one carries its type and name. What a plugin returns
//! is untrusted: callers check ids, selectors and signatures as if they came from the network.
//!
//! This crate must never know a single plugin by more than its name, and never read a plugin's own
//! configuration keys.

pub mod catalog;
pub mod composer;
pub mod config;
pub mod error;
pub mod info;
pub mod keymanager;
pub mod metered;
pub mod nodeattestor;
pub mod reconfigure;
pub mod upstream;
pub mod workloadattestor;

pub use composer::{CredentialComposer, SvidAttributes};
pub use config::{BuiltIn, Host, Loading, PluginConfig};
pub use error::{Code, PluginError};
pub use info::{Plugin, PluginInfo, PluginKind};
pub use keymanager::{Key, KeyId, KeyManager};
pub use nodeattestor::{AgentNodeAttestor, AgentStream, Attested, Challenger, ServerNodeAttestor};
pub use reconfigure::Reconfigurables;
pub use upstream::{Minted, Published, Updates, UpstreamAuthority, UpstreamBundle};
pub use workloadattestor::WorkloadAttestor;
