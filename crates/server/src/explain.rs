//! What an agent may serve to a workload with certain selectors, and what keeps it from more. Pure.
//!
//! Looks at all entries where it must: it is for operators, who ask seldom.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use graph::{EntryGraph, View};
use proto::convert::entry::masked;
use proto::finial::explain::{Candidate, ExplainAgentResponse};
use proto::spire::types;
use spiffe::nearest::{Miss, grant, nearest};
use spiffe::{Entry, SelectorSet, SpiffeId, UnixSecs};

/// How many entries of each kind are told.
const MATCHES: usize = 100;
const MISSES: usize = 5;
const ELSEWHERE: usize = 10;
/// How far up parents are told.
const GENERATIONS: usize = 16;

/// The first thing between a workload and an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Ok,
    AgentUnknown,
    AgentBanned,
    AgentExpired,
    NoEntries,
    SelectorsDiffer,
    OtherParent,
    EntryExpired,
    StoredOnly,
}

impl Reason {
    const fn code(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::AgentUnknown => "AGENT_UNKNOWN",
            Self::AgentBanned => "AGENT_BANNED",
            Self::AgentExpired => "AGENT_EXPIRED",
            Self::NoEntries => "NO_ENTRIES",
            Self::SelectorsDiffer => "SELECTORS_DIFFER",
            Self::OtherParent => "OTHER_PARENT",
            Self::EntryExpired => "ENTRY_EXPIRED",
            Self::StoredOnly => "STORED_ONLY",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Ok => "the agent may serve an entry that matches",
            Self::AgentUnknown => "no agent with this ID has attested",
            Self::AgentBanned => "the agent is banned",
            Self::AgentExpired => "the agent's SVID has expired",
            Self::NoEntries => "no entry has the agent's ID, or one of its aliases, as parent",
            Self::SelectorsDiffer => {
                "every entry of the agent asks for a selector that the workload does not have"
            }
            Self::OtherParent => "the entries that match are not below this agent",
            Self::EntryExpired => "the entries that match have expired",
            Self::StoredOnly => "the entries that match are for SVID stores",
        }
    }
}

/// What the graph says of `agent` and a workload with these selectors.
pub(crate) fn explain(
    graph: &EntryGraph,
    agent: &SpiffeId,
    selectors: &SelectorSet,
    now: UnixSecs,
) -> ExplainAgentResponse {
    let view = graph.view(agent);
    let parents = Parents { graph, view: &view, starts: starts(graph, &view) };
    let matching: Vec<&Arc<Entry>> = view.entries().filter(|entry| matches(entry, selectors)).collect();
    let elsewhere: Vec<&Arc<Entry>> = match matching.is_empty() {
        true => graph
            .entries_from(i64::MIN)
            .map(|(_, entry)| entry)
            .filter(|entry| matches(entry, selectors) && entry.parent_id.path() != SERVER_PATH)
            .filter(|entry| view.entry(&entry.id).is_none())
            .take(ELSEWHERE)
            .collect(),
        // Who has an identity need not hear of others'.
        false => Vec::new(),
    };
    let record = graph.agent(agent);
    let of_entry = |entry: &Entry| {
        if entry.store_svid {
            Reason::StoredOnly
        } else if entry.expires_at.0 != 0 && entry.expires_at <= now {
            Reason::EntryExpired
        } else {
            Reason::Ok
        }
    };
    let reasons: Vec<Reason> = matching.iter().map(|entry| of_entry(entry)).collect();
    let reason = match record {
        None => Reason::AgentUnknown,
        Some(record) if record.is_banned() => Reason::AgentBanned,
        Some(record) if record.expires_at < now => Reason::AgentExpired,
        Some(_) if reasons.contains(&Reason::Ok) => Reason::Ok,
        Some(_) if !reasons.is_empty() => reasons.first().copied().unwrap_or(Reason::Ok),
        Some(_) if !elsewhere.is_empty() => Reason::OtherParent,
        Some(_) if view.is_empty() => Reason::NoEntries,
        Some(_) => Reason::SelectorsDiffer,
    };
    let candidate = |entry: &Arc<Entry>, reason: Reason| Candidate {
        entry: Some(masked(entry, None)),
        parents: parents.of(entry),
        reason: if reason == Reason::Ok { String::new() } else { reason.code().to_owned() },
        ..Candidate::default()
    };
    let miss = |miss: Miss<'_>| Candidate {
        missing: miss.missing.iter().map(types::Selector::from).collect(),
        ..candidate(miss.entry, Reason::SelectorsDiffer)
    };
    let is_told = |path: &&str| *path != agent.path();
    let grant = if matching.is_empty() { grant(agent, graph.trust_domain(), selectors) } else { Vec::new() };
    ExplainAgentResponse {
        reason: reason.code().to_owned(),
        explanation: reason.text().to_owned(),
        agent_id: agent.to_string(),
        is_attested: record.is_some(),
        is_banned: record.is_some_and(|record| record.is_banned()),
        attestation_type: record.map(|record| record.attestation_type.clone()).unwrap_or_default(),
        agent_expires_at: record.map_or(0, |record| record.expires_at.0),
        agent_selectors: record
            .map(|record| record.selectors.iter().map(types::Selector::from).collect())
            .unwrap_or_default(),
        aliases: view
            .starts()
            .filter(is_told)
            .filter_map(|path| graph.trust_domain().id_with_path(path).ok())
            .map(|id| id.to_string())
            .collect::<BTreeSet<String>>()
            .into_iter()
            .collect(),
        now: now.0,
        entries: i32::try_from(view.len()).unwrap_or(i32::MAX),
        is_pushed: false,
        matches: matching
            .iter()
            .zip(&reasons)
            .take(MATCHES)
            .map(|(entry, reason)| candidate(entry, *reason))
            .collect(),
        misses: nearest(view.entries(), selectors, MISSES).into_iter().map(miss).collect(),
        elsewhere: elsewhere.into_iter().map(|entry| candidate(entry, Reason::OtherParent)).collect(),
        grant,
    }
}

