//! Registration entries: rows of `registered_entries` with their selectors, DNS names and federated
//! bundles.

mod list;
mod rows;
mod write;

use std::sync::Arc;

use spiffe::entry::AdditionalAttributes;
use spiffe::{Entry, EntryId, Selector, SpiffeId, TrustDomain, UnixSecs};

use crate::dialect::Tx;
use crate::{Committed, FederatesWithFilter, Page, SelectorFilter, Store, StoreError};

pub(crate) use rows::{by_ids, fetch_many as of_ids};
pub(crate) use write::{create, delete_row, event};

/// An entry and its row.
#[derive(Clone, Debug)]
pub struct StoredEntry {
    /// The row: list order and page token.
    pub row_id: i64,
    /// The contents; selectors and DNS names in row order.
    pub entry: Arc<Entry>,
}

/// What a client asks an entry to be. Checked by the API before it comes here.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// A client's own id, else one is made. Names the entry in an update.
    pub id: Option<EntryId>,
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// Whose it is.
    pub parent_id: SpiffeId,
    /// In the order that later replies show.
    pub selectors: Vec<Selector>,
    /// Seconds; 0 = the server's default.
    pub x509_svid_ttl: i32,
    /// Seconds; 0 = the server's default.
    pub jwt_svid_ttl: i32,
    /// Each must have a bundle.
    pub federates_with: Vec<TrustDomain>,
    /// May administrate.
    pub admin: bool,
    /// May ask for a downstream CA.
    pub downstream: bool,
    /// 0 = never.
    pub expires_at: UnixSecs,
    /// The first is also the common name.
    pub dns_names: Vec<String>,
    /// Pushed to an SVID store.
    pub store_svid: bool,
    /// May be empty.
    pub hint: String,
    /// Present only if the client set it.
    pub additional_attributes: Option<AdditionalAttributes>,
}

impl NewEntry {
    /// An entry with everything else left out.
    #[must_use]
    pub const fn new(spiffe_id: SpiffeId, parent_id: SpiffeId, selectors: Vec<Selector>) -> Self {
        Self {
            id: None,
            spiffe_id,
            parent_id,
            selectors,
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: Vec::new(),
            admin: false,
            downstream: false,
            expires_at: UnixSecs(0),
            dns_names: Vec::new(),
            store_svid: false,
            hint: String::new(),
            additional_attributes: None,
        }
    }
}

/// The outcome of a create.
#[derive(Clone, Debug)]
pub struct CreatedEntry {
    /// The new entry, or the one that was there.
    pub stored: StoredEntry,
    /// A similar entry (same parent, SPIFFE ID and selectors) was there: nothing was written.
    pub existing: bool,
}

/// Which fields an update writes.
#[expect(clippy::struct_excessive_bools, reason = "a mask is a set of flags")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each names the field it selects")]
pub struct EntryMask {
    pub spiffe_id: bool,
    pub parent_id: bool,
    pub selectors: bool,
    pub x509_svid_ttl: bool,
    pub jwt_svid_ttl: bool,
    pub federates_with: bool,
    pub admin: bool,
    pub downstream: bool,
    pub expires_at: bool,
    pub dns_names: bool,
    pub store_svid: bool,
    pub hint: bool,
    pub additional_attributes: bool,
}

impl EntryMask {
    /// Every field.
    pub const ALL: Self = Self {
        spiffe_id: true,
        parent_id: true,
        selectors: true,
        x509_svid_ttl: true,
        jwt_svid_ttl: true,
        federates_with: true,
        admin: true,
        downstream: true,
        expires_at: true,
        dns_names: true,
        store_svid: true,
        hint: true,
        additional_attributes: true,
    };
    /// No field: an update still raises the revision.
    pub const NONE: Self = Self {
        spiffe_id: false,
        parent_id: false,
        selectors: false,
        x509_svid_ttl: false,
        jwt_svid_ttl: false,
        federates_with: false,
        admin: false,
        downstream: false,
        expires_at: false,
        dns_names: false,
        store_svid: false,
        hint: false,
        additional_attributes: false,
    };
}

/// Which entries to list or count: all that is set must hold.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    /// The parent.
    pub parent_id: Option<SpiffeId>,
    /// The identity.
    pub spiffe_id: Option<SpiffeId>,
    /// The hint; empty = no filter, as in SPIRE.
    pub hint: String,
    /// By selectors.
    pub selectors: Option<SelectorFilter>,
    /// By federated trust domains.
    pub federates_with: Option<FederatesWithFilter>,
    /// Only downstream entries; false = no filter, as in SPIRE.
    pub downstream: bool,
}

/// A page of entries.
#[derive(Clone, Debug, Default)]
pub struct EntryPage {
    /// In order of their rows.
    pub entries: Vec<StoredEntry>,
    /// Where the next page starts; empty when this one is.
    pub next_token: String,
}

