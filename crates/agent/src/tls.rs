//! TLS to the server: its id under the agent's bundle, the agent's own certificate, keys that may be
//! elsewhere.

use std::fmt;
use std::sync::Arc;

use futures::FutureExt;
use plugin::Key;
use runtime::snapshot::Snapshot;
use rustls::sign::{Signer, SigningKey};
use rustls::{ClientConfig, Error, SignatureAlgorithm, SignatureScheme};
use spiffe::key::{PublicKeyKind, SigAlg};
use spiffe::tls::{Anchors, OwnCertificate, ServerTrust, ServerVerifier};
use spiffe::x509::{CertDer, Certificate};
use spiffe::{Bundle, IdError, SpiffeId, TrustDomain};
use tokio::runtime::{Handle, RuntimeFlavor};

pub use spiffe::tls::PostQuantum;

use crate::state::{AgentState, Bundles};

/// The id of the server of `trust_domain`.
///
/// # Errors
/// None for a trust domain that was parsed.
pub fn server_id(trust_domain: &TrustDomain) -> Result<SpiffeId, IdError> {
    trust_domain.id_with_path("/spire/server")
}

/// A configuration for calls to a server that must prove `trust`.
///
/// # Errors
/// The provider lacks something, which would be a build error.
pub fn client_config(
    trust: ServerTrust,
    own: Arc<OwnCertificate>,
    post_quantum: PostQuantum,
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = ServerVerifier::new(trust);
    Ok(Arc::new(spiffe::tls::client_config_for(post_quantum, verifier, own)?))
}

/// The authorities of one bundle, for a connection that lives as long as it.
#[derive(Debug)]
pub struct FixedAnchors {
    trust_domain: TrustDomain,
    anchors: Arc<[Certificate]>,
}

impl FixedAnchors {
    /// The authorities of `bundle`.
    #[must_use]
    pub fn of(bundle: &Bundle) -> Self {
        let bundles = Bundles::new(Arc::new(bundle.clone()), std::collections::BTreeMap::new());
        Self { trust_domain: bundle.trust_domain.clone(), anchors: bundles.anchors }
    }
}

impl Anchors for FixedAnchors {
    fn anchors(&self, trust_domain: &str) -> Option<Arc<[Certificate]>> {
        (trust_domain == self.trust_domain.as_str()).then(|| Arc::clone(&self.anchors))
    }
}

/// The authorities of the agent's own trust domain as it knows them now.
pub struct OwnAnchors(pub Snapshot<AgentState>);

impl Anchors for OwnAnchors {
    fn anchors(&self, trust_domain: &str) -> Option<Arc<[Certificate]>> {
        let state = self.0.load();
        (trust_domain == state.bundles.own.trust_domain.as_str()).then(|| Arc::clone(&state.bundles.anchors))
    }
}

impl fmt::Debug for OwnAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnAnchors")
    }
}

/// The authorities of every trust domain whose bundle the agent has.
pub struct AllAnchors(pub Snapshot<AgentState>);

impl Anchors for AllAnchors {
    fn anchors(&self, trust_domain: &str) -> Option<Arc<[Certificate]>> {
        let state = self.0.load();
        if trust_domain == state.bundles.own.trust_domain.as_str() {
            return Some(Arc::clone(&state.bundles.anchors));
        }
        let foreign = state.bundles.federated.iter().find(|(name, _)| name.as_str() == trust_domain)?.1;
        let parsed = foreign.x509_authorities.iter().filter(|authority| !authority.tainted);
        Some(parsed.filter_map(|authority| Certificate::parse(&authority.der).ok()).collect())
    }
}

impl fmt::Debug for AllAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AllAnchors")
    }
}

/// Presents `chain` with `key` from now on.
pub fn present(own: &OwnCertificate, chain: &[Certificate], key: &Arc<dyn Key>) {
    let chain: Vec<CertDer> = chain.iter().map(|certificate| CertDer::new(certificate.der())).collect();
    own.set_signing_key(&chain, Arc::new(HandshakeKey(Arc::clone(key))));
}

/// A key of a key manager as the TLS library wants it.
struct HandshakeKey(Arc<dyn Key>);

impl HandshakeKey {
    fn scheme(&self) -> Option<(SignatureScheme, SigAlg)> {
        match self.0.public().kind() {
            PublicKeyKind::EcP256 => Some((SignatureScheme::ECDSA_NISTP256_SHA256, SigAlg::EcdsaP256Sha256)),
            PublicKeyKind::EcP384 => Some((SignatureScheme::ECDSA_NISTP384_SHA384, SigAlg::EcdsaP384Sha384)),
            PublicKeyKind::EcP521 | PublicKeyKind::Rsa(_) | PublicKeyKind::Ed25519 | PublicKeyKind::Other => {
                None
            }
        }
    }
}

impl fmt::Debug for HandshakeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandshakeKey")
    }
}

impl SigningKey for HandshakeKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let (scheme, alg) = self.scheme()?;
        if !offered.contains(&scheme) {
            return None;
        }
        Some(Box::new(Handshake { key: Arc::clone(&self.0), scheme, alg }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

struct Handshake {
    key: Arc<dyn Key>,
    scheme: SignatureScheme,
    alg: SigAlg,
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handshake")
    }
}

impl Signer for Handshake {
    /// Keys of the process itself sign at once. For those elsewhere the handshake has to wait, which
    /// the TLS library can do only by holding its thread; another takes over the thread's work.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let mut signing = self.key.sign(self.alg, message);
        let signed = match signing.as_mut().now_or_never() {
            Some(signed) => signed,
            None => {
                let runtime = Handle::try_current().map_err(|error| Error::General(error.to_string()))?;
                if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread {
                    return Err(Error::General("the key cannot be waited for on a single thread".to_owned()));
                }
                tokio::task::block_in_place(|| runtime.block_on(signing))
            }
        };
        let signature = signed.map_err(|error| Error::General(error.to_string()))?;
        Ok(signature.as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
