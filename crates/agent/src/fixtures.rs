//! What tests of several modules are made of.

use std::sync::Arc;
use std::time::SystemTime;

use spiffe::{Bundle, Entry, EntryId, Selector, SpiffeId, TrustDomain, UnixSecs};

use crate::state::{AgentIdentity, AgentState, X509Svid};

/// An entry of `example.org` with selectors of type `unix`.
pub(crate) fn entry(id: &str, path: &str, selectors: &[&str]) -> Entry {
    let selectors: Arc<[Selector]> = selectors.iter().map(|value| Selector::new("unix", value)).collect();
    Entry {
        id: EntryId::new(id),
        spiffe_id: SpiffeId::parse(&format!("spiffe://example.org{path}")).expect("a path"),
        parent_id: SpiffeId::parse("spiffe://example.org/spire/agent/join_token/1").expect("an id"),
        selector_set: selectors.iter().cloned().collect(),
        selectors,
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Arc::from([]),
        admin: false,
        downstream: false,
        expires_at: UnixSecs(0),
        dns_names: Arc::from([]),
        revision_number: 0,
        store_svid: false,
        hint: String::new(),
        created_at: UnixSecs(1),
        additional_attributes: None,
    }
}

/// The agent of the tests.
pub(crate) fn agent_id() -> SpiffeId {
    SpiffeId::parse("spiffe://example.org/spire/agent/join_token/1").expect("an id")
}

/// The state of an agent that was just attested, without a certificate.
pub(crate) fn state() -> AgentState {
    let agent = AgentIdentity { id: agent_id(), chain: Arc::from([]), reattestable: false };
    AgentState::new(agent, Bundle::empty(TrustDomain::parse("example.org").expect("a name")))
}

/// The authority behind the SVIDs of the tests.
pub(crate) const AUTHORITY: [u8; 20] = [7; 20];

/// An SVID of `entry` without certificates.
pub(crate) fn svid(entry: &Entry, renew_at: SystemTime) -> X509Svid {
    X509Svid::assumed(entry, renew_at, AUTHORITY)
}
