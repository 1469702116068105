//! Rows to entries.

use std::borrow::Cow;
use std::sync::Arc;

use prost::Message;
use proto::spire::common::registration_entry::AdditionalAttributes as WireAttributes;
use spiffe::entry::AdditionalAttributes;
use spiffe::{Entry, EntryId, IdError, Selector, SelectorSet, SpiffeId, Texts, TrustDomain, UnixSecs};

use super::{NewEntry, StoredEntry};
use crate::dialect::{
    Conn, Row, blob, borrowed_text, flag, instant, int, readable_int, readable_text, text, values,
};
use crate::{StoreError, stamp};

macro_rules! columns {
    () => {
        "SELECT id, entry_id, spiffe_id, parent_id, ttl, admin, downstream, expiry, \
         revision_number, store_svid, hint, jwt_svid_ttl, additional_attributes, created_at \
         FROM registered_entries"
    };
}

/// What was read for some entries, and the highest row id among all rows that were seen for them.
pub(crate) struct Read {
    pub(crate) entries: Vec<StoredEntry>,
    /// How many entry rows there were, those that cannot be understood included.
    pub(crate) rows: usize,
    pub(crate) last: Option<i64>,
}

/// All entries.
pub(crate) fn all(conn: &Conn) -> Result<Vec<StoredEntry>, StoreError> {
    let mut drafts = Drafts::default();
    conn.each(concat!(columns!(), " ORDER BY id"), values![], |row| drafts.push(row))?;
    conn.each("SELECT registered_entry_id, type, value FROM selectors ORDER BY id", values![], |row| {
        drafts.selector(row)
    })?;
    conn.each("SELECT registered_entry_id, value FROM dns_names ORDER BY id", values![], |row| {
        drafts.dns_name(row)
    })?;
    conn.each(
        "SELECT f.registered_entry_id, b.trust_domain FROM federated_registration_entries f \
         INNER JOIN bundles b ON b.id = f.bundle_id ORDER BY b.trust_domain",
        values![],
        |row| drafts.federates_with(row),
    )?;
    Ok(drafts.finish().entries)
}

/// How many ids one statement is given.
const MOST_IDS: usize = 16_384;

/// The entries of some rows, in order of their ids.
pub(crate) fn by_ids(conn: &Conn, ids: &[i64], downstream: bool) -> Result<Read, StoreError> {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut drafts = Drafts::default();
    let sql = if downstream {
        concat!(
            columns!(),
            " WHERE id IN (SELECT value FROM json_each(?1)) AND downstream = true ORDER BY id"
        )
    } else {
        concat!(columns!(), " WHERE id IN (SELECT value FROM json_each(?1)) ORDER BY id")
    };
    for some in sorted.chunks(MOST_IDS) {
        let some = values![some];
        conn.each(sql, some, |row| drafts.push(row))?;
        conn.each(
            "SELECT registered_entry_id, type, value FROM selectors \
             WHERE registered_entry_id IN (SELECT value FROM json_each(?1)) ORDER BY id",
            some,
            |row| drafts.selector(row),
        )?;
        conn.each(
            "SELECT registered_entry_id, value FROM dns_names \
             WHERE registered_entry_id IN (SELECT value FROM json_each(?1)) ORDER BY id",
            some,
            |row| drafts.dns_name(row),
        )?;
        conn.each(
            "SELECT f.registered_entry_id, b.trust_domain FROM federated_registration_entries f \
             INNER JOIN bundles b ON b.id = f.bundle_id \
             WHERE f.registered_entry_id IN (SELECT value FROM json_each(?1)) ORDER BY b.trust_domain",
            some,
            |row| drafts.federates_with(row),
        )?;
    }
    Ok(drafts.finish())
}

/// One entry by its id.
pub(crate) fn fetch(conn: &Conn, id: &EntryId) -> Result<Option<StoredEntry>, StoreError> {
    let sql = "SELECT id FROM registered_entries WHERE entry_id == ?1";
    let Some(row_id) = conn.first(sql, values![id.as_str()], |row| int(row, 0))? else {
        return Ok(None);
    };
    let mut read = by_ids(conn, &[row_id], false)?;
    read.entries
        .pop()
        .map(Some)
        .ok_or_else(|| StoreError::Internal(format!("registration entry {id} in the datastore is malformed")))
}

