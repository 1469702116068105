//! `disk`: the CA of the server is signed by a certificate and a key in files.
//!
//! The files are read again each time something is signed, so that an operator replaces the upstream
//! authority by replacing them. Files that are broken by then do no harm: what was read before goes on
//! signing, and the log says so.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use plugin::{
    BuiltIn, Host, Minted, Plugin, PluginConfig, PluginError, PluginInfo, PluginKind, Published, Updates,
    UpstreamAuthority, UpstreamBundle,
};
use serde::Deserialize;
use spiffe::key::PrivateKey;
use spiffe::x509::{
    CertDer, Certificate, Csr, CsrError, Issuer, Role, Serial, Validity, X509Template, assemble, verify_path,
};
use spiffe::{JwtAuthority, SpiffeId, TrustDomain, UnixSecs, X509Authority};

use crate::shared::{pem, settings};

/// The plugin.
pub const BUILT_IN: BuiltIn<dyn UpstreamAuthority> = BuiltIn {
    name: "disk",
    load: |config, host| Box::pin(async move { Ok(Arc::new(load(&config, host)?) as Arc<_>) }),
};

/// How far validity starts in the past, for clocks that are behind.
const BACKDATE: i64 = 10;
/// The lifetime of what is signed for nobody knows how long.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);

#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    cert_file_path: String,
    key_file_path: String,
    bundle_file_path: String,
}

struct Disk {
    info: PluginInfo,
    host: Host,
    trust_domain: TrustDomain,
    settings: Settings,
    read: Mutex<Arc<Authority>>,
}

/// What the files held.
struct Authority {
    certificate: Certificate,
    key: PrivateKey,
    /// The certificates above what is signed, without the root.
    chain: Vec<CertDer>,
    roots: Vec<X509Authority>,
}

fn load(config: &PluginConfig, host: Host) -> Result<Disk, PluginError> {
    let settings = settings::decode_plainly(config)?;
    let Settings { cert_file_path, key_file_path, .. } = &settings;
    if cert_file_path.is_empty() || key_file_path.is_empty() {
        let why = "'cert_file_path' and 'key_file_path' must be set and not empty";
        return Err(PluginError::invalid_argument(why));
    }
    let authority = read(&settings, UnixSecs::from(host.clock.now()))?;
    Ok(Disk {
        info: PluginInfo::new(PluginKind::UpstreamAuthority, &config.name),
        host,
        trust_domain: config.trust_domain.clone(),
        settings,
        read: Mutex::new(Arc::new(authority)),
    })
}

/// Reads the files and judges whether they fit together.
fn read(settings: &Settings, now: UnixSecs) -> Result<Authority, PluginError> {
    let unable = |what: &str, why: String| {
        PluginError::invalid_argument(format!("unable to load upstream CA {what}: {why}"))
    };
    let key = pem::only_private_key(Path::new(&settings.key_file_path)).map_err(|why| unable("key", why))?;
    let own = pem::only_certificates(Path::new(&settings.cert_file_path));
    let own = own.map_err(|why| unable("cert", why))?;
    let (certificate, above, roots) = match own.as_slice() {
        [] => return Err(unable("cert", "no PEM blocks".to_owned())),
        [certificate, above @ ..] if !settings.bundle_file_path.is_empty() => {
            let roots = pem::only_certificates(Path::new(&settings.bundle_file_path));
            (certificate, above, roots.map_err(|why| unable("bundle", why))?)
        }
        [certificate] => (certificate, &[][..], own.clone()),
        _ => {
            let why = "with no bundle_file_path configured only self-signed CAs are supported";
            return Err(PluginError::invalid_argument(why));
        }
    };
    let refused = |why| PluginError::invalid_argument(format!("unable to load upstream CA: {why}"));
    if certificate.public_key() != key.public() {
        return Err(refused("certificate and private key do not match"));
    }
    // A certificate of the bundle is its own proof, as long as it holds.
    let holds = certificate.not_before() <= now && now <= certificate.not_after();
    let is_root = holds && roots.iter().any(|root| root.der() == certificate.der());
    if !is_root && verify_path(certificate, above, &roots, now).is_err() {
        let why = "certificate cannot be validated with the provided bundle or is not self-signed";
        return Err(refused(why));
    }
    let chain = if settings.bundle_file_path.is_empty() { &[] } else { own.as_slice() };
    Ok(Authority {
        key,
        chain: chain.iter().map(|certificate| CertDer::new(certificate.der())).collect(),
        roots: roots.iter().map(|root| X509Authority { der: root.to_shared(), tainted: false }).collect(),
        certificate: certificate.clone(),
    })
}

