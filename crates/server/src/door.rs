//! The door that every call comes through: it finds the method, judges the caller, and hands the call
//! to its service.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use http::{Request, Response};
use proto::{packed, raw};
use runtime::{listen, metrics};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;
use uuid::Uuid;

use crate::api::Services;
use crate::audit::Watch;
use crate::authz::{self, Input, Lookup, Open, PolicyError, Rule};
use crate::caller::{Caller, Peer, service_and_method, tell};
use crate::context::Context;

/// The door of one listener. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Door {
    context: Arc<Context>,
    services: Services,
}

impl Door {
    /// A door to these services.
    pub(crate) const fn new(context: Arc<Context>, services: Services) -> Self {
        Self { context, services }
    }

    async fn pass(self, request: Request<Body>) -> Response<Body> {
        let path = listen::method(request.uri()).to_owned();
        let Some(connection) = request.extensions().get::<listen::Peer>() else {
            return Status::internal("caller missing from request").into_http();
        };
        let peer = connection.derived(Peer::of);
        let rule = match authz::look_up(&path, *peer == Peer::Local) {
            Lookup::Method(rule) => rule,
            Lookup::Malformed => return unimplemented(format!("malformed method name: {path:?}")),
            Lookup::UnknownService(service) => return unimplemented(format!("unknown service {service}")),
            Lookup::UnknownMethod { service, method } => {
                return unimplemented(format!("unknown method {method} for service {service}"));
            }
        };
        let running = self.context.meters.rpc(rule).start();
        let connection = connection.clone();
        let (request, answers) = packed::unpacked(request, longest_unpacked(&peer));
        answers.packed(metrics::observed(running, self.judged(request, rule, peer, &connection).await))
    }

    async fn judged(
        self,
        request: Request<Body>,
        rule: &'static Rule,
        peer: Arc<Peer>,
        connection: &listen::Peer,
    ) -> Response<Body> {
        let (passed, open) = match self.open(request, rule, &peer, connection).await {
            Ok(judged) => judged,
            Err(status) => return status.into_http(),
        };
        let mut request = passed;
        let role = match authz::authorise(&self.context, open, &peer).await {
            Ok(role) => role,
            Err(denied) => {
                let (service, method) = service_and_method(rule.method);
                tracing::error!(
                    subsystem_name = "api",
                    service,
                    method,
                    request_id = %Uuid::new_v4(),
                    caller_id = peer.certificate().map(|certificate| certificate.id.as_str()),
                    caller_addr = peer.address().map(tracing::field::display),
                    error = %denied,
                    "Failed to authenticate caller"
                );
                return denied.status(rule.method).into_http();
            }
        };
        let deadline = listen::deadline(request.headers())
            .and_then(|patience| self.context.clock.instant().checked_add(patience));
        let attesting = self.context.config.audit_log.then(Arc::default);
        let request_id = Arc::default();
        let caller = Caller { peer, role, rule, open, deadline, attesting, request_id };
        request.extensions_mut().insert(caller.clone());
        let watch = self.context.config.audit_log.then(|| Watch::new(&self.context, &caller, connection));
        let watch = match watch.transpose() {
            Ok(watch) => watch,
            Err(refused) => return refused.into_http(),
        };
        if let Some(watch) = &watch {
            request = watch.request(request);
        }
        let answer = self.services.answer(request).await;
        let answer = match watch {
            Some(watch) => watch.answer(answer),
            None => answer,
        };
        if let Some(status) = Status::from_header_map(answer.headers()) {
            show(&self.context, &caller, &status);
        }
        answer
    }

    /// To whom this call is open: by the rule, or by the operator's policy, which may want to see the
    /// request.
    async fn open(
        &self,
        request: Request<Body>,
        rule: &'static Rule,
        peer: &Peer,
        connection: &listen::Peer,
    ) -> Result<(Request<Body>, Open), Status> {
        let Some(policy) = &self.context.policy else { return Ok((request, Open::to(rule.who))) };
        let full_method = known_as(rule.method);
        let (request, message) = if policy.sees_requests_of(full_method) {
            let (request, message) = raw::peeked(request).await?;
            (request, Some(message))
        } else {
            (request, None)
        };
        let program = || connection.caller()?.process.read_link("exe").ok();
        let input = Input {
            caller: peer.certificate().map_or("", |certificate| certificate.id.as_str()),
            caller_file_path: program().map(|path| path.display().to_string()).unwrap_or_default(),
            full_method,
            request: message.as_deref(),
        };
        let open = policy.judge(&input).map_err(|error| {
            let text = runtime::chain(&error);
            tracing::error!(method = rule.method, error = text, "Authorization failure from policy");
            let is_request = matches!(error, PolicyError::Request(_));
            if is_request { Status::internal(text) } else { Status::unknown(text) }
        })?;
        Ok((request, open))
    }
}

/// To how much a message of this caller may unpack: to as much as may be sent, but for those whom nobody
/// knows. They would have that memory for a thousandth of the bytes, and have nothing long to say.
const fn longest_unpacked(peer: &Peer) -> usize {
    match peer {
        Peer::Remote { certificate: None, .. } => packed::SHORT,
        Peer::Local | Peer::Remote { .. } => raw::RECEIVE_LIMIT,
    }
}

/// What a policy is asked about in place of a method of Finial's own: what that gives, this gives too.
fn known_as(method: &'static str) -> &'static str {
    match method {
        "/finial.sync.v1.Sync/Watch" => "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries",
        other => other,
    }
}

/// Logs a call that failed at once; a fault of the server is the operator's business.
fn show(context: &Context, caller: &Caller, status: &Status) {
    if status.code() == Code::Ok {
        return;
    }
    let (code, error) = (tracing::field::debug(status.code()), status.message());
    if matches!(status.code(), Code::Internal | Code::Unknown | Code::DataLoss) {
        tell!(error, context, caller, code, error, "Call failed");
    } else {
        tell!(debug, context, caller, code, error, "Call refused");
    }
}

impl Service<Request<Body>> for Door {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let door = self.clone();
        Box::pin(async move { Ok(door.pass(request).await) })
    }
}

fn unimplemented(text: String) -> Response<Body> {
    Status::unimplemented(text).into_http()
}