/// The entries of some ids.
pub(crate) fn fetch_many(conn: &Conn, ids: &[EntryId]) -> Result<Vec<StoredEntry>, StoreError> {
    let texts: Vec<&str> = ids.iter().map(EntryId::as_str).collect();
    let sql = "SELECT id FROM registered_entries \
               WHERE entry_id IN (SELECT value FROM json_each(?1)) ORDER BY id";
    let mut row_ids = Vec::with_capacity(texts.len());
    for some in texts.chunks(MOST_IDS) {
        row_ids.extend(conn.rows(sql, values![some], |row| int(row, 0))?);
    }
    Ok(by_ids(conn, &row_ids, false)?.entries)
}

/// A new entry as it will be read: what was just written need not be asked for.
pub(crate) fn as_read(new: &NewEntry, id: EntryId, created_at: UnixSecs) -> Entry {
    let mut federates_with = new.federates_with.clone();
    federates_with.sort();
    federates_with.dedup();
    let selectors: Arc<[Selector]> = shared(new.selectors.clone());
    // Attributes that say nothing are stored as nothing.
    let attributes = new.additional_attributes.filter(|set| *set != AdditionalAttributes::default());
    Entry {
        id,
        spiffe_id: new.spiffe_id.clone(),
        parent_id: new.parent_id.clone(),
        selector_set: SelectorSet::of(&selectors),
        selectors,
        x509_svid_ttl: new.x509_svid_ttl,
        jwt_svid_ttl: new.jwt_svid_ttl,
        federates_with: shared(federates_with),
        admin: new.admin,
        downstream: new.downstream,
        expires_at: new.expires_at,
        dns_names: shared(new.dns_names.clone()),
        revision_number: 0,
        store_svid: new.store_svid,
        hint: new.hint.clone(),
        created_at,
        additional_attributes: attributes,
    }
}

/// Entries that are being put together from the rows of four tables.
#[derive(Default)]
struct Drafts {
    /// In the order of their rows.
    drafts: Vec<Draft>,
    /// Whose the last row of another table was: the next is likely to be of the same or of the next entry.
    place: usize,
    rows: usize,
    last: Option<i64>,
    texts: Texts,
}

struct Draft {
    row_id: i64,
    id: EntryId,
    spiffe_id: Result<SpiffeId, IdError>,
    parent_id: Result<SpiffeId, IdError>,
    x509_svid_ttl: i64,
    jwt_svid_ttl: i64,
    admin: bool,
    downstream: bool,
    expiry: i64,
    revision_number: i64,
    store_svid: bool,
    hint: String,
    created_at: UnixSecs,
    attributes: Vec<u8>,
    selectors: Vec<Selector>,
    dns_names: Vec<String>,
    federates_with: Vec<TrustDomain>,
    /// What of it means nothing.
    unreadable: Option<&'static str>,
}

