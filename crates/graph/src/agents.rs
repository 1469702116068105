//! The agents, as the server authenticates them and matches alias entries with them.

use std::sync::Arc;

use spiffe::{Selector, SelectorSet, SpiffeId, UnixSecs};

use crate::index::{Hashes, Index};
use crate::tree::Tree;

/// An attested agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRecord {
    /// Its identity.
    pub id: SpiffeId,
    /// The attestor that vouched for it.
    pub attestation_type: String,
    /// Of its SVID, in decimal digits; empty = banned.
    pub serial: String,
    /// When its SVID runs out.
    pub expires_at: UnixSecs,
    /// Of a renewed SVID that was not used yet; else empty.
    pub new_serial: String,
    /// When that runs out; 0 = not set.
    pub new_expires_at: UnixSecs,
    /// Whether it may attest again.
    pub can_reattest: bool,
    /// What it said it is; may be empty.
    pub agent_version: String,
    /// Its selectors in row order.
    pub selectors: Arc<[Selector]>,
}

impl AgentRecord {
    /// Whether it was banned.
    #[must_use]
    pub const fn is_banned(&self) -> bool {
        self.serial.is_empty()
    }
}

/// An agent and its selectors as a set, for matching.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) record: Arc<AgentRecord>,
    pub(crate) selectors: SelectorSet,
}

/// All agents. Each has a number of its own here, since their rows are not known.
#[derive(Clone, Default)]
pub(crate) struct Agents {
    by_number: Tree<i64, Known>,
    by_id: Index,
    by_selector: Index,
    next: i64,
}

impl Agents {
    /// The agents of these records; of two with the same id the later counts.
    pub(crate) fn build(hashes: &Hashes, records: impl IntoIterator<Item = Arc<AgentRecord>>) -> Self {
        let mut known = Vec::new();
        let (mut by_id, mut by_selector) = (Vec::new(), Vec::new());
        let mut numbers = std::collections::HashMap::new();
        for record in records {
            let number = *numbers.entry(record.id.clone()).or_insert(known.len());
            let agent = Known { selectors: record.selectors.iter().cloned().collect(), record };
            match known.get_mut(number) {
                Some(held) => *held = agent,
                None => known.push(agent),
            }
        }
        let known: Vec<(i64, Known)> = (0..).zip(known).collect();
        for (number, agent) in &known {
            by_id.push((hashes.of(agent.record.id.as_str()), *number));
            by_selector
                .extend(agent.selectors.iter().map(|selector| (hashes.of_selector(selector), *number)));
        }
        Self {
            next: known.last().map_or(0, |(last, _)| last + 1),
            by_number: Tree::from_sorted(known),
            by_id: Index::build(by_id),
            by_selector: Index::build(by_selector),
        }
    }

    /// Puts an agent in and hands back what it replaces.
    pub(crate) fn insert(&mut self, hashes: &Hashes, record: Arc<AgentRecord>) -> Option<Known> {
        let selectors: SelectorSet = record.selectors.iter().cloned().collect();
        let known = Known { record, selectors };
        let Some(number) = self.number(hashes, &known.record.id) else {
            let number = self.next;
            self.next += 1;
            self.by_id.add(hashes.of(known.record.id.as_str()), number);
            for selector in &known.selectors {
                self.by_selector.add(hashes.of_selector(selector), number);
            }
            return self.by_number.insert(number, known);
        };
        let held = self.by_number.insert(number, known.clone())?;
        if held.selectors != known.selectors {
            for selector in &held.selectors {
                self.by_selector.remove(hashes.of_selector(selector), number);
            }
            for selector in &known.selectors {
                self.by_selector.add(hashes.of_selector(selector), number);
            }
        }
        Some(held)
    }

    /// Takes an agent out.
    pub(crate) fn remove(&mut self, hashes: &Hashes, id: &SpiffeId) -> Option<Known> {
        let number = self.number(hashes, id)?;
        let removed = self.by_number.remove(|held| held.cmp(&number))?;
        self.by_id.remove(hashes.of(id.as_str()), number);
        for selector in &removed.selectors {
            self.by_selector.remove(hashes.of_selector(selector), number);
        }
        Some(removed)
    }

    /// One agent.
    pub(crate) fn get(&self, hashes: &Hashes, id: &SpiffeId) -> Option<&Known> {
        self.candidates(hashes, id).find(|(_, known)| known.record.id == *id).map(|(_, known)| known)
    }

    /// The agents that have all of these selectors; none for the empty set.
    pub(crate) fn having(&self, hashes: &Hashes, selectors: &SelectorSet) -> impl Iterator<Item = &Known> {
        let rarest = self.by_selector.rarest(hashes, selectors);
        rarest
            .into_iter()
            .flat_map(|hash| self.by_selector.rows(hash))
            .filter_map(|number| self.by_number.get(|held| held.cmp(&number)))
            .filter(|known| selectors.is_subset(&known.selectors))
    }

    /// All of them, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Known> {
        self.by_number.iter().map(|(_, known)| known)
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.by_number.len()
    }

    fn number(&self, hashes: &Hashes, id: &SpiffeId) -> Option<i64> {
        self.candidates(hashes, id).find(|(_, known)| known.record.id == *id).map(|(number, _)| number)
    }

    fn candidates(&self, hashes: &Hashes, id: &SpiffeId) -> impl Iterator<Item = (i64, &Known)> {
        self.by_id
            .rows(hashes.of(id.as_str()))
            .filter_map(|number| Some((number, self.by_number.get(|held| held.cmp(&number))?)))
    }
}
