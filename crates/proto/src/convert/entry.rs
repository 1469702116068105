//! Registration entries: `spire.api.types.Entry`.

use std::sync::Arc;

use spiffe::entry::AdditionalAttributes;
use spiffe::{
    DnsName, DnsNameError, Entry, EntryId, IdError, Selector, SelectorSet, SpiffeId, Texts, TrustDomain,
    UnixSecs,
};

use super::id::{self, RequestIdError};
use super::selector::{self, SelectorError};
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

/// The entry a server answered. Where the mask left the parent out, it is `parent`. What it has in common with
/// those that were read with the same `texts` is held once.
///
/// # Errors
/// An id in it is missing or wrong.
pub fn answered(wire: &types::Entry, parent: &SpiffeId, texts: &mut Texts) -> Result<Entry, EntryError> {
    let id = EntryId::new(&wire.id);
    let Some(spiffe_id) = &wire.spiffe_id else { return Err(EntryError::NoSpiffeId(id)) };
    let spiffe_id = SpiffeId::try_from(spiffe_id).map_err(EntryError::SpiffeId)?;
    let parent_id = match &wire.parent_id {
        Some(parent) => SpiffeId::try_from(parent).map_err(EntryError::ParentId)?,
        None => parent.clone(),
    };
    // Taken as they are: what the server once accepted, the agent must not drop.
    let selectors: Arc<[Selector]> =
        wire.selectors.iter().map(|selector| texts.selector(&selector.r#type, &selector.value)).collect();
    // Most have none, and share it.
    let federates_with = match wire.federates_with.as_slice() {
        [] => Arc::default(),
        names => {
            let parsed = names.iter().map(|name| TrustDomain::parse(name));
            parsed.collect::<Result<_, _>>().map_err(EntryError::FederatesWith)?
        }
    };
    let dns_names = match wire.dns_names.as_slice() {
        [] => Arc::default(),
        names => names.into(),
    };
    Ok(Entry {
        id,
        spiffe_id,
        parent_id,
        selector_set: SelectorSet::of(&selectors),
        selectors,
        x509_svid_ttl: wire.x509_svid_ttl,
        jwt_svid_ttl: wire.jwt_svid_ttl,
        federates_with,
        admin: wire.admin,
        downstream: wire.downstream,
        expires_at: UnixSecs(wire.expires_at),
        dns_names,
        revision_number: wire.revision_number,
        store_svid: wire.store_svid,
        hint: wire.hint.clone(),
        created_at: UnixSecs(wire.created_at),
        additional_attributes: wire.additional_attributes.as_ref().map(Into::into),
    })
}

/// An entry as a request describes it. A field that the request's mask leaves out is empty, and the
/// two ids are absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedEntry {
    /// The client's own id for it, or which one it updates; may be empty.
    pub id: EntryId,
    /// A workload's id in the server's trust domain.
    pub spiffe_id: Option<SpiffeId>,
    /// An id with a path in the server's trust domain.
    pub parent_id: Option<SpiffeId>,
    /// At least one unless masked out, in the order of the request.
    pub selectors: Vec<Selector>,
    /// Seconds; 0 = the server's default.
    pub x509_svid_ttl: i32,
    /// Seconds; 0 = the server's default.
    pub jwt_svid_ttl: i32,
    /// In the order of the request.
    pub federates_with: Vec<TrustDomain>,
    /// May call the server API as an administrator.
    pub admin: bool,
    /// May ask for a downstream CA.
    pub downstream: bool,
    /// 0 = never.
    pub expires_at: UnixSecs,
    /// In the order of the request.
    pub dns_names: Vec<DnsName>,
    /// Pushed to an SVID store.
    pub store_svid: bool,
    /// May be empty.
    pub hint: String,
    /// Present only if the client set it.
    pub additional_attributes: Option<AdditionalAttributes>,
}

/// Why the entry of a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestedEntryError {
    /// The message is absent.
    #[error("missing entry")]
    Missing,
    /// The parent ID is wrong.
    #[error("invalid parent ID: {0}")]
    ParentId(RequestIdError),
    /// The SPIFFE ID is wrong.
    #[error("invalid spiffe ID: {0}")]
    SpiffeId(RequestIdError),
    /// A DNS name is wrong.
    #[error("invalid DNS name: {0}")]
    DnsName(DnsNameError),
    /// It federates with something that is no trust domain.
    #[error("invalid federated trust domain: {0}")]
    FederatesWith(IdError),
    /// It has no selectors.
    #[error("selector list is empty")]
    NoSelectors,
    /// A selector is incomplete.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// Its hint is too long.
    #[error("hint is too long, max length is {HINT_MOST} characters")]
    Hint,
}

/// The longest hint, in bytes.
const HINT_MOST: usize = 1024;

