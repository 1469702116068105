//! What calls of workloads have in common, whatever API they are of: attestation, the limit of how
//! often, the refusal of who has no identity, and tokens.

use std::sync::Arc;

use runtime::listen::Peer;
use spiffe::{Entry, Selector, SelectorSet, SpiffeId};
use tonic::Status;
use tonic::body::Body;
use tracing::{debug, error};

use super::limits::Limit;
use crate::attestors::{AttestError, Attestors};
use crate::context::Context;
use crate::explain::Reason;
use crate::jwt::JwtSvid;

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

    /// Refuses a call beyond the limit of its method; those who ask on and on are told late.
    pub(super) async fn check_rate(
        &self,
        call: &Call,
        limit: Option<&Limit>,
        selectors: &SelectorSet,
    ) -> Result<(), Status> {
        let Some(limit) = limit.filter(|_| !self.is_own(call)) else { return Ok(()) };
        let Err(beyond) = limit.take(selectors) else { return Ok(()) };
        self.context.meters.rate_exceeded(limited_name(call.method)).increment();
        if !beyond.after.is_zero() {
            self.context.clock.sleep(beyond.after).await;
        }
        let service = self.service.0;
        Err(Status::unavailable(format!("rate limit exceeded for /{service}/{}", call.method)))
    }

    /// The refusal of a caller that no entry is for. Which of its selectors are told is configured.
    pub(super) fn no_identity(
        &self,
        call: &Call,
        selectors: &SelectorSet,
        wanted: Option<&SpiffeId>,
    ) -> Status {
        let Call { method, pid, .. } = *call;
        if !self.is_own(call) {
            let told = told(selectors, &self.context.config.log_selectors);
            let reason = Reason::of(&self.context.state.load(), selectors, wanted).code();
            error!(
                method,
                pid,
                reason,
                registered = false,
                selectors = told.as_deref(),
                service = self.service.1,
                subsystem_name = SUBSYSTEM,
                "No identity issued"
            );
        }
        Status::permission_denied("no identity issued")
    }

    /// A token of `entry`, unless `stop` is cancelled before it is there.
    pub(super) async fn jwt_svid(
        &self,
        call: &Call,
        entry: &Entry,
        audience: &[String],
    ) -> Result<Arc<JwtSvid>, Status> {
        let Call { method, pid, .. } = *call;
        let fetched = self.context.jwt_svids.fetch(entry, audience).await;
        let (service, id) = (self.service.1, &entry.spiffe_id);
        match fetched {
            Ok(svid) => {
                debug!(
                    method,
                    pid,
                    registered = true,
                    service,
                    spiffe_id = %id,
                    subsystem_name = SUBSYSTEM,
                    "Fetched JWT SVID"
                );
                Ok(svid)
            }
            Err(error) => {
                error!(
                    %error,
                    method,
                    pid,
                    registered = true,
                    service,
                    spiffe_id = %id,
                    subsystem_name = SUBSYSTEM,
                    "Could not fetch JWT-SVID"
                );
                Err(Status::unavailable(format!("could not fetch JWT-SVID: {error}")))
            }
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

/// Those selectors that begin with one of `prefixes`, which end where a part of a selector ends.
fn told(selectors: &SelectorSet, prefixes: &[String]) -> Option<String> {
    let is_told = |text: &String| {
        prefixes.iter().any(|prefix| {
            text.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        })
    };
    let shown = |selector: &Selector| match selector.value() {
        "" => selector.kind().to_owned(),
        _ => selector.to_string(),
    };
    let mut told: Vec<String> = selectors.iter().map(shown).filter(is_told).collect();
    told.sort_unstable();
    (!told.is_empty()).then(|| told.join(","))
}

/// The part of the agent that log lines of the APIs name.
pub(super) const SUBSYSTEM: &str = "endpoints";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g02_only_selectors_below_a_prefix_are_told() {
        let selectors: SelectorSet =
            [("k8s", "ns:b"), ("k8s", "nsx:c"), ("unix", "uid:0"), ("k8s", "ns"), ("docker", "")]
                .map(|(kind, value)| Selector::new(kind, value))
                .into_iter()
                .collect();
        let told = |prefixes: &[&str]| {
            told(&selectors, &prefixes.iter().map(ToString::to_string).collect::<Vec<_>>())
        };

        assert_eq!(told(&["k8s:ns"]).as_deref(), Some("k8s:ns,k8s:ns:b"));
        assert_eq!(told(&["docker", "unix:uid:0"]).as_deref(), Some("docker,unix:uid:0"));
        assert_eq!(told(&["k8"]), None);
        assert_eq!(told(&[]), None);
    }
}
