//! A certificate that a server presents, from files that others replace: an ACME client, an operator,
//! a mounted secret.
//!
//! The files are read at start, which fails where they are no pair; later they are looked at now and
//! then, and what cannot be used is told and changes nothing.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use spiffe::key::{FormError, private_key_of_pem};
use spiffe::x509::pem_blocks;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::blocking::Blocking;
use crate::clock::Clock;

/// The certificate that is presented now.
pub struct ServedCertificate {
    files: Files,
    current: ArcSwap<CertifiedKey>,
    /// What the files were like when they were read.
    read: ArcSwap<[Stamp; 2]>,
}

#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// What tells a file from the one that takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    length: u64,
    inode: u64,
}

/// Why files hold no certificate to present.
#[derive(Debug, thiserror::Error)]
pub enum ServedError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There is no certificate in the file.
    #[error("no certificate in PEM found in {}", .0.display())]
    NoCertificate(PathBuf),
    /// There is no private key in the file.
    #[error("no private key in PEM found in {}", .0.display())]
    NoKey(PathBuf),
    /// The private key cannot be read.
    #[error("cannot use {} with {}", certificate.display(), key.display())]
    BadKey {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: FormError,
    },
    /// The key and the certificate are no pair, or cannot be used.
    #[error("cannot use {} with {}", certificate.display(), key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

impl ServedCertificate {
    /// Reads a chain, leaf first, and its private key, both in PEM.
    ///
    /// # Errors
    /// Any of [`ServedError`].
    pub fn load(certificate: PathBuf, key: PathBuf) -> Result<Arc<Self>, ServedError> {
        let files = Files { certificate, key };
        let (stamps, pair) = (files.stamps()?, files.read()?);
        Ok(Arc::new(Self {
            files,
            current: ArcSwap::from_pointee(pair),
            read: ArcSwap::from_pointee(stamps),
        }))
    }

    /// Looks at the files every so often and reads them again once they changed, until `stop` is
    /// cancelled.
    pub async fn follow(self: Arc<Self>, every: Duration, clock: Arc<dyn Clock>, stop: CancellationToken) {
        let every = every.max(SHORTEST);
        let blocking = Blocking::new(1);
        tracing::info!(interval = ?every, "Started watching certificate files");
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = clock.sleep(every) => {}
            }
            let served = Arc::clone(&self);
            match blocking.run(move || served.refresh()).await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => tracing::info!("Loaded provided certificate with success"),
                Ok(Err(error)) => {
                    tracing::error!(error = crate::chain(&error), "Failed to load certificate");
                }
                Err(error) => tracing::error!(%error, "Failed to load certificate"),
            }
        }
        tracing::info!("Stopping file watcher");
    }

    /// Reads the files again if they changed; whether they did.
    fn refresh(&self) -> Result<bool, ServedError> {
        let stamps = self.files.stamps()?;
        if stamps == **self.read.load() {
            return Ok(false);
        }
        tracing::info!("File change detected, reloading certificate and key...");
        // Not marked as read before it is good: of two files one may be there before the other.
        self.current.store(Arc::new(self.files.read()?));
        self.read.store(Arc::new(stamps));
        Ok(true)
    }
}

impl ResolvesServerCert for ServedCertificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl fmt::Debug for ServedCertificate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ServedCertificate").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Files {
    fn stamps(&self) -> Result<[Stamp; 2], ServedError> {
        Ok([stamp(&self.certificate)?, stamp(&self.key)?])
    }

    fn read(&self) -> Result<CertifiedKey, ServedError> {
        let no_certificate = || ServedError::NoCertificate(self.certificate.clone());
        let text = read(&self.certificate)?;
        let chain = pem_blocks(&text, "CERTIFICATE").into_iter().map(CertificateDer::from);
        let chain =
            Some(chain.collect::<Vec<_>>()).filter(|chain| !chain.is_empty()).ok_or_else(no_certificate)?;
        let key =
            private_key_of_pem(&read(&self.key)?).ok_or_else(|| ServedError::NoKey(self.key.clone()))?;
        let key = key.map_err(|source| ServedError::BadKey {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        })?;
        let key = PrivateKeyDer::Pkcs8(key.to_vec().into());
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        CertifiedKey::from_der(chain, key, &provider).map_err(|source| ServedError::Unusable {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        })
    }
}

fn stamp(path: &Path) -> Result<Stamp, ServedError> {
    let metadata = std::fs::metadata(path);
    let metadata = metadata.map_err(|source| ServedError::Read { path: path.to_owned(), source })?;
    Ok(Stamp {
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        length: metadata.len(),
        inode: metadata.ino(),
    })
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, ServedError> {
    let failed = |source| ServedError::Read { path: path.to_owned(), source };
    let mut contents = Zeroizing::new(Vec::new());
    File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut contents)).map_err(failed)?;
    Ok(contents)
}

/// Far more than any chain; a file that is longer is cut off.
const LONGEST: u64 = 1 << 20;

/// Files are looked at no more often than this.
const SHORTEST: Duration = Duration::from_millis(100);
