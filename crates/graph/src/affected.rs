//! Whom a change concerns: from what it touched up to the agents that see it.

use std::collections::HashSet;

use spiffe::{Entry, SpiffeId};

use crate::graph::{RecordChange, Version};

/// Everything below is an agent, known or not yet.
const AGENTS_PATH: &str = "/spire/agent/";

/// The agents that a batch concerns: all whose view differs afterwards, sometimes one more.
#[derive(Clone, Debug, Default)]
pub struct Affected {
    views: HashSet<SpiffeId>,
    records: HashSet<SpiffeId>,
}

impl Affected {
    /// Whether an agent may see something else now.
    #[must_use]
    pub fn contains(&self, agent: &SpiffeId) -> bool {
        self.views.contains(agent)
    }

    /// The agents that may see something else now. Some may never have attested: who waits for
    /// entries before the graph knows it is woken too.
    pub fn agents(&self) -> impl Iterator<Item = &SpiffeId> {
        self.views.iter()
    }

    /// The agents whose record changed: attested, renewed, banned, deleted.
    pub fn records(&self) -> impl Iterator<Item = &SpiffeId> {
        self.records.iter()
    }

    /// Whether nobody is concerned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.views.is_empty() && self.records.is_empty()
    }

    /// Adds those that another batch concerned.
    pub fn merge(&mut self, other: Self) {
        self.views.extend(other.views);
        self.records.extend(other.records);
    }

    pub(crate) fn note_record(&mut self, id: SpiffeId, change: RecordChange) {
        if change == RecordChange::Selectors {
            self.views.insert(id.clone());
        }
        self.records.insert(id);
    }
}

/// A walk up one version of the graph.
pub(crate) struct Reach<'a> {
    version: &'a Version,
    affected: &'a mut Affected,
    seen: HashSet<SpiffeId>,
}

impl<'a> Reach<'a> {
    pub(crate) fn new(version: &'a Version, affected: &'a mut Affected) -> Self {
        Self { version, affected, seen: HashSet::new() }
    }

    /// Notes the agents that see the entries of a parent: the parent itself, those that an alias
    /// entry gives its identity, and those that see an entry which gives it.
    pub(crate) fn above_parent(&mut self, parent: &SpiffeId) {
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
            let agents = &self.version.agents;
            if id.path().starts_with(AGENTS_PATH) || agents.get(&self.version.hashes, &id).is_some() {
                self.affected.views.insert(id);
            }
        }
    }

    /// Notes the agents that an alias entry stands for.
    pub(crate) fn of_alias(&mut self, alias: &Entry) {
        let agents = self.version.agents.having(&self.version.hashes, &alias.selector_set);
        self.affected.views.extend(agents.map(|known| known.record.id.clone()));
    }
}
