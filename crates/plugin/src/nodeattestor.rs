//! Node attestation: the agent's half proves where it runs, the server's half checks it.

use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;
use spiffe::Selector;

use crate::reconfigure::Slot;
use crate::{Plugin, PluginError, PluginInfo};

/// The server's half.
#[async_trait]
pub trait ServerNodeAttestor: Plugin {
    /// Judges `payload`, challenging the agent through `peer` as often as needed.
    async fn attest(&self, payload: Bytes, peer: &mut dyn Challenger) -> Result<Attested, PluginError>;
}

/// The agent at the other end of an attestation stream.
#[async_trait]
pub trait Challenger: Send {
    /// Sends a challenge and waits for the answer. Its errors are the stream's, not the plugin's.
    async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes, PluginError>;

    /// The address the agent calls from, if it is known.
    fn client_address(&self) -> Option<IpAddr>;
}

/// The verdict on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// The SPIFFE ID of the agent, as the plugin said it: the server checks it.
    pub agent_id: String,
    /// What was found out about the node, in the plugin's order.
    pub selectors: Vec<Selector>,
    /// Whether the node may attest again under this id; if not it is trusted on first use only.
    pub can_reattest: bool,
}

/// The agent's half.
#[async_trait]
pub trait AgentNodeAttestor: Plugin {
    /// Sends the payload and answers challenges until the server is content.
    async fn attest(&self, server: &mut dyn AgentStream) -> Result<(), PluginError>;
}

/// The server at the other end of an attestation stream. Its errors are the stream's, not the
/// plugin's.
#[async_trait]
pub trait AgentStream: Send {
    /// Sends the attestation data; the answer is a challenge, or `None` when the server is content.
    async fn send_payload(&mut self, payload: Bytes) -> Result<Option<Bytes>, PluginError>;

    /// Answers a challenge; the answer is the next one, or `None` when the server is content.
    async fn send_response(&mut self, response: Bytes) -> Result<Option<Bytes>, PluginError>;
}

/// Marks a plugin's errors with its type and name, and leaves those of the stream alone.
pub(crate) struct MarkedServer(pub(crate) Slot<dyn ServerNodeAttestor>);

impl Plugin for MarkedServer {
    fn info(&self) -> &PluginInfo {
        self.0.info()
    }
}

#[async_trait]
impl ServerNodeAttestor for MarkedServer {
    async fn attest(&self, payload: Bytes, peer: &mut dyn Challenger) -> Result<Attested, PluginError> {
        if payload.is_empty() {
            return Err(PluginError::invalid_argument("payload cannot be empty"));
        }
        let mut peer = Watched { inner: peer, failure: None };
        match self.0.now().attest(payload, &mut peer).await {
            Ok(attested) if attested.agent_id.is_empty() => {
                Err(self.info().mark(PluginError::internal("plugin response missing agent ID")))
            }
            Ok(attested) => Ok(attested),
            Err(error) => Err(peer.failure.unwrap_or_else(|| self.info().mark(error))),
        }
    }
}

/// As [`MarkedServer`], for the agent's half.
pub(crate) struct MarkedAgent(pub(crate) Slot<dyn AgentNodeAttestor>);

impl Plugin for MarkedAgent {
    fn info(&self) -> &PluginInfo {
        self.0.info()
    }
}

#[async_trait]
impl AgentNodeAttestor for MarkedAgent {
    async fn attest(&self, server: &mut dyn AgentStream) -> Result<(), PluginError> {
        let mut server = Watched { inner: server, failure: None };
        match self.0.now().attest(&mut server).await {
            Ok(()) => Ok(()),
            Err(error) => Err(server.failure.unwrap_or_else(|| self.info().mark(error))),
        }
    }
}

/// A stream that remembers its own failure, so that it is not taken for the plugin's.
struct Watched<'a, T: ?Sized> {
    inner: &'a mut T,
    failure: Option<PluginError>,
}

impl<T: ?Sized> Watched<'_, T> {
    fn note<V>(&mut self, result: Result<V, PluginError>) -> Result<V, PluginError> {
        if let Err(error) = &result {
            self.failure = Some(error.clone());
        }
        result
    }
}

#[async_trait]
impl Challenger for Watched<'_, dyn Challenger + '_> {
    async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes, PluginError> {
        let answer = self.inner.challenge(challenge).await;
        self.note(answer)
    }

    fn client_address(&self) -> Option<IpAddr> {
        self.inner.client_address()
    }
}

#[async_trait]
impl AgentStream for Watched<'_, dyn AgentStream + '_> {
    async fn send_payload(&mut self, payload: Bytes) -> Result<Option<Bytes>, PluginError> {
        if payload.is_empty() {
            return Err(PluginError::internal("plugin response missing attestation payload"));
        }
        let answer = self.inner.send_payload(payload).await;
        self.note(answer)
    }

    async fn send_response(&mut self, response: Bytes) -> Result<Option<Bytes>, PluginError> {
        if response.is_empty() {
            return Err(PluginError::internal("plugin response missing challenge response"));
        }
        let answer = self.inner.send_response(response).await;
        self.note(answer)
    }
}
