//! `grpc.health.v1.Health` of the server's own socket: one question, whether there is a bundle to serve.

use std::sync::Arc;

use proto::health as wire;
use proto::health::health_check_response::ServingStatus;
use tonic::{Request, Response, Status};

use super::Answers;
use crate::context::Context;

/// The service.
pub(crate) struct Health(Arc<Context>);

impl Health {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }
}

#[tonic::async_trait]
impl wire::health_server::Health for Health {
    async fn check(
        &self,
        request: Request<wire::HealthCheckRequest>,
    ) -> Result<Response<wire::HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::invalid_argument("per-service health is not supported"));
        }
        let status = if self.0.own_bundle().is_some() {
            ServingStatus::Serving
        } else {
            tracing::warn!(subsystem_name = "api", reason = "bundle is missing", "Health check failed");
            ServingStatus::NotServing
        };
        Ok(Response::new(wire::HealthCheckResponse { status: status.into() }))
    }

    async fn list(
        &self,
        _request: Request<wire::HealthListRequest>,
    ) -> Result<Response<wire::HealthListResponse>, Status> {
        Err(Status::unimplemented("method List not implemented"))
    }

    type WatchStream = Answers<wire::HealthCheckResponse>;

    async fn watch(
        &self,
        _request: Request<wire::HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("method Watch not implemented"))
    }
}
