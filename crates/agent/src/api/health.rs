//! Whether workloads would be answered: asked over gRPC on the public socket, and told to the HTTP
//! listener.
//!
//! The agent attests itself as it does any workload. That no entry is for it is no fault; that it
//! cannot be attested is one, since no workload could be then.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use proto::health::health_check_response::ServingStatus;
use proto::health::{HealthCheckRequest, HealthCheckResponse};
use proto::raw::{self, Encoded};
use runtime::peer::{Caller, CallerError};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::route::Service;
use crate::attestors::{AttestError, Attestors};
use crate::context::Context;

/// The service and its methods.
pub(super) const SERVICE: Service =
    Service { name: "grpc.health.v1.Health", methods: &["Check", "List", "Watch"] };

/// How long between two looks until the first good one, and after it.
const IMPATIENT: Duration = Duration::from_secs(1);
const PATIENT: Duration = Duration::from_secs(60);

/// Whether a call to this path asks for the agent's health.
pub(super) fn is_asked(path: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) == Some((SERVICE.name, "Check"))
}

/// Answers [`is_asked`] calls while there is nothing to serve.
pub(super) async fn not_serving(request: http::Request<Body>) -> http::Response<Body> {
    raw::unary(request, |_: Request<HealthCheckRequest>| async {
        let status = ServingStatus::NotServing.into();
        Ok(Response::new(Encoded::of(&HealthCheckResponse { status })))
    })
    .await
}

/// The service. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(super) struct HealthApi {
    /// Nothing where workloads are not served at all.
    attestors: Option<Arc<Attestors>>,
}

impl HealthApi {
    pub(super) fn new(attestors: Option<Arc<Attestors>>) -> Self {
        Self { attestors }
    }

    /// Answers a call of one of [`SERVICE`]'s methods.
    pub(super) async fn answer(&self, method: &str, request: http::Request<Body>) -> http::Response<Body> {
        if method != "Check" {
            return Status::unimplemented(format!("method {method} not implemented")).into_http();
        }
        raw::unary(request, |request: Request<HealthCheckRequest>| async move {
            if !request.get_ref().service.is_empty() {
                return Err(Status::invalid_argument("per-service health is not supported"));
            }
            let status = match self.probe().await {
                Ok(()) => ServingStatus::Serving,
                Err(error) => {
                    let (error, reason) =
                        (runtime::chain(&error), "unable to fetch X.509 context from Workload API");
                    warn!(error, reason, subsystem_name = "endpoints", "Health check failed");
                    ServingStatus::NotServing
                }
            };
            Ok(Response::new(Encoded::of(&HealthCheckResponse { status: status.into() })))
        })
        .await
    }

    /// Tells the check `agent` how things are, until the token is cancelled.
    pub(super) async fn watch(&self, context: &Context, token: &CancellationToken) {
        let check = context.health.check("agent");
        check.started();
        let mut pause = IMPATIENT;
        loop {
            match self.probe().await {
                Ok(()) => {
                    check.cleared(TROUBLE);
                    pause = PATIENT;
                }
                Err(error) => {
                    warn!(
                        error = runtime::chain(&error),
                        subsystem_name = "health",
                        "Health check has failed"
                    );
                    check.failing(TROUBLE, "workload api is unavailable");
                }
            }
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                () = context.clock.sleep(pause) => {}
            }
        }
    }

    /// Attests the agent itself.
    async fn probe(&self) -> Result<(), AttestError> {
        let Some(attestors) = &self.attestors else { return Ok(()) };
        attestors.attest(&itself()?).await.map(drop)
    }
}

/// The agent as a caller of its own.
fn itself() -> Result<Caller, CallerError> {
    let (socket, _other_end) = UnixStream::pair()?;
    Caller::of(socket.as_fd())
}

/// The member that SPIRE's answer has when something is wrong.
const TROUBLE: &str = "make_new_x509_err";
