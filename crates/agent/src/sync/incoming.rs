//! What a server pushes, gathered until it is whole. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proto::finial::sync::WatchResponse;
use proto::finial::sync::watch_response::What;
use proto::spire::server::entry::EntryRevision;
use proto::spire::types;
use spiffe::{Bundle, Entry, EntryId, TrustDomain};
use tonic::Status;

use super::entries::Merge;
use super::{Outcome, read, read_own};
use crate::state::AgentState;

/// A push so far.
#[derive(Default)]
pub(super) struct Incoming {
    entries: Option<What>,
    revisions: Vec<EntryRevision>,
    whole: Vec<types::Entry>,
    removed: Vec<String>,
    bundles: Vec<types::Bundle>,
    bundles_removed: Vec<String>,
    are_all: bool,
    has_bundles: bool,
}

/// What a message leads to.
pub(super) enum Step {
    /// Nothing yet.
    More,
    /// These entries are to be asked for; there may be none.
    Want(Vec<String>),
    /// The push is whole.
    Over {
        /// What there is now; `None` if nothing changed.
        outcome: Option<Outcome>,
        /// Its name.
        token: Bytes,
    },
}

impl Incoming {
    /// Takes a message, after those that `state` shows already.
    ///
    /// # Errors
    /// The server says what makes no sense.
    pub(super) fn take(&mut self, message: WatchResponse, state: &AgentState) -> Result<Step, Status> {
        let WatchResponse { what, token } = message;
        let mut want = None;
        match what {
            Some(What::Full(mut full)) => {
                if matches!(self.entries, Some(What::Delta(_))) {
                    return Err(Status::internal("unexpected entries in a push of changes"));
                }
                let is_last = !full.entry_revisions.is_empty() && !full.more;
                self.revisions.append(&mut full.entry_revisions);
                self.whole.append(&mut full.entries);
                self.entries = Some(What::Full(full));
                if is_last {
                    let mut merge = Merge::new(&state.entries, &state.agent.id);
                    merge.revisions(&self.revisions);
                    want = Some(merge.wanted());
                }
            }
            Some(What::Delta(mut delta)) => {
                if matches!(self.entries, Some(What::Full(_))) {
                    return Err(Status::internal("unexpected changes in a push of all entries"));
                }
                self.removed.append(&mut delta.removed);
                self.whole.append(&mut delta.entries);
                self.entries = Some(What::Delta(delta));
            }
            Some(What::Bundles(mut bundles)) => {
                self.has_bundles = true;
                self.are_all |= bundles.all;
                self.bundles.append(&mut bundles.bundles);
                self.bundles_removed.append(&mut bundles.removed);
            }
            // A sign of life, the end of a push, or something of a later version.
            None => {}
        }
        if let Some(ids) = want {
            return Ok(Step::Want(ids));
        }
        if token.is_empty() {
            return Ok(Step::More);
        }
        let gathered = std::mem::take(self);
        Ok(Step::Over { outcome: gathered.finish(state), token })
    }

    fn finish(self, state: &AgentState) -> Option<Outcome> {
        if self.entries.is_none() && !self.has_bundles {
            return None;
        }
        let (own, federated) = self.bundles(state);
        let mut merge = Merge::new(&state.entries, &state.agent.id);
        match self.entries {
            Some(What::Full(_)) => {
                merge.revisions(&self.revisions);
                merge.entries(&self.whole);
            }
            Some(What::Delta(_) | What::Bundles(_)) | None => {
                let set = self.whole.iter().map(|entry| &entry.id);
                merge.keep_but(self.removed.iter().chain(set).map(|id| EntryId::new(id)));
                merge.entries(&self.whole);
            }
        }
        let entries: Vec<Arc<Entry>> = merge.finish();
        Some(Outcome { entries, own, federated })
    }

