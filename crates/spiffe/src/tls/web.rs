//! Which servers on the web are believed: those that an authority of the system vouches for, and those
//! whose own certificate is one of the system's.
//!
//! The second is what `openssl req -x509` makes: a certificate that signed itself, for a server, that says
//! of itself that it is an authority. It has to be among the roots byte for byte; a certificate of an
//! authority that is none of them vouches for no server.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::provider;
use crate::UnixSecs;
use crate::x509::Certificate;

/// TLS 1.2 or newer for those who believe these roots. Roots that cannot be read are left out.
///
/// # Errors
/// If the provider lacks the protocol versions, which would be a build error.
pub fn web_config(roots: Vec<CertificateDer<'static>>) -> Result<ClientConfig, Error> {
    let provider = provider();
    let servers = roots.iter().filter(|root| is_server_and_authority(root)).cloned().collect::<Vec<_>>();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    let config =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    if servers.is_empty() {
        return Ok(config.with_root_certificates(store).with_no_client_auth());
    }
    let verifier = Arc::new(WebVerifier::new(store, provider, servers)?);
    Ok(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn is_server_and_authority(root: &CertificateDer<'_>) -> bool {
    Certificate::parse(root).is_ok_and(|certificate| {
        let has_name = !certificate.dns_names().is_empty() || !certificate.ip_addresses().is_empty();
        certificate.is_ca() && has_name
    })
}

struct WebVerifier {
    by_authority: Arc<WebPkiServerVerifier>,
    /// Roots that are certificates of servers too.
    servers: Vec<CertificateDer<'static>>,
}

impl WebVerifier {
    fn new(
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
        servers: Vec<CertificateDer<'static>>,
    ) -> Result<Self, Error> {
        let by_authority = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let by_authority = by_authority.map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { by_authority, servers })
    }
}

impl fmt::Debug for WebVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebVerifier")
    }
}

impl ServerCertVerifier for WebVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.servers.iter().any(|server| server == end_entity) {
            let by_authority = &self.by_authority;
            return by_authority.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            );
        }
        let certificate = Certificate::parse(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let now = UnixSecs(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        if now < certificate.not_before() {
            return Err(CertificateError::NotValidYet.into());
        }
        if certificate.not_after() < now {
            return Err(CertificateError::Expired.into());
        }
        if certificate.allows_server_authentication() == Some(false) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authority.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authority.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Self-signed for 127.0.0.1 and bundles.test, and says that it is an authority.
    const AUTHORITY: &[u8] = include_bytes!("../../tests/it/data/server-and-authority.der");
    const OTHER: &[u8] = include_bytes!("../../tests/it/data/other-authority.der");

    fn judged(roots: &[&'static [u8]], name: &'static str, seconds: u64) -> Result<(), Error> {
        let roots = roots.iter().map(|root| CertificateDer::from(*root)).collect::<Vec<_>>();
        let servers = roots.iter().filter(|root| is_server_and_authority(root)).cloned().collect();
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots);
        let verifier = WebVerifier::new(store, provider(), servers)?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let name = ServerName::try_from(name).unwrap();
        verifier.verify_server_cert(&CertificateDer::from(AUTHORITY), &[], &name, &[], now).map(drop)
    }

    #[test]
    fn a_root_that_is_a_server_is_believed_to_be_itself() {
        let now = u64::try_from(Certificate::parse(AUTHORITY).unwrap().not_before().0).unwrap() + 60;

        assert_eq!(judged(&[OTHER, AUTHORITY], "127.0.0.1", now), Ok(()));
        assert_eq!(judged(&[AUTHORITY], "bundles.test", now), Ok(()));

        judged(&[AUTHORITY], "other.test", now).unwrap_err();
        judged(&[AUTHORITY], "127.0.0.1", now - 120).unwrap_err();
        judged(&[AUTHORITY], "127.0.0.1", now + 200 * 365 * 86_400).unwrap_err();
        judged(&[OTHER], "127.0.0.1", now).unwrap_err();
    }
}
