//! What an agent knows: its entries with their X.509-SVIDs, the bundles, and itself.
//!
//! [`AgentState`] is immutable and shared; `keep` is the one task that replaces it. What did not change
//! between two states is the same allocation in both, so that comparing costs a pointer. Entries that
//! are pushed to SVID stores are held too, but match no workload.

mod index;
mod keep;
mod packed;
mod svid;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use spiffe::x509::Certificate;
use spiffe::{Bundle, Entry, EntryId, SelectorSet, SpiffeId, TrustDomain, UnixSecs};

pub use index::EntryIndex;
pub use keep::{Change, Inbox, Keeper, Stopped};
pub use svid::{Issuers, RefusedSvid, X509Svid};

/// What an agent knows at one moment.
#[derive(Clone)]
pub struct AgentState {
    /// The agent itself.
    pub agent: Arc<AgentIdentity>,
    /// The entries the server lets it serve.
    pub entries: Arc<Entries>,
    /// The bundles it has.
    pub bundles: Arc<Bundles>,
    /// When it last heard from the server; `None` before the first time.
    pub synced_at: Option<UnixSecs>,
}

impl AgentState {
    /// An agent that was attested and knows nothing yet but its own bundle.
    #[must_use]
    pub fn new(agent: AgentIdentity, bundle: Bundle) -> Self {
        Self {
            agent: Arc::new(agent),
            entries: Arc::default(),
            bundles: Arc::new(Bundles::new(Arc::new(bundle), BTreeMap::new())),
            synced_at: None,
        }
    }

    /// An agent that knows what it knew at `synced_at`: entries, what was issued for them, and when
    /// they were last used.
    #[must_use]
    pub(crate) fn recalled(
        agent: AgentIdentity,
        bundles: Bundles,
        entries: Vec<(Arc<Entry>, Option<X509Svid>, UnixSecs)>,
        synced_at: UnixSecs,
    ) -> Self {
        let held = entries.into_iter().map(|(entry, svid, last_used)| {
            let held = Held { svid: svid.map(Arc::new), ..Held::new(entry) };
            held.touch(last_used);
            Arc::new(held)
        });
        let entries = Arc::new(Entries::filed(by_id(held)));
        Self { agent: Arc::new(agent), entries, bundles: Arc::new(bundles), synced_at: Some(synced_at) }
    }
}

/// The agent's own X.509-SVID.
#[derive(Clone, Debug)]
pub struct AgentIdentity {
    /// The agent's id.
    pub id: SpiffeId,
    /// Its chain, leaf first; never empty.
    pub chain: Arc<[Certificate]>,
    /// Whether it may attest again under this id.
    pub reattestable: bool,
}

impl AgentIdentity {
    /// The last second in which the leaf holds.
    #[must_use]
    pub fn expires_at(&self) -> UnixSecs {
        self.chain.first().map_or(UnixSecs(0), Certificate::not_after)
    }
}

/// The entries of an agent by id, and the index over their selectors.
#[derive(Clone, Default)]
pub struct Entries {
    /// In the order of their ids, each once.
    held: Box<[Arc<Held>]>,
    index: Arc<EntryIndex>,
}

/// Entries in the order of their ids. Of several with one id the last counts.
fn by_id(held: impl Iterator<Item = Arc<Held>>) -> Box<[Arc<Held>]> {
    let mut held: Vec<Arc<Held>> = held.collect();
    held.reverse();
    held.sort_by(|one, other| one.entry.id.cmp(&other.entry.id));
    held.dedup_by(|other, one| one.entry.id == other.entry.id);
    held.into()
}

impl Entries {
    /// These entries, those of SVID stores left out of the index: they are for no workload.
    fn filed(held: Box<[Arc<Held>]>) -> Self {
        let all = held.iter().map(|held| &*held.entry).enumerate();
        let index = Arc::new(EntryIndex::build(all.filter(|(_, entry)| !entry.store_svid)));
        Self { held, index }
    }

