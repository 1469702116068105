//! The server's own SVID: what TLS clients see, renewed at half its life, its key never stored.

use std::sync::Arc;
use std::time::Duration;

use ca::issue::{IssueError, Issuer, X509Request};
use runtime::blocking::{Blocking, Interrupted};
use runtime::clock::Clock;
use runtime::metrics::Call;
use runtime::snapshot::{Publisher, Snapshot};
use spiffe::key::{KeyError, KeyKind, PrivateKey};
use spiffe::tls::OwnCertificate;
use spiffe::x509::{CertDer, Certificate, verify_path};
use spiffe::{TrustDomain, UnixSecs};
use tokio_util::sync::CancellationToken;

use crate::keep::BundleSet;
use crate::meters::of_any;

/// How often it is looked at.
const TICK: Duration = Duration::from_secs(5);

/// The SVID as it is now.
#[derive(Clone, Debug)]
pub(crate) struct OwnSvid {
    /// The certificate and those above it, without the root.
    pub(crate) chain: Vec<CertDer>,
    not_before: UnixSecs,
    not_after: UnixSecs,
    /// The subject key id of the authority that signed it.
    signed_by: Vec<u8>,
}

/// The owner of the SVID.
pub(crate) struct Renewal {
    issuer: Issuer,
    kind: KeyKind,
    clock: Arc<dyn Clock>,
    bundles: Snapshot<BundleSet>,
    trust_domain: TrustDomain,
    blocking: Blocking,
    presented: Arc<OwnCertificate>,
    svid: Publisher<OwnSvid>,
    rotated: Call,
}

/// Why there is no new SVID.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenewalError {
    /// No key was made.
    #[error("cannot make key")]
    Key(#[from] KeyError),
    /// Nor was the making finished.
    #[error("cannot make key")]
    Interrupted(#[from] Interrupted),
    /// The CA did not sign.
    #[error("cannot sign server SVID")]
    Issue(#[from] IssueError),
    /// TLS cannot use it.
    #[error("cannot present server SVID")]
    Tls(#[from] rustls::Error),
}

impl Renewal {
    /// The first SVID of this process, and what renews it.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub(crate) async fn start(
        issuer: Issuer,
        kind: KeyKind,
        clock: Arc<dyn Clock>,
        bundles: Snapshot<BundleSet>,
        rotated: Call,
    ) -> Result<Self, RenewalError> {
        let blocking = Blocking::new(1);
        let presented = OwnCertificate::empty();
        let svid = of_any(&rotated, renew(&issuer, kind, &*clock, &blocking, &presented)).await?;
        let trust_domain = issuer.profile().trust_domain.clone();
        let svid = Publisher::new(svid);
        Ok(Self { issuer, kind, clock, bundles, trust_domain, blocking, presented, svid, rotated })
    }

    /// What TLS presents; it follows renewals.
    pub(crate) fn presented(&self) -> Arc<OwnCertificate> {
        Arc::clone(&self.presented)
    }

    /// The SVID, for its readers.
    pub(crate) fn svid(&self) -> Snapshot<OwnSvid> {
        self.svid.snapshot()
    }

    /// Renews until the token is cancelled.
    ///
    /// # Errors
    /// None: what failed is tried again at the next tick.
    pub(crate) async fn run(self, token: CancellationToken) -> Result<(), RenewalError> {
        let mut bundles = self.bundles.changed();
        loop {
            tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                // An authority was tainted or revoked, maybe: clients will not believe it for long.
                changed = bundles.changed() => if changed.is_err() { return Ok(()) },
                () = self.clock.sleep(TICK) => {}
            }
            if let Err(error) = self.renew_if_due().await {
                tracing::error!(
                    subsystem_name = "svid_rotator",
                    error = runtime::chain(&error),
                    "Could not rotate server SVID"
                );
            }
        }
    }

    async fn renew_if_due(&self) -> Result<(), RenewalError> {
        let svid = self.svid.load();
        let is_tainted = self.is_tainted(&svid);
        if is_tainted {
            tracing::info!(
                subsystem_name = "svid_rotator",
                "Server SVID signed using a tainted authority, forcing rotation of the Server SVID"
            );
        }
        if !is_tainted && !svid.is_due(UnixSecs::from(self.clock.now())) {
            return Ok(());
        }
        tracing::debug!(subsystem_name = "svid_rotator", "Rotating server SVID");
        let renewed = renew(&self.issuer, self.kind, &*self.clock, &self.blocking, &self.presented);
        let renewed = of_any(&self.rotated, renewed).await?;
        self.svid.publish(Arc::new(renewed));
        Ok(())
    }

    /// Whether the authority that signed it is compromised or gone, and another one signs by now.
    fn is_tainted(&self, svid: &OwnSvid) -> bool {
        let active = self.issuer.active();
        let signs_again = active
            .x509
            .as_ref()
            .is_some_and(|signer| signer.certificate().subject_key_id() == Some(&svid.signed_by[..]));
        if signs_again {
            return false;
        }
        let bundles = self.bundles.load();
        let Some(known) = bundles.get(&self.trust_domain) else { return false };
        let sound = known.bundle.x509_authorities.iter().filter(|authority| !authority.tainted);
        let sound: Vec<_> = sound.filter_map(|authority| Certificate::parse(&authority.der).ok()).collect();
        let chain: Vec<_> =
            svid.chain.iter().filter_map(|der| Certificate::parse(der.as_bytes()).ok()).collect();
        let Some((leaf, above)) = chain.split_first() else { return true };
        verify_path(leaf, above, &sound, UnixSecs::from(self.clock.now())).is_err()
    }
}

impl OwnSvid {
    /// Whether half of its life is over.
    fn is_due(&self, now: UnixSecs) -> bool {
        now.since(self.not_before) > self.not_after.since(self.not_before) / 2
    }
}

async fn renew(
    issuer: &Issuer,
    kind: KeyKind,
    clock: &dyn Clock,
    blocking: &Blocking,
    presented: &OwnCertificate,
) -> Result<OwnSvid, RenewalError> {
    let key = match kind {
        KeyKind::EcP256 | KeyKind::EcP384 => PrivateKey::generate(kind)?,
        KeyKind::Rsa2048 | KeyKind::Rsa4096 => blocking.run(move || PrivateKey::generate(kind)).await??,
    };
    let signer = issuer.active().x509.clone().ok_or(IssueError::NoX509)?;
    let request = X509Request::Server { public_key: key.public().clone() };
    let svid = issuer.prepare_x509(request, UnixSecs::from(clock.now()))?.sign().await?;
    presented.set(&svid.chain, &key)?;
    tracing::debug!(
        subsystem_name = "svid_rotator",
        spiffe_id = %svid.id,
        expiration = svid.not_after.0,
        "Signed X509 SVID"
    );
    Ok(OwnSvid {
        chain: svid.chain,
        not_before: svid.not_before,
        not_after: svid.not_after,
        signed_by: signer.certificate().subject_key_id().unwrap_or_default().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_after_half_its_life() {
        let svid = OwnSvid {
            chain: Vec::new(),
            not_before: UnixSecs(1000),
            not_after: UnixSecs(2000),
            signed_by: Vec::new(),
        };

        assert!(!svid.is_due(UnixSecs(1500)));
        assert!(svid.is_due(UnixSecs(1501)));
    }
}
