//! The graph itself: one version of all entries and agents.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use spiffe::{Entry, EntryId, SelectorSet, SpiffeId, TrustDomain};

use crate::affected::{Affected, Touched};
use crate::agents::{AgentRecord, Agents};
use crate::batch::{Change, ChangeBatch};
use crate::bucket::{Bucket, Filling};
use crate::index::{Hashes, Index};
use crate::page::Slot;
use crate::token::{Digests, Token};
use crate::tree::Tree;
use crate::view::View;

/// Parent of alias entries, which stand for the agents that have their selectors.
const SERVER_PATH: &str = "/spire/server";

/// All entries and agents at one moment. A clone is one reference count.
#[derive(Clone)]
pub struct EntryGraph(Arc<Version>);

/// What a version holds; most of it shared with the one before.
#[derive(Clone)]
pub(crate) struct Version {
    trust_domain: TrustDomain,
    hashes: Hashes,
    /// By row: the order of lists.
    entries: Tree<i64, Arc<Entry>>,
    by_id: Index,
    by_spiffe_id: Index,
    by_parent: Index,
    by_federated: Index,
    buckets: Tree<Place, Arc<Bucket>>,
    /// Alias entries, each under one of its selectors: an agent that matches has that one too.
    aliases: Index,
    agents: Agents,
    /// The sum of all revisions, going round where it does not fit.
    revisions: i64,
}

/// Where a bucket is. The hash comes first, so that few comparisons look at a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    hash: u64,
    path: Arc<str>,
}

/// What tells a graph from one of other rows without comparing them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// How many entries there are.
    pub entries: i64,
    /// The last row.
    pub last_row: i64,
    /// The sum of all revisions.
    pub revisions: i64,
    /// How many agents there are.
    pub agents: i64,
}

/// How much a graph holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// All entries, alias entries and those nobody is authorised for included.
    pub entries: usize,
    /// Alias entries.
    pub aliases: usize,
    /// Agents.
    pub agents: usize,
    /// Parents of entries that agents may see.
    pub parents: usize,
}