    /// The entry by this id.
    #[must_use]
    pub fn get(&self, id: &EntryId) -> Option<&Arc<Held>> {
        self.held.get(self.place(id)?)
    }

    fn place(&self, id: &EntryId) -> Option<usize> {
        self.held.binary_search_by(|held| held.entry.id.cmp(id)).ok()
    }

    fn get_mut(&mut self, id: &EntryId) -> Option<&mut Arc<Held>> {
        let place = self.place(id)?;
        self.held.get_mut(place)
    }

    /// All entries by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Held>> {
        self.held.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many of them have an X.509-SVID.
    #[must_use]
    pub fn svid_count(&self) -> usize {
        self.iter().filter(|held| held.svid.is_some()).count()
    }

    /// The entries of which a workload with these selectors has every one, by id.
    #[must_use]
    pub fn matching(&self, selectors: &SelectorSet) -> Vec<Arc<Held>> {
        let candidates = self.index.candidates(selectors).into_iter();
        candidates
            .filter_map(|place| self.held.get(place))
            .filter(|held| held.entry.selector_set.is_subset(selectors))
            .map(Arc::clone)
            .collect()
    }
}

/// An entry and what was issued for it.
#[derive(Clone)]
pub struct Held {
    /// The entry.
    pub entry: Arc<Entry>,
    /// The current X.509-SVID. It stays through changes of the entry until its successor is there, but
    /// not through a change of the id.
    pub svid: Option<Arc<X509Svid>>,
    /// The server would not sign for the entry as it is; asking goes on, but nobody should wait.
    pub refused: bool,
    last_used: Arc<AtomicI64>,
}

impl Held {
    fn new(entry: Arc<Entry>) -> Self {
        Self { entry, svid: None, refused: false, last_used: Arc::default() }
    }

    /// Whether an SVID will come that is not there yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.svid.is_none() && !self.refused
    }

    /// When a workload last asked for it; 0 = never.
    #[must_use]
    pub fn last_used(&self) -> UnixSecs {
        UnixSecs(self.last_used.load(Ordering::Relaxed))
    }

    /// A workload asks for it.
    pub(crate) fn touch(&self, now: UnixSecs) {
        self.last_used.store(now.0, Ordering::Relaxed);
    }
}

/// The bundles of an agent: its own trust domain's, and those its entries federate with.
#[derive(Clone, Debug)]
pub struct Bundles {
    /// The own one.
    pub own: Arc<Bundle>,
    /// Foreign ones.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// The X.509 authorities of the own one, parsed; those that cannot be are left out.
    pub anchors: Arc<[Certificate]>,
    /// The key ids of tainted X.509 authorities of the own one.
    pub tainted_keys: BTreeSet<[u8; 20]>,
    /// The key ids of all of them.
    pub keys: BTreeSet<[u8; 20]>,
}

impl Bundles {
    /// These bundles.
    #[must_use]
    pub fn new(own: Arc<Bundle>, federated: BTreeMap<TrustDomain, Arc<Bundle>>) -> Self {
        let mut anchors = Vec::new();
        let mut tainted_keys = BTreeSet::new();
        for authority in &own.x509_authorities {
            let certificates = match Certificate::parse_all(&authority.der) {
                Ok(certificates) => certificates,
                Err(error) => {
                    tracing::warn!(%error, "Ignoring an X.509 authority that cannot be parsed");
                    continue;
                }
            };
            if authority.tainted {
                tainted_keys.extend(certificates.iter().map(|certificate| certificate.public_key().key_id()));
            }
            anchors.extend(certificates);
        }
        let keys = anchors.iter().map(|anchor| anchor.public_key().key_id()).collect();
        Self { own, federated, anchors: anchors.into(), tainted_keys, keys }
    }

    /// The bundle of `trust_domain`.
    #[must_use]
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        if self.own.trust_domain == *trust_domain {
            Some(&self.own)
        } else {
            self.federated.get(trust_domain)
        }
    }
}
