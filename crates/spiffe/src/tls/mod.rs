//! TLS between SPIFFE identities, for rustls: verifiers, the own certificate that is swapped while
//! connections go on, and configurations with the settings that SPIRE's programs expect of each other.
//!
//! Host names do not matter: a peer is who its X.509-SVID says (X509-SVID, section 5). Sessions are
//! never resumed, since a resumed session would skip the verifier. This module must never accept a
//! certificate that `x509::verify_svid` refuses, but for [`ServerTrust::Unverified`], which exists for
//! agents that are told to trust their server at first sight.

mod exchange;
mod web;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use ::aws_lc_rs::signature as algorithms;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};

pub use exchange::PostQuantum;
pub use web::web_config;

use crate::key::{PrivateKey, PublicKeyKind};
use crate::x509::{CertDer, Certificate, PathError, SvidError, leaf_id, verify_svid};
use crate::{SpiffeId, UnixSecs};

/// The most certificates a peer may present.
const MAX_CHAIN: usize = 32;
/// The longest chain, in bytes, that is parsed.
const MAX_CHAIN_BYTES: usize = 128 * 1024;

/// Where the X.509 authorities of trust domains are looked up at each handshake.
pub trait Anchors: fmt::Debug + Send + Sync {
    /// The authorities of a trust domain; `None` if it has no bundle here.
    fn anchors(&self, trust_domain: &str) -> Option<Arc<[Certificate]>>;
}

/// Says whether a verified id may connect; the text is the reason why not.
pub type Admit = dyn Fn(&SpiffeId) -> Result<(), String> + Send + Sync;

/// Judges the certificates of clients, or lets clients without one in as anonymous.
pub struct ClientVerifier {
    anchors: Arc<dyn Anchors>,
    admit: Box<Admit>,
    mandatory: bool,
    provider: Arc<CryptoProvider>,
}

