//! Attesting, changing, banning and deleting agents, each with its event rows.

use std::sync::Arc;

use spiffe::{Selector, SelectorSet, SpiffeId, UnixSecs};

use super::{Agent, AgentCondition, AgentUpdate, Attestation, Attested, Reattest, rows};
use crate::dialect::{Tx, Value, int, text, values};
use crate::{Change, StoreError, entries, stamp, tokens};

/// How many agents one pruning deletes unless told otherwise.
const PRUNE_BATCH: u32 = 1000;

/// Writes an attestation. What can refuse it is looked at before anything is written; the token
/// comes last of these, so that a refused attestation does not use it up.
pub(crate) fn attest(tx: &mut Tx<'_>, attestation: &Attestation) -> Result<Attested, StoreError> {
    let agent = &attestation.agent;
    let sql = "SELECT serial_number FROM attested_node_entries WHERE spiffe_id == ?1";
    let serial = tx.conn.first_locked(sql, values![agent.id.as_str()], |row| text(row, 0))?;
    match &serial {
        Some(serial) if serial.is_empty() => return Ok(Attested::Banned),
        Some(_) if attestation.reattest == Reattest::Refused => return Ok(Attested::Exists),
        Some(_) | None => {}
    }
    if let Some(token) = &attestation.join_token
        && !tokens::consume(tx, token)?
    {
        return Ok(Attested::TokenGone);
    }
    // Attestors may say a thing twice; rows are in order of type and value.
    let selectors: SelectorSet = agent.selectors.iter().cloned().collect();
    let selectors: Vec<Selector> = selectors.iter().cloned().collect();
    replace_selectors(tx, agent.id.as_str(), &selectors)?;
    event(tx, agent.id.as_str())?;
    if serial.is_some() {
        let update = AgentUpdate {
            serial: Some(agent.serial.clone()),
            expires_at: Some(agent.expires_at),
            new_serial: Some(agent.new_serial.clone()),
            new_expires_at: Some(agent.new_expires_at),
            can_reattest: Some(agent.can_reattest),
            agent_version: None,
        };
        set_columns(tx, agent.id.as_str(), &update)?;
    } else {
        insert(tx, agent).map_err(|error| tx.lost_race(error))?;
    }
    event(tx, agent.id.as_str())?;
    reread(tx, &agent.id).map(Attested::Done)
}

/// Creates an agent.
pub(crate) fn create(tx: &mut Tx<'_>, agent: &Agent) -> Result<Arc<Agent>, StoreError> {
    if !agent.selectors.is_empty() {
        replace_selectors(tx, agent.id.as_str(), &agent.selectors)?;
        event(tx, agent.id.as_str())?;
    }
    insert(tx, agent)?;
    event(tx, agent.id.as_str())?;
    reread(tx, &agent.id)
}

/// Writes new values if the condition holds.
pub(crate) fn update(
    tx: &mut Tx<'_>,
    id: &SpiffeId,
    update: &AgentUpdate,
    condition: &AgentCondition,
) -> Result<Option<Arc<Agent>>, StoreError> {
    let sql = "SELECT serial_number, new_serial_number FROM attested_node_entries \
               WHERE spiffe_id == ?1";
    let row = tx.conn.first_locked(sql, values![id.as_str()], |row| Ok((text(row, 0)?, text(row, 1)?)))?;
    let (serial, new_serial) = row.ok_or_else(StoreError::not_found)?;
    let holds = match condition {
        AgentCondition::Any => true,
        AgentCondition::NotBanned => !serial.is_empty(),
        AgentCondition::Renewed(wanted) => !serial.is_empty() && *wanted == new_serial,
    };
    if !holds {
        return Ok(None);
    }
    set_columns(tx, id.as_str(), update)?;
    event(tx, id.as_str())?;
    reread(tx, id).map(Some)
}