impl EntryGraph {
    /// The empty graph of a trust domain.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self(Arc::new(Version {
            trust_domain,
            hashes: Hashes::default(),
            entries: Tree::default(),
            by_id: Index::default(),
            by_spiffe_id: Index::default(),
            by_parent: Index::default(),
            by_federated: Index::default(),
            buckets: Tree::default(),
            aliases: Index::default(),
            agents: Agents::default(),
            revisions: 0,
        }))
    }

    /// Builds a graph in one go, much faster than change by change.
    ///
    /// Entries come with their rows, best in ascending order. Of several with the same row the last
    /// counts, of several with the same id the one with the highest row.
    #[must_use]
    pub fn load(
        trust_domain: TrustDomain,
        entries: impl IntoIterator<Item = (i64, Arc<Entry>)>,
        agents: impl IntoIterator<Item = Arc<AgentRecord>>,
    ) -> Self {
        let mut version = Arc::unwrap_or_clone(Self::new(trust_domain).0);
        version.agents = Agents::build(&version.hashes, agents);
        version.load(sorted(entries));
        Self(Arc::new(version))
    }

    /// The next version, and the agents that see something else in it.
    ///
    /// An entry that is older than what its row holds (a lower revision), or whose id a higher row
    /// holds, is dropped: rows that were read before a change and arrive after it. The graph cannot
    /// tell a deleted entry that was read before from a new one; whoever reads rows must drop those.
    #[must_use]
    pub fn apply(&self, batch: &ChangeBatch) -> (Self, Affected) {
        let mut edit = self.edit();
        for change in batch {
            edit.change(change);
        }
        edit.finish()
    }

    /// The same change by change: between two of a large batch others can have the processor.
    #[must_use]
    pub fn edit(&self) -> Edit {
        Edit { before: self.clone(), next: Version::clone(&self.0), noted: Noted::default() }
    }

    /// What turns this graph into one of these rows: empty, unless changes got lost.
    #[must_use]
    pub fn difference(
        &self,
        entries: impl IntoIterator<Item = (i64, Arc<Entry>)>,
        agents: impl IntoIterator<Item = Arc<AgentRecord>>,
    ) -> ChangeBatch {
        let rows = sorted(entries);
        let rows: HashMap<i64, Arc<Entry>> = without_older(&rows).unwrap_or(rows).into_iter().collect();
        let differs = |row: i64, held: &Arc<Entry>| rows.get(&row) != Some(held);
        // Deleted first: a set of an older revision, or of an id that a higher row holds, is dropped.
        let mut batch: ChangeBatch = self
            .entries_from(i64::MIN)
            .filter(|(row, held)| differs(*row, held))
            .map(|(row_id, _)| Change::EntryDeleted { row_id })
            .collect();
        for (row_id, entry) in rows {
            if self.0.row(row_id) != Some(&entry) {
                batch.push(Change::EntrySet { row_id, entry });
            }
        }
        let mut ids = HashSet::new();
        for record in agents {
            ids.insert(record.id.clone());
            if self.agent(&record.id) != Some(&record) {
                batch.push(Change::AgentSet(record));
            }
        }
        let gone = self.agents().filter(|record| !ids.contains(&record.id));
        batch.extend(gone.map(|record| Change::AgentDeleted(record.id.clone())));
        batch
    }

    /// What an agent is authorised for. One that is not known (yet) sees the entries below its own
    /// id, one of a foreign trust domain nothing.
    #[must_use]
    pub fn view(&self, agent: &SpiffeId) -> View {
        View::of(self, agent)
    }

    /// Those of some entries that an agent is authorised for, in the order of `ids`.
    #[must_use]
    pub fn pick(&self, agent: &SpiffeId, ids: &[EntryId]) -> Vec<Arc<Entry>> {
        let view = self.view(agent);
        ids.iter().filter_map(|id| view.entry(id)).cloned().collect()
    }

    /// One agent.
    #[must_use]
    pub fn agent(&self, id: &SpiffeId) -> Option<&Arc<AgentRecord>> {
        self.0.agent(id)
    }

    /// All agents, in no order that means anything.
    pub fn agents(&self) -> impl Iterator<Item = &Arc<AgentRecord>> {
        self.0.agents.iter().map(|known| &known.record)
    }

    /// One entry.
    #[must_use]
    pub fn entry(&self, id: &EntryId) -> Option<&Arc<Entry>> {
        self.0.entry(id).map(|(_, entry)| entry)
    }

    /// The row of an entry.
    #[must_use]
    pub fn row_of(&self, id: &EntryId) -> Option<i64> {
        self.0.entry(id).map(|(row, _)| row)
    }

    /// The entries from a row on, with their rows, in that order.
    pub fn entries_from(&self, row: i64) -> impl Iterator<Item = (i64, &Arc<Entry>)> {
        self.0.entries.from(move |held| held.cmp(&row)).map(|(row, entry)| (*row, entry))
    }

    /// The entries that give an identity, in order of their rows.
    pub fn entries_of(&self, spiffe_id: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.0.giving(spiffe_id)
    }

    /// The entries of a parent with their rows, in that order.
    pub fn entries_below(&self, parent: &SpiffeId) -> impl Iterator<Item = (i64, &Arc<Entry>)> {
        let rows = self.0.by_parent.rows(self.0.hashes.of(parent.as_str()));
        self.0.entries_at(rows).filter(move |(_, entry)| entry.parent_id == *parent)
    }

    /// The entries that federate with a trust domain, with their rows, in that order.
    pub fn entries_federating(&self, trust_domain: &TrustDomain) -> impl Iterator<Item = (i64, &Arc<Entry>)> {
        self.0.federating(trust_domain)
    }

    /// The agents that have entries which federate with a trust domain: whom its bundle concerns.
    #[must_use]
    pub fn affected_by_bundle(&self, trust_domain: &TrustDomain) -> Affected {
        let entries = self.0.federating(trust_domain).map(|(_, entry)| entry);
        let visible = entries.filter(|entry| self.0.is_visible(entry));
        let parents = visible.map(|entry| entry.parent_id.clone()).collect();
        let touched = Touched { versions: vec![self.clone()], parents, aliases: Vec::new() };
        Affected::new(touched, HashSet::new(), HashSet::new())
    }

    /// The trust domain whose agents these are.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// How much it holds.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            entries: self.0.entries.len(),
            aliases: self.0.aliases.len(),
            agents: self.0.agents.len(),
            parents: self.0.buckets.len(),
        }
    }

    /// What tells it from a graph of other rows.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        Fingerprint {
            entries: count(self.0.entries.len()),
            last_row: self.0.entries.at_most(|_| Ordering::Less).map_or(0, |(row, _)| *row),
            revisions: self.0.revisions,
            agents: count(self.0.agents.len()),
        }
    }

    /// What it holds, for the other modules.
    pub(crate) fn version(&self) -> &Version {
        &self.0
    }
}

