//! Key managers whose calls are counted and timed, under the names that SPIRE gives them in its server
//! and in its agent.

use std::sync::Arc;

use async_trait::async_trait;
use runtime::metrics::{self, Call, Metrics};
use spiffe::key::{KeyKind, PublicKey, SigAlg, Signature};

use crate::{Key, KeyId, KeyManager, Plugin, PluginError, PluginInfo};

/// The server's.
#[must_use]
pub fn server_keys(keys: Arc<dyn KeyManager>, metrics: &Metrics) -> Arc<dyn KeyManager> {
    let call = |what: &str| metrics.call(&["server_key_manager", what], &[]);
    let calls = Calls {
        generate: call("generate_key"),
        key: call("get_public_key"),
        keys: call("get_public_keys"),
        sign: Some(call("sign_data")),
    };
    wrapped(keys, metrics, calls)
}

/// The agent's; its signatures are not counted.
#[must_use]
pub fn agent_keys(keys: Arc<dyn KeyManager>, metrics: &Metrics) -> Arc<dyn KeyManager> {
    let call = |what: &str| metrics.call(&["agent_key_manager", what], &[]);
    let calls =
        Calls { generate: call("generate_key"), key: call("get_key"), keys: call("get_keys"), sign: None };
    wrapped(keys, metrics, calls)
}

fn wrapped(keys: Arc<dyn KeyManager>, metrics: &Metrics, calls: Calls) -> Arc<dyn KeyManager> {
    if metrics.is_on() { Arc::new(Metered { keys, calls }) } else { keys }
}

struct Metered {
    keys: Arc<dyn KeyManager>,
    calls: Calls,
}

struct Calls {
    generate: Call,
    key: Call,
    keys: Call,
    sign: Option<Call>,
}

impl Metered {
    fn wrap(&self, key: Arc<dyn Key>) -> Arc<dyn Key> {
        match &self.calls.sign {
            Some(sign) => Arc::new(MeteredKey { key, sign: sign.clone() }),
            None => key,
        }
    }
}

impl Plugin for Metered {
    fn info(&self) -> &PluginInfo {
        self.keys.info()
    }
}

#[async_trait]
impl KeyManager for Metered {
    async fn generate(&self, id: &KeyId, kind: KeyKind) -> Result<Arc<dyn Key>, PluginError> {
        let key = self.calls.generate.measure(self.keys.generate(id, kind), code).await?;
        Ok(self.wrap(key))
    }

    async fn key(&self, id: &KeyId) -> Result<Option<Arc<dyn Key>>, PluginError> {
        let key = self.calls.key.measure(self.keys.key(id), code).await?;
        Ok(key.map(|key| self.wrap(key)))
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn Key>>, PluginError> {
        let keys = self.calls.keys.measure(self.keys.keys(), code).await?;
        Ok(keys.into_iter().map(|key| self.wrap(key)).collect())
    }
}

struct MeteredKey {
    key: Arc<dyn Key>,
    sign: Call,
}

#[async_trait]
impl Key for MeteredKey {
    fn id(&self) -> &KeyId {
        self.key.id()
    }

    fn public(&self) -> &PublicKey {
        self.key.public()
    }

    async fn sign(&self, alg: SigAlg, message: &[u8]) -> Result<Signature, PluginError> {
        self.sign.measure(self.key.sign(alg, message), code).await
    }

    fn is_external(&self) -> bool {
        self.key.is_external()
    }
}

/// The code that a plugin's error has on the wire.
fn code(error: &PluginError) -> metrics::Code {
    metrics::Code::from_i32(error.code.number())
}
