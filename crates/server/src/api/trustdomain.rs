//! `spire.api.server.trustdomain.v1.TrustDomain`: federation relationships.

use std::sync::Arc;

use proto::spire::server::trustdomain as wire;
use proto::spire::types;
use tonic::{Request, Response, Status};

use super::not_built;
use crate::context::Context;

/// The service.
pub(crate) struct Relationships(Arc<Context>);

impl Relationships {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }
}

#[tonic::async_trait]
impl wire::trust_domain_server::TrustDomain for Relationships {
    async fn list_federation_relationships(
        &self,
        _request: Request<wire::ListFederationRelationshipsRequest>,
    ) -> Result<Response<wire::ListFederationRelationshipsResponse>, Status> {
        Err(not_built())
    }

    async fn get_federation_relationship(
        &self,
        _request: Request<wire::GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        Err(not_built())
    }

    async fn batch_create_federation_relationship(
        &self,
        _request: Request<wire::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchCreateFederationRelationshipResponse>, Status> {
        Err(not_built())
    }

    async fn batch_update_federation_relationship(
        &self,
        _request: Request<wire::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchUpdateFederationRelationshipResponse>, Status> {
        Err(not_built())
    }

    async fn batch_delete_federation_relationship(
        &self,
        _request: Request<wire::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchDeleteFederationRelationshipResponse>, Status> {
        Err(not_built())
    }

    async fn refresh_bundle(
        &self,
        _request: Request<wire::RefreshBundleRequest>,
    ) -> Result<Response<()>, Status> {
        Err(not_built())
    }
}
