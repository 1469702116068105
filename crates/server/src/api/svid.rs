//! `spire.api.server.svid.v1.SVID`: minting and signing.

use std::sync::Arc;

use proto::spire::server::svid as wire;
use tonic::{Request, Response, Status};

use super::not_built;
use crate::context::Context;

/// The service.
pub(crate) struct Svids(Arc<Context>);

impl Svids {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }
}

#[tonic::async_trait]
impl wire::svid_server::Svid for Svids {
    async fn mint_x509svid(
        &self,
        _request: Request<wire::MintX509svidRequest>,
    ) -> Result<Response<wire::MintX509svidResponse>, Status> {
        Err(not_built())
    }

    async fn mint_jwtsvid(
        &self,
        _request: Request<wire::MintJwtsvidRequest>,
    ) -> Result<Response<wire::MintJwtsvidResponse>, Status> {
        Err(not_built())
    }

    async fn mint_witsvid(
        &self,
        _request: Request<wire::MintWitsvidRequest>,
    ) -> Result<Response<wire::MintWitsvidResponse>, Status> {
        Err(not_built())
    }

    async fn batch_new_x509svid(
        &self,
        _request: Request<wire::BatchNewX509svidRequest>,
    ) -> Result<Response<wire::BatchNewX509svidResponse>, Status> {
        Err(not_built())
    }

    async fn new_jwtsvid(
        &self,
        _request: Request<wire::NewJwtsvidRequest>,
    ) -> Result<Response<wire::NewJwtsvidResponse>, Status> {
        Err(not_built())
    }

    async fn batch_new_witsvid(
        &self,
        _request: Request<wire::BatchNewWitsvidRequest>,
    ) -> Result<Response<wire::BatchNewWitsvidResponse>, Status> {
        Err(not_built())
    }

    async fn new_downstream_x509ca(
        &self,
        _request: Request<wire::NewDownstreamX509caRequest>,
    ) -> Result<Response<wire::NewDownstreamX509caResponse>, Status> {
        Err(not_built())
    }
}
