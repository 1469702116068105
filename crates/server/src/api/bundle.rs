//! `spire.api.server.bundle.v1.Bundle`: the own bundle and those of other trust domains.

use std::sync::Arc;

use proto::spire::server::bundle as wire;
use proto::spire::types;
use tonic::{Request, Response, Status};

use super::not_built;
use crate::context::Context;

/// The service.
pub(crate) struct Bundles(Arc<Context>);

impl Bundles {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }
}

#[tonic::async_trait]
impl wire::bundle_server::Bundle for Bundles {
    async fn count_bundles(
        &self,
        _request: Request<wire::CountBundlesRequest>,
    ) -> Result<Response<wire::CountBundlesResponse>, Status> {
        Err(not_built())
    }

    async fn get_bundle(
        &self,
        _request: Request<wire::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        Err(not_built())
    }

    async fn append_bundle(
        &self,
        _request: Request<wire::AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        Err(not_built())
    }

    async fn publish_jwt_authority(
        &self,
        _request: Request<wire::PublishJwtAuthorityRequest>,
    ) -> Result<Response<wire::PublishJwtAuthorityResponse>, Status> {
        Err(not_built())
    }

    async fn publish_wit_authority(
        &self,
        _request: Request<wire::PublishWitAuthorityRequest>,
    ) -> Result<Response<wire::PublishWitAuthorityResponse>, Status> {
        Err(not_built())
    }

    async fn list_federated_bundles(
        &self,
        _request: Request<wire::ListFederatedBundlesRequest>,
    ) -> Result<Response<wire::ListFederatedBundlesResponse>, Status> {
        Err(not_built())
    }

    async fn get_federated_bundle(
        &self,
        _request: Request<wire::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        Err(not_built())
    }

    async fn batch_create_federated_bundle(
        &self,
        _request: Request<wire::BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchCreateFederatedBundleResponse>, Status> {
        Err(not_built())
    }

    async fn batch_update_federated_bundle(
        &self,
        _request: Request<wire::BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchUpdateFederatedBundleResponse>, Status> {
        Err(not_built())
    }

    async fn batch_set_federated_bundle(
        &self,
        _request: Request<wire::BatchSetFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchSetFederatedBundleResponse>, Status> {
        Err(not_built())
    }

    async fn batch_delete_federated_bundle(
        &self,
        _request: Request<wire::BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchDeleteFederatedBundleResponse>, Status> {
        Err(not_built())
    }
}