impl Drafts {
    fn push(&mut self, row: &Row<'_>) -> Result<(), StoreError> {
        // A number that is none would read as 0, and an entry without expiry lives for ever.
        let mut unreadable = None;
        let mut number = |column, name| -> Result<i64, StoreError> {
            Ok(readable_int(row, column)?.unwrap_or_else(|| {
                unreadable = Some(name);
                0
            }))
        };
        let [x509_svid_ttl, jwt_svid_ttl] = [number(4, "ttl")?, number(11, "jwt_svid_ttl")?];
        let [expiry, revision_number] = [number(7, "expiry")?, number(8, "revision_number")?];
        let mut words = |column, name| -> Result<Cow<'_, str>, StoreError> {
            Ok(readable_text(row, column)?.unwrap_or_else(|| {
                unreadable = Some(name);
                Cow::Borrowed("")
            }))
        };
        let [id, hint] = [words(1, "entry_id")?, words(10, "hint")?];
        let draft = Draft {
            row_id: int(row, 0)?,
            id: EntryId::new(&id),
            spiffe_id: SpiffeId::parse(&borrowed_text(row, 2)?),
            parent_id: self.texts.id(&borrowed_text(row, 3)?),
            x509_svid_ttl,
            admin: flag(row, 5)?,
            downstream: flag(row, 6)?,
            expiry,
            revision_number,
            store_svid: flag(row, 9)?,
            hint: hint.into_owned(),
            jwt_svid_ttl,
            attributes: blob(row, 12)?,
            created_at: instant(row, 13)?.map(stamp::rounded).unwrap_or_default(),
            selectors: Vec::new(),
            dns_names: Vec::new(),
            federates_with: Vec::new(),
            unreadable,
        };
        if self.drafts.last().is_some_and(|before| before.row_id >= draft.row_id) {
            return Err(StoreError::Internal("the datastore answers entries out of order".to_owned()));
        }
        self.seen(draft.row_id);
        self.rows += usize::from(!draft.id.as_str().is_empty());
        self.drafts.push(draft);
        Ok(())
    }

    fn selector(&mut self, row: &Row<'_>) -> Result<(), StoreError> {
        let (kind, value) = (readable_text(row, 1)?, readable_text(row, 2)?);
        let selector = kind.zip(value).map(|(kind, value)| self.texts.selector(&kind, &value));
        if let Some(draft) = self.owner(row)? {
            // Without one of its selectors an entry would be for more workloads than it says.
            match selector {
                Some(selector) => draft.selectors.push(selector),
                None => draft.unreadable = Some("selectors"),
            }
        }
        Ok(())
    }

    fn dns_name(&mut self, row: &Row<'_>) -> Result<(), StoreError> {
        let name = readable_text(row, 1)?;
        if let Some(draft) = self.owner(row)? {
            match name {
                Some(name) => draft.dns_names.push(name.into_owned()),
                None => draft.unreadable = Some("dns_names"),
            }
        }
        Ok(())
    }

    fn federates_with(&mut self, row: &Row<'_>) -> Result<(), StoreError> {
        let name = text(row, 1)?;
        if let Some(draft) = self.owner(row)? {
            match TrustDomain::parse(&name) {
                Ok(trust_domain) => draft.federates_with.push(trust_domain),
                Err(error) => tracing::warn!(trust_domain = name, %error, "bundle row skipped"),
            }
        }
        Ok(())
    }

    /// The entry that the first column names. Old bugs left rows whose entry is gone.
    fn owner(&mut self, row: &Row<'_>) -> Result<Option<&mut Draft>, StoreError> {
        let row_id = int(row, 0)?;
        self.seen(row_id);
        let is_at = |place: &usize| self.drafts.get(*place).is_some_and(|draft| draft.row_id == row_id);
        let found = [self.place, self.place + 1].into_iter().find(is_at);
        let found = found.or_else(|| self.drafts.binary_search_by_key(&row_id, |draft| draft.row_id).ok());
        self.place = found.unwrap_or(self.place);
        Ok(found.and_then(|place| self.drafts.get_mut(place)))
    }

    fn seen(&mut self, row_id: i64) {
        self.last = self.last.max(Some(row_id));
    }

    fn finish(self) -> Read {
        let Self { drafts, rows, last, .. } = self;
        let entries = drafts.into_iter().filter_map(Draft::finish).collect();
        Read { entries, rows, last }
    }
}

impl Draft {
    fn finish(self) -> Option<StoredEntry> {
        let id = self.id;
        if let Some(field) = self.unreadable.or_else(|| id.as_str().is_empty().then_some("entry_id")) {
            tracing::error!(row = self.row_id, entry = id.as_str(), field, "entry row skipped");
            return None;
        }
        let read = |what: &str, read: Result<SpiffeId, IdError>| {
            read.inspect_err(|error| {
                tracing::error!(entry = id.as_str(), field = what, %error, "entry row skipped");
            })
            .ok()
        };
        let spiffe_id = read("spiffe_id", self.spiffe_id)?;
        let parent_id = read("parent_id", self.parent_id)?;
        let attributes = (!self.attributes.is_empty()).then_some(self.attributes.as_slice());
        let attributes = match attributes.map(WireAttributes::decode).transpose() {
            Ok(attributes) => attributes,
            Err(error) => {
                tracing::error!(entry = id.as_str(), %error, "entry row skipped");
                return None;
            }
        };
        let selectors: Arc<[Selector]> = shared(self.selectors);
        let entry = Entry {
            id,
            spiffe_id,
            parent_id,
            selector_set: SelectorSet::of(&selectors),
            selectors,
            x509_svid_ttl: clamped(self.x509_svid_ttl),
            jwt_svid_ttl: clamped(self.jwt_svid_ttl),
            federates_with: shared(self.federates_with),
            admin: self.admin,
            downstream: self.downstream,
            expires_at: UnixSecs(self.expiry),
            dns_names: shared(self.dns_names),
            revision_number: self.revision_number,
            store_svid: self.store_svid,
            hint: self.hint,
            created_at: self.created_at,
            additional_attributes: attributes.map(|wire| AdditionalAttributes {
                disable_x509_svid_prefetch: wire.disable_x509_svid_prefetch,
                jwt_svid_include_jti: wire.jwt_svid_include_jti,
            }),
        };
        Some(StoredEntry { row_id: self.row_id, entry: entry.into() })
    }
}

/// As a shared list; all empty ones are the same.
fn shared<T>(list: Vec<T>) -> Arc<[T]> {
    if list.is_empty() { Arc::default() } else { list.into() }
}

fn clamped(seconds: i64) -> i32 {
    i32::try_from(seconds).unwrap_or(if seconds < 0 { i32::MIN } else { i32::MAX })
}