impl Plugin for Disk {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl UpstreamAuthority for Disk {
    async fn mint(&self, csr: &[u8], preferred_ttl: Duration) -> Result<Minted, PluginError> {
        let now = UnixSecs::from(self.host.clock.now());
        let authority = self.reread(now);
        let signed = authority.sign(csr, &self.trust_domain, preferred_ttl, now);
        let signed = signed.map_err(|why| PluginError::internal(format!("unable to sign CSR: {why}")))?;
        let mut chain = vec![signed];
        chain.extend_from_slice(&authority.chain);
        Ok(Minted { chain, roots: authority.roots.clone(), updates: None })
    }

    async fn publish(&self, _key: &JwtAuthority) -> Result<Published, PluginError> {
        Err(PluginError::unimplemented("publishing upstream is unsupported"))
    }

    async fn watch(&self) -> Result<Updates<UpstreamBundle>, PluginError> {
        Err(PluginError::unimplemented("fetching upstream trust bundle is unsupported"))
    }
}

impl Disk {
    fn reread(&self, now: UnixSecs) -> Arc<Authority> {
        let reread = read(&self.settings, now).map(Arc::new);
        let mut held = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match reread {
            Ok(authority) => *held = authority,
            Err(error) => tracing::warn!(
                %error,
                "Cannot read the upstream CA again; what was read before goes on signing"
            ),
        }
        Arc::clone(&held)
    }
}

impl Authority {
    fn sign(
        &self,
        csr: &[u8],
        trust_domain: &TrustDomain,
        preferred_ttl: Duration,
        now: UnixSecs,
    ) -> Result<CertDer, String> {
        let csr = Csr::verify(csr).map_err(|why| match why {
            CsrError::BadSignature => format!("CSR signature check failed: {why}"),
            CsrError::Malformed | CsrError::TooLong | CsrError::WeakKey => {
                format!("unable to parse CSR: {why}")
            }
        })?;
        let [uri] = csr.uris.as_slice() else {
            return Err("CSR must have exactly one URI SAN".to_owned());
        };
        let refused = |why: &dyn std::fmt::Display| format!("CSR with SPIFFE ID {uri:?} is invalid: {why}");
        let id = SpiffeId::parse(uri).map_err(|why| refused(&why))?;
        if id != trust_domain.id() {
            let why = format!("must use the trust domain ID for trust domain \"{trust_domain}\"");
            return Err(refused(&why));
        }
        let ttl = if preferred_ttl.is_zero() { DEFAULT_TTL } else { preferred_ttl };
        let ends_at = now.plus(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
        let template = X509Template {
            serial: new_serial()?,
            subject: csr.subject,
            validity: Validity {
                not_before: now.plus(-BACKDATE),
                not_after: ends_at.min(self.certificate.not_after()),
            },
            public_key: csr.public_key,
            id,
            dns_names: Vec::new(),
            role: Role::Ca,
        };
        let issuer = Issuer {
            name: self.certificate.subject().clone(),
            key_id: self.certificate.subject_key_id().map(<[u8]>::to_vec),
        };
        let alg = self.key.sig_alg().map_err(|why| why.to_string())?;
        let tbs = template.tbs(&issuer, alg);
        let signature = self.key.sign(alg, tbs.as_bytes()).map_err(|why| why.to_string())?;
        Ok(assemble(&tbs, &signature))
    }
}

/// A random serial number, never zero.
fn new_serial() -> Result<Serial, String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "the system's random generator failed".to_owned())?;
    if let Some(last) = bytes.last_mut().filter(|last| **last == 0) {
        *last = 1;
    }
    Ok(Serial::from_be_bytes(&bytes))
}
