//! What tests of several modules are made of.

use std::sync::Arc;

use spiffe::{Entry, EntryId, Selector, SpiffeId, UnixSecs};

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