impl Store {
    /// Creates an entry with its event, unless a similar one exists.
    ///
    /// # Errors
    /// `AlreadyExists` for an id (or a selector or DNS name twice in the entry), `InvalidArgument`
    /// for what the datastore refuses, `Database` for a federated bundle that is not there.
    pub async fn create_entry(&self, entry: NewEntry) -> Result<Committed<CreatedEntry>, StoreError> {
        self.write(move |tx| create(tx, &entry)).await
    }

    /// Writes the masked fields of the entry that `entry.id` names, and raises its revision.
    ///
    /// # Errors
    /// `NotFound`, and as [`Self::create_entry`].
    pub async fn update_entry(
        &self,
        entry: NewEntry,
        mask: EntryMask,
    ) -> Result<Committed<StoredEntry>, StoreError> {
        self.write(move |tx| write::update(tx, &entry, mask)).await
    }

    /// Deletes an entry.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_entry(&self, id: EntryId) -> Result<Committed<EntryId>, StoreError> {
        self.write(move |tx| write::delete(tx, &id)).await
    }

    /// As [`Self::create_entry`] for each, in few transactions; what each came to, in their order.
    pub async fn create_entries(
        &self,
        entries: Vec<NewEntry>,
    ) -> Vec<Result<Committed<CreatedEntry>, StoreError>> {
        let create = |entry: NewEntry| move |tx: &mut Tx<'_>| create(tx, &entry);
        self.write_all(entries.into_iter().map(create).collect()).await
    }

    /// As [`Self::update_entry`] for each, in few transactions; what each came to, in their order.
    pub async fn update_entries(
        &self,
        entries: Vec<NewEntry>,
        mask: EntryMask,
    ) -> Vec<Result<Committed<StoredEntry>, StoreError>> {
        let update = |entry: NewEntry| move |tx: &mut Tx<'_>| write::update(tx, &entry, mask);
        self.write_all(entries.into_iter().map(update).collect()).await
    }

    /// As [`Self::delete_entry`] for each, in few transactions; what each came to, in their order.
    pub async fn delete_entries(&self, ids: Vec<EntryId>) -> Vec<Result<Committed<EntryId>, StoreError>> {
        let delete = |id: EntryId| move |tx: &mut Tx<'_>| write::delete(tx, &id);
        self.write_all(ids.into_iter().map(delete).collect()).await
    }

    /// Deletes the entries that expired before `before`; their ids.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn prune_entries(&self, before: UnixSecs) -> Result<Committed<Vec<EntryId>>, StoreError> {
        self.write(move |tx| write::prune(tx, before)).await
    }

    /// One entry.
    ///
    /// # Errors
    /// `Internal` if its row cannot be understood.
    pub async fn fetch_entry(&self, id: EntryId) -> Result<Option<StoredEntry>, StoreError> {
        self.read(move |conn| rows::fetch(conn, &id)).await
    }

    /// The entries of these ids that exist, in order of their rows.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn fetch_entries(&self, ids: Vec<EntryId>) -> Result<Vec<StoredEntry>, StoreError> {
        self.read(move |conn| rows::fetch_many(conn, &ids)).await
    }

    /// Lists entries, a page or all.
    ///
    /// # Errors
    /// `InvalidArgument` for an unusable page or filter.
    pub async fn list_entries(
        &self,
        filter: EntryFilter,
        page: Option<Page>,
    ) -> Result<EntryPage, StoreError> {
        self.read(move |conn| list::list(conn, &filter, page.clone())).await
    }

    /// Counts entries as SPIRE does, page by page.
    ///
    /// # Errors
    /// `InvalidArgument` for an unusable filter.
    pub async fn count_entries(&self, filter: EntryFilter) -> Result<i32, StoreError> {
        self.read(move |conn| list::count(conn, &filter)).await
    }

    /// All entries in order of their rows, in one pass: for start-up.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn load_entries(&self) -> Result<Vec<StoredEntry>, StoreError> {
        self.read(rows::all).await
    }
}

/// The entry as SPIRE's answers to create and update show it: there selectors come in order of
/// type and value, DNS names in alphabetical order (an index is read, not the rows).
#[must_use]
pub fn as_written(entry: &Arc<Entry>) -> Arc<Entry> {
    if entry.selectors.is_sorted() && entry.dns_names.is_sorted() {
        return Arc::clone(entry);
    }
    let mut selectors = entry.selectors.to_vec();
    selectors.sort();
    let mut dns_names = entry.dns_names.to_vec();
    dns_names.sort();
    Arc::new(Entry {
        id: entry.id.clone(),
        spiffe_id: entry.spiffe_id.clone(),
        parent_id: entry.parent_id.clone(),
        selectors: selectors.into(),
        selector_set: entry.selector_set.clone(),
        x509_svid_ttl: entry.x509_svid_ttl,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        federates_with: Arc::clone(&entry.federates_with),
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.expires_at,
        dns_names: dns_names.into(),
        revision_number: entry.revision_number,
        store_svid: entry.store_svid,
        hint: entry.hint.clone(),
        created_at: entry.created_at,
        additional_attributes: entry.additional_attributes,
    })
}
