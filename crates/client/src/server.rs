//! The APIs of a server: typed clients over one channel.

use proto::finial::sync::sync_client::SyncClient;
use proto::health::health_client::HealthClient;
use proto::spire::server::agent::agent_client::AgentClient;
use proto::spire::server::bundle::bundle_client::BundleClient;
use proto::spire::server::debug::debug_client::DebugClient;
use proto::spire::server::entry::entry_client::EntryClient;
use proto::spire::server::localauthority::local_authority_client::LocalAuthorityClient;
use proto::spire::server::logger::logger_client::LoggerClient;
use proto::spire::server::svid::svid_client::SvidClient;
use proto::spire::server::trustdomain::trust_domain_client::TrustDomainClient;
use tonic::transport::Channel;

use crate::dial::{DialError, Dialer, RECEIVE_LIMIT};

/// Clients of every API of one server. Cheap to clone; the channel is shared.
///
/// Over the server's own socket all of them answer; over TLS those the caller's SVID entitles to.
#[derive(Clone, Debug)]
pub struct ServerClients {
    channel: Channel,
    receive_limit: usize,
}

/// One accessor per API; the clients differ in nothing else.
macro_rules! apis {
    ($($(#[$doc:meta])+ $name:ident: $client:ident,)+) => {
        impl ServerClients {
            $(
                $(#[$doc])+
                #[must_use]
                pub fn $name(&self) -> $client<Channel> {
                    $client::new(self.channel.clone()).max_decoding_message_size(self.receive_limit)
                }
            )+
        }
    };
}

apis! {
    /// Agents: attestation, renewal, administration.
    agent: AgentClient,
    /// Bundles: the own and federated ones.
    bundle: BundleClient,
    /// Insight into the process.
    debug: DebugClient,
    /// Registration entries.
    entry: EntryClient,
    /// Whether the server is ready.
    health: HealthClient,
    /// The server's own authorities.
    local_authority: LocalAuthorityClient,
    /// The log level.
    logger: LoggerClient,
    /// SVIDs: minting and signing.
    svid: SvidClient,
    /// Pushed changes of what agents are authorised for; servers other than Finial's do not have it.
    sync: SyncClient,
    /// Federation relationships.
    trust_domain: TrustDomainClient,
}

impl ServerClients {
    /// Over an open channel.
    #[must_use]
    pub const fn new(channel: Channel) -> Self {
        Self { channel, receive_limit: RECEIVE_LIMIT }
    }

    /// Over the server that `dialer` reaches; connects at the first call.
    ///
    /// # Errors
    /// The host has no name.
    pub fn dial(dialer: &Dialer) -> Result<Self, DialError> {
        Ok(Self::new(dialer.channel()?))
    }

    /// Takes larger or only smaller answers.
    #[must_use]
    pub const fn with_receive_limit(mut self, bytes: usize) -> Self {
        self.receive_limit = bytes;
        self
    }

    /// The channel, for services that are not listed here.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }
}
