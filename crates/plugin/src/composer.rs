//! Credential composers: what a credential says beside the identity can be changed before it is signed.
//!
//! They run one after the other in the order of the configuration. What they give back is untrusted:
//! the issuer checks each credential against its profile after them, so none can change an identity, a
//! key or a lifetime beyond what the profile allows.

use async_trait::async_trait;
use serde_json::{Map, Value};
use spiffe::SpiffeId;
use spiffe::key::PublicKey;
use spiffe::x509::Name;

use crate::reconfigure::Slot;
use crate::{Plugin, PluginError, PluginInfo};

/// Changes what credentials say. What a composer does not care about stays as it is.
#[async_trait]
pub trait CredentialComposer: Plugin {
    /// The subject of the server's own CA.
    ///
    /// # Errors
    /// The CA must not be signed.
    async fn server_ca(&self, subject: Name) -> Result<Name, PluginError> {
        Ok(subject)
    }

    /// The server's own SVID.
    ///
    /// # Errors
    /// The SVID must not be signed.
    async fn server_svid(&self, attributes: SvidAttributes) -> Result<SvidAttributes, PluginError> {
        Ok(attributes)
    }

    /// The SVID of the agent `id`.
    ///
    /// # Errors
    /// The SVID must not be signed.
    async fn agent_svid(
        &self,
        _id: &SpiffeId,
        _public_key: &PublicKey,
        attributes: SvidAttributes,
    ) -> Result<SvidAttributes, PluginError> {
        Ok(attributes)
    }

    /// The SVID of the workload `id`.
    ///
    /// # Errors
    /// The SVID must not be signed.
    async fn workload_svid(
        &self,
        _id: &SpiffeId,
        _public_key: &PublicKey,
        attributes: SvidAttributes,
    ) -> Result<SvidAttributes, PluginError> {
        Ok(attributes)
    }

    /// The claims of a JWT-SVID of the workload `id`.
    ///
    /// # Errors
    /// The token must not be signed.
    async fn workload_jwt(
        &self,
        _id: &SpiffeId,
        claims: Map<String, Value>,
    ) -> Result<Map<String, Value>, PluginError> {
        Ok(claims)
    }
}

/// What of an X.509-SVID may be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SvidAttributes {
    /// Its subject.
    pub subject: Name,
    /// The DNS names beside the identity.
    pub dns_names: Vec<String>,
}

/// Marks a plugin's errors with its type and name.
pub(crate) struct Marked(pub(crate) Slot<dyn CredentialComposer>);

impl Plugin for Marked {
    fn info(&self) -> &PluginInfo {
        self.0.info()
    }
}

#[async_trait]
impl CredentialComposer for Marked {
    async fn server_ca(&self, subject: Name) -> Result<Name, PluginError> {
        self.0.now().server_ca(subject).await.map_err(|error| self.info().mark(error))
    }

    async fn server_svid(&self, attributes: SvidAttributes) -> Result<SvidAttributes, PluginError> {
        self.0.now().server_svid(attributes).await.map_err(|error| self.info().mark(error))
    }

    async fn agent_svid(
        &self,
        id: &SpiffeId,
        public_key: &PublicKey,
        attributes: SvidAttributes,
    ) -> Result<SvidAttributes, PluginError> {
        self.0.now().agent_svid(id, public_key, attributes).await.map_err(|error| self.info().mark(error))
    }

    async fn workload_svid(
        &self,
        id: &SpiffeId,
        public_key: &PublicKey,
        attributes: SvidAttributes,
    ) -> Result<SvidAttributes, PluginError> {
        self.0.now().workload_svid(id, public_key, attributes).await.map_err(|error| self.info().mark(error))
    }

    async fn workload_jwt(
        &self,
        id: &SpiffeId,
        claims: Map<String, Value>,
    ) -> Result<Map<String, Value>, PluginError> {
        self.0.now().workload_jwt(id, claims).await.map_err(|error| self.info().mark(error))
    }
}
