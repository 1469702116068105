//! Registration entries: `spire.api.types.Entry`.

use std::sync::Arc;

use spiffe::entry::AdditionalAttributes;
use spiffe::{Entry, EntryId, IdError, Selector, SpiffeId, TrustDomain, UnixSecs};

use crate::spire::types;

/// The mask with which agents ask for their entries.
pub const AGENT_MASK: types::EntryMask = types::EntryMask {
    spiffe_id: true,
    parent_id: false,
    selectors: true,
    x509_svid_ttl: false,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: false,
    dns_names: false,
    revision_number: true,
    store_svid: true,
    jwt_svid_ttl: false,
    hint: true,
    created_at: true,
    additional_attributes: true,
};

/// Why an entry that a server answered could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// It has no SPIFFE ID.
    #[error("entry {0} has no SPIFFE ID")]
    NoSpiffeId(EntryId),
    /// Its SPIFFE ID is none.
    #[error("invalid SPIFFE ID: {0}")]
    SpiffeId(IdError),
    /// Its parent ID is none.
    #[error("invalid parent ID: {0}")]
    ParentId(IdError),
    /// It federates with something that is no trust domain.
    #[error("invalid federated trust domain: {0}")]
    FederatesWith(IdError),
}

impl From<&Entry> for types::Entry {
    fn from(entry: &Entry) -> Self {
        masked(entry, None)
    }
}

/// The message for `entry` with the fields that `mask` names; without a mask all.
#[must_use]
pub fn masked(entry: &Entry, mask: Option<&types::EntryMask>) -> types::Entry {
    let wanted = |field: fn(&types::EntryMask) -> bool| mask.is_none_or(field);
    let mut wire = types::Entry { id: entry.id.as_str().to_owned(), ..Default::default() };
    if wanted(|mask| mask.spiffe_id) {
        wire.spiffe_id = Some((&entry.spiffe_id).into());
    }
    if wanted(|mask| mask.parent_id) {
        wire.parent_id = Some((&entry.parent_id).into());
    }
    if wanted(|mask| mask.selectors) {
        wire.selectors = entry.selectors.iter().map(Into::into).collect();
    }
    if wanted(|mask| mask.x509_svid_ttl) {
        wire.x509_svid_ttl = entry.x509_svid_ttl;
    }
    if wanted(|mask| mask.federates_with) {
        wire.federates_with = entry.federates_with.iter().map(|name| name.as_str().to_owned()).collect();
    }
    if wanted(|mask| mask.admin) {
        wire.admin = entry.admin;
    }
    if wanted(|mask| mask.downstream) {
        wire.downstream = entry.downstream;
    }
    if wanted(|mask| mask.expires_at) {
        wire.expires_at = entry.expires_at.0;
    }
    if wanted(|mask| mask.dns_names) {
        wire.dns_names = entry.dns_names.to_vec();
    }
    if wanted(|mask| mask.revision_number) {
        wire.revision_number = entry.revision_number;
    }
    if wanted(|mask| mask.store_svid) {
        wire.store_svid = entry.store_svid;
    }
    if wanted(|mask| mask.jwt_svid_ttl) {
        wire.jwt_svid_ttl = entry.jwt_svid_ttl;
    }
    if wanted(|mask| mask.hint) {
        wire.hint.clone_from(&entry.hint);
    }
    if wanted(|mask| mask.created_at) {
        wire.created_at = entry.created_at.0;
    }
    if wanted(|mask| mask.additional_attributes) {
        wire.additional_attributes = entry.additional_attributes.as_ref().map(Into::into);
    }
    wire
}