impl ClientVerifier {
    /// A verifier; if `mandatory`, clients must present a certificate.
    #[must_use]
    pub fn new(anchors: Arc<dyn Anchors>, admit: Box<Admit>, mandatory: bool) -> Arc<Self> {
        Arc::new(Self { anchors, admit, mandatory, provider: provider() })
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientVerifier")
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: clients of other trust domains would not find their authority among ours.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = read_chain(end_entity, intermediates)?;
        let id = chain.first().ok_or(SvidError::Empty).and_then(leaf_id).map_err(refused)?;
        let anchors = self.anchors.anchors(id.trust_domain_name()).ok_or_else(unknown_issuer)?;
        let id = verify_svid(&chain, &anchors, seconds(now)).map_err(refused)?;
        (self.admit)(&id)
            .map_err(|_why| Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_handshake(message, cert, dss, Protocol::Tls12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_handshake(message, cert, dss, Protocol::Tls13)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a client demands of its server.
pub enum ServerTrust {
    /// An X.509-SVID of exactly this id, under the anchors of its trust domain.
    Id(SpiffeId, Arc<dyn Anchors>),
    /// An X.509-SVID that the function admits, under the anchors of its trust domain.
    Admitted(Box<Admit>, Arc<dyn Anchors>),
    /// A certificate that names exactly this id, signed by anybody: only to bootstrap.
    Unverified(SpiffeId),
}

/// Judges the certificates of servers.
pub struct ServerVerifier {
    trust: ServerTrust,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    /// A verifier.
    #[must_use]
    pub fn new(trust: ServerTrust) -> Arc<Self> {
        Arc::new(Self { trust, provider: provider() })
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerVerifier")
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = read_chain(end_entity, intermediates)?;
        let leaf = chain.first().ok_or_else(|| refused(SvidError::Empty))?;
        if let ServerTrust::Unverified(wanted) = &self.trust {
            return match leaf.uris() {
                [uri] if uri == wanted.as_str() => Ok(ServerCertVerified::assertion()),
                _ => Err(other(format!("server presents {:?} instead of {wanted}", leaf.uris()))),
            };
        }
        let id = leaf_id(leaf).map_err(refused)?;
        let (ServerTrust::Id(_, anchors) | ServerTrust::Admitted(_, anchors)) = &self.trust else {
            return Err(unknown_issuer());
        };
        let anchors = anchors.anchors(id.trust_domain_name()).ok_or_else(unknown_issuer)?;
        let id = verify_svid(&chain, &anchors, seconds(now)).map_err(refused)?;
        match &self.trust {
            ServerTrust::Id(wanted, _) if id != *wanted => {
                Err(other(format!("server is {id} instead of {wanted}")))
            }
            ServerTrust::Admitted(admit, _) => {
                admit(&id).map_err(other)?;
                Ok(ServerCertVerified::assertion())
            }
            ServerTrust::Id(..) | ServerTrust::Unverified(_) => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_handshake(message, cert, dss, Protocol::Tls12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_handshake(message, cert, dss, Protocol::Tls13)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate this side presents; replaced while connections go on.
#[derive(Default)]
pub struct OwnCertificate(RwLock<Option<Arc<CertifiedKey>>>);

impl OwnCertificate {
    /// No certificate yet: a server refuses handshakes, a client stays anonymous.
    #[must_use]
    pub fn empty() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Presents `chain`, leaf first, with its key from now on.
    ///
    /// # Errors
    /// If the key cannot be used for TLS.
    pub fn set(&self, chain: &[CertDer], key: &PrivateKey) -> Result<(), Error> {
        let pkcs8 = key.to_pkcs8().map_err(|error| Error::General(error.to_string()))?;
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(pkcs8.as_slice());
        let key = aws_lc_rs::sign::any_supported_type(&key.into())?;
        self.set_signing_key(chain, key);
        Ok(())
    }

    /// The same with a key that is elsewhere.
    pub fn set_signing_key(&self, chain: &[CertDer], key: Arc<dyn SigningKey>) {
        let chain = chain.iter().map(|der| CertificateDer::from(der.as_bytes().to_vec())).collect();
        let certified = Arc::new(CertifiedKey::new(chain, key));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(certified);
    }

    fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnCertificate")
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        self.current().is_some()
    }
}

/// A server's configuration: TLS 1.2 or newer, HTTP/2, no resumption.
///
/// # Errors
/// If the provider lacks the protocol versions, which would be a build error.
pub fn server_config(verifier: Arc<ClientVerifier>, own: Arc<OwnCertificate>) -> Result<ServerConfig, Error> {
    server_config_for(PostQuantum::Optional, verifier, own)
}

/// The same, with key exchanges of a kind.
///
/// # Errors
/// As there.
pub fn server_config_for(
    exchanges: PostQuantum,
    verifier: Arc<ClientVerifier>,
    own: Arc<OwnCertificate>,
) -> Result<ServerConfig, Error> {
    let mut config = exchanges.server()?.with_client_cert_verifier(verifier).with_cert_resolver(own);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_fragment_size = Some(RECORD);
    Ok(config)
}

/// A client's configuration: TLS 1.2 or newer, HTTP/2, no resumption, no server name needed.
///
/// # Errors
/// If the provider lacks the protocol versions, which would be a build error.
pub fn client_config(verifier: Arc<ServerVerifier>, own: Arc<OwnCertificate>) -> Result<ClientConfig, Error> {
    client_config_for(PostQuantum::Optional, verifier, own)
}

/// The same, with key exchanges of a kind.
///
/// # Errors
/// As there.
pub fn client_config_for(
    exchanges: PostQuantum,
    verifier: Arc<ServerVerifier>,
    own: Arc<OwnCertificate>,
) -> Result<ClientConfig, Error> {
    let mut config = exchanges.client(verifier)?.with_client_cert_resolver(own);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    config.max_fragment_size = Some(RECORD);
    Ok(config)
}

/// Bytes of a record, header included: half of what is allowed (RFC 8446, section 5.1). What is sent is
/// copied into records, and so much stays in the processor's first cache while it is encrypted there.
const RECORD: usize = 8 << 10;

/// The one crypto provider, named explicitly everywhere.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn read_chain(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<Vec<Certificate>, Error> {
    let bytes: usize = intermediates.iter().map(|der| der.len()).sum::<usize>() + end_entity.len();
    if intermediates.len() >= MAX_CHAIN || bytes > MAX_CHAIN_BYTES {
        return Err(other("certificate chain is too long".to_owned()));
    }
    std::iter::once(end_entity)
        .chain(intermediates)
        .map(|der| {
            Certificate::parse(der).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
        })
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tls12,
    Tls13,
}

/// Checks the peer's signature over the handshake under the key of its certificate.
fn check_handshake(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    protocol: Protocol,
) -> Result<HandshakeSignatureValid, Error> {
    let leaf =
        Certificate::parse(cert).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let key = leaf.public_key();
    let verifier = handshake_verifier(dss.scheme, key.kind(), protocol)
        .ok_or_else(|| other(format!("signature scheme {:?} does not fit the peer's key", dss.scheme)))?;
    crate::x509::check(verifier, key, message, dss.signature())
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadSignature))?;
    Ok(HandshakeSignatureValid::assertion())
}

fn handshake_verifier(
    scheme: SignatureScheme,
    kind: PublicKeyKind,
    protocol: Protocol,
) -> Option<&'static dyn algorithms::VerificationAlgorithm> {
    use SignatureScheme as S;
    Some(match (scheme, kind) {
        (S::ECDSA_NISTP256_SHA256, PublicKeyKind::EcP256) => &algorithms::ECDSA_P256_SHA256_ASN1,
        (S::ECDSA_NISTP384_SHA384, PublicKeyKind::EcP384) => &algorithms::ECDSA_P384_SHA384_ASN1,
        (S::ECDSA_NISTP521_SHA512, PublicKeyKind::EcP521) => &algorithms::ECDSA_P521_SHA512_ASN1,
        (S::ED25519, PublicKeyKind::Ed25519) => &algorithms::ED25519,
        (S::RSA_PSS_SHA256, PublicKeyKind::Rsa(_)) => &algorithms::RSA_PSS_2048_8192_SHA256,
        (S::RSA_PSS_SHA384, PublicKeyKind::Rsa(_)) => &algorithms::RSA_PSS_2048_8192_SHA384,
        (S::RSA_PSS_SHA512, PublicKeyKind::Rsa(_)) => &algorithms::RSA_PSS_2048_8192_SHA512,
        // TLS 1.2 ties neither curve to hash nor RSA to PSS.
        _ if protocol == Protocol::Tls13 => return None,
        (S::ECDSA_NISTP256_SHA256, PublicKeyKind::EcP384) => &algorithms::ECDSA_P384_SHA256_ASN1,
        (S::ECDSA_NISTP384_SHA384, PublicKeyKind::EcP256) => &algorithms::ECDSA_P256_SHA384_ASN1,
        (S::RSA_PKCS1_SHA256, PublicKeyKind::Rsa(_)) => &algorithms::RSA_PKCS1_2048_8192_SHA256,
        (S::RSA_PKCS1_SHA384, PublicKeyKind::Rsa(_)) => &algorithms::RSA_PKCS1_2048_8192_SHA384,
        (S::RSA_PKCS1_SHA512, PublicKeyKind::Rsa(_)) => &algorithms::RSA_PKCS1_2048_8192_SHA512,
        _ => return None,
    })
}

fn seconds(now: UnixTime) -> UnixSecs {
    UnixSecs(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of the error alone")]
fn refused(why: SvidError) -> Error {
    // Told apart, as an agent that meets it may have to bootstrap anew.
    if why == SvidError::Path(PathError::UnknownAuthority) {
        return unknown_issuer();
    }
    other(why.to_string())
}

fn unknown_issuer() -> Error {
    Error::InvalidCertificate(CertificateError::UnknownIssuer)
}

fn other(why: String) -> Error {
    Error::General(why)
}
