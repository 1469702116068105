//! The door that every call comes through: it finds the method, judges the caller, and hands the call
//! to its service.
//!
//! Errors of the gRPC library are told in the words of the one that SPIRE uses, as clients and scripts
//! know those.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use http::{Request, Response};
use runtime::listen;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use crate::api::Services;
use crate::authz::{self, Lookup};
use crate::caller::{Caller, Peer};
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

    async fn pass(self, mut request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_owned();
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
        let role = match authz::authorise(&self.context, rule, &peer).await {
            Ok(role) => role,
            Err(denied) => {
                tracing::error!(
                    method = rule.method,
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
        request.extensions_mut().insert(Caller { peer, role, rule, deadline });
        in_known_words(self.services.answer(request).await)
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

/// An answer that is nothing but an error of the library, in the words of SPIRE's.
fn in_known_words(response: Response<Body>) -> Response<Body> {
    let Some(status) = Status::from_header_map(response.headers()) else { return response };
    known_words(&status).map_or(response, Status::into_http)
}

fn known_words(status: &Status) -> Option<Status> {
    if status.code() == Code::Internal && status.message() == "Missing request message." {
        return Some(Status::unknown("EOF"));
    }
    if status.code() != Code::OutOfRange {
        return None;
    }
    let (found, limit) = status.message().strip_prefix(TOO_LARGE)?.split_once(TOO_LARGE_LIMIT)?;
    let limit = limit.strip_suffix(" bytes")?;
    let text = format!("grpc: received message larger than max ({found} vs. {limit})");
    Some(Status::resource_exhausted(text))
}

const TOO_LARGE: &str = "Error, decoded message length too large: found ";
const TOO_LARGE_LIMIT: &str = " bytes, the limit is: ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_library_are_told_in_the_words_of_spires() {
        let told = |status: &Status| known_words(status).map(|status| status.message().to_owned());

        assert_eq!(told(&Status::internal("Missing request message.")).as_deref(), Some("EOF"));
        let large = "Error, decoded message length too large: found 5000000 bytes, \
                     the limit is: 4194304 bytes";
        assert_eq!(
            told(&Status::out_of_range(large)).as_deref(),
            Some("grpc: received message larger than max (5000000 vs. 4194304)")
        );
        assert_eq!(told(&Status::internal("failed to list agents")), None);
    }
}
