//! Creating, changing and deleting entries, each with its event row.

use std::sync::Arc;

use prost::Message;
use proto::spire::common::registration_entry::AdditionalAttributes as WireAttributes;
use spiffe::{EntryId, SelectorSet, UnixSecs};

use super::{CreatedEntry, EntryMask, NewEntry, StoredEntry, rows};
use crate::dialect::{Dialect, Tx, Value, int, text, values};
use crate::{Change, StoreError, stamp};

/// Creates an entry, unless a similar one exists.
pub(crate) fn create(tx: &mut Tx<'_>, new: &NewEntry) -> Result<CreatedEntry, StoreError> {
    check_new(new)?;
    if let Some(stored) = similar(tx, new)? {
        return Ok(CreatedEntry { stored, existing: true });
    }
    let id = new.id.as_ref().map_or_else(|| uuid::Uuid::new_v4().to_string(), |id| id.as_str().to_owned());
    let row_id = tx.conn.insert(
        "INSERT INTO registered_entries (created_at, updated_at, entry_id, spiffe_id, parent_id, \
         ttl, admin, downstream, expiry, revision_number, store_svid, hint, jwt_svid_ttl, \
         additional_attributes) VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, ?9, ?10, ?11, ?12)",
        values![
            tx.now,
            &id,
            new.spiffe_id.as_str(),
            new.parent_id.as_str(),
            new.x509_svid_ttl,
            new.admin,
            new.downstream,
            new.expires_at.0,
            new.store_svid,
            &new.hint,
            new.jwt_svid_ttl,
            attributes(new),
        ],
    )?;
    insert_federates_with(tx, row_id, new)?;
    insert_selectors(tx, row_id, new)?;
    insert_dns_names(tx, row_id, new)?;
    event(tx, &id)?;
    let entry = Arc::new(rows::as_read(new, EntryId::new(&id), stamp::rounded(tx.now)));
    tx.changed(Change::EntrySet { row_id, entry: Arc::clone(&entry) });
    Ok(CreatedEntry { stored: StoredEntry { row_id, entry }, existing: false })
}

/// Writes the masked fields.
pub(crate) fn update(tx: &mut Tx<'_>, new: &NewEntry, mask: EntryMask) -> Result<StoredEntry, StoreError> {
    if mask.selectors && new.selectors.is_empty() {
        return Err(StoreError::validation("invalid registration entry: missing selector list"));
    }
    check_ttls(new, mask.x509_svid_ttl, mask.jwt_svid_ttl)?;
    let id = new.id.as_ref().map(EntryId::as_str).unwrap_or_default();
    let sql = "SELECT id, store_svid FROM registered_entries WHERE entry_id == ?1";
    let found = tx.conn.first_locked(sql, values![id], |row| Ok((int(row, 0)?, int(row, 1)? != 0)))?;
    let Some((row_id, stored_svid)) = found else { return Err(StoreError::not_found()) };

    let store_svid = if mask.store_svid { new.store_svid } else { stored_svid };
    if store_svid && mask.selectors && !same_kind(new) {
        return Err(mixed_kinds());
    }
    let mut set = vec!["revision_number = COALESCE(revision_number, 0) + 1", "updated_at = ?"];
    let mut values: Vec<Value<'_>> = vec![tx.now.into()];
    let mut put = |wanted: bool, column: &'static str, value: Value<'static>| {
        if wanted {
            set.push(column);
            values.push(value);
        }
    };
    put(mask.spiffe_id, "spiffe_id = ?", new.spiffe_id.to_string().into());
    put(mask.parent_id, "parent_id = ?", new.parent_id.to_string().into());
    put(mask.x509_svid_ttl, "ttl = ?", new.x509_svid_ttl.into());
    put(mask.jwt_svid_ttl, "jwt_svid_ttl = ?", new.jwt_svid_ttl.into());
    put(mask.admin, "admin = ?", new.admin.into());
    put(mask.downstream, "downstream = ?", new.downstream.into());
    put(mask.expires_at, "expiry = ?", new.expires_at.0.into());
    put(mask.store_svid, "store_svid = ?", new.store_svid.into());
    put(mask.hint, "hint = ?", new.hint.clone().into());
    put(mask.additional_attributes, "additional_attributes = ?", attributes(new).into());
    values.push(row_id.into());
    let sql = format!("UPDATE registered_entries SET {} WHERE id = ?", set.join(", "));
    tx.conn.execute(&sql, &values)?;

    if mask.selectors {
        tx.conn.execute("DELETE FROM selectors WHERE registered_entry_id = ?1", values![row_id])?;
        insert_selectors(tx, row_id, new)?;
    }
    if mask.dns_names {
        tx.conn.execute("DELETE FROM dns_names WHERE registered_entry_id = ?1", values![row_id])?;
        insert_dns_names(tx, row_id, new)?;
    }
    if mask.federates_with {
        let sql = "DELETE FROM federated_registration_entries WHERE registered_entry_id = ?1";
        tx.conn.execute(sql, values![row_id])?;
        insert_federates_with(tx, row_id, new)?;
    }
    event(tx, id)?;
    reread(tx, row_id)
}

