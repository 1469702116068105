//! Keys in memory, with or without a file behind them: the core of the `memory` and `disk` key
//! managers of both programs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use plugin::{Key, KeyId, KeyManager, Plugin, PluginError, PluginInfo, PluginKind};
use spiffe::key::{KeyKind, PrivateKey, PublicKey, PublicKeyKind, SigAlg, Signature};
use tokio::sync::Mutex;

use super::keyfile;

type Keys = BTreeMap<KeyId, Arc<LocalKey>>;

/// A key manager that holds its keys itself.
pub(crate) struct KeyRing {
    info: PluginInfo,
    file: Option<PathBuf>,
    keys: RwLock<Keys>,
    /// Held from before a key is made until it is stored, so that two of them cannot each write a
    /// file without the other's key.
    making: Mutex<()>,
}

impl KeyRing {
    /// A ring without keys and without a file.
    pub(crate) fn in_memory(name: &str) -> Self {
        Self::with(name, None, Keys::new())
    }

    /// The ring of the keys in `file`, which may be missing: then there are none yet.
    pub(crate) fn on_disk(name: &str, file: PathBuf) -> Result<Self, PluginError> {
        let stored = keyfile::load(&file)?;
        let keys = stored.into_iter().map(|(id, key)| (id.clone(), Arc::new(LocalKey { id, key })));
        let keys = keys.collect();
        Ok(Self::with(name, Some(file), keys))
    }

    fn with(name: &str, file: Option<PathBuf>, keys: Keys) -> Self {
        let info = PluginInfo::new(PluginKind::KeyManager, name);
        Self { info, file, keys: RwLock::new(keys), making: Mutex::new(()) }
    }

    fn snapshot(&self) -> Keys {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Plugin for KeyRing {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl KeyManager for KeyRing {
    async fn generate(&self, id: &KeyId, kind: KeyKind) -> Result<Arc<dyn Key>, PluginError> {
        if id.as_str().is_empty() {
            return Err(PluginError::invalid_argument("failed to generate key: key id is required"));
        }
        let failed = |reason: String| PluginError::internal(format!("failed to generate key: {reason}"));

        let _making = self.making.lock().await;
        let mut keys = self.snapshot();
        let file = self.file.clone();
        let id = id.clone();
        // RSA keys take long to make and the file long to be safe on disk.
        let work = move || -> Result<(Keys, Arc<LocalKey>), PluginError> {
            let key = PrivateKey::generate(kind).map_err(|error| failed(error.to_string()))?;
            let key = Arc::new(LocalKey { id, key });
            keys.insert(key.id.clone(), Arc::clone(&key));
            if let Some(file) = file {
                let stored = keys.values().map(|key| (&key.id, &key.key));
                keyfile::store(&file, stored).map_err(|error| failed(error.message))?;
            }
            Ok((keys, key))
        };
        let (keys, key) = match (kind, &self.file) {
            (KeyKind::EcP256 | KeyKind::EcP384, None) => work()?,
            _ => tokio::task::spawn_blocking(work)
                .await
                .map_err(|_| PluginError::internal("failed to generate key: interrupted"))??,
        };
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(key)
    }

    async fn key(&self, id: &KeyId) -> Result<Option<Arc<dyn Key>>, PluginError> {
        if id.as_str().is_empty() {
            return Err(PluginError::invalid_argument("key id is required"));
        }
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Ok(keys.get(id).map(|key| Arc::clone(key) as Arc<dyn Key>))
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn Key>>, PluginError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Ok(keys.values().map(|key| Arc::clone(key) as Arc<dyn Key>).collect())
    }
}

/// A key of a ring.
pub(crate) struct LocalKey {
    id: KeyId,
    key: PrivateKey,
}

#[async_trait]
impl Key for LocalKey {
    fn id(&self) -> &KeyId {
        &self.id
    }

    fn public(&self) -> &PublicKey {
        self.key.public()
    }

    async fn sign(&self, alg: SigAlg, message: &[u8]) -> Result<Signature, PluginError> {
        let failed = |error: &dyn std::fmt::Display| {
            let id = &self.id;
            PluginError::internal(format!(
                "failed to sign data: keypair {:?} signing operation failed: {error}",
                id.as_str()
            ))
        };
        if self.key.public().kind() == PublicKeyKind::Rsa(4096) {
            // Milliseconds of work: not beside the sockets.
            let (key, message) = (self.key.clone(), message.to_vec());
            let signed = tokio::task::spawn_blocking(move || key.sign(alg, &message)).await;
            return signed.map_err(|error| failed(&error))?.map_err(|error| failed(&error));
        }
        self.key.sign(alg, message).map_err(|error| failed(&error))
    }

    fn is_external(&self) -> bool {
        false
    }
}
