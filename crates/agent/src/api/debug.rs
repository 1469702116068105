//! `spire.agent.debug.v1.Debug`: what the agent holds, for who looks after it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::raw::{self, Encoded};
use proto::spire::agent::debug::get_info_response::Cert;
use proto::spire::agent::debug::{GetInfoRequest, GetInfoResponse};
use proto::spire::types;
use spiffe::x509::{Certificate, find_path};
use spiffe::{SpiffeId, UnixSecs};
use tonic::body::Body;
use tonic::{Request, Response};

use super::route::Service;
use crate::context::Context;
use crate::state::AgentState;

/// The service and its methods.
pub(super) const SERVICE: Service = Service { name: "spire.agent.debug.v1.Debug", methods: &["GetInfo"] };

/// How old an answer may be.
const HOLDS: Duration = Duration::from_secs(5);

/// The service.
pub(super) struct DebugApi {
    context: Arc<Context>,
    last: Mutex<Option<(Instant, Encoded)>>,
}

impl DebugApi {
    /// The first answer is made now.
    pub(super) fn new(context: Arc<Context>) -> Self {
        let api = Self { context, last: Mutex::default() };
        api.info();
        api
    }

    /// Answers `GetInfo`.
    pub(super) async fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        raw::unary(request, |_: Request<GetInfoRequest>| async { Ok(Response::new(self.info())) }).await
    }

    fn info(&self) -> Encoded {
        let now = self.context.clock.instant();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, answer)) if now.duration_since(*at) < HOLDS => answer.clone(),
            _ => {
                let answer = Encoded::of(&self.look(now));
                *last = Some((now, answer.clone()));
                answer
            }
        }
    }

    fn look(&self, now: Instant) -> GetInfoResponse {
        let state = self.context.state.load();
        let x509_svids = count(state.entries.svid_count());
        let chain = chain(&state, UnixSecs::from(self.context.clock.now()));
        #[expect(deprecated, reason = "older commands read it")]
        GetInfoResponse {
            svid_chain: chain.into_iter().map(shown).collect(),
            uptime: i32::try_from(now.duration_since(self.context.started_at).as_secs()).unwrap_or(i32::MAX),
            svids_count: x509_svids,
            last_sync_success: state.synced_at.map_or(0, |at| at.0),
            cached_x509_svids_count: x509_svids,
            cached_jwt_svids_count: count(self.context.jwt_svids.count()),
            cached_svidstore_x509_svids_count: 0,
        }
    }
}

/// The agent's own chain up to the authority that stands behind it. Where none does any more (it was
/// just revoked) the chain is shown without, since that is what is to be found out here.
fn chain(state: &AgentState, now: UnixSecs) -> Vec<&Certificate> {
    let Some((leaf, intermediates)) = state.agent.chain.split_first() else { return Vec::new() };
    find_path(leaf, intermediates, &state.bundles.anchors, now).unwrap_or_else(|error| {
        tracing::error!(%error, subsystem_name = "debug_api", "Failed to verify agent SVID");
        state.agent.chain.iter().collect()
    })
}

fn shown(certificate: &Certificate) -> Cert {
    let id = match certificate.uris() {
        [only] => SpiffeId::parse(only).ok(),
        _ => None,
    };
    Cert {
        id: id.map(|id| types::Spiffeid {
            trust_domain: id.trust_domain_name().to_owned(),
            path: id.path().to_owned(),
        }),
        expires_at: certificate.not_after().0,
        subject: certificate.subject().to_string(),
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
