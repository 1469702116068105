//! Key managers: they hold private keys and sign with them.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use spiffe::key::{KeyKind, PublicKey, SigAlg, Signature};

use crate::reconfigure::Slot;
use crate::{Plugin, PluginError, PluginInfo};

/// Holds private keys under ids that the program chooses.
#[async_trait]
pub trait KeyManager: Plugin {
    /// Makes a new key under `id`, replacing the one that is there. A store on disk has it before
    /// this returns.
    async fn generate(&self, id: &KeyId, kind: KeyKind) -> Result<Arc<dyn Key>, PluginError>;

    /// The key under `id`, if there is one.
    async fn key(&self, id: &KeyId) -> Result<Option<Arc<dyn Key>>, PluginError>;

    /// All keys, by id.
    async fn keys(&self) -> Result<Vec<Arc<dyn Key>>, PluginError>;
}

/// A handle to one private key. It keeps signing with this very key after its id was given to
/// another.
#[async_trait]
pub trait Key: Send + Sync {
    /// Its id.
    fn id(&self) -> &KeyId;

    /// The public half.
    fn public(&self) -> &PublicKey;

    /// Signs `message`, which is hashed here.
    async fn sign(&self, alg: SigAlg, message: &[u8]) -> Result<Signature, PluginError>;

    /// Whether the key is in hands whose signatures are looked at before they are used: a plugin of
    /// its own, or a service.
    fn is_external(&self) -> bool {
        true
    }
}

/// The name of a key in a key manager, such as `x509-CA-A`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// The id with this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for KeyId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Marks a plugin's errors, and those of its keys, with its type and name.
pub(crate) struct Marked(pub(crate) Slot<dyn KeyManager>);

impl Plugin for Marked {
    fn info(&self) -> &PluginInfo {
        self.0.info()
    }
}

#[async_trait]
impl KeyManager for Marked {
    async fn generate(&self, id: &KeyId, kind: KeyKind) -> Result<Arc<dyn Key>, PluginError> {
        let key = self.0.now().generate(id, kind).await.map_err(|error| self.info().mark(error))?;
        Ok(self.wrap(key))
    }

    async fn key(&self, id: &KeyId) -> Result<Option<Arc<dyn Key>>, PluginError> {
        let key = self.0.now().key(id).await.map_err(|error| self.info().mark(error))?;
        Ok(key.map(|key| self.wrap(key)))
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn Key>>, PluginError> {
        let keys = self.0.now().keys().await.map_err(|error| self.info().mark(error))?;
        Ok(keys.into_iter().map(|key| self.wrap(key)).collect())
    }
}

impl Marked {
    fn wrap(&self, key: Arc<dyn Key>) -> Arc<dyn Key> {
        Arc::new(MarkedKey { key, info: self.info().clone() })
    }
}

struct MarkedKey {
    key: Arc<dyn Key>,
    info: PluginInfo,
}

#[async_trait]
impl Key for MarkedKey {
    fn id(&self) -> &KeyId {
        self.key.id()
    }

    fn public(&self) -> &PublicKey {
        self.key.public()
    }

    async fn sign(&self, alg: SigAlg, message: &[u8]) -> Result<Signature, PluginError> {
        self.key.sign(alg, message).await.map_err(|error| self.info.mark(error))
    }

    fn is_external(&self) -> bool {
        self.key.is_external()
    }
}