    fn bundles(&self, state: &AgentState) -> (Option<Bundle>, Vec<Bundle>) {
        let name = &state.bundles.own.trust_domain;
        let mut own = None;
        let mut federated: BTreeMap<TrustDomain, Bundle> = if self.are_all {
            BTreeMap::new()
        } else {
            let known = state.bundles.federated.iter();
            known.map(|(name, bundle)| (name.clone(), Bundle::clone(bundle))).collect()
        };
        for gone in self.bundles_removed.iter().filter_map(|name| TrustDomain::parse(name).ok()) {
            federated.remove(&gone);
        }
        for wire in &self.bundles {
            let Ok(of) = TrustDomain::parse(&wire.trust_domain) else { continue };
            if of == *name {
                own = read_own(wire, name);
                continue;
            }
            match read(wire, &of) {
                Some(bundle) => _ = federated.insert(of, bundle),
                None => _ = federated.remove(&of),
            }
        }
        (own, federated.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use proto::convert::entry::{AGENT_MASK, masked};
    use proto::finial::sync::watch_response::{Bundles, Delta, Full};
    use spiffe::UnixSecs;

    use super::*;
    use crate::fixtures;
    use crate::state::Change;

    fn wire(id: &str, revision_number: i64) -> types::Entry {
        let entry = Entry { revision_number, ..fixtures::entry(id, &format!("/{id}"), &["uid:1"]) };
        masked(&entry, Some(&AGENT_MASK))
    }

    fn bundle(name: &str, sequence_number: u64) -> types::Bundle {
        let mut bundle = types::Bundle::from(&Bundle::empty(TrustDomain::parse(name).unwrap()));
        bundle.sequence_number = sequence_number;
        bundle
    }

    fn message(what: What) -> WatchResponse {
        WatchResponse { what: Some(what), token: Bytes::new() }
    }

    fn end() -> WatchResponse {
        WatchResponse { what: None, token: Bytes::from_static(b"t") }
    }

    /// The state after a push of these messages, and what was asked for meanwhile.
    fn pushed(state: &AgentState, messages: Vec<WatchResponse>) -> (AgentState, Vec<String>) {
        let (mut incoming, mut wanted) = (Incoming::default(), Vec::new());
        for message in messages {
            match incoming.take(message, state).unwrap() {
                Step::More => {}
                Step::Want(ids) => wanted = ids,
                Step::Over { outcome, .. } => {
                    let Some(Outcome { entries, own, federated }) = outcome else {
                        return (state.clone(), wanted);
                    };
                    let change = Change::Synced { entries, own, federated, at: UnixSecs(1) };
                    return (state.apply(change), wanted);
                }
            }
        }
        panic!("the push has no end");
    }

    fn revisions(state: &AgentState) -> Vec<(&str, i64)> {
        state.entries.iter().map(|held| (held.entry.id.as_str(), held.entry.revision_number)).collect()
    }

    #[test]
    fn changes_are_applied_to_what_is_known() {
        let full = Full { entries: vec![wire("a", 0), wire("b", 0), wire("c", 0)], ..Full::default() };
        let all = Bundles { bundles: vec![bundle("one.org", 1)], all: true, ..Bundles::default() };
        let first = vec![message(What::Full(full)), message(What::Bundles(all)), end()];
        let (state, _) = pushed(&fixtures::state(), first);
        assert_eq!(revisions(&state), [("a", 0), ("b", 0), ("c", 0)]);

        let delta =
            Delta { removed: vec!["a".to_owned()], entries: vec![wire("b", 1), wire("d", 0)], more: false };
        let bundles = Bundles { bundles: vec![bundle("two.org", 1)], ..Bundles::default() };
        let second = vec![message(What::Delta(delta)), message(What::Bundles(bundles)), end()];
        let (next, _) = pushed(&state, second);
        assert_eq!(revisions(&next), [("b", 1), ("c", 0), ("d", 0)]);
        assert_eq!(next.bundles.federated.len(), 2);

        let gone = Bundles { removed: vec!["one.org".to_owned()], ..Bundles::default() };
        let (last, _) = pushed(&next, vec![message(What::Bundles(gone)), end()]);
        assert!(Arc::ptr_eq(&last.entries, &next.entries));
        assert_eq!(last.bundles.federated.keys().map(TrustDomain::as_str).collect::<Vec<_>>(), ["two.org"]);

        let (same, _) = pushed(&last, vec![end()]);
        assert!(Arc::ptr_eq(&same.entries, &last.entries) && Arc::ptr_eq(&same.bundles, &last.bundles));
    }

    #[test]
    fn of_many_entries_only_what_is_not_known_is_wanted() {
        let full = Full { entries: vec![wire("a", 0), wire("b", 0), wire("c", 0)], ..Full::default() };
        let (state, _) = pushed(&fixtures::state(), vec![message(What::Full(full)), end()]);
        let page = |entries: &[types::Entry], more| {
            let revision = |entry: &types::Entry| EntryRevision {
                id: entry.id.clone(),
                revision_number: entry.revision_number,
                created_at: entry.created_at,
            };
            let entry_revisions = entries.iter().map(revision).collect();
            message(What::Full(Full { entry_revisions, more, ..Full::default() }))
        };

        let (next, wanted) = pushed(
            &state,
            vec![
                page(&[wire("a", 0), wire("b", 1)], true),
                page(&[wire("d", 0)], false),
                message(What::Full(Full { entries: vec![wire("b", 1), wire("d", 0)], ..Full::default() })),
                end(),
            ],
        );

        assert_eq!(wanted, ["b", "d"]);
        assert_eq!(revisions(&next), [("a", 0), ("b", 1), ("d", 0)]);
    }

    #[test]
    fn a_push_cannot_be_both() {
        let mut incoming = Incoming::default();
        let state = fixtures::state();
        incoming.take(message(What::Full(Full::default())), &state).unwrap();
        assert!(incoming.take(message(What::Delta(Delta::default())), &state).is_err());
    }
}
