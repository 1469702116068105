//! Wire messages and gRPC stubs, and their conversions to and from domain types.
//!
//! Everything that SPIRE, its agents, its plugins, workloads and proxies exchange. The messages are
//! generated at build time from `protos/`; their modules are re-exported here under short paths.
//! A message is unparsed data: the programs turn it into domain types at their door and keep it
//! nowhere else. This crate must never open a connection or decide anything.

pub mod batch;
pub mod codec;
pub mod convert;
mod framed;
mod grpc;
pub mod packed;
pub mod raw;
pub mod reflection;
mod secret;

/// The generated code, nested by protobuf package.
mod generated {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        elided_lifetimes_in_paths,
        deprecated,
        clippy::all,
        clippy::restriction,
        reason = "generated code"
    )]

    include!(concat!(env!("OUT_DIR"), "/packages/all.rs"));
}

/// The SPIFFE Workload API.
pub mod workload {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        elided_lifetimes_in_paths,
        deprecated,
        clippy::all,
        clippy::restriction,
        reason = "generated code"
    )]

    include!(concat!(env!("OUT_DIR"), "/workload/all.rs"));
}

/// SPIRE's own messages and APIs.
pub mod spire {
    pub use crate::generated::spire::api::types;
    pub use crate::generated::spire::common;

    /// The APIs of the server.
    pub mod server {
        pub use crate::generated::spire::api::server::agent::v1 as agent;
        pub use crate::generated::spire::api::server::bundle::v1 as bundle;
        pub use crate::generated::spire::api::server::debug::v1 as debug;
        pub use crate::generated::spire::api::server::entry::v1 as entry;
        pub use crate::generated::spire::api::server::localauthority::v1 as localauthority;
        pub use crate::generated::spire::api::server::logger::v1 as logger;
        pub use crate::generated::spire::api::server::svid::v1 as svid;
        pub use crate::generated::spire::api::server::trustdomain::v1 as trustdomain;
    }

    /// The admin APIs of the agent.
    pub mod agent {
        pub use crate::generated::spire::agent::debug::v1 as debug;
        pub use crate::generated::spire::api::agent::delegatedidentity::v1 as delegatedidentity;
        pub use crate::generated::spire::api::agent::logger::v1 as logger;
    }

    /// The stored form of the CA journal.
    pub mod journal {
        #![allow(
            missing_docs,
            unreachable_pub,
            unused_qualifications,
            elided_lifetimes_in_paths,
            clippy::all,
            clippy::restriction,
            reason = "generated code"
        )]

        include!(concat!(env!("OUT_DIR"), "/journal/all.rs"));
    }
}

/// The plugin protocol: what hosts and plugin processes say to each other.
pub mod plugin {
    pub use crate::generated::plugin as go;
    pub use crate::generated::spire::plugin::types;
    pub use crate::generated::spire::service::common::config::v1 as config;
    pub use crate::generated::spire::service::private::init::v1 as init;

    /// Plugins of the server.
    pub mod server {
        pub use crate::generated::spire::plugin::server::bundlepublisher::v1 as bundlepublisher;
        pub use crate::generated::spire::plugin::server::credentialcomposer::v1 as credentialcomposer;
        pub use crate::generated::spire::plugin::server::keymanager::v1 as keymanager;
        pub use crate::generated::spire::plugin::server::nodeattestor::v1 as nodeattestor;
        pub use crate::generated::spire::plugin::server::notifier::v1 as notifier;
        pub use crate::generated::spire::plugin::server::upstreamauthority::v1 as upstreamauthority;
    }

    /// Plugins of the agent.
    pub mod agent {
        pub use crate::generated::spire::plugin::agent::keymanager::v1 as keymanager;
        pub use crate::generated::spire::plugin::agent::nodeattestor::v1 as nodeattestor;
        pub use crate::generated::spire::plugin::agent::svidstore::v1 as svidstore;
        pub use crate::generated::spire::plugin::agent::workloadattestor::v1 as workloadattestor;
    }

    /// What the host offers to its plugins.
    pub mod host {
        pub use crate::generated::spire::hostservice::common::metrics::v1 as metrics;
        pub use crate::generated::spire::hostservice::server::agentstore::v1 as agentstore;
        pub use crate::generated::spire::hostservice::server::identityprovider::v1 as identityprovider;
    }
}

/// Envoy's secret discovery service, v3.
pub mod sds {
    pub use crate::generated::envoy::config::core::v3 as core;
    pub use crate::generated::envoy::extensions::transport_sockets::tls::v3 as tls;
    pub use crate::generated::envoy::service::discovery::v3 as discovery;
    pub use crate::generated::envoy::service::secret::v3 as secret;
    pub use crate::generated::envoy::r#type::v3 as version;
}

/// The SPIFFE broker API.
pub mod broker {
    pub use crate::generated::spiffe::broker::*;
}

/// What only Finial's own programs say to each other.
pub mod finial {
    pub use crate::generated::finial::budget::v1 as budget;
    pub use crate::generated::finial::explain::v1 as explain;
    pub use crate::generated::finial::sync::v1 as sync;
}

/// The claims of a token, as messages carry them.
pub use prost_types::Struct as Claims;

pub use crate::generated::google::rpc;
pub use crate::generated::grpc::health::v1 as health;

/// All of the above as an encoded `FileDescriptorSet`, with what they import.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
