//! `finial.explain.v1.Agent`: what is known of a workload, and which identities it has for what reason.
//!
//! On the public socket anybody may ask about itself, root and the agent's own user about every process.
//! Who may not ask about others is not told of entries that do not match: they are others' business. On
//! the admin socket everybody is trusted.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::convert::selector;
use proto::finial::explain::explain_workload_response::Attestor;
use proto::finial::explain::{ExplainWorkloadRequest, ExplainWorkloadResponse};
use proto::raw::{self, Encoded};
use runtime::listen::Peer;
use runtime::peer::{Caller, Process};
use spiffe::nearest::grant;
use spiffe::{SelectorSet, UnixSecs};
use tonic::body::Body;
use tonic::{Request, Response, Status};

use super::route::Service;
use crate::attestors::Attestors;
use crate::context::Context;
use crate::explain::{Reason, matches, misses, wire};

/// The service and its methods.
pub(super) const SERVICE: Service = Service { name: "finial.explain.v1.Agent", methods: &["Explain"] };

/// The service on one socket.
pub(super) struct ExplainApi {
    context: Arc<Context>,
    attestors: Arc<Attestors>,
    socket: Socket,
    /// Who looks after the agent.
    own_user: Option<u32>,
}

/// Which socket it is served on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    Public,
    Admin,
}

impl ExplainApi {
    pub(super) fn new(context: Arc<Context>, attestors: Arc<Attestors>, socket: Socket) -> Self {
        let own = Process::open(i32::try_from(std::process::id()).unwrap_or_default());
        let own_user = own.and_then(|own| own.owner()).ok().map(|(user, _)| user);
        Self { context, attestors, socket, own_user }
    }

    /// Answers `Explain`.
    pub(super) async fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        if self.socket == Socket::Public && !super::has_security_header(request.headers()) {
            return Status::invalid_argument("security header missing from request").into_http();
        }
        let caller = request.extensions().get::<Peer>().and_then(Peer::caller).cloned();
        raw::unary(request, |request: Request<ExplainWorkloadRequest>| async move {
            let caller = caller.ok_or_else(|| Status::permission_denied("peer is no local process"))?;
            let explained = self.explain(&caller, request.get_ref()).await?;
            Ok(Response::new(Encoded::of(&explained)))
        })
        .await
    }

    async fn explain(
        &self,
        caller: &Caller,
        request: &ExplainWorkloadRequest,
    ) -> Result<ExplainWorkloadResponse, Status> {
        let is_trusted = self.socket == Socket::Admin || caller.uid == 0 || Some(caller.uid) == self.own_user;
        let is_own = request.pid == 0 || request.pid == caller.process.pid();
        let is_about_others = !is_own || !request.selectors.is_empty();
        if !is_trusted && is_about_others {
            return Err(Status::permission_denied(
                "only root, the agent's user and callers of the admin socket may ask about others",
            ));
        }
        let mut response = ExplainWorkloadResponse::default();
        let selectors = if request.selectors.is_empty() {
            let process = if is_own { Ok(caller.clone()) } else { caller_of(request.pid) };
            match process {
                Ok(process) => self.attest(&process, &mut response).await,
                Err(_) => return Err(Status::not_found(format!("there is no process {}", request.pid))),
            }
        } else if request.pid == 0 {
            let given = selector::all(&request.selectors);
            let given = given.map_err(|error| Status::invalid_argument(error.to_string()))?;
            given.into_iter().collect()
        } else {
            return Err(Status::invalid_argument("either a process or selectors"));
        };
        self.judge(&selectors, is_trusted, &mut response);
        Ok(response)
    }

    async fn attest(&self, process: &Caller, response: &mut ExplainWorkloadResponse) -> SelectorSet {
        let found = self.attestors.each(process).await;
        let mut selectors = Vec::new();
        for (name, outcome) in found {
            let mut attestor = Attestor { name: name.to_owned(), ..Attestor::default() };
            match outcome {
                Ok(some) => {
                    attestor.selectors = wire(some.iter());
                    selectors.extend(some);
                }
                Err(error) => attestor.error = error.to_string(),
            }
            response.attestors.push(attestor);
        }
        if let Err(error) = process.verify() {
            response.attestors.push(Attestor {
                name: "process".to_owned(),
                error: error.to_string(),
                ..Attestor::default()
            });
        }
        selectors.into_iter().collect()
    }

    fn judge(&self, selectors: &SelectorSet, is_trusted: bool, response: &mut ExplainWorkloadResponse) {
        let state = self.context.state.load();
        let has_failed = |attestor: &Attestor| !attestor.error.is_empty();
        let is_unknown = !response.attestors.is_empty() && response.attestors.iter().all(has_failed);
        let is_gone = response.attestors.last().is_some_and(|last| last.name == "process");
        let reason =
            if is_unknown || is_gone { Reason::NotAttested } else { Reason::of(&state, selectors, None) };
        response.reason = reason.code().to_owned();
        response.explanation = reason.text().to_owned();
        response.selectors = wire(selectors.iter());
        response.matches = matches(&state, selectors);
        if is_trusted {
            response.misses = misses(&state, selectors);
            response.entries = i32::try_from(state.entries.len()).unwrap_or(i32::MAX);
        } else {
            response.misses_withheld = true;
        }
        response.agent_id = state.agent.id.to_string();
        response.agent_expires_at = state.agent.expires_at().0;
        response.now = UnixSecs::from(self.context.clock.now()).0;
        response.synced_at = state.synced_at.map_or(0, |at| at.0);
        response.is_pushed = self.context.is_pushed.load(Ordering::Relaxed);
        if response.matches.is_empty() {
            response.grant = grant(&state.agent.id, &state.bundles.own.trust_domain, selectors);
        }
    }
}

/// The process that has this id now.
fn caller_of(pid: i32) -> Result<Caller, runtime::peer::CallerError> {
    Caller::of_process(Process::open(pid)?)
}
