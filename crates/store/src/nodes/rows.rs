//! Rows to agents.

use std::collections::HashMap;
use std::sync::Arc;

use spiffe::{Selector, SpiffeId, UnixSecs};

use super::Agent;
use crate::StoreError;
use crate::dialect::{Conn, Row, Value, flag, instant, int, readable_text, text, values};

macro_rules! columns {
    () => {
        "SELECT id, spiffe_id, data_type, serial_number, expires_at, new_serial_number, \
         new_expires_at, can_reattest, agent_version FROM attested_node_entries"
    };
}

/// All agents.
pub(crate) fn all(conn: &Conn) -> Result<Vec<Arc<Agent>>, StoreError> {
    let sql = "SELECT spiffe_id, type, value FROM node_resolver_map_entries ORDER BY id";
    let selectors = grouped(conn, sql, values![])?;
    with_selectors(conn, concat!(columns!(), " ORDER BY id"), values![], selectors)
}

/// One agent. (Some databases find one whose id differs in case.)
pub(crate) fn fetch(conn: &Conn, id: &str) -> Result<Option<Arc<Agent>>, StoreError> {
    let selectors = selectors(conn, id)?;
    let sql = concat!(columns!(), " WHERE spiffe_id == ?1");
    let agent = conn.first(sql, values![id], |row| read(row, selectors.clone()))?.flatten();
    Ok(agent.filter(|agent| agent.id.as_str() == id).map(Arc::new))
}

/// How many ids one statement is given.
const MOST_IDS: usize = 16_384;

/// The agents of some rows, in order of their ids.
pub(crate) fn by_ids(conn: &Conn, ids: &[i64]) -> Result<Vec<Arc<Agent>>, StoreError> {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    let mut agents = Vec::with_capacity(sorted.len());
    for some in sorted.chunks(MOST_IDS) {
        let some = values![some];
        let sql = "SELECT s.spiffe_id, s.type, s.value FROM node_resolver_map_entries s \
                   INNER JOIN attested_node_entries n ON n.spiffe_id = s.spiffe_id \
                   WHERE n.id IN (SELECT value FROM json_each(?1)) ORDER BY s.id";
        let selectors = grouped(conn, sql, some)?;
        let sql = concat!(columns!(), " WHERE id IN (SELECT value FROM json_each(?1)) ORDER BY id");
        agents.extend(with_selectors(conn, sql, some, selectors)?);
    }
    Ok(agents)
}

/// The selectors of an agent.
pub(crate) fn selectors(conn: &Conn, id: &str) -> Result<Vec<Selector>, StoreError> {
    let sql = "SELECT type, value FROM node_resolver_map_entries WHERE spiffe_id == ?1 ORDER BY id";
    let selectors = conn.rows(sql, values![id], |row| selector(row, id, 0))?;
    Ok(selectors.into_iter().flatten().collect())
}

/// A selector, unless it is no text: then it is nobody's, and its agent has fewer rights by it, not more.
fn selector(row: &Row<'_>, agent: &str, column: usize) -> Result<Option<Selector>, StoreError> {
    let (kind, value) = (readable_text(row, column)?, readable_text(row, column + 1)?);
    let selector = kind.zip(value).map(|(kind, value)| Selector::new(&kind, &value));
    if selector.is_none() {
        tracing::warn!(agent, "selector row of an agent skipped");
    }
    Ok(selector)
}

fn grouped(
    conn: &Conn,
    sql: &str,
    params: &[Value<'_>],
) -> Result<HashMap<String, Vec<Selector>>, StoreError> {
    let mut selectors: HashMap<String, Vec<Selector>> = HashMap::new();
    conn.each(sql, params, |row| {
        let agent = text(row, 0)?;
        if let Some(selector) = selector(row, &agent, 1)? {
            selectors.entry(agent).or_default().push(selector);
        }
        Ok(())
    })?;
    Ok(selectors)
}

fn with_selectors(
    conn: &Conn,
    sql: &str,
    params: &[Value<'_>],
    mut selectors: HashMap<String, Vec<Selector>>,
) -> Result<Vec<Arc<Agent>>, StoreError> {
    let rows = conn.rows(sql, params, |row| {
        let id = text(row, 1)?;
        read(row, selectors.remove(&id).unwrap_or_default())
    })?;
    Ok(rows.into_iter().flatten().map(Arc::new).collect())
}

fn read(row: &Row<'_>, selectors: Vec<Selector>) -> Result<Option<Agent>, StoreError> {
    let id = text(row, 1)?;
    let id = match SpiffeId::parse(&id) {
        Ok(id) => id,
        Err(error) => {
            tracing::warn!(agent = id, row = int(row, 0)?, %error, "agent row skipped");
            return Ok(None);
        }
    };
    let seconds = |column| -> Result<UnixSecs, StoreError> {
        Ok(UnixSecs(instant(row, column)?.map_or(0, time::OffsetDateTime::unix_timestamp)))
    };
    Ok(Some(Agent {
        id,
        attestation_type: text(row, 2)?,
        serial: text(row, 3)?,
        expires_at: seconds(4)?,
        new_serial: text(row, 5)?,
        new_expires_at: seconds(6)?,
        can_reattest: flag(row, 7)?,
        agent_version: text(row, 8)?,
        selectors: selectors.into(),
    }))
}
