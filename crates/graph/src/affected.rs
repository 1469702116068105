//! Whom a change concerns: from what it touched up to the agents that see it.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use spiffe::{Entry, SpiffeId};

use crate::graph::{EntryGraph, Version};

/// Everything below is an agent, known or not yet.
const AGENTS_PATH: &str = "/spire/agent/";

/// The agents that a batch concerns: all whose view differs afterwards, sometimes one more.
///
/// They are looked for when somebody asks, since a change may concern very many; until it is dropped
/// this keeps both versions of the graph.
#[derive(Clone, Default)]
pub struct Affected {
    /// Where to look from, in which versions.
    touched: Vec<Touched>,
    /// Agents whose selectors changed.
    rematched: HashSet<SpiffeId>,
    /// Agents whose record changed.
    records: HashSet<SpiffeId>,
    agents: OnceLock<HashSet<SpiffeId>>,
}

/// What was touched in some versions of the graph.
#[derive(Clone, Default)]
pub(crate) struct Touched {
    pub(crate) versions: Vec<EntryGraph>,
    /// Parents whose visible entries changed.
    pub(crate) parents: HashSet<SpiffeId>,
    /// Alias entries before and after their change.
    pub(crate) aliases: Vec<Arc<Entry>>,
}

impl Affected {
    pub(crate) fn new(touched: Touched, rematched: HashSet<SpiffeId>, records: HashSet<SpiffeId>) -> Self {
        Self { touched: vec![touched], rematched, records, agents: OnceLock::new() }
    }

    /// Whether an agent may see something else now.
    #[must_use]
    pub fn contains(&self, agent: &SpiffeId) -> bool {
        self.found().contains(agent)
    }

    /// The agents that may see something else now. Some may never have attested: who waits for
    /// entries before the graph knows it is woken too.
    pub fn agents(&self) -> impl Iterator<Item = &SpiffeId> {
        self.found().iter()
    }

    /// The agents whose record changed: attested, renewed, banned, deleted.
    pub fn records(&self) -> impl Iterator<Item = &SpiffeId> {
        self.records.iter()
    }

    /// Whether nothing changed that could concern anybody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let nothing = |touched: &Touched| touched.parents.is_empty() && touched.aliases.is_empty();
        self.touched.iter().all(nothing) && self.rematched.is_empty() && self.records.is_empty()
    }

    /// Adds those that another batch concerned.
    pub fn merge(&mut self, other: Self) {
        self.touched.extend(other.touched);
        self.rematched.extend(other.rematched);
        self.records.extend(other.records);
        self.agents.take();
    }

    fn found(&self) -> &HashSet<SpiffeId> {
        self.agents.get_or_init(|| {
            let mut agents = self.rematched.clone();
            for touched in &self.touched {
                for graph in &touched.versions {
                    let mut reach =
                        Reach { version: graph.version(), agents: &mut agents, seen: HashSet::new() };
                    touched.parents.iter().for_each(|parent| reach.above_parent(parent));
                    touched.aliases.iter().for_each(|alias| reach.of_alias(alias));
                }
            }
            agents
        })
    }
}

impl fmt::Debug for Affected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Affected").field("agents", self.found()).field("records", &self.records).finish()
    }
}

/// A walk up one version of the graph.
struct Reach<'a> {
    version: &'a Version,
    agents: &'a mut HashSet<SpiffeId>,
    seen: HashSet<SpiffeId>,
}

impl Reach<'_> {
    /// Notes the agents that see the entries of a parent: the parent itself, those that an alias
    /// entry gives its identity, and those that see an entry which gives it.
    fn above_parent(&mut self, parent: &SpiffeId) {
        let mut todo = vec![parent.clone()];
        while let Some(id) = todo.pop() {
            if !self.seen.insert(id.clone()) {
                continue;
            }
            for entry in self.version.giving(&id) {
                if self.version.is_alias(entry) {
                    self.of_alias(entry);
                } else if self.version.is_visible(entry) {
                    todo.push(entry.parent_id.clone());
                }
            }
            if id.path().starts_with(AGENTS_PATH) || self.version.agent(&id).is_some() {
                self.agents.insert(id);
            }
        }
    }

    /// Notes the agents that an alias entry stands for.
    fn of_alias(&mut self, alias: &Entry) {
        self.agents.extend(self.version.agents_having(&alias.selector_set).cloned());
    }
}