fn matches(entry: &Entry, selectors: &SelectorSet) -> bool {
    !entry.selector_set.is_empty() && entry.selector_set.is_subset(selectors)
}

fn starts(graph: &EntryGraph, view: &View) -> HashSet<SpiffeId> {
    view.starts().filter_map(|path| graph.trust_domain().id_with_path(path).ok()).collect()
}

/// Finds the way from an entry up.
struct Parents<'a> {
    graph: &'a EntryGraph,
    view: &'a View,
    starts: HashSet<SpiffeId>,
}

impl Parents<'_> {
    /// The ids from the parent of `entry` up to one that the agent is, or has by an alias; of an entry
    /// that the agent does not see, up to where the longest way ends.
    fn of(&self, entry: &Entry) -> Vec<String> {
        let is_seen = self.view.entry(&entry.id).is_some();
        let mut seen = HashSet::from([entry.parent_id.clone()]);
        let mut todo = VecDeque::from([vec![entry.parent_id.clone()]]);
        let mut last = Vec::new();
        while let Some(way) = todo.pop_front() {
            let Some(end) = way.last() else { continue };
            if self.starts.contains(end) || way.len() >= GENERATIONS {
                last = way;
                break;
            }
            for giving in self.graph.entries_of(end) {
                let is_way = !is_seen || self.view.entry(&giving.id).is_some();
                if is_way && giving.parent_id.path() != SERVER_PATH && seen.insert(giving.parent_id.clone()) {
                    todo.push_back([way.clone(), vec![giving.parent_id.clone()]].concat());
                }
            }
            last = way;
        }
        last.iter().map(ToString::to_string).collect()
    }
}

/// Parent of alias entries.
const SERVER_PATH: &str = "/spire/server";

#[cfg(test)]
mod tests {
    use graph::ChangeBatch;
    use spiffe::{Selector, TrustDomain};

    use super::*;
    use crate::sync::tests::{entry_set, record_set};

    fn id(path: &str) -> SpiffeId {
        TrustDomain::parse("example.org").unwrap().id_with_path(path).unwrap()
    }

    fn explained(graph: &EntryGraph, agent: &str, values: &[&str]) -> ExplainAgentResponse {
        let selectors = values.iter().map(|value| Selector::new("t", value)).collect();
        explain(graph, &id(agent), &selectors, UnixSecs(1_000))
    }

    fn graph() -> EntryGraph {
        let changes = vec![
            record_set("/spire/agent/a", &["node:1"]),
            record_set("/spire/agent/b", &[]),
            entry_set(1, "/spire/server", "/pool", "node:1"),
            entry_set(2, "/pool", "/host", "x"),
            entry_set(3, "/host", "/deep", "y"),
            entry_set(4, "/spire/agent/a", "/own", "z"),
        ];
        EntryGraph::new(TrustDomain::parse("example.org").unwrap()).apply(&ChangeBatch::from(changes)).0
    }

    #[test]
    fn an_entry_is_found_below_an_alias_with_its_parents() {
        let found = explained(&graph(), "/spire/agent/a", &["y"]);

        assert_eq!(found.reason, "OK");
        assert_eq!(found.aliases, ["spiffe://example.org/pool"]);
        assert_eq!(found.matches.len(), 1);
        assert_eq!(found.matches[0].parents, ["spiffe://example.org/host", "spiffe://example.org/pool"]);
        assert!(found.grant.is_empty() && found.elsewhere.is_empty());
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let graph = graph();
        assert_eq!(explained(&graph, "/spire/agent/none", &["y"]).reason, "AGENT_UNKNOWN");
        let other = explained(&graph, "/spire/agent/b", &["y"]);
        assert_eq!(other.reason, "OTHER_PARENT");
        assert_eq!(other.elsewhere[0].parents, ["spiffe://example.org/host", "spiffe://example.org/pool"]);
        assert_eq!(other.grant[..2], ["-parentID", "spiffe://example.org/spire/agent/b"]);
        assert_eq!(explained(&graph, "/spire/agent/b", &["q"]).reason, "NO_ENTRIES");
        let differ = explained(&graph, "/spire/agent/a", &["q"]);
        assert_eq!(differ.reason, "SELECTORS_DIFFER");
        assert_eq!(differ.misses.len(), 3);
        assert_eq!(differ.misses[0].missing.len(), 1);
    }
}
