//! What one agent is authorised for.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;

use spiffe::{Entry, EntryId, SpiffeId, TrustDomain};

use crate::bucket::Bucket;
use crate::graph::EntryGraph;
use crate::order::Stretch;
use crate::page::Page;
use crate::token::Token;

/// The entries an agent is authorised for, at one moment: a few buckets, nothing copied.
#[derive(Clone)]
pub struct View {
    pub(crate) graph: EntryGraph,
    /// The paths that the agent sees the entries below of: its own, and those of its aliases.
    pub(crate) starts: Vec<Box<str>>,
    /// In order of their paths.
    pub(crate) buckets: Vec<Arc<Bucket>>,
    len: usize,
}

impl View {
    /// Walks down from the agent and from the alias entries it matches. Buckets know which buckets
    /// are below, so no entry is looked at.
    pub(crate) fn of(graph: &EntryGraph, agent: &SpiffeId) -> Self {
        let version = graph.version();
        let mut buckets: Vec<Arc<Bucket>> = Vec::new();
        let mut starts = Vec::new();
        if agent.is_member_of(version.trust_domain()) {
            let mut seen = HashSet::new();
            let mut todo = vec![agent.path()];
            todo.extend(version.aliases_of(agent).map(|alias| alias.spiffe_id.path()));
            starts.extend(todo.iter().map(|path| Box::from(*path)));
            while let Some(path) = todo.pop() {
                if let Some(bucket) = version.bucket(path)
                    && seen.insert(path)
                {
                    buckets.push(Arc::clone(bucket));
                    todo.extend(bucket.children().map(|(child, _)| &**child));
                }
            }
            buckets.sort_unstable_by(|a, b| a.path().cmp(b.path()));
        }
        let len = buckets.iter().map(|bucket| bucket.len()).sum();
        Self { graph: graph.clone(), starts, buckets, len }
    }

    /// How many entries there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entries: those of a parent by their rows, and behind the first that gives an identity what
    /// is below that.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.stretches().into_iter().flat_map(Stretch::slots).map(|slot| &slot.entry)
    }

    /// One entry, if the agent is authorised for it.
    #[must_use]
    pub fn entry(&self, id: &EntryId) -> Option<&Arc<Entry>> {
        let (page, at) = self.find(id)?;
        page.slots().get(at).map(|slot| &slot.entry)
    }

    /// The paths of the ids below which the agent sees entries: its own, and those that alias entries give
    /// it.
    pub fn starts(&self) -> impl Iterator<Item = &str> {
        self.starts.iter().map(|path| &**path)
    }

    /// The trust domains that entries federate with, the own one left out.
    #[must_use]
    pub fn federated(&self) -> BTreeSet<&TrustDomain> {
        let own = self.graph.trust_domain();
        self.buckets.iter().flat_map(|bucket| bucket.federated()).filter(|name| *name != own).collect()
    }

    /// What it takes to say later what changed since: the view without its graph, which it does not
    /// keep in memory.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        Footprint { buckets: self.buckets.clone() }
    }

    /// Names the contents.
    #[must_use]
    pub fn token(&self) -> Token {
        self.buckets.iter().fold(Token::default(), |sum, bucket| sum.plus(bucket.digest()))
    }

    /// The bucket of a path, if the agent sees it.
    pub(crate) fn bucket(&self, path: &str) -> Option<&Arc<Bucket>> {
        let at = self.buckets.binary_search_by(|bucket| (**bucket.path()).cmp(path)).ok()?;
        self.buckets.get(at)
    }

    /// Where an entry is, if the agent is authorised for it.
    pub(crate) fn find(&self, id: &EntryId) -> Option<(&Arc<Page>, usize)> {
        let version = self.graph.version();
        let (row, entry) = version.entry(id)?;
        if !version.is_visible(entry) {
            return None;
        }
        self.bucket(entry.parent_id.path())?.find(row)
    }
}

/// What a view held. It keeps alive what it holds, and nothing else of the graph.
#[derive(Clone, Default)]
pub struct Footprint {
    /// In order of their paths.
    pub(crate) buckets: Vec<Arc<Bucket>>,
}

impl fmt::Debug for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Footprint({} buckets)", self.buckets.len())
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({} entries in {} buckets, {:?})", self.len, self.buckets.len(), self.token())
    }
}
