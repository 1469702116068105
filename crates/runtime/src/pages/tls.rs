//! TLS for pages: whose certificate is shown, and who may read them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::{ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use spiffe::key::private_key_of_pem;
use zeroize::Zeroizing;

use crate::listen::TlsSource;

/// Whose certificate is shown.
pub enum Certificate {
    /// That of two PEM files, read at start.
    Files {
        /// The certificates, its own first.
        chain: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// Another one at each handshake.
    Resolved(Arc<dyn ResolvesServerCert>),
}

/// Who may read pages.
pub enum Clients {
    /// Everybody.
    Anybody,
    /// Who shows a certificate of an authority in this PEM file.
    SignedBy(PathBuf),
    /// Who this accepts.
    Verified(Arc<dyn ClientCertVerifier>),
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("cannot read {}: {text}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
    /// The certificates or the key cannot be used.
    #[error("cannot use certificate for TLS")]
    Unusable(#[from] rustls::Error),
    /// The authorities cannot be used.
    #[error("cannot use {} to know clients by: {text}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
}

/// A configuration for HTTP/1.1 without resumption; `begun` has the protocol versions and key exchanges.
///
/// # Errors
/// [`TlsError`]
pub fn tls(
    begun: ConfigBuilder<ServerConfig, WantsVerifier>,
    certificate: Certificate,
    clients: Clients,
) -> Result<TlsSource, TlsError> {
    let verifier: Arc<dyn ClientCertVerifier> = match clients {
        Clients::Anybody => Arc::new(NoClientAuth),
        Clients::Verified(verifier) => verifier,
        Clients::SignedBy(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(&path)? {
                roots.add(authority)?;
            }
            let provider = Arc::clone(begun.crypto_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            verifier.build().map_err(|error| TlsError::Authorities { path, text: error.to_string() })?
        }
    };
    let builder = begun.with_client_cert_verifier(verifier);
    let mut config = match certificate {
        Certificate::Files { chain, key: path } => {
            let text = std::fs::read(&path).map(Zeroizing::new);
            let text = text.map_err(|error| unreadable(&path, &pem::Error::Io(error)))?;
            let file = |text: String| TlsError::File { path: path.clone(), text };
            let key = private_key_of_pem(&text).ok_or_else(|| file("it holds no private key".to_owned()))?;
            let key = key.map_err(|error| file(error.to_string()))?;
            let key = PrivateKeyDer::Pkcs8(key.to_vec().into());
            builder.with_single_cert(certificates(&chain)?, key)?
        }
        Certificate::Resolved(own) => builder.with_cert_resolver(own),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session would skip the verifier.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let config = Arc::new(config);
    Ok(Arc::new(move || Arc::clone(&config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |error: pem::Error| unreadable(path, &error);
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect();
    let found = found.map_err(unreadable)?;
    if found.is_empty() {
        return Err(TlsError::File { path: path.to_owned(), text: "it holds no certificate".to_owned() });
    }
    Ok(found)
}

fn unreadable(path: &Path, error: &pem::Error) -> TlsError {
    let is_missing = matches!(error, pem::Error::Io(error) if error.kind() == io::ErrorKind::NotFound);
    let text = if is_missing { "no such file".to_owned() } else { error.to_string() };
    TlsError::File { path: path.to_owned(), text }
}
