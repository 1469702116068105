//! Envoy's secret discovery, v3: X.509-SVIDs and bundles for proxies.
//!
//! A caller is attested once, when it opens a stream, and limited like a caller of the Workload API; it
//! needs no security header. `select` decides what a request is answered with and `session` when,
//! both without I/O; `secrets` writes secrets, once per update. Names, forms, codes and texts are SPIRE's.
//!
//! Two things differ. A stream is not sent again what it has: an update that changes nothing of what was
//! asked for is no response. And what is being signed is waited for, by `FetchSecrets` too: SPIRE's
//! refuses an identity for good because it was not there at that moment. Who would be refused at once is
//! looked for at the server once more, as workloads are.

pub(crate) mod secrets;
mod select;
mod session;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use proto::raw::{self, Encoded, Replies};
use proto::sds::discovery::{DeltaDiscoveryRequest, DiscoveryRequest};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{debug, error, warn};

use super::gate::{Call, Gate, SUBSYSTEM};
use super::limits::Limit;
use super::route::Service;
use crate::attestors::Attestors;
use crate::context::Context;
use crate::subscribe::{Subscription, Update};
use select::{Names, Refusal, Selected, select, validation};
use session::{Heard, Session};

/// The service and its methods.
pub(super) const SERVICE: Service = Service {
    name: "envoy.service.secret.v3.SecretDiscoveryService",
    methods: &["StreamSecrets", "DeltaSecrets", "FetchSecrets"],
};

/// How long the first answer of a stream waits for identities that are being made, when others are
/// there already.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same for an answer that no other follows.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// The secret discovery service of an agent.
pub(super) struct SdsApi {
    context: Arc<Context>,
    gate: Gate,
    stream_limit: Option<Limit>,
    fetch_limit: Option<Limit>,
    /// Streams end when this is cancelled.
    stop: CancellationToken,
}

impl SdsApi {
    pub(super) fn new(context: Arc<Context>, attestors: Arc<Attestors>, stop: CancellationToken) -> Self {
        let configured = context.config.experimental.rate_limits;
        let stream_limit = Limit::new(configured.stream_secrets, &context.clock);
        let fetch_limit = Limit::new(configured.fetch_secrets, &context.clock);
        let gate = Gate::new(Arc::clone(&context), attestors, (SERVICE.name, SHORT_NAME));
        Self { context, gate, stream_limit, fetch_limit, stop }
    }

    /// Answers a call of one of [`SERVICE`]'s methods.
    pub(super) async fn answer(
        self: Arc<Self>,
        method: &str,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        match method {
            "StreamSecrets" => {
                let call = Call::of("StreamSecrets", &request);
                raw::streaming(request, |request: Request<Streaming<DiscoveryRequest>>| {
                    self.stream(call, request.into_inner())
                })
                .await
            }
            "FetchSecrets" => {
                let call = Call::of("FetchSecrets", &request);
                raw::unary(request, |request: Request<DiscoveryRequest>| async move {
                    self.fetch(&call, request.into_inner()).await.map(Response::new)
                })
                .await
            }
            _ => {
                raw::streaming(request, |_: Request<Streaming<DeltaDiscoveryRequest>>| async {
                    Err(Status::unimplemented("Method is not implemented"))
                })
                .await
            }
        }
    }