/// Makes the renewed serial the one in use.
pub(crate) fn promote(
    tx: &mut Tx<'_>,
    id: &SpiffeId,
    new_serial: &str,
) -> Result<Option<Arc<Agent>>, StoreError> {
    let agent = rows::fetch(tx.conn, id.as_str())?.ok_or_else(StoreError::not_found)?;
    if new_serial.is_empty() {
        return Ok(None);
    }
    let promotion = AgentUpdate {
        serial: Some(agent.new_serial.clone()),
        expires_at: Some(agent.new_expires_at),
        new_serial: Some(String::new()),
        new_expires_at: Some(UnixSecs(0)),
        ..AgentUpdate::default()
    };
    update(tx, id, &promotion, &AgentCondition::Renewed(new_serial.to_owned()))
}

/// Deletes an agent.
pub(crate) fn delete(tx: &mut Tx<'_>, id: &SpiffeId) -> Result<(), StoreError> {
    delete_one(tx, id.as_str())?;
    tx.changed(Change::AgentDeleted(id.clone()));
    Ok(())
}

/// Deletes what ran out.
pub(crate) fn prune(
    tx: &mut Tx<'_>,
    before: UnixSecs,
    non_reattestable: bool,
    batch: u32,
) -> Result<Vec<SpiffeId>, StoreError> {
    let expired = tx.conn.rows(
        "SELECT spiffe_id FROM attested_node_entries WHERE unixepoch(expires_at) < ?1 \
         AND serial_number <> '' AND (can_reattest = true OR ?2) ORDER BY id LIMIT ?3",
        values![Value::Moment(before), non_reattestable, if batch == 0 { PRUNE_BATCH } else { batch }],
        |row| text(row, 0),
    )?;
    let mut pruned = Vec::with_capacity(expired.len());
    for id in expired {
        delete_one(tx, &id)?;
        if let Ok(id) = SpiffeId::parse(&id) {
            tx.changed(Change::AgentDeleted(id.clone()));
            pruned.push(id);
        }
    }
    tracing::info!(subsystem_name = "sql", count = pruned.len(), "Pruned expired agents");
    Ok(pruned)
}

/// Replaces the selectors of an agent.
pub(crate) fn set_selectors(
    tx: &mut Tx<'_>,
    id: &SpiffeId,
    selectors: &[Selector],
) -> Result<(), StoreError> {
    replace_selectors(tx, id.as_str(), selectors)?;
    event(tx, id.as_str())?;
    if let Some(agent) = rows::fetch(tx.conn, id.as_str())? {
        tx.changed(Change::AgentSet(agent));
    }
    Ok(())
}

fn insert(tx: &Tx<'_>, agent: &Agent) -> Result<(), StoreError> {
    tx.conn.insert(
        "INSERT INTO attested_node_entries (created_at, updated_at, spiffe_id, data_type, \
         serial_number, expires_at, new_serial_number, new_expires_at, can_reattest, \
         agent_version) VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        values![
            tx.now,
            agent.id.as_str(),
            &agent.attestation_type,
            &agent.serial,
            stamp::instant_of(agent.expires_at),
            &agent.new_serial,
            if_set(agent.new_expires_at),
            agent.can_reattest,
            &agent.agent_version,
        ],
    )?;
    Ok(())
}

fn set_columns(tx: &Tx<'_>, id: &str, update: &AgentUpdate) -> Result<(), StoreError> {
    let mut set = vec!["updated_at = ?"];
    let mut values: Vec<Value<'_>> = vec![tx.now.into()];
    let mut put = |column: &'static str, value: Option<Value<'static>>| {
        if let Some(value) = value {
            set.push(column);
            values.push(value);
        }
    };
    let text = |value: &Option<String>| value.clone().map(Value::from);
    let expiry = |at| Value::from(stamp::instant_of(at));
    let new_expiry = |at| Value::from(if_set(at));
    put("serial_number = ?", text(&update.serial));
    put("expires_at = ?", update.expires_at.map(expiry));
    put("new_serial_number = ?", text(&update.new_serial));
    put("new_expires_at = ?", update.new_expires_at.map(new_expiry));
    put("can_reattest = ?", update.can_reattest.map(Value::from));
    put("agent_version = ?", text(&update.agent_version));
    values.push(id.into());
    let sql = format!("UPDATE attested_node_entries SET {} WHERE spiffe_id == ?", set.join(", "));
    tx.conn.execute(&sql, &values)?;
    Ok(())
}

