//! `spire.api.server.entry.v1.Entry`: registration entries, and what agents may know of them.

use std::sync::Arc;

use proto::spire::server::entry as wire;
use proto::spire::types;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, not_built};
use crate::context::Context;

/// The service.
pub(crate) struct Entries(Arc<Context>);

impl Entries {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }
}

#[tonic::async_trait]
impl wire::entry_server::Entry for Entries {
    async fn count_entries(
        &self,
        _request: Request<wire::CountEntriesRequest>,
    ) -> Result<Response<wire::CountEntriesResponse>, Status> {
        Err(not_built())
    }

    async fn list_entries(
        &self,
        _request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        Err(not_built())
    }

    async fn get_entry(
        &self,
        _request: Request<wire::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        Err(not_built())
    }

    async fn batch_create_entry(
        &self,
        _request: Request<wire::BatchCreateEntryRequest>,
    ) -> Result<Response<wire::BatchCreateEntryResponse>, Status> {
        Err(not_built())
    }

    async fn batch_update_entry(
        &self,
        _request: Request<wire::BatchUpdateEntryRequest>,
    ) -> Result<Response<wire::BatchUpdateEntryResponse>, Status> {
        Err(not_built())
    }

    async fn batch_delete_entry(
        &self,
        _request: Request<wire::BatchDeleteEntryRequest>,
    ) -> Result<Response<wire::BatchDeleteEntryResponse>, Status> {
        Err(not_built())
    }

    async fn get_authorized_entries(
        &self,
        _request: Request<wire::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<wire::GetAuthorizedEntriesResponse>, Status> {
        Err(not_built())
    }
    type SyncAuthorizedEntriesStream = Answers<wire::SyncAuthorizedEntriesResponse>;

    async fn sync_authorized_entries(
        &self,
        _request: Request<Streaming<wire::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        Err(not_built())
    }
}