/// Deletes an entry by its id.
pub(crate) fn delete(tx: &mut Tx<'_>, id: &EntryId) -> Result<EntryId, StoreError> {
    let sql = "SELECT id FROM registered_entries WHERE entry_id == ?1";
    let row_id = tx.conn.first(sql, values![id.as_str()], |row| int(row, 0))?;
    delete_row(tx, row_id.ok_or_else(StoreError::not_found)?, id.as_str())?;
    Ok(id.clone())
}

/// Deletes what expired.
pub(crate) fn prune(tx: &mut Tx<'_>, before: UnixSecs) -> Result<Vec<EntryId>, StoreError> {
    let expired = tx.conn.rows(
        "SELECT id, entry_id, spiffe_id, parent_id FROM registered_entries \
         WHERE expiry != 0 AND expiry < ?1 ORDER BY id",
        values![before.0],
        |row| Ok((int(row, 0)?, text(row, 1)?, text(row, 2)?, text(row, 3)?)),
    )?;
    let mut pruned = Vec::with_capacity(expired.len());
    for (row_id, id, spiffe_id, parent_id) in expired {
        delete_row(tx, row_id, &id)?;
        tracing::info!(
            subsystem_name = "sql",
            entry_id = id,
            spiffe_id,
            parent_id,
            "Pruned an expired registration"
        );
        pruned.push(EntryId::new(&id));
    }
    Ok(pruned)
}

/// Deletes the rows of an entry and writes its event.
pub(crate) fn delete_row(tx: &mut Tx<'_>, row_id: i64, id: &str) -> Result<(), StoreError> {
    for sql in [
        "DELETE FROM federated_registration_entries WHERE registered_entry_id = ?1",
        "DELETE FROM registered_entries WHERE id = ?1",
        "DELETE FROM selectors WHERE registered_entry_id = ?1",
        "DELETE FROM dns_names WHERE registered_entry_id = ?1",
    ] {
        tx.conn.execute(sql, values![row_id])?;
    }
    event(tx, id)?;
    tx.changed(Change::EntryDeleted { row_id, id: EntryId::new(id) });
    Ok(())
}

/// Tells other servers that an entry changed.
pub(crate) fn event(tx: &Tx<'_>, id: &str) -> Result<(), StoreError> {
    let head = "INSERT INTO registered_entries_events (created_at, updated_at, entry_id)";
    tx.conn.insert_at_end(head, vec![tx.now.into(), tx.now.into(), id.to_owned().into()])
}

/// The entry as it is now, noted as a change.
fn reread(tx: &mut Tx<'_>, row_id: i64) -> Result<StoredEntry, StoreError> {
    let stored = rows::by_ids(tx.conn, &[row_id], false)?
        .entries
        .pop()
        .ok_or_else(|| StoreError::Internal("registration entry in the datastore is malformed".to_owned()))?;
    tx.changed(Change::EntrySet { row_id, entry: stored.entry.clone() });
    Ok(stored)
}

/// The first entry with the same parent, SPIFFE ID and set of selectors. Found by its SPIFFE ID, and only
/// what has all the selectors is read whole.
fn similar(tx: &Tx<'_>, new: &NewEntry) -> Result<Option<StoredEntry>, StoreError> {
    let ids = match tx.conn.dialect() {
        Dialect::Sqlite => having_all(tx, new)?,
        Dialect::Postgres | Dialect::MySql => having_as_many(tx, new)?,
    };
    if ids.is_empty() {
        return Ok(None);
    }
    let wanted: SelectorSet = new.selectors.iter().cloned().collect();
    let candidates = rows::by_ids(tx.conn, &ids, false)?.entries;
    // Some databases find ids that differ in case.
    let is_similar = |stored: &StoredEntry| {
        stored.entry.selector_set == wanted
            && stored.entry.spiffe_id == new.spiffe_id
            && stored.entry.parent_id == new.parent_id
    };
    Ok(candidates.into_iter().find(is_similar))
}

/// The `+` keeps the planner off the index of parents, which may have very many entries.
fn having_all(tx: &Tx<'_>, new: &NewEntry) -> Result<Vec<i64>, StoreError> {
    let pairs: Vec<[&str; 2]> = new.selectors.iter().map(|s| [s.kind(), s.value()]).collect();
    let pairs = serde_json::to_string(&pairs).unwrap_or_default();
    tx.conn.rows(
        "SELECT e.id FROM registered_entries e WHERE e.spiffe_id = ?1 AND +e.parent_id = ?2 \
         AND NOT EXISTS (SELECT 1 FROM json_each(?3) wanted WHERE NOT EXISTS \
             (SELECT 1 FROM selectors s WHERE s.registered_entry_id = e.id \
              AND s.type = wanted.value ->> 0 AND s.value = wanted.value ->> 1)) \
         ORDER BY +e.id",
        values![new.spiffe_id.as_str(), new.parent_id.as_str(), &pairs],
        |row| int(row, 0),
    )
}

