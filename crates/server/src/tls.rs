//! Who may connect over TLS, and what they are shown.
//!
//! A client without certificate is anonymous. One with a certificate must be of the own trust domain,
//! or an administrator by configuration; it is verified against what is stored of its trust domain at
//! the moment of the handshake. Nobody connects as the server itself.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use config::ServerConfig;
use runtime::clock::Clock;
use runtime::listen::TlsSource;
use runtime::snapshot::Snapshot;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use spiffe::tls::{Anchors, ClientVerifier, OwnCertificate, PostQuantum, server_config_for};
use spiffe::x509::Certificate;
use spiffe::{SpiffeId, TrustDomain};

use crate::keep::{BundleSet, StoredAnchors};

/// How often a missing bundle of an administrator's trust domain is told.
const COMPLAINT: Duration = Duration::from_secs(60);

/// The TLS configuration of the server's port.
///
/// # Errors
/// If the provider lacks the protocol versions, which would be a build error.
pub(crate) fn source(
    config: &ServerConfig,
    bundles: Snapshot<BundleSet>,
    presented: Arc<OwnCertificate>,
    clock: &Arc<dyn Clock>,
) -> Result<TlsSource, rustls::Error> {
    let own = config.trust_domain.clone();
    let admins = config.admin_ids.clone();
    let anchors = ClientAnchors {
        stored: StoredAnchors(bundles),
        foreign: admins.iter().map(SpiffeId::trust_domain).filter(|domain| *domain != own).collect(),
        own: own.clone(),
        complaints: Mutex::default(),
        clock: Arc::clone(clock),
    };
    let admit = move |id: &SpiffeId| admit(&own, &admins, id);
    let verifier = ClientVerifier::new(Arc::new(anchors), Box::new(admit), false);
    let exchanges = PostQuantum::required_if(config.experimental.require_pq_kem);
    let mut config = server_config_for(exchanges, verifier, presented)?;
    config.time_provider = Arc::new(ClockTime(Arc::clone(clock)));
    let config = Arc::new(config);
    Ok(Arc::new(move || Arc::clone(&config)))
}

fn admit(own: &TrustDomain, admins: &[SpiffeId], id: &SpiffeId) -> Result<(), String> {
    if id.is_member_of(own) && id.path() == "/spire/server" {
        return Err(format!("{id} is this server itself"));
    }
    if id.is_member_of(own) || admins.contains(id) {
        return Ok(());
    }
    Err(format!("{id} is neither of this trust domain nor an administrator"))
}

/// The anchors of those trust domains that clients may be of.
struct ClientAnchors {
    stored: StoredAnchors,
    own: TrustDomain,
    /// Those of administrators.
    foreign: Vec<TrustDomain>,
    /// When it was last told that a bundle is missing.
    complaints: Mutex<HashMap<TrustDomain, Instant>>,
    clock: Arc<dyn Clock>,
}

impl Anchors for ClientAnchors {
    fn anchors(&self, trust_domain: &str) -> Option<Arc<[Certificate]>> {
        let known = std::iter::once(&self.own).chain(&self.foreign);
        let known = known.into_iter().find(|known| known.as_str() == trust_domain)?;
        let anchors = self.stored.anchors(trust_domain);
        if anchors.is_none() && *known != self.own {
            self.complain(known);
        }
        anchors
    }
}

impl ClientAnchors {
    fn complain(&self, trust_domain: &TrustDomain) {
        let now = self.clock.instant();
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let last = complaints.get(trust_domain);
        if last.is_none_or(|last| now.saturating_duration_since(*last) >= COMPLAINT) {
            complaints.insert(trust_domain.clone(), now);
            tracing::warn!(
                subsystem_name = "endpoints",
                trust_domain = %trust_domain,
                "No bundle found for foreign admin trust domain; admins from this trust domain will not be \
                 able to connect"
            );
        }
    }
}

impl fmt::Debug for ClientAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientAnchors")
    }
}

/// The server's clock, for TLS.
pub(crate) struct ClockTime(pub(crate) Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e02_t03_members_and_administrators_connect_and_nobody_else() {
        let own = TrustDomain::parse("example.org").unwrap();
        let id = |text: &str| SpiffeId::parse(text).unwrap();
        let admins = [id("spiffe://partner.test/admin")];
        let admitted = |text| admit(&own, &admins, &id(text)).is_ok();

        assert!(admitted("spiffe://example.org/spire/agent/join_token/1"));
        assert!(admitted("spiffe://example.org/workload"));
        assert!(admitted("spiffe://partner.test/admin"));
        assert!(!admitted("spiffe://partner.test/other"));
        assert!(!admitted("spiffe://example.org.test/workload"));
        assert!(!admitted("spiffe://example.org/spire/server"));
    }
}
