//! HCL1 and JSON configuration with source positions; the typed configuration of every program.
//!
//! A file becomes a raw tree, that a raw struct, that a checked one ([`ServerConfig`],
//! [`AgentConfig`]); programs see only the last. Nothing here opens a socket, logs or prints.

mod agent;
pub mod hcl;
mod server;
mod shared;

pub use agent::{
    AgentConfig, AgentExperimental, Bootstrap, Broker, BrokerConfig, BundleFormat, JoinTokenText,
    Rebootstrap, SdsConfig, WorkloadRateLimits,
};
pub use server::{
    BundleEndpointConfig, CaConfig, EndpointProfile, FederatesWith, FederationConfig, PolicyConfig,
    PruneAgents, ServerConfig, ServerExperimental, ServerRateLimits,
};
pub use shared::{
    HealthConfig, LogConfig, PluginBlock, PluginData, ProfilingConfig, PrometheusConfig, PrometheusTls,
    TelemetryConfig,
};
