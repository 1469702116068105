//! Upstream authorities: whoever signs the server's CA.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use spiffe::x509::CertDer;
use spiffe::{JwtAuthority, X509Authority};

use crate::reconfigure::Slot;
use crate::{Plugin, PluginError, PluginInfo};

/// Signs the CA of this server, so that it is one of many below a common root.
#[async_trait]
pub trait UpstreamAuthority: Plugin {
    /// Has the CA of this request signed for `preferred_ttl`, or for less.
    ///
    /// # Errors
    /// It was not signed.
    async fn mint(&self, csr: &[u8], preferred_ttl: Duration) -> Result<Minted, PluginError>;

    /// Publishes a JWT key of this server to all servers of the trust domain.
    ///
    /// # Errors
    /// `Unimplemented` where nobody above takes keys; then they are this server's affair.
    async fn publish(&self, key: &JwtAuthority) -> Result<Published, PluginError>;

    /// What the servers above trust, now and whenever it changes, without anything being minted. The
    /// stream ends when it cannot go on; it may be asked for anew.
    ///
    /// # Errors
    /// `Unimplemented` where nobody above can be watched.
    async fn watch(&self) -> Result<Updates<UpstreamBundle>, PluginError>;
}

/// What comes now and then. Between two items it may be left waiting for as long as one likes.
pub type Updates<T> = BoxStream<'static, Result<T, PluginError>>;

/// A CA that was signed.
pub struct Minted {
    /// The CA and the certificates above it, without the root.
    pub chain: Vec<CertDer>,
    /// The roots of the trust domain.
    pub roots: Vec<X509Authority>,
    /// The roots whenever they change, if the plugin can tell.
    pub updates: Option<Updates<Vec<X509Authority>>>,
}

/// A key that was published.
pub struct Published {
    /// All keys of the trust domain, this one included.
    pub keys: Vec<JwtAuthority>,
    /// The keys whenever they change, if the plugin can tell.
    pub updates: Option<Updates<Vec<JwtAuthority>>>,
}

/// What the servers above trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamBundle {
    /// The roots of the trust domain.
    pub roots: Vec<X509Authority>,
    /// The JWT keys of the trust domain.
    pub keys: Vec<JwtAuthority>,
}

/// Marks a plugin's errors with its type and name.
pub(crate) struct Marked(pub(crate) Slot<dyn UpstreamAuthority>);

impl Plugin for Marked {
    fn info(&self) -> &PluginInfo {
        self.0.info()
    }
}

#[async_trait]
impl UpstreamAuthority for Marked {
    async fn mint(&self, csr: &[u8], preferred_ttl: Duration) -> Result<Minted, PluginError> {
        let minted = self.0.now().mint(csr, preferred_ttl).await.map_err(|error| self.info().mark(error))?;
        Ok(Minted { updates: minted.updates.map(|updates| self.marked(updates)), ..minted })
    }

    async fn publish(&self, key: &JwtAuthority) -> Result<Published, PluginError> {
        let published = self.0.now().publish(key).await.map_err(|error| self.info().mark(error))?;
        Ok(Published { updates: published.updates.map(|updates| self.marked(updates)), ..published })
    }

    async fn watch(&self) -> Result<Updates<UpstreamBundle>, PluginError> {
        let updates = self.0.now().watch().await.map_err(|error| self.info().mark(error))?;
        Ok(self.marked(updates))
    }
}

impl Marked {
    fn marked<T: 'static>(&self, updates: Updates<T>) -> Updates<T> {
        let info = self.info().clone();
        updates.map(move |update| update.map_err(|error| info.mark(error))).boxed()
    }
}