impl fmt::Debug for EntryGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryGraph({}: {:?})", self.0.trust_domain, self.counts())
    }
}

/// The next version of a graph while it is made, which nobody else sees.
pub struct Edit {
    before: EntryGraph,
    next: Version,
    noted: Noted,
}

impl Edit {
    /// Makes one change.
    pub fn change(&mut self, change: &Change) {
        let Self { next, noted, .. } = self;
        match change {
            Change::EntrySet { row_id, entry } => next.set_entry(*row_id, entry, noted),
            Change::EntryDeleted { row_id } => next.remove_entry(*row_id, noted),
            Change::EntryGone(id) => {
                if let Some((row, _)) = next.entry(id) {
                    next.remove_entry(row, noted);
                }
            }
            Change::AgentSet(record) => next.set_agent(record, noted),
            Change::AgentDeleted(id) => next.remove_agent(id, noted),
        }
    }

    /// The version, and the agents that see something else in it.
    #[must_use]
    pub fn finish(self) -> (EntryGraph, Affected) {
        let Self { before, next, mut noted } = self;
        if !noted.any {
            return (before, Affected::default());
        }
        let next = EntryGraph(Arc::new(next));
        noted.touched.versions = vec![before, next.clone()];
        (next, Affected::new(noted.touched, noted.rematched, noted.records))
    }
}

/// What a batch did.
#[derive(Default)]
struct Noted {
    any: bool,
    touched: Touched,
    /// Agents whose record changed.
    records: HashSet<SpiffeId>,
    /// Those of them whose selectors changed.
    rematched: HashSet<SpiffeId>,
}

impl Version {
    /// One entry and its row.
    pub(crate) fn entry(&self, id: &EntryId) -> Option<(i64, &Arc<Entry>)> {
        let rows = self.by_id.rows(self.hashes.of(id.as_str()));
        self.entries_at(rows).find(|(_, entry)| entry.id == *id)
    }

    /// The entries that give an identity.
    pub(crate) fn giving(&self, spiffe_id: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        let rows = self.by_spiffe_id.rows(self.hashes.of(spiffe_id.as_str()));
        self.entries_at(rows).map(|(_, entry)| entry).filter(move |entry| entry.spiffe_id == *spiffe_id)
    }

    /// One agent.
    pub(crate) fn agent(&self, id: &SpiffeId) -> Option<&Arc<AgentRecord>> {
        self.agents.get(&self.hashes, id).map(|known| &known.record)
    }

    /// The agents that have all of these selectors.
    pub(crate) fn agents_having(&self, selectors: &SelectorSet) -> impl Iterator<Item = &SpiffeId> {
        self.agents.having(&self.hashes, selectors).map(|known| &known.record.id)
    }

    /// The bucket of a path.
    pub(crate) fn bucket(&self, path: &str) -> Option<&Arc<Bucket>> {
        let hash = self.hashes.of(path);
        self.buckets.get(|held| held.hash.cmp(&hash).then_with(|| (*held.path).cmp(path)))
    }

    /// The alias entries whose selectors an agent has.
    pub(crate) fn aliases_of(&self, agent: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        let selectors = self.agents.get(&self.hashes, agent).map(|known| &known.selectors);
        selectors.into_iter().flat_map(move |selectors| {
            selectors
                .iter()
                .flat_map(|selector| self.aliases.rows(self.hashes.of_selector(selector)))
                .filter_map(|row| self.row(row))
                .filter(|alias| alias.selector_set.is_subset(selectors))
        })
    }

    /// Whether an agent may be authorised for an entry: not for alias entries, nor for those that
    /// name a foreign trust domain.
    pub(crate) fn is_visible(&self, entry: &Entry) -> bool {
        self.is_member(entry) && entry.parent_id.path() != SERVER_PATH
    }

    /// Whether an entry stands for the agents that have its selectors.
    pub(crate) fn is_alias(&self, entry: &Entry) -> bool {
        self.is_member(entry) && entry.parent_id.path() == SERVER_PATH
    }

