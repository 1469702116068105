//! Entries and agents in few words.

use std::sync::Arc;

use graph::AgentRecord;
use spiffe::{Entry, EntryId, Selector, SpiffeId, TrustDomain, UnixSecs};

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

/// The id with this path, or of a foreign trust domain if it is written out.
pub(crate) fn id(path: &str) -> SpiffeId {
    if path.contains("://") {
        SpiffeId::parse(path).unwrap()
    } else {
        trust_domain().id_with_path(path).unwrap()
    }
}

pub(crate) fn selectors(values: &[&str]) -> Arc<[Selector]> {
    values.iter().map(|value| Selector::new("t", value)).collect()
}

/// An entry of a parent that gives an identity to those with the selectors.
pub(crate) fn entry(name: &str, parent: &str, spiffe_id: &str, values: &[&str]) -> Entry {
    let selectors = selectors(values);
    Entry {
        id: EntryId::new(name),
        spiffe_id: id(spiffe_id),
        parent_id: id(parent),
        selector_set: selectors.iter().cloned().collect(),
        selectors,
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Arc::new([]),
        admin: false,
        downstream: false,
        expires_at: UnixSecs(0),
        dns_names: Arc::new([]),
        revision_number: 0,
        store_svid: false,
        hint: String::new(),
        created_at: UnixSecs(1_700_000_000),
        additional_attributes: None,
    }
}

pub(crate) fn agent(path: &str, values: &[&str]) -> AgentRecord {
    AgentRecord {
        id: id(path),
        attestation_type: "join_token".to_owned(),
        serial: "1".to_owned(),
        expires_at: UnixSecs(2_000_000_000),
        new_serial: String::new(),
        new_expires_at: UnixSecs(0),
        can_reattest: false,
        agent_version: String::new(),
        selectors: selectors(values),
    }
}