/// Those that have the first selector and as many as are wanted: few, and no list need be passed.
fn having_as_many(tx: &Tx<'_>, new: &NewEntry) -> Result<Vec<i64>, StoreError> {
    let wanted: SelectorSet = new.selectors.iter().cloned().collect();
    let Some(first) = wanted.iter().next() else { return Ok(Vec::new()) };
    let count = i64::try_from(wanted.iter().count()).unwrap_or(i64::MAX);
    tx.conn.rows(
        "SELECT e.id FROM registered_entries e WHERE e.spiffe_id = ?1 AND e.parent_id = ?2 \
         AND EXISTS (SELECT 1 FROM selectors s WHERE s.registered_entry_id = e.id \
                     AND s.type = ?3 AND s.value = ?4) \
         AND (SELECT count(*) FROM selectors s WHERE s.registered_entry_id = e.id) = ?5 ORDER BY e.id",
        values![new.spiffe_id.as_str(), new.parent_id.as_str(), first.kind(), first.value(), count],
        |row| int(row, 0),
    )
}

fn insert_selectors(tx: &Tx<'_>, row_id: i64, new: &NewEntry) -> Result<(), StoreError> {
    let row = |selector: &'_ spiffe::Selector| -> Vec<Value<'static>> {
        let (kind, value) = (selector.kind().to_owned(), selector.value().to_owned());
        vec![tx.now.into(), tx.now.into(), row_id.into(), kind.into(), value.into()]
    };
    let rows: Vec<_> = new.selectors.iter().map(row).collect();
    let head = "INSERT INTO selectors (created_at, updated_at, registered_entry_id, type, value)";
    tx.conn.insert_rows(head, &rows)
}

fn insert_dns_names(tx: &Tx<'_>, row_id: i64, new: &NewEntry) -> Result<(), StoreError> {
    let row = |name: &String| -> Vec<Value<'static>> {
        vec![tx.now.into(), tx.now.into(), row_id.into(), name.clone().into()]
    };
    let rows: Vec<_> = new.dns_names.iter().map(row).collect();
    tx.conn.insert_rows("INSERT INTO dns_names (created_at, updated_at, registered_entry_id, value)", &rows)
}

fn insert_federates_with(tx: &Tx<'_>, row_id: i64, new: &NewEntry) -> Result<(), StoreError> {
    let mut found = Vec::new();
    for trust_domain in &*new.federates_with {
        let id = trust_domain.id().to_string();
        let sql = "SELECT id FROM bundles WHERE trust_domain = ?1";
        let bundle = tx.conn.first(sql, values![&id], |row| int(row, 0))?;
        let bundle =
            bundle.ok_or_else(|| StoreError::Database(format!("unable to find federated bundle {id:?}")))?;
        found.push((id, bundle));
    }
    found.sort();
    found.dedup();
    let rows: Vec<Vec<Value<'_>>> =
        found.iter().map(|(_, bundle)| vec![(*bundle).into(), row_id.into()]).collect();
    let head = "INSERT INTO federated_registration_entries (bundle_id, registered_entry_id)";
    tx.conn.insert_rows(head, &rows)
}

fn attributes(new: &NewEntry) -> Option<Vec<u8>> {
    new.additional_attributes.map(|set| {
        WireAttributes {
            disable_x509_svid_prefetch: set.disable_x509_svid_prefetch,
            jwt_svid_include_jti: set.jwt_svid_include_jti,
        }
        .encode_to_vec()
    })
}

/// What SPIRE's datastore refuses, in its words; the API has refused most of it before.
fn check_new(new: &NewEntry) -> Result<(), StoreError> {
    if new.selectors.is_empty() {
        return Err(StoreError::validation("invalid registration entry: missing selector list"));
    }
    if new.store_svid {
        if new.additional_attributes.is_some_and(|set| set.disable_x509_svid_prefetch) {
            return Err(StoreError::validation(
                "specifying cache behaviour is incompatible with storable SVIDs",
            ));
        }
        if !same_kind(new) {
            return Err(mixed_kinds());
        }
    }
    if let Some(id) = &new.id {
        if id.as_str().len() > 255 {
            return Err(StoreError::validation("invalid registration entry: entry ID too long"));
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !id.as_str().bytes().all(fits) {
            return Err(StoreError::validation(
                "invalid registration entry: entry ID contains invalid characters",
            ));
        }
    }
    check_ttls(new, true, true)
}

fn check_ttls(new: &NewEntry, x509: bool, jwt: bool) -> Result<(), StoreError> {
    if x509 && new.x509_svid_ttl < 0 {
        return Err(StoreError::validation("invalid registration entry: X509SvidTtl is not set"));
    }
    if jwt && new.jwt_svid_ttl < 0 {
        return Err(StoreError::validation("invalid registration entry: JwtSvidTtl is not set"));
    }
    Ok(())
}

fn same_kind(new: &NewEntry) -> bool {
    let mut kinds = new.selectors.iter().map(spiffe::Selector::kind);
    let first = kinds.next();
    kinds.all(|kind| Some(kind) == first)
}

fn mixed_kinds() -> StoreError {
    StoreError::validation(
        "invalid registration entry: selector types must be the same when store SVID is enabled",
    )
}