/// The entry of a request. Without a mask all of it counts.
///
/// # Errors
/// It is absent or a field that counts is wrong; the first wrong one is named.
pub fn requested(
    trust_domain: &TrustDomain,
    wire: Option<&types::Entry>,
    mask: Option<&types::EntryMask>,
) -> Result<RequestedEntry, RequestedEntryError> {
    let wire = wire.ok_or(RequestedEntryError::Missing)?;
    let counts = |field: fn(&types::EntryMask) -> bool| mask.is_none_or(field);

    let mut entry = RequestedEntry {
        id: EntryId::new(&wire.id),
        spiffe_id: None,
        parent_id: None,
        selectors: Vec::new(),
        x509_svid_ttl: if counts(|mask| mask.x509_svid_ttl) { wire.x509_svid_ttl } else { 0 },
        jwt_svid_ttl: if counts(|mask| mask.jwt_svid_ttl) { wire.jwt_svid_ttl } else { 0 },
        federates_with: Vec::new(),
        admin: wire.admin && counts(|mask| mask.admin),
        downstream: wire.downstream && counts(|mask| mask.downstream),
        expires_at: UnixSecs(if counts(|mask| mask.expires_at) { wire.expires_at } else { 0 }),
        dns_names: Vec::new(),
        store_svid: wire.store_svid && counts(|mask| mask.store_svid),
        hint: String::new(),
        additional_attributes: None,
    };
    if counts(|mask| mask.parent_id) {
        let parent = id::member(trust_domain, wire.parent_id.as_ref()).and_then(id::issuable);
        entry.parent_id = Some(parent.map_err(RequestedEntryError::ParentId)?);
    }
    if counts(|mask| mask.spiffe_id) {
        let spiffe_id = id::workload(trust_domain, wire.spiffe_id.as_ref()).and_then(id::issuable);
        entry.spiffe_id = Some(spiffe_id.map_err(RequestedEntryError::SpiffeId)?);
    }
    if counts(|mask| mask.dns_names) {
        let names = wire.dns_names.iter().map(|name| DnsName::parse(name));
        entry.dns_names = names.collect::<Result<_, _>>().map_err(RequestedEntryError::DnsName)?;
    }
    if counts(|mask| mask.federates_with) {
        let names = wire.federates_with.iter().map(|name| TrustDomain::parse(name));
        entry.federates_with = names.collect::<Result<_, _>>().map_err(RequestedEntryError::FederatesWith)?;
    }
    if counts(|mask| mask.selectors) {
        if wire.selectors.is_empty() {
            return Err(RequestedEntryError::NoSelectors);
        }
        entry.selectors = selector::all(&wire.selectors)?;
    }
    if counts(|mask| mask.hint) {
        if wire.hint.len() > HINT_MOST {
            return Err(RequestedEntryError::Hint);
        }
        entry.hint.clone_from(&wire.hint);
    }
    if counts(|mask| mask.additional_attributes) {
        entry.additional_attributes = wire.additional_attributes.as_ref().map(Into::into);
    }
    Ok(entry)
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

        let read = answered(&types::Entry::from(&sample()), &elsewhere, &mut Texts::default());

        assert_eq!(read, Ok(sample()));
    }

    #[test]
    fn an_agent_sees_itself_as_the_parent() {
        let agent = SpiffeId::parse("spiffe://example.org/spire/agent/x").expect("valid");

        let read =
            answered(&masked(&sample(), Some(&AGENT_MASK)), &agent, &mut Texts::default()).expect("valid");

        assert_eq!(read.parent_id, agent);
        assert_eq!(read.selectors, sample().selectors);
        assert_eq!((read.x509_svid_ttl, read.dns_names.len()), (0, 0));
    }

    #[test]
    fn an_empty_mask_leaves_the_id() {
        let wire = masked(&sample(), Some(&types::EntryMask::default()));

        assert_eq!(wire, types::Entry { id: "e1".into(), ..Default::default() });
    }

    fn refusal(change: fn(&mut types::Entry)) -> String {
        let own = TrustDomain::parse("example.org").expect("valid");
        let mut wire = types::Entry::from(&sample());
        change(&mut wire);
        requested(&own, Some(&wire), None).expect_err("refused").to_string()
    }

    #[test]
    fn refusals_are_in_the_words_of_the_api() {
        assert_eq!(
            refusal(|wire| wire.parent_id = None),
            "invalid parent ID: request must specify SPIFFE ID"
        );
        assert_eq!(
            refusal(|wire| wire.spiffe_id = Some(types::Spiffeid::default())),
            "invalid spiffe ID: trust domain is missing"
        );
        assert_eq!(
            refusal(|wire| wire.dns_names = vec!["*".into()]),
            "invalid DNS name: wildcard must be first label"
        );
        assert_eq!(
            refusal(|wire| wire.federates_with = vec![String::new()]),
            "invalid federated trust domain: trust domain is missing"
        );
        assert_eq!(refusal(|wire| wire.selectors.clear()), "selector list is empty");
        assert_eq!(refusal(|wire| wire.selectors[0].value.clear()), "missing selector value");
        assert_eq!(
            refusal(|wire| wire.hint = "x".repeat(1025)),
            "hint is too long, max length is 1024 characters"
        );
    }

    #[test]
    fn fields_outside_the_mask_do_not_count() {
        let own = TrustDomain::parse("example.org").expect("valid");
        let wire = types::Entry { id: "e1".into(), admin: true, hint: "h".into(), ..Default::default() };
        let mask = types::EntryMask { hint: true, ..Default::default() };

        let read = requested(&own, Some(&wire), Some(&mask)).expect("valid");

        assert_eq!((read.hint.as_str(), read.admin, read.spiffe_id), ("h", false, None));
    }
}