fn replace_selectors(tx: &Tx<'_>, id: &str, selectors: &[Selector]) -> Result<(), StoreError> {
    delete_selectors(tx, id)?;
    let rows: Vec<Vec<Value<'_>>> = selectors
        .iter()
        .map(|selector| {
            vec![tx.now.into(), tx.now.into(), id.into(), selector.kind().into(), selector.value().into()]
        })
        .collect();
    let head = "INSERT INTO node_resolver_map_entries (created_at, updated_at, spiffe_id, type, value)";
    tx.conn.insert_rows(head, &rows)
}

/// By their row ids: a range of keys that are not there yet would keep other servers from inserting theirs.
fn delete_selectors(tx: &Tx<'_>, id: &str) -> Result<(), StoreError> {
    let sql = "SELECT id FROM node_resolver_map_entries WHERE spiffe_id == ?1 ORDER BY id";
    let ids = tx.conn.rows(sql, values![id], |row| int(row, 0))?;
    if !ids.is_empty() {
        let sql = "DELETE FROM node_resolver_map_entries WHERE id IN (SELECT value FROM json_each(?1))";
        tx.conn.execute(sql, values![&ids])?;
    }
    Ok(())
}

fn delete_one(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    let sql = "SELECT data_type FROM attested_node_entries WHERE spiffe_id == ?1";
    let kind = tx.conn.first_locked(sql, values![id], |row| text(row, 0))?;
    if kind.ok_or_else(StoreError::not_found)? == "join_token" {
        delete_aliases(tx, id)?;
    }
    delete_selectors(tx, id)?;
    tx.conn.execute("DELETE FROM attested_node_entries WHERE spiffe_id == ?1", values![id])?;
    event(tx, id)
}

/// The entries that came with the agent's join token: below it, with its own id as the only
/// selector. Whatever else is below it belongs to somebody.
fn delete_aliases(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    let aliases = tx.conn.rows(
        "SELECT e.id, e.entry_id FROM registered_entries e WHERE e.parent_id = ?1 \
         AND (SELECT count(*) FROM selectors s WHERE s.registered_entry_id = e.id) = 1 \
         AND EXISTS (SELECT 1 FROM selectors s WHERE s.registered_entry_id = e.id \
                     AND s.type = 'spiffe_id' AND s.value == ?1) ORDER BY e.id",
        values![id],
        |row| Ok((int(row, 0)?, text(row, 1)?)),
    )?;
    for (row_id, entry_id) in aliases {
        entries::delete_row(tx, row_id, &entry_id)?;
        tracing::info!(
            subsystem_name = "sql",
            entry_id,
            parent_id = id,
            "Cascade-deleted registration entry on attested node deletion"
        );
    }
    Ok(())
}

/// Tells other servers that an agent changed.
fn event(tx: &Tx<'_>, id: &str) -> Result<(), StoreError> {
    let head = "INSERT INTO attested_node_entries_events (created_at, updated_at, spiffe_id)";
    tx.conn.insert_at_end(head, vec![tx.now.into(), tx.now.into(), id.to_owned().into()])
}

/// The agent as it is now, noted as a change.
fn reread(tx: &mut Tx<'_>, id: &SpiffeId) -> Result<Arc<Agent>, StoreError> {
    let agent = rows::fetch(tx.conn, id.as_str())?.ok_or_else(StoreError::not_found)?;
    tx.changed(Change::AgentSet(Arc::clone(&agent)));
    Ok(agent)
}

fn if_set(at: UnixSecs) -> Option<time::OffsetDateTime> {
    (at != UnixSecs(0)).then(|| stamp::instant_of(at))
}
