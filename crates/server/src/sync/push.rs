//! What one agent has still to be told: from what it was told last to the snapshots of now. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use graph::{EntryGraph, Footprint, PAGE_SIZE, Token, View};
use prost::encoding::{WireType, encode_key, encode_varint, string};
use proto::raw::Encoded;
use spiffe::{EntryId, SpiffeId, TrustDomain};

use crate::keep::{BundleSet, KnownBundle};

/// `WatchResponse.full`, `.delta`, `.bundles`, `.token`
const FULL: u32 = 1;
const DELTA: u32 = 2;
const BUNDLES: u32 = 3;
const TOKEN: u32 = 4;
/// `Delta.removed` and `Bundles.removed`
const DELTA_REMOVED: u32 = 1;
const BUNDLES_REMOVED: u32 = 2;
/// `Bundles.bundles`
const BUNDLE: u32 = 1;
/// `Bundles.all`, set.
const ALL: [u8; 2] = [3 << 3, 1];
/// Bundles are told in messages of about this length.
const BUNDLES_LENGTH: usize = 1 << 20;

type Known = BTreeMap<TrustDomain, Arc<KnownBundle>>;

/// What an agent may know at one moment.
pub(crate) struct Now {
    view: View,
    bundles: Known,
}

/// What an agent was told. Nothing, to begin with.
#[derive(Default)]
pub(crate) struct Told {
    entries: Option<Footprint>,
    bundles: Option<Known>,
}

/// Tells an agent what it was not told yet, message by message.
pub(crate) struct Push {
    now: Now,
    token: Bytes,
    /// Messages `SyncAuthorizedEntriesResponse`, of which `Full` is the same.
    full: VecDeque<Encoded>,
    /// What the agent wants of the entries whose revisions it was told.
    wants: Wants,
    removed: VecDeque<EntryId>,
    set: VecDeque<EntryId>,
    bundles: VecDeque<Encoded>,
    is_over: bool,
}

enum Wants {
    /// It has them, or was told them whole.
    None,
    /// It still says so.
    Asking(Vec<EntryId>),
    /// They are on their way.
    Sending(VecDeque<EntryId>),
}

/// What a push needs to go on.
pub(crate) enum Next {
    /// This is to be sent.
    Send(Encoded),
    /// The agent is to say which entries it wants.
    Wait,
    /// Nothing: all was told, by the name of this token.
    Over(Bytes),
}

impl Now {
    /// What `agent` may know by these snapshots.
    pub(crate) fn of(graph: &EntryGraph, bundles: &BundleSet, agent: &SpiffeId) -> Self {
        let view = graph.view(agent);
        let mut known = Known::new();
        for name in std::iter::once(graph.trust_domain()).chain(view.federated()) {
            if let Some(bundle) = bundles.get(name) {
                known.insert(name.clone(), Arc::clone(bundle));
            }
        }
        Self { view, bundles: known }
    }

    /// Names it: the entries, then the bundles.
    fn token(&self) -> Bytes {
        [self.view.token(), named(&self.bundles)].map(Token::to_bytes).concat().into()
    }
}

fn named(bundles: &Known) -> Token {
    bundles.values().fold(Token::default(), |sum, bundle| sum.plus(bundle.digest()))
}

impl Told {
    /// What an agent holds that shows this token, as far as it is what there is `now`.
    pub(crate) fn resumed(token: &[u8], now: &Now) -> Self {
        let Some((entries, bundles)) = token.split_first_chunk::<16>() else { return Self::default() };
        let entries = Token::from_bytes(*entries) == now.view.token();
        let bundles = named(&now.bundles).to_bytes() == bundles;
        Self { entries: entries.then(|| now.view.footprint()), bundles: bundles.then(|| now.bundles.clone()) }
    }

    /// What is to be told `now`; `None` if that is nothing, unless the agent asked.
    pub(crate) fn push(&mut self, now: Now, is_asked: bool) -> Option<Push> {
        let mut push = Push {
            token: Bytes::new(),
            full: VecDeque::new(),
            wants: Wants::None,
            removed: VecDeque::new(),
            set: VecDeque::new(),
            bundles: self.bundles(&now.bundles),
            is_over: false,
            now,
        };
        let view = &push.now.view;
        match &self.entries {
            None if view.len() > PAGE_SIZE => {
                push.full = view.revision_pages().collect();
                push.wants = Wants::Asking(Vec::new());
            }
            None => push.full = view.entry_pages().collect(),
            Some(footprint) => {
                let delta = view.delta_since(footprint);
                push.removed = delta.removed.into();
                push.set = delta.set.iter().map(|entry| entry.id.clone()).collect();
            }
        }
        let has_news = !push.full.is_empty()
            || !push.removed.is_empty()
            || !push.set.is_empty()
            || !push.bundles.is_empty();
        if !has_news && !is_asked {
            return None;
        }
        push.token = push.now.token();
        self.entries = Some(push.now.view.footprint());
        self.bundles = Some(push.now.bundles.clone());
        Some(push)
    }

