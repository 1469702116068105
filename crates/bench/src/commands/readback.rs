//! Reads back everything a server has, page by page, and holds it against itself.

use std::cell::RefCell;
use std::collections::HashSet;

use proto::spire::server::agent::{CountAgentsRequest, ListAgentsRequest};
use proto::spire::server::entry::{CountEntriesRequest, ListEntriesRequest};
use proto::spire::types;
use spiffe::SpiffeId;

use super::entries::seeded;
use super::{Bench, Found};
use crate::fleet::unable;
use crate::judge::text_of;
use crate::load::{Load, Ticket, Until};
use crate::{BenchError, Settings, Trouble};

const PAGE: usize = 1000;
/// The call that does not count.
const BEHIND: Ticket = Ticket { number: 0, caller: 0 };
/// Agents are few, and their selectors come with them.
const AGENTS_PAGE: usize = 500;

/// Reads all entries and agents: none twice, as many as are counted, each one readable, and of those
/// that were seeded every single one as it was written.
pub(super) async fn verify(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let entries = bench.target.admin.entry().count_entries(CountEntriesRequest::default()).await;
    let entries = usize::try_from(entries.map_err(BenchError::call("count entries"))?.into_inner().count);
    let entries = entries.unwrap_or_default();
    let read = RefCell::new(Read::default());
    let next = async |_: Ticket| {
        let token = read.borrow().token.clone();
        if token.is_none() {
            return Ok(0);
        }
        let request = ListEntriesRequest {
            page_size: i32::try_from(PAGE).unwrap_or(i32::MAX),
            page_token: token.unwrap_or_default(),
            ..ListEntriesRequest::default()
        };
        let page = bench.target.admin.entry().list_entries(request).await?.into_inner();
        let count = page.entries.len();
        read.borrow_mut().take(bench, page.entries, page.next_page_token)?;
        Ok(u64::try_from(count).unwrap_or_default())
    };
    let pages = u64::try_from(entries.div_ceil(PAGE).max(1)).unwrap_or(u64::MAX);
    let load = Load { rate: None, callers: 1, until: Until::Made(pages) };
    let mut phase = bench.stage().drive("entries read in pages of 1000", "entries", load, &next).await?;
    // Behind the last page there may be an empty one.
    next(BEHIND).await.map_err(|trouble| unable("list entries", trouble))?;
    let read = read.into_inner();
    read.check(bench, entries)?;
    phase.checked = u64::try_from(read.ids.len()).unwrap_or_default();

    Ok(Found { phases: vec![phase, agents(bench).await?], ..Found::default() })
}

/// What was read of the entries.
struct Read {
    /// Of the next page; none after the last.
    token: Option<String>,
    ids: HashSet<String>,
    /// Which numbers of the seeded entries came.
    seeds: Vec<bool>,
}

impl Default for Read {
    fn default() -> Self {
        Self { token: Some(String::new()), ids: HashSet::new(), seeds: Vec::new() }
    }
}

impl Read {
    fn take(&mut self, bench: &Bench<'_>, page: Vec<types::Entry>, token: String) -> Result<(), Trouble> {
        self.token = Some(token).filter(|token| !token.is_empty());
        for entry in page {
            let wrong = |why: &str| Trouble::Wrong(format!("entry {}: {why}", entry.id));
            for id in [&entry.spiffe_id, &entry.parent_id] {
                let text = id.as_ref().map(text_of).ok_or_else(|| wrong("an id is missing"))?;
                SpiffeId::parse(&text).map_err(|error| wrong(&format!("{text:?}: {error}")))?;
            }
            if entry.selectors.is_empty() {
                return Err(wrong("it has no selectors"));
            }
            let path = entry.spiffe_id.as_ref().map(|id| id.path.as_str()).unwrap_or_default();
            if let Some(number) = path.strip_prefix("/bench/seed/").and_then(|text| text.parse().ok()) {
                self.seed(bench, &entry, number)?;
            }
            if !self.ids.insert(entry.id.clone()) {
                return Err(wrong("it comes twice"));
            }
        }
        Ok(())
    }

    fn seed(&mut self, bench: &Bench<'_>, entry: &types::Entry, number: usize) -> Result<(), Trouble> {
        let written = seeded(bench, number).map_err(|error| Trouble::Failed(error.to_string()))?;
        if entry.selectors != written.selectors || entry.spiffe_id != written.spiffe_id {
            return Err(Trouble::Wrong(format!("the seeded entry number {number} is not as it was written")));
        }
        if number < MOST_SEEDS && self.seeds.len() <= number {
            self.seeds.resize(number + 1, false);
        }
        if let Some(seed) = self.seeds.get_mut(number) {
            *seed = true;
        }
        Ok(())
    }

    fn check(&self, bench: &Bench<'_>, counted: usize) -> Result<(), BenchError> {
        let wanted = Settings::first(&bench.settings.entries);
        let missing = self.seeds.iter().position(|seen| !seen);
        if let Some(number) = missing {
            return Err(BenchError::Wrong(format!("the seeded entry number {number} is lost")));
        }
        if !bench.settings.entries.is_empty() && self.seeds.len() < wanted {
            let why = format!("of {wanted} seeded entries {} are there", self.seeds.len());
            return Err(BenchError::Wrong(why));
        }
        if self.token.is_some() || self.ids.len() != counted {
            let why = format!("{counted} entries are counted, and {} listed", self.ids.len());
            return Err(BenchError::Wrong(why));
        }
        Ok(())
    }
}

/// A number beyond this is not one of ours.
const MOST_SEEDS: usize = 100_000_000;

async fn agents(bench: &Bench<'_>) -> Result<crate::report::Phase, BenchError> {
    let counted = bench.target.admin.agent().count_agents(CountAgentsRequest::default()).await;
    let counted = usize::try_from(counted.map_err(BenchError::call("count agents"))?.into_inner().count);
    let counted = counted.unwrap_or_default();
    let state = RefCell::new((Some(String::new()), HashSet::new()));
    let next = async |_: Ticket| {
        let Some(token) = state.borrow().0.clone() else { return Ok(0) };
        let request = ListAgentsRequest {
            page_size: i32::try_from(AGENTS_PAGE).unwrap_or(i32::MAX),
            page_token: token,
            ..ListAgentsRequest::default()
        };
        let page = bench.target.admin.agent().list_agents(request).await?.into_inner();
        let count = page.agents.len();
        let mut state = state.borrow_mut();
        for agent in page.agents {
            let text = agent.id.as_ref().map(text_of).unwrap_or_default();
            SpiffeId::parse(&text).map_err(|error| Trouble::Wrong(format!("agent {text:?}: {error}")))?;
            if !state.1.insert(text.clone()) {
                return Err(Trouble::Wrong(format!("the agent {text} comes twice")));
            }
        }
        state.0 = Some(page.next_page_token).filter(|token| !token.is_empty());
        Ok(u64::try_from(count).unwrap_or_default())
    };
    let pages = u64::try_from(counted.div_ceil(AGENTS_PAGE).max(1)).unwrap_or(u64::MAX);
    let load = Load { rate: None, callers: 1, until: Until::Made(pages) };
    let mut phase = bench.stage().drive("agents read in pages of 500", "agents", load, &next).await?;
    next(BEHIND).await.map_err(|trouble| unable("list agents", trouble))?;
    let (rest, ids) = state.into_inner();
    if rest.is_some() || ids.len() != counted {
        return Err(BenchError::Wrong(format!("{counted} agents are counted, and {} listed", ids.len())));
    }
    phase.checked = u64::try_from(ids.len()).unwrap_or_default();
    Ok(phase)
}