    async fn stream(
        self: Arc<Self>,
        call: Call,
        requests: Streaming<DiscoveryRequest>,
    ) -> Result<Response<Replies>, Status> {
        let selectors = self.gate.attested(&call).await?;
        self.gate.check_rate(&call, self.stream_limit.as_ref(), &selectors).await?;

        let mut subscription = self.context.subscriptions.join(selectors);
        let update = subscription.current();
        let session = Session::new(&self.context.config.sds);
        let conversation =
            Conversation { api: self, call, requests, subscription, update, session, is_settled: false };
        let replies = stream::unfold(Some(conversation), async |conversation| {
            let mut conversation = conversation?;
            match conversation.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(conversation))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn fetch(&self, call: &Call, request: DiscoveryRequest) -> Result<Encoded, Status> {
        let selectors = self.gate.attested(call).await?;
        self.gate.check_rate(call, self.fetch_limit.as_ref(), &selectors).await?;

        let config = &self.context.config.sds;
        let how = validation(config, request.node.as_ref());
        let names = Names::new(request.resource_names);
        let mut subscription = self.context.subscriptions.join(selectors);
        let mut update = if names.depends_on_all(config) {
            subscription.settled(&*self.context.clock, LAST_PATIENCE).await
        } else {
            subscription.current()
        };
        if matches!(select(&update, config, &names, how), Err(Refusal::Unauthorized(_))) {
            let is_served = |update: &Update| select(update, config, &names, how).is_ok();
            update = self.context.last_look.wait(&mut subscription, &self.stop, is_served).await;
        }
        let resources = loop {
            match select(&update, config, &names, how) {
                Ok(Selected::Ready(resources)) => break resources,
                Ok(Selected::Pending) => {}
                Err(refusal) => return Err(refused(call, "Error building fetch secrets response", refusal)),
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(stopping()),
                next = subscription.changed() => update = next,
            }
        };
        let Call { method, pid, .. } = *call;
        let count = resources.len();
        debug!(
            count,
            method,
            pid,
            service = SHORT_NAME,
            subsystem_name = SUBSYSTEM,
            "Sending FetchSecrets response"
        );
        Ok(session::response("", &resources, &request.type_url, ""))
    }
}

/// An open stream.
struct Conversation {
    api: Arc<SdsApi>,
    call: Call,
    requests: Streaming<DiscoveryRequest>,
    subscription: Subscription,
    /// The last update that the session knows of.
    update: Arc<Update>,
    session: Session,
    /// The identities that were being made when it began have had their time.
    is_settled: bool,
}

impl Conversation {
    /// The next response; nothing when the client has ended the stream.
    async fn next(&mut self) -> Result<Option<Encoded>, Status> {
        loop {
            tokio::select! {
                biased;
                () = self.api.stop.cancelled() => return Err(stopping()),
                request = self.requests.message() => match request {
                    Ok(Some(request)) => self.hear(request),
                    Ok(None) => return Ok(None),
                    Err(status) if status.code() == Code::Cancelled => return Ok(None),
                    Err(status) => return Err(self.broken(status)),
                },
                update = self.subscription.changed() => {
                    self.update = update;
                    self.session.updated();
                }
            }
            if let Some(response) = self.respond().await? {
                return Ok(Some(response));
            }
        }
    }

    fn hear(&mut self, request: DiscoveryRequest) {
        let Call { method, pid, .. } = self.call;
        let DiscoveryRequest { version_info, response_nonce: nonce, .. } = &request;
        let names = tracing::enabled!(tracing::Level::DEBUG).then(|| format!("{:?}", request.resource_names));
        debug!(
            method,
            nonce,
            pid,
            resource_names = names,
            service = SHORT_NAME,
            subsystem_name = SUBSYSTEM,
            version_info,
            "Received StreamSecrets request"
        );
        if let Some(detail) = &request.error_detail {
            error!(
                error = detail.message,
                method,
                pid,
                resource_names = format!("{:?}", request.resource_names),
                service = SHORT_NAME,
                subsystem_name = SUBSYSTEM,
                "Envoy reported errors applying secrets"
            );
        }
        let (nonce, version_info) = (nonce.clone(), version_info.clone());
        let heard = self.session.hear(&self.api.context.config.sds, request);
        let (expected_nonce, expected_version) = self.session.expected().unwrap_or_default();
        match heard {
            Heard::News | Heard::Accepted => {}
            Heard::Rejected | Heard::RejectedWithNews => error!(
                expect = expected_version,
                method,
                pid,
                service = SHORT_NAME,
                subsystem_name = SUBSYSTEM,
                version_info,
                "Client rejected expected version and rolled back"
            ),
            Heard::Stale => warn!(
                expect = expected_nonce,
                method,
                nonce,
                pid,
                service = SHORT_NAME,
                subsystem_name = SUBSYSTEM,
                "Received unexpected nonce; ignoring request"
            ),
        }
    }

    /// The response that is due now, if one is.
    async fn respond(&mut self) -> Result<Option<Encoded>, Status> {
        let config = &self.api.context.config.sds;
        let Some((names, _)) = self.session.asked() else { return Ok(None) };
        if !self.is_settled && names.depends_on_all(config) {
            // Who has several identities should get them together, and the first by its name.
            let update = self.subscription.settled(&*self.api.context.clock, PATIENCE).await;
            let is_news = !Arc::ptr_eq(&update, &self.update);
            (self.update, self.is_settled) = (update, true);
            if is_news {
                self.session.updated();
            }
        }
        let Some((names, how)) = self.session.asked() else { return Ok(None) };
        let is_first = self.session.expected().is_none();
        if is_first && matches!(select(&self.update, config, names, how), Err(Refusal::Unauthorized(_))) {
            let (look, stop) = (&self.api.context.last_look, &self.api.stop);
            let is_served = |update: &Update| select(update, config, names, how).is_ok();
            self.update = look.wait(&mut self.subscription, stop, is_served).await;
        }
        let resources = match select(&self.update, config, names, how) {
            Ok(Selected::Ready(resources)) => resources,
            Ok(Selected::Pending) => return Ok(None),
            Err(refusal) => {
                return Err(refused(&self.call, "Error building stream secrets response", refusal));
            }
        };
        if !self.call.is_live() {
            return Err(Status::unavailable("the workload has ended"));
        }
        let count = resources.len();
        let Some(response) = self.session.respond(resources, nonce) else { return Ok(None) };
        let Call { method, pid, .. } = self.call;
        let (nonce, version_info) = self.session.expected().unwrap_or_default();
        debug!(
            count,
            method,
            nonce,
            pid,
            service = SHORT_NAME,
            subsystem_name = SUBSYSTEM,
            version_info,
            "Sending StreamSecrets response"
        );
        Ok(Some(response))
    }

    fn broken(&self, status: Status) -> Status {
        let Call { method, pid, .. } = self.call;
        error!(
            error = status.message(),
            method,
            pid,
            service = SHORT_NAME,
            subsystem_name = SUBSYSTEM,
            "Received error from stream secrets server"
        );
        status
    }
}

fn refused(call: &Call, doing: &str, refusal: Refusal) -> Status {
    let Call { method, pid, .. } = *call;
    error!(error = %refusal, method, pid, service = SHORT_NAME, subsystem_name = SUBSYSTEM, "{doing}");
    refusal.into()
}

fn stopping() -> Status {
    Status::unavailable("the agent is stopping")
}

/// Four random bytes: what a client answers with need not be a secret.
fn nonce() -> String {
    let mut bytes = [0; 4];
    // Without randomness nothing else of the agent works either.
    aws_lc_rs::rand::fill(&mut bytes).ok();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The service as the log names it.
const SHORT_NAME: &str = "SDS.v3";
