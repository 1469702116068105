//! What a call of a workload passes before it is answered: attestation, and the limit of how often.

use std::sync::Arc;

use runtime::listen::Peer;
use spiffe::SelectorSet;
use tonic::Status;
use tonic::body::Body;
use tracing::error;

use super::limits::Limit;
use crate::attestors::{AttestError, Attestors};
use crate::context::Context;

/// The gate of one service.
pub(super) struct Gate {
    context: Arc<Context>,
    attestors: Arc<Attestors>,
    /// The service as the wire names it, and as the log does.
    service: (&'static str, &'static str),
    /// The agent's own calls are not limited, and make no noise in the log.
    own_pid: i32,
}

/// One call: what its lines in the log have in common, and who makes it.
pub(super) struct Call {
    pub(super) method: &'static str,
    pub(super) peer: Option<Peer>,
    pub(super) pid: i32,
}

impl Call {
    /// The call of `method` that `request` is.
    pub(super) fn of(method: &'static str, request: &http::Request<Body>) -> Self {
        let peer = request.extensions().get::<Peer>().cloned();
        let pid = peer.as_ref().and_then(Peer::caller).map_or(0, |caller| caller.process.pid());
        Self { method, peer, pid }
    }

    /// Whether the process that was attested has not ended: another may hold its socket by now, which
    /// never was.
    pub(super) fn is_live(&self) -> bool {
        self.peer.as_ref().and_then(Peer::caller).is_some_and(|caller| caller.process.is_alive())
    }
}

impl Gate {
    /// The gate of a service with this name on the wire, and this one in the log.
    pub(super) fn new(
        context: Arc<Context>,
        attestors: Arc<Attestors>,
        service: (&'static str, &'static str),
    ) -> Self {
        let own_pid = i32::try_from(std::process::id()).unwrap_or_default();
        Self { context, attestors, service, own_pid }
    }

    /// Whether the agent itself calls.
    pub(super) const fn is_own(&self, call: &Call) -> bool {
        call.pid == self.own_pid
    }

    /// The selectors of who calls.
    pub(super) async fn attested(&self, call: &Call) -> Result<SelectorSet, Status> {
        let Some(caller) = call.peer.as_ref().and_then(Peer::caller) else {
            return Err(self.unattested(call, "peer is no local process"));
        };
        match self.attestors.attest(caller).await {
            Ok(selectors) => Ok(selectors),
            Err(failed) => {
                if let (AttestError::Caller(_), Some(peer)) = (&failed, &call.peer) {
                    // Whoever holds the other end now is not who connected, and never will be.
                    peer.retire();
                }
                Err(self.unattested(call, &runtime::chain(&failed)))
            }
        }
    }

    /// The refusal of a call because of what could not be found out.
    pub(super) fn unattested(&self, call: &Call, error: &str) -> Status {
        let Call { method, pid, .. } = *call;
        let service = self.service.1;
        error!(error, method, pid, service, subsystem_name = SUBSYSTEM, "Workload attestation failed");
        Status::unavailable("workload attestation failed")
    }

    /// Refuses a call beyond the limit of its method.
    pub(super) fn check_rate(
        &self,
        call: &Call,
        limit: Option<&Limit>,
        selectors: &SelectorSet,
    ) -> Result<(), Status> {
        match limit {
            Some(limit) if !self.is_own(call) && !limit.allows(selectors) => {
                self.context.meters.rate_exceeded(limited_name(call.method)).increment();
                let service = self.service.0;
                Err(Status::unavailable(format!("rate limit exceeded for /{service}/{}", call.method)))
            }
            _ => Ok(()),
        }
    }
}

/// A method as the configuration calls its limit.
fn limited_name(method: &str) -> &'static str {
    match method {
        "FetchX509SVID" => "fetch_x509_svid",
        "FetchX509Bundles" => "fetch_x509_bundles",
        "FetchJWTSVID" => "fetch_jwt_svid",
        "FetchJWTBundles" => "fetch_jwt_bundles",
        "StreamSecrets" => "stream_secrets",
        _ => "fetch_secrets",
    }
}

/// The part of the agent that log lines of the APIs name.
pub(super) const SUBSYSTEM: &str = "endpoints";
