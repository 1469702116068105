//! Lists and counts of agents, with SPIRE's filters, pages and tokens.

use std::sync::Arc;

use spiffe::SelectorSet;

use super::{Agent, AgentFilter, AgentPage, rows};
use crate::dialect::{Conn, Value, int};
use crate::list::token;
use crate::{Match, Page, StoreError};

/// One page (or everything) that matches.
pub(crate) fn list(
    conn: &Conn,
    filter: &AgentFilter,
    mut page: Option<Page>,
) -> Result<AgentPage, StoreError> {
    check(filter)?;
    loop {
        let ids = matching_ids(conn, filter, page.as_ref())?;
        let next_token = token(ids.last().copied().filter(|_| page.is_some()));
        let mut agents = rows::by_ids(conn, &ids)?;
        keep_matching(&mut agents, filter);
        let done = !agents.is_empty() || next_token.is_empty();
        match &mut page {
            // A page whose agents were all filtered out is passed over, while it moves on.
            Some(page) if !done && filter.selectors.is_some() && page.token != next_token => {
                page.token = next_token;
            }
            _ => return Ok(AgentPage { agents, next_token }),
        }
    }
}

/// How many match.
pub(crate) fn count(conn: &Conn, filter: &AgentFilter) -> Result<i32, StoreError> {
    check(filter)?;
    let ids = matching_ids(conn, filter, None)?;
    let total = if filter.selectors.is_some() {
        let mut agents = rows::by_ids(conn, &ids)?;
        keep_matching(&mut agents, filter);
        agents.len()
    } else {
        ids.len()
    };
    Ok(i32::try_from(total).unwrap_or(i32::MAX))
}

fn check(filter: &AgentFilter) -> Result<(), StoreError> {
    if filter.selectors.as_ref().is_some_and(|filter| filter.selectors.is_empty()) {
        return Err(StoreError::InvalidArgument("cannot list by empty selectors set".to_owned()));
    }
    Ok(())
}

fn matching_ids(conn: &Conn, filter: &AgentFilter, page: Option<&Page>) -> Result<Vec<i64>, StoreError> {
    let mut sql = "SELECT n.id FROM attested_node_entries n WHERE n.spiffe_id <> ''".to_owned();
    let ids: Vec<&str> = filter.ids.iter().map(spiffe::SpiffeId::as_str).collect();
    let mut values: Vec<Value<'_>> = Vec::new();
    if let Some(page) = page {
        sql.push_str(" AND n.id > ?");
        values.push(page.after()?.into());
    }
    // Instants are compared, not texts: rows may come from servers in several zones.
    if let Some(before) = filter.expires_before {
        sql.push_str(" AND unixepoch(n.expires_at) < ?");
        values.push(Value::Moment(before));
    }
    if let Some(at) = filter.valid_at {
        sql.push_str(" AND unixepoch(n.expires_at) >= ?");
        values.push(Value::Moment(at));
    }
    if !filter.attestation_type.is_empty() {
        sql.push_str(" AND n.data_type = ?");
        values.push((&filter.attestation_type).into());
    }
    match filter.banned {
        Some(true) => sql.push_str(" AND n.serial_number = ''"),
        Some(false) => sql.push_str(" AND n.serial_number <> ''"),
        None => {}
    }
    match filter.can_reattest {
        Some(true) => sql.push_str(" AND n.can_reattest = true"),
        Some(false) => sql.push_str(" AND n.can_reattest = false"),
        None => {}
    }
    if !filter.ids.is_empty() {
        sql.push_str(" AND n.spiffe_id IN (SELECT value FROM json_each(?))");
        values.push((&ids).into());
    }
    if let Some(selectors) = &filter.selectors {
        let one = "EXISTS (SELECT 1 FROM node_resolver_map_entries s \
                   WHERE s.spiffe_id = n.spiffe_id AND s.type == ? AND s.value == ?)";
        let join = match selectors.matching {
            Match::Subset | Match::Any => " OR ",
            Match::Exact | Match::Superset => " AND ",
        };
        sql.push_str(&format!(" AND ({})", vec![one; selectors.selectors.len()].join(join)));
        for selector in &selectors.selectors {
            values.push(selector.kind().into());
            values.push(selector.value().into());
        }
    }
    sql.push_str(" ORDER BY n.id");
    if let Some(page) = page {
        sql.push_str(" LIMIT ?");
        values.push(page.size.into());
    }
    conn.rows(&sql, &values, |row| int(row, 0))
}

fn keep_matching(agents: &mut Vec<Arc<Agent>>, filter: &AgentFilter) {
    let Some(filter) = &filter.selectors else { return };
    match filter.matching {
        Match::Exact | Match::Subset => {
            let wanted: SelectorSet = filter.selectors.iter().cloned().collect();
            agents
                .retain(|agent| agent.selectors.iter().cloned().collect::<SelectorSet>().is_subset(&wanted));
        }
        Match::Superset | Match::Any => {}
    }
}
