//! `spire.api.server.entry.v1.Entry`: registration entries, and what agents may know of them.

mod filter;
mod list;
mod sync;

use std::sync::Arc;

use bytes::Bytes;
use proto::batch::{self, CreateEntries, UpdateEntries};
use proto::convert::entry::{self, RequestedEntry, masked};
use proto::convert::field::{put_entry, put_outcome};
use proto::raw::Encoded;
use proto::spire::server::entry as wire;
use proto::spire::types;
use spiffe::{Entry, EntryId};
use store::{CreatedEntry, EntryFilter, EntryMask, NewEntry, StoreError, as_written};
use tonic::{Code, Request, Response, Status, Streaming};

use self::filter::Asked;
use super::batch::{in_bulk, in_turns, written_together};
use super::status::{self, failed, invalid, refused_as, stored};
use super::trustdomain::page;
use super::{Answers, encoded_elsewhere};
use crate::caller::Caller;
use crate::context::Context;

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Entries(Arc<Context>);

impl Entries {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }

    /// `GetAuthorizedEntries`.
    pub(super) async fn authorised(
        &self,
        request: Request<wire::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let caller = Caller::of(&request)?;
        let mask = request.into_inner().output_mask;
        let view = self.0.graph.load().view(caller.id()?);
        Ok(Response::new(Encoded::new(vec![fields(view.entries(), mask.as_ref())])))
    }

    /// `SyncAuthorizedEntries`. What the agent gets is fixed when the call begins.
    pub(super) async fn sync(
        &self,
        request: Request<Streaming<wire::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<proto::raw::Replies>, Status> {
        let caller = Caller::of(&request)?;
        let view = self.0.graph.load().view(caller.id()?);
        let replies = sync::Exchange::new(view, request.into_inner()).replies();
        Ok(Response::new(Box::pin(replies)))
    }

    /// `BatchCreateEntry`.
    pub(super) async fn create(&self, request: Request<CreateEntries>) -> Result<Response<Encoded>, Status> {
        let (entries, request) = (self.clone(), request.into_inner());
        in_bulk(&self.0.bulk, request.entries.len(), async move { entries.create_all(request).await }).await
    }

    async fn create_all(&self, request: CreateEntries) -> Result<Response<Encoded>, Status> {
        let CreateEntries { entries, output_mask } = request;
        let read = in_turns(entries.into_iter()).map(|entry| {
            let requested = entry::requested(self.0.trust_domain(), Some(&batch::entry(&entry)?), None);
            Ok(requested.map_err(|why| invalid("failed to convert entry", why)).and_then(new_entry))
        });
        let wanted = read.collect::<Result<_, Status>>()?;
        let create = |entries| self.0.store.create_entries(entries);
        let refused = |why: &StoreError| stored("failed to create entry", why);
        let created = written_together(&self.0, wanted, create, refused).await;
        let similar = (&Status::already_exists("similar entry already exists")).into();
        let mut results = Results::of(created.len(), output_mask.as_ref());
        for created in in_turns(created.into_iter()) {
            match created {
                // A new entry as SPIRE shows it; one that was there as lists show it.
                Ok(CreatedEntry { stored, existing: false }) => results.good(&as_written(&stored.entry)),
                Ok(CreatedEntry { stored, existing: true }) => results.put(&similar, Some(&stored.entry)),
                Err(status) => results.put(&(&status).into(), None),
            }
        }
        Ok(results.answer())
    }

    /// `BatchUpdateEntry`.
    pub(super) async fn update(&self, request: Request<UpdateEntries>) -> Result<Response<Encoded>, Status> {
        let (entries, request) = (self.clone(), request.into_inner());
        in_bulk(&self.0.bulk, request.entries.len(), async move { entries.update_all(request).await }).await
    }

    async fn update_all(&self, request: UpdateEntries) -> Result<Response<Encoded>, Status> {
        let UpdateEntries { entries, input_mask, output_mask } = request;
        let mask = input_mask.as_ref().map_or(EntryMask::ALL, update_mask);
        let read = in_turns(entries.into_iter()).map(|entry| {
            let entry = batch::entry(&entry)?;
            let requested = entry::requested(self.0.trust_domain(), Some(&entry), input_mask.as_ref());
            let requested = requested.map_err(|why| invalid("failed to convert entry", why));
            Ok(requested.map(|requested| self.masked_entry(requested)))
        });
        let wanted = read.collect::<Result<_, Status>>()?;
        let update = |entries| self.0.store.update_entries(entries, mask);
        let refused = |why: &StoreError| stored("failed to update entry", why);
        let updated = written_together(&self.0, wanted, update, refused).await;
        let mut results = Results::of(updated.len(), output_mask.as_ref());
        for updated in in_turns(updated.into_iter()) {
            match updated {
                Ok(stored) => results.good(&as_written(&stored.entry)),
                Err(status) => results.put(&(&status).into(), None),
            }
        }
        Ok(results.answer())
    }

    /// What `BatchDeleteEntry` came to.
    async fn delete_all(&self, ids: Vec<String>) -> Result<Response<wire::BatchDeleteEntryResponse>, Status> {
        let wanted = |id: &String| match id.as_str() {
            "" => Err(Status::invalid_argument("missing entry ID")),
            id => Ok(EntryId::new(id)),
        };
        let delete = |ids| self.0.store.delete_entries(ids);
        let refused = |why: &StoreError| refused_as(Code::NotFound, NOT_FOUND, "failed to delete entry", why);
        let wanted = in_turns(ids.iter()).map(wanted).collect();
        let outcomes = written_together(&self.0, wanted, delete, refused).await;
        let results = in_turns(ids.into_iter()).zip(outcomes).map(|(id, outcome)| {
            let (status, _) = status::item(outcome);
            wire::batch_delete_entry_response::Result { status, id }
        });
        let results = results.collect();
        Ok(Response::new(wire::BatchDeleteEntryResponse { results }))
    }

    /// `ListEntries`: a page of entries from the snapshot, but for selectors by SQL, where old bugs left
    /// rows that clients see as page tokens.
    pub(super) async fn list(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let what = "failed to list entries";
        let wire::ListEntriesRequest { filter, output_mask, page_size, page_token } = request.into_inner();
        let asked = filter.map(Asked::from).unwrap_or_default();
        let filter = asked.filter(self.0.trust_domain(), what)?;
        let (page, mask) = (page(page_size, page_token), output_mask.as_ref());
        let refused = |why| {
            // Of all lists this one alone passes the datastore's refusal on as a status in words.
            if let StoreError::InvalidArgument(why) = &why {
                return failed(
                    what,
                    format!("datastore-sql: rpc error: code = InvalidArgument desc = {why}"),
                );
            }
            failed(what, why)
        };
        let (entries, next_page_token) = if filter.selectors.is_some() {
            let listed = self.0.store.list_entries(filter, page).await;
            let listed = listed.map_err(refused)?;
            (fields(listed.entries.iter().map(|stored| &stored.entry), mask), listed.next_token)
        } else {
            self.0.fresh.wait().await.map_err(|why| failed(what, why))?;
            let graph = self.0.graph.load();
            let listed = list::page(&graph, &filter, page.as_ref()).map_err(refused)?;
            (fields(listed.entries.iter().copied(), mask), listed.next_token)
        };
        let mut reply = Encoded::new(vec![entries]);
        if !next_page_token.is_empty() {
            let rest = wire::ListEntriesResponse { entries: Vec::new(), next_page_token };
            reply.push(Encoded::of(&rest).to_bytes());
        }
        Ok(Response::new(reply))
    }

    async fn counted(&self, filter: EntryFilter) -> Result<i32, StoreError> {
        if filter.selectors.is_some() {
            return self.0.store.count_entries(filter).await;
        }
        self.0.fresh.wait().await?;
        Ok(list::count(&self.0.graph.load(), &filter))
    }

    /// One entry: from the snapshot. A row that cannot be understood is not there; the datastore
    /// knows whether there is one.
    async fn found(&self, id: &EntryId) -> Result<Option<Arc<Entry>>, StoreError> {
        self.0.fresh.wait().await?;
        let known = self.0.graph.load().entry(id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        Ok(self.0.store.fetch_entry(id.clone()).await?.map(|stored| stored.entry))
    }
}

#[tonic::async_trait]
impl wire::entry_server::Entry for Entries {
    async fn count_entries(
        &self,
        request: Request<wire::CountEntriesRequest>,
    ) -> Result<Response<wire::CountEntriesResponse>, Status> {
        let what = "failed to count entries";
        let request = request.into_inner();
        let asked = request.filter.map(Asked::from).unwrap_or_default();
        let filter = asked.filter(self.0.trust_domain(), what)?;
        let count = self.counted(filter).await.map_err(|why| failed(what, why))?;
        Ok(Response::new(wire::CountEntriesResponse { count }))
    }

    async fn list_entries(
        &self,
        _request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        Err(encoded_elsewhere())
    }

    async fn get_entry(
        &self,
        request: Request<wire::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let wire::GetEntryRequest { id, output_mask } = request.into_inner();
        if id.is_empty() {
            return Err(Status::invalid_argument("missing ID"));
        }
        let found = self.found(&EntryId::new(&id)).await;
        let found = found.map_err(|why| failed("failed to fetch entry", why))?;
        let entry = found.ok_or_else(|| Status::not_found(NOT_FOUND))?;
        Ok(Response::new(masked(&entry, output_mask.as_ref())))
    }

    async fn batch_create_entry(
        &self,
        _request: Request<wire::BatchCreateEntryRequest>,
    ) -> Result<Response<wire::BatchCreateEntryResponse>, Status> {
        Err(encoded_elsewhere())
    }

    async fn batch_update_entry(
        &self,
        _request: Request<wire::BatchUpdateEntryRequest>,
    ) -> Result<Response<wire::BatchUpdateEntryResponse>, Status> {
        Err(encoded_elsewhere())
    }

    async fn batch_delete_entry(
        &self,
        request: Request<wire::BatchDeleteEntryRequest>,
    ) -> Result<Response<wire::BatchDeleteEntryResponse>, Status> {
        let (entries, ids) = (self.clone(), request.into_inner().ids);
        in_bulk(&self.0.bulk, ids.len(), async move { entries.delete_all(ids).await }).await
    }

    async fn get_authorized_entries(
        &self,
        _request: Request<wire::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<wire::GetAuthorizedEntriesResponse>, Status> {
        Err(encoded_elsewhere())
    }

    type SyncAuthorizedEntriesStream = Answers<wire::SyncAuthorizedEntriesResponse>;

    async fn sync_authorized_entries(
        &self,
        _request: Request<Streaming<wire::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        Err(encoded_elsewhere())
    }
}

impl Entries {
    /// What an update writes. The ids that the mask leaves out are not looked at.
    fn masked_entry(&self, requested: RequestedEntry) -> NewEntry {
        let unused = || self.0.trust_domain().id();
        let spiffe_id = requested.spiffe_id.clone().unwrap_or_else(unused);
        let parent_id = requested.parent_id.clone().unwrap_or_else(unused);
        with_ids(requested, spiffe_id, parent_id)
    }
}

const NOT_FOUND: &str = "entry not found";

/// What a create writes.
fn new_entry(requested: RequestedEntry) -> Result<NewEntry, Status> {
    // Without a mask both are there, or the request was refused.
    let missing = || invalid("failed to convert entry", "request must specify SPIFFE ID");
    let spiffe_id = requested.spiffe_id.clone().ok_or_else(missing)?;
    let parent_id = requested.parent_id.clone().ok_or_else(missing)?;
    Ok(with_ids(requested, spiffe_id, parent_id))
}

fn with_ids(requested: RequestedEntry, spiffe_id: spiffe::SpiffeId, parent_id: spiffe::SpiffeId) -> NewEntry {
    NewEntry {
        id: Some(requested.id).filter(|id| !id.as_str().is_empty()),
        spiffe_id,
        parent_id,
        selectors: requested.selectors,
        x509_svid_ttl: requested.x509_svid_ttl,
        jwt_svid_ttl: requested.jwt_svid_ttl,
        federates_with: requested.federates_with,
        admin: requested.admin,
        downstream: requested.downstream,
        expires_at: requested.expires_at,
        dns_names: requested.dns_names.iter().map(|name| name.as_str().to_owned()).collect(),
        store_svid: requested.store_svid,
        hint: requested.hint,
        additional_attributes: requested.additional_attributes,
    }
}

const fn update_mask(mask: &types::EntryMask) -> EntryMask {
    EntryMask {
        spiffe_id: mask.spiffe_id,
        parent_id: mask.parent_id,
        selectors: mask.selectors,
        x509_svid_ttl: mask.x509_svid_ttl,
        jwt_svid_ttl: mask.jwt_svid_ttl,
        federates_with: mask.federates_with,
        admin: mask.admin,
        downstream: mask.downstream,
        expires_at: mask.expires_at,
        dns_names: mask.dns_names,
        store_svid: mask.store_svid,
        hint: mask.hint,
        additional_attributes: mask.additional_attributes,
    }
}

/// Entries as the fields `entries` of `ListEntriesResponse` and `GetAuthorizedEntriesResponse`.
fn fields<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>, mask: Option<&types::EntryMask>) -> Bytes {
    let mut bytes = Vec::with_capacity(entries.size_hint().0 * USUAL);
    entries.for_each(|entry| put_entry(1, entry, mask, &mut bytes));
    bytes.into()
}

/// How long an entry usually is at most, in bytes.
const USUAL: usize = 256;

/// Room for more bytes than this is made when they are there: what is asked for may come to little.
const MOST: usize = 1 << 20;

/// The answer to a batch that creates or changes entries.
struct Results<'a> {
    ok: types::Status,
    mask: Option<&'a types::EntryMask>,
    bytes: Vec<u8>,
}

impl<'a> Results<'a> {
    /// None yet, of so many; of entries they show what `mask` names.
    fn of(count: usize, mask: Option<&'a types::EntryMask>) -> Self {
        Self { ok: types::Status::ok(), mask, bytes: Vec::with_capacity((count * USUAL).min(MOST)) }
    }

    fn good(&mut self, entry: &Entry) {
        put_outcome(1, &self.ok, Some(entry), self.mask, &mut self.bytes);
    }

    fn put(&mut self, status: &types::Status, entry: Option<&Entry>) {
        put_outcome(1, status, entry, self.mask, &mut self.bytes);
    }

    fn answer(self) -> Response<Encoded> {
        Response::new(Encoded::new(vec![self.bytes.into()]))
    }
}