    /// Messages with the bundles that the agent does not know.
    fn bundles(&self, now: &Known) -> VecDeque<Encoded> {
        let known = |name: &TrustDomain| self.bundles.as_ref().and_then(|known| known.get(name));
        let is_news = |(name, bundle): &(&TrustDomain, &Arc<KnownBundle>)| {
            known(name).is_none_or(|known| !Arc::ptr_eq(known, bundle) && known.digest() != bundle.digest())
        };
        let mut messages = VecDeque::new();
        let mut message = Encoded::default();
        match &self.bundles {
            None => message.push(Bytes::from_static(&ALL)),
            Some(known) => {
                let gone = known.keys().filter(|name| !now.contains_key(*name));
                let gone: Vec<String> = gone.map(|name| name.as_str().to_owned()).collect();
                message.push(strings(BUNDLES_REMOVED, &gone));
            }
        }
        for (_, bundle) in now.iter().filter(is_news) {
            let bytes = bundle.encoded();
            if !message.is_empty() && message.len() + bytes.len() > BUNDLES_LENGTH {
                messages.push_back(std::mem::take(&mut message).nested(BUNDLES));
            }
            message.push(head(BUNDLE, bytes.len()));
            message.push(bytes.clone());
        }
        if !message.is_empty() {
            messages.push_back(message.nested(BUNDLES));
        }
        messages
    }
}

impl Push {
    /// What comes next.
    pub(crate) fn next(&mut self) -> Next {
        if let Some(page) = self.full.pop_front() {
            return Next::Send(page.nested(FULL));
        }
        match &mut self.wants {
            Wants::Asking(_) => return Next::Wait,
            Wants::Sending(ids) if !ids.is_empty() => {
                let page = ids.drain(..ids.len().min(PAGE_SIZE)).collect();
                return Next::Send(self.page(page).nested(FULL));
            }
            Wants::Sending(_) | Wants::None => {}
        }
        if !self.removed.is_empty() || !self.set.is_empty() {
            let gone: Vec<String> = self
                .removed
                .drain(..self.removed.len().min(PAGE_SIZE))
                .map(|id| id.as_str().to_owned())
                .collect();
            let set = self.set.drain(..self.set.len().min(PAGE_SIZE - gone.len())).collect();
            let mut delta = self.page(set);
            delta.push(strings(DELTA_REMOVED, &gone));
            return Next::Send(delta.nested(DELTA));
        }
        if let Some(bundles) = self.bundles.pop_front() {
            return Next::Send(bundles);
        }
        if !self.is_over {
            self.is_over = true;
            let mut last = Encoded::default();
            last.push(head(TOKEN, self.token.len()));
            last.push(self.token.clone());
            return Next::Send(last);
        }
        Next::Over(self.token.clone())
    }

    /// Whether it goes on by itself.
    pub(crate) fn is_ready(&self) -> bool {
        !self.full.is_empty() || !matches!(self.wants, Wants::Asking(_))
    }

    /// Takes what the agent wants; `more` says that it has not said everything yet.
    ///
    /// # Errors
    /// It was not asked, or wants more than there is.
    pub(crate) fn want(&mut self, ids: &[String], more: bool) -> Result<(), &'static str> {
        let Wants::Asking(wanted) = &mut self.wants else { return Err("nothing to be wanted") };
        if wanted.len() + ids.len() > self.now.view.len() {
            return Err("more entries are wanted than there are");
        }
        // Nothing is kept that there is not.
        let view = &self.now.view;
        wanted.extend(ids.iter().map(|id| EntryId::new(id)).filter(|id| view.entry(id).is_some()));
        if !more {
            self.wants = Wants::Sending(std::mem::take(wanted).into());
        }
        Ok(())
    }

    /// Some entries whole, at most a page of them.
    fn page(&self, ids: Vec<EntryId>) -> Encoded {
        self.now.view.requested_pages(ids).into_iter().next().unwrap_or_default()
    }
}

/// Says that the server is there.
pub(crate) fn heartbeat() -> Encoded {
    Encoded::default()
}

/// What comes before a field of so many bytes.
fn head(field: u32, length: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(8);
    encode_key(field, WireType::LengthDelimited, &mut bytes);
    encode_varint(length as u64, &mut bytes);
    bytes.into()
}

fn strings(field: u32, values: &[String]) -> Bytes {
    let mut bytes = Vec::with_capacity(string::encoded_len_repeated(field, values));
    string::encode_repeated(field, values, &mut bytes);
    bytes.into()
}

#[cfg(test)]
#[path = "push_tests.rs"]
pub(crate) mod tests;