/// The entry a server answered. Where the mask left the parent out, it is `parent`.
///
/// # Errors
/// An id in it is missing or wrong.
pub fn answered(wire: &types::Entry, parent: &SpiffeId) -> Result<Entry, EntryError> {
    let id = EntryId::new(&wire.id);
    let Some(spiffe_id) = &wire.spiffe_id else { return Err(EntryError::NoSpiffeId(id)) };
    let spiffe_id = SpiffeId::try_from(spiffe_id).map_err(EntryError::SpiffeId)?;
    let parent_id = match &wire.parent_id {
        Some(parent) => SpiffeId::try_from(parent).map_err(EntryError::ParentId)?,
        None => parent.clone(),
    };
    // Taken as they are: what the server once accepted, the agent must not drop.
    let selectors: Arc<[Selector]> =
        wire.selectors.iter().map(|selector| Selector::new(&selector.r#type, &selector.value)).collect();
    let federates_with = wire.federates_with.iter().map(|name| TrustDomain::parse(name));
    Ok(Entry {
        id,
        spiffe_id,
        parent_id,
        selector_set: selectors.iter().cloned().collect(),
        selectors,
        x509_svid_ttl: wire.x509_svid_ttl,
        jwt_svid_ttl: wire.jwt_svid_ttl,
        federates_with: federates_with.collect::<Result<_, _>>().map_err(EntryError::FederatesWith)?,
        admin: wire.admin,
        downstream: wire.downstream,
        expires_at: UnixSecs(wire.expires_at),
        dns_names: wire.dns_names.as_slice().into(),
        revision_number: wire.revision_number,
        store_svid: wire.store_svid,
        hint: wire.hint.clone(),
        created_at: UnixSecs(wire.created_at),
        additional_attributes: wire.additional_attributes.as_ref().map(Into::into),
    })
}

impl From<&AdditionalAttributes> for types::entry::AdditionalAttributes {
    fn from(attributes: &AdditionalAttributes) -> Self {
        Self {
            disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
            jwt_svid_include_jti: attributes.jwt_svid_include_jti,
        }
    }
}

impl From<&types::entry::AdditionalAttributes> for AdditionalAttributes {
    fn from(wire: &types::entry::AdditionalAttributes) -> Self {
        Self {
            disable_x509_svid_prefetch: wire.disable_x509_svid_prefetch,
            jwt_svid_include_jti: wire.jwt_svid_include_jti,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Entry {
        let id = |text: &str| SpiffeId::parse(text).expect("valid");
        let selectors: Arc<[Selector]> =
            Arc::from([Selector::new("unix", "uid:1000"), Selector::new("unix", "gid:1000")]);
        Entry {
            id: EntryId::new("e1"),
            spiffe_id: id("spiffe://example.org/web"),
            parent_id: id("spiffe://example.org/node"),
            selector_set: selectors.iter().cloned().collect(),
            selectors,
            x509_svid_ttl: 60,
            jwt_svid_ttl: 30,
            federates_with: Arc::from([TrustDomain::parse("other.org").expect("valid")]),
            admin: true,
            downstream: true,
            expires_at: UnixSecs(99),
            dns_names: Arc::from(["b".to_owned(), "a".to_owned()]),
            revision_number: 3,
            store_svid: true,
            hint: "outside".into(),
            created_at: UnixSecs(5),
            additional_attributes: Some(AdditionalAttributes {
                disable_x509_svid_prefetch: true,
                jwt_svid_include_jti: true,
            }),
        }
    }

    #[test]
    fn a_whole_entry_survives_the_wire() {
        let elsewhere = SpiffeId::parse("spiffe://example.org/elsewhere").expect("valid");

        let read = answered(&types::Entry::from(&sample()), &elsewhere);

        assert_eq!(read, Ok(sample()));
    }

    #[test]
    fn an_agent_sees_itself_as_the_parent() {
        let agent = SpiffeId::parse("spiffe://example.org/spire/agent/x").expect("valid");

        let read = answered(&masked(&sample(), Some(&AGENT_MASK)), &agent).expect("valid");

        assert_eq!(read.parent_id, agent);
        assert_eq!(read.selectors, sample().selectors);
        assert_eq!((read.x509_svid_ttl, read.dns_names.len()), (0, 0));
    }

    #[test]
    fn an_empty_mask_leaves_the_id() {
        let wire = masked(&sample(), Some(&types::EntryMask::default()));

        assert_eq!(wire, types::Entry { id: "e1".into(), ..Default::default() });
    }
}