    pub(crate) const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    fn is_member(&self, entry: &Entry) -> bool {
        entry.parent_id.is_member_of(&self.trust_domain) && entry.spiffe_id.is_member_of(&self.trust_domain)
    }

    fn row(&self, row: i64) -> Option<&Arc<Entry>> {
        self.entries.get(|held| held.cmp(&row))
    }

    fn entries_at<'a>(
        &'a self,
        rows: impl Iterator<Item = i64> + 'a,
    ) -> impl Iterator<Item = (i64, &'a Arc<Entry>)> {
        rows.filter_map(|row| Some((row, self.row(row)?)))
    }

    fn federating(&self, trust_domain: &TrustDomain) -> impl Iterator<Item = (i64, &Arc<Entry>)> {
        let rows = self.by_federated.rows(self.hashes.of(trust_domain.as_str()));
        self.entries_at(rows).filter(move |(_, entry)| entry.federates_with.contains(trust_domain))
    }

    /// Takes in all entries, in order of their rows. They are looked at once, as far as that can be: a million
    /// are more than a processor's caches hold.
    fn load(&mut self, entries: Vec<(i64, Arc<Entry>)>) {
        let [mut by_id, mut by_spiffe_id, mut by_parent] =
            [(); 3].map(|()| Vec::with_capacity(entries.len()));
        let (mut by_federated, mut aliases) = (Vec::new(), Vec::new());
        let mut buckets: HashMap<Arc<str>, Filling> = HashMap::new();
        let (mut digests, mut revisions) = (Digests::default(), 0_i64);
        for (row, entry) in &entries {
            by_id.push((self.hashes.of(entry.id.as_str()), *row));
            by_spiffe_id.push((self.hashes.of(entry.spiffe_id.as_str()), *row));
            by_parent.push((self.hashes.of(entry.parent_id.as_str()), *row));
            by_federated
                .extend(entry.federates_with.iter().map(|other| (self.hashes.of(other.as_str()), *row)));
            revisions = revisions.wrapping_add(entry.revision_number);
            if self.is_visible(entry) {
                let slot = Slot { row: *row, entry: Arc::clone(entry), digest: digests.of(entry) };
                match buckets.get_mut(entry.parent_id.path()) {
                    Some(filling) => filling.push(slot),
                    None => {
                        let path: Arc<str> = entry.parent_id.path().into();
                        buckets.entry(Arc::clone(&path)).or_insert_with(|| Filling::new(path)).push(slot);
                    }
                }
            } else if self.is_alias(entry) {
                aliases.push((*row, entry));
            }
        }
        by_id.sort_unstable();
        // Two of one hash are likely to be of one id, which only their texts can tell.
        if by_id.windows(2).any(|pair| matches!(pair, [one, next] if one.0 == next.0))
            && let Some(entries) = without_older(&entries)
        {
            return self.load(entries);
        }
        for (row, entry) in aliases {
            self.file_alias(row, entry);
        }
        self.revisions = revisions;
        self.by_id = Index::build(by_id);
        self.by_spiffe_id = Index::build(by_spiffe_id);
        self.by_parent = Index::build(by_parent);
        self.by_federated = Index::build(by_federated);
        self.entries = Tree::from_sorted(entries);
        self.buckets = self.placed(buckets);
    }

    /// Buckets by the path of their parent, each with those right below it.
    fn placed(&self, buckets: HashMap<Arc<str>, Filling>) -> Tree<Place, Arc<Bucket>> {
        let mut children: HashMap<Arc<str>, Vec<(Arc<str>, i64)>> = HashMap::new();
        for path in buckets.keys() {
            // Few identities are parents: these are looked for among the entries, not the other way round.
            let Ok(parent) = self.trust_domain.id_with_path(path) else { continue };
            let rows = self.by_spiffe_id.rows(self.hashes.of(parent.as_str()));
            for (row, entry) in self.entries_at(rows).filter(|(_, entry)| entry.spiffe_id == parent) {
                if self.is_visible(entry)
                    && let Some((above, _)) = buckets.get_key_value(entry.parent_id.path())
                {
                    children.entry(Arc::clone(above)).or_default().push((Arc::clone(path), row));
                }
            }
        }
        let mut placed: Vec<(Place, Arc<Bucket>)> = Vec::with_capacity(buckets.len());
        for (path, filling) in buckets {
            let mut bucket = filling.bucket();
            for (child, row) in children.get(&path).into_iter().flatten() {
                bucket.adopt(child, *row);
            }
            placed.push((Place { hash: self.hashes.of(&path), path }, Arc::new(bucket)));
        }
        placed.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Tree::from_sorted(placed)
    }

    fn set_entry(&mut self, row: i64, entry: &Arc<Entry>, noted: &mut Noted) {
        if let Some((held, _)) = self.entry(&entry.id)
            && held != row
        {
            if held > row {
                return;
            }
            self.remove_entry(held, noted);
        }
        let Some(held) = self.row(row).cloned() else {
            self.add_entry(row, entry, noted);
            return;
        };
        if held.revision_number > entry.revision_number || *held == **entry {
            return;
        }
        let stays = held.parent_id == entry.parent_id && held.spiffe_id == entry.spiffe_id;
        if stays && held.id == entry.id && self.is_visible(entry) {
            self.replace_entry(row, &held, entry, noted);
        } else {
            self.remove_entry(row, noted);
            self.add_entry(row, entry, noted);
        }
    }

    /// Replaces a visible entry by one of the same id, identity and parent.
    fn replace_entry(&mut self, row: i64, held: &Entry, entry: &Arc<Entry>, noted: &mut Noted) {
        noted.any = true;
        noted.touched.parents.insert(entry.parent_id.clone());
        self.entries.insert(row, Arc::clone(entry));
        self.revisions =
            self.revisions.wrapping_sub(held.revision_number).wrapping_add(entry.revision_number);
        for other in held.federates_with.iter() {
            self.by_federated.remove(self.hashes.of(other.as_str()), row);
        }
        for other in entry.federates_with.iter() {
            self.by_federated.add(self.hashes.of(other.as_str()), row);
        }
        if let Some(bucket) = self.bucket_mut(entry.parent_id.path()) {
            bucket.insert(Slot { row, entry: Arc::clone(entry), digest: Token::of(entry) });
        }
    }

    fn add_entry(&mut self, row: i64, entry: &Arc<Entry>, noted: &mut Noted) {
        noted.any = true;
        if self.is_visible(entry) {
            noted.touched.parents.insert(entry.parent_id.clone());
            self.show(row, entry);
        } else if self.is_alias(entry) {
            noted.touched.aliases.push(Arc::clone(entry));
            self.file_alias(row, entry);
        }
        self.entries.insert(row, Arc::clone(entry));
        self.revisions = self.revisions.wrapping_add(entry.revision_number);
        self.by_id.add(self.hashes.of(entry.id.as_str()), row);
        self.by_spiffe_id.add(self.hashes.of(entry.spiffe_id.as_str()), row);
        self.by_parent.add(self.hashes.of(entry.parent_id.as_str()), row);
        for other in entry.federates_with.iter() {
            self.by_federated.add(self.hashes.of(other.as_str()), row);
        }
    }

    fn remove_entry(&mut self, row: i64, noted: &mut Noted) {
        let Some(entry) = self.entries.remove(|held| held.cmp(&row)) else { return };
        noted.any = true;
        self.revisions = self.revisions.wrapping_sub(entry.revision_number);
        self.by_id.remove(self.hashes.of(entry.id.as_str()), row);
        self.by_spiffe_id.remove(self.hashes.of(entry.spiffe_id.as_str()), row);
        self.by_parent.remove(self.hashes.of(entry.parent_id.as_str()), row);
        for other in entry.federates_with.iter() {
            self.by_federated.remove(self.hashes.of(other.as_str()), row);
        }
        if self.is_visible(&entry) {
            noted.touched.parents.insert(entry.parent_id.clone());
            self.hide(row, &entry);
        } else if self.is_alias(&entry) {
            for selector in &entry.selector_set {
                self.aliases.remove(self.hashes.of_selector(selector), row);
            }
            noted.touched.aliases.push(entry);
        }
    }

    /// Puts an entry that is not in the indexes yet into its bucket.
    fn show(&mut self, row: i64, entry: &Arc<Entry>) {
        let path = entry.parent_id.path();
        if self.bucket(path).is_none() {
            let path: Arc<str> = path.into();
            let place = Place { hash: self.hashes.of(&path), path: Arc::clone(&path) };
            self.buckets.insert(place, Arc::new(Bucket::new(Arc::clone(&path))));
            for (parent, row) in self.parents_giving(&entry.parent_id) {
                if let Some(bucket) = self.bucket_mut(&parent) {
                    bucket.adopt(&path, row);
                }
            }
        }
        let child = self.bucket(entry.spiffe_id.path()).map(|bucket| Arc::clone(bucket.path()));
        let Some(bucket) = self.bucket_mut(path) else { return };
        bucket.insert(Slot { row, entry: Arc::clone(entry), digest: Token::of(entry) });
        if let Some(child) = child {
            bucket.adopt(&child, row);
        }
    }

    /// Takes an entry that is not in the indexes any more out of its bucket.
    fn hide(&mut self, row: i64, entry: &Entry) {
        let path = entry.parent_id.path();
        let Some(bucket) = self.bucket_mut(path) else { return };
        bucket.remove(row);
        bucket.release(entry.spiffe_id.path(), row);
        if bucket.len() > 0 {
            return;
        }
        let hash = self.hashes.of(path);
        self.buckets.remove(|held| held.hash.cmp(&hash).then_with(|| (*held.path).cmp(path)));
        for (parent, _) in self.parents_giving(&entry.parent_id) {
            if let Some(bucket) = self.bucket_mut(&parent) {
                bucket.disown(path);
            }
        }
    }

    /// The rows of the visible entries that give an identity, and the paths of their parents.
    fn parents_giving(&self, spiffe_id: &SpiffeId) -> Vec<(Arc<str>, i64)> {
        let rows = self.by_spiffe_id.rows(self.hashes.of(spiffe_id.as_str()));
        self.entries_at(rows)
            .filter(|(_, entry)| entry.spiffe_id == *spiffe_id && self.is_visible(entry))
            .filter_map(|(row, entry)| Some((Arc::clone(self.bucket(entry.parent_id.path())?.path()), row)))
            .collect()
    }

    fn bucket_mut(&mut self, path: &str) -> Option<&mut Bucket> {
        let hash = self.hashes.of(path);
        self.buckets
            .get_mut(|held| held.hash.cmp(&hash).then_with(|| (*held.path).cmp(path)))
            .map(Arc::make_mut)
    }

    /// Files an alias entry under its rarest selector. Without selectors it matches nobody.
    fn file_alias(&mut self, row: i64, entry: &Entry) {
        if let Some(hash) = self.aliases.rarest(&self.hashes, &entry.selector_set) {
            self.aliases.add(hash, row);
        }
    }

    fn set_agent(&mut self, record: &Arc<AgentRecord>, noted: &mut Noted) {
        if self.agent(&record.id) == Some(record) {
            return;
        }
        noted.any = true;
        noted.records.insert(record.id.clone());
        let held = self.agents.insert(&self.hashes, Arc::clone(record));
        if held.is_none_or(|held| held.record.selectors != record.selectors) {
            noted.rematched.insert(record.id.clone());
        }
    }

    fn remove_agent(&mut self, id: &SpiffeId, noted: &mut Noted) {
        if self.agents.remove(&self.hashes, id).is_some() {
            noted.any = true;
            noted.records.insert(id.clone());
            noted.rematched.insert(id.clone());
        }
    }
}

/// Entries in order of their rows, each row once.
fn sorted(entries: impl IntoIterator<Item = (i64, Arc<Entry>)>) -> Vec<(i64, Arc<Entry>)> {
    let mut entries: Vec<(i64, Arc<Entry>)> = entries.into_iter().collect();
    if !entries.is_sorted_by(|a, b| a.0 < b.0) {
        entries.sort_by_key(|(row, _)| *row);
        entries.reverse();
        entries.dedup_by_key(|(row, _)| *row);
        entries.reverse();
    }
    entries
}

/// Of several entries with one id those of the highest rows; `None` if there are no such.
fn without_older(entries: &[(i64, Arc<Entry>)]) -> Option<Vec<(i64, Arc<Entry>)>> {
    let mut ids = HashSet::with_capacity(entries.len());
    let mut newest: Vec<_> =
        entries.iter().rev().filter(|(_, entry)| ids.insert(&entry.id)).cloned().collect();
    newest.reverse();
    (newest.len() < entries.len()).then_some(newest)
}
