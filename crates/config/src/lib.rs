//! HCL1 and JSON configuration with source positions; the typed configuration of every program.
//!
//! A file becomes a raw tree, that a raw struct, that a checked one ([`ServerConfig`],
//! [`AgentConfig`]); programs see only the last. Nothing here opens a socket, logs or prints.

mod agent;
mod go;
pub mod hcl;
mod helper;
mod load;
mod note;
mod oidc;
pub mod plugins;
mod raw;
mod server;
mod shared;
mod url;

pub use agent::{
    AgentConfig, AgentExperimental, AgentFinial, Bootstrap, Broker, BrokerConfig, BundleFormat,
    JoinTokenText, Rebootstrap, SdsConfig, WorkloadRateLimits,
};
pub use go::duration;
pub use helper::{FileModes, HelperConfig, JwtFile};
pub use load::{AgentFlags, ServerFlags};
pub use note::{ConfigError, Loaded, Note, NoteLevel, Unbuilt};
pub use oidc::{OidcConfig, OidcListener, OidcSource};
pub use server::{
    BundleEndpointConfig, CaConfig, EndpointProfile, FederatesWith, FederationConfig, PolicyConfig,
    PruneAgents, ServerConfig, ServerExperimental, ServerFinial, ServerRateLimits,
};
pub use shared::{
    HealthConfig, LogConfig, PluginBlock, PluginData, ProfilingConfig, PrometheusConfig, PrometheusTls,
    TelemetryConfig,
};
