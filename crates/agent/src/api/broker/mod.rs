//! The SPIFFE Broker API: a broker asks on behalf of workloads that it names by a reference.
//!
//! A call passes, in this order: the security header, its arguments, the scope of the broker, and the
//! attestation of the workload that it refers to; then it is answered like the workload itself, but for
//! entries of admins and of servers below, which are for nobody else. Who the broker is its certificate
//! says, which the TLS verifier has checked: only those of the configuration get a connection
//! (`endpoint`). References are of the type that a process id makes: nothing else can be attested here.
//!
//! Where SPIRE's broker and the specification differ this is the specification's: a workload without an
//! identity is refused, tokens are those of the id that was asked for, bundles are the workload's, and a
//! stream ends with the process. Refusals carry a `google.rpc.ErrorInfo`.

mod endpoint;
mod reference;
mod refusal;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use http::HeaderMap;
use proto::broker::{
    FetchJwtsvidRequest, FetchJwtsvidResponse, Jwtsvid, SubscribeToJwtBundlesRequest,
    SubscribeToX509BundlesRequest, SubscribeToX509svidRequest, WorkloadReference,
};
use proto::raw::{self, Encoded, Replies};
use runtime::listen::Peer;
use runtime::peer::Caller;
use spiffe::x509::{Certificate, leaf_id};
use spiffe::{SelectorSet, SpiffeId};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tracing::error;

use super::delegated::answers::{handed_on, is_coming, is_handed_on};
use super::feed::{Feed, replies};
use super::gate::{Call, Gate, SUBSYSTEM};
use super::route::Service;
use super::workload::{answers, hints};
use crate::attestors::{AttestError, Attestors};
use crate::context::Context;
use crate::subscribe::{Subscription, Update};
pub(super) use endpoint::BrokerEndpoint;
use reference::Scope;

/// The service and its methods.
pub(super) const SERVICE: Service = Service {
    name: "spiffe.broker.API",
    methods: &["SubscribeToX509SVID", "SubscribeToX509Bundles", "FetchJWTSVID", "SubscribeToJWTBundles"],
};

/// How long the first answer waits for identities that are being made, when others are there already.
const PATIENCE: Duration = Duration::from_secs(1);

/// The broker API of an agent.
pub(super) struct BrokerApi {
    context: Arc<Context>,
    attestors: Arc<Attestors>,
    gate: Gate,
    scopes: HashMap<SpiffeId, Scope>,
    /// Streams end when this is cancelled.
    stop: CancellationToken,
}

/// A workload that a broker referred to.
struct Subject {
    process: Caller,
    selectors: SelectorSet,
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    X509Svids,
    X509Bundles,
    JwtBundles,
}

impl BrokerApi {
    pub(super) fn new(context: Arc<Context>, attestors: Arc<Attestors>, stop: CancellationToken) -> Self {
        let gate = Gate::new(Arc::clone(&context), Arc::clone(&attestors), (SERVICE.name, SHORT_NAME));
        let brokers = context.config.experimental.broker.as_ref().map(|broker| broker.brokers.as_slice());
        let scopes = brokers.unwrap_or_default().iter().map(|one| (one.id.clone(), Scope::of(one))).collect();
        Self { context, attestors, gate, scopes, stop }
    }

    /// Answers a call of one of [`SERVICE`]'s methods.
    pub(super) async fn answer(
        self: Arc<Self>,
        method: &str,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        match method {
            "SubscribeToX509SVID" => {
                let call = Call::of("SubscribeToX509SVID", &request);
                raw::server_streaming(request, |request: Request<SubscribeToX509svidRequest>| {
                    self.watch(What::X509Svids, call, request.into_inner().reference)
                })
                .await
            }
            "SubscribeToX509Bundles" => {
                let call = Call::of("SubscribeToX509Bundles", &request);
                raw::server_streaming(request, |request: Request<SubscribeToX509BundlesRequest>| {
                    self.watch(What::X509Bundles, call, request.into_inner().reference)
                })
                .await
            }
            "SubscribeToJWTBundles" => {
                let call = Call::of("SubscribeToJWTBundles", &request);
                raw::server_streaming(request, |request: Request<SubscribeToJwtBundlesRequest>| {
                    self.watch(What::JwtBundles, call, request.into_inner().reference)
                })
                .await
            }
            _ => {
                let call = Call::of("FetchJWTSVID", &request);
                raw::unary(request, |request: Request<FetchJwtsvidRequest>| async move {
                    self.jwt_svids(&call, request.into_inner()).await.map(Response::new)
                })
                .await
            }
        }
    }

    async fn watch(
        self: Arc<Self>,
        what: What,
        call: Call,
        reference: Option<WorkloadReference>,
    ) -> Result<Response<Replies>, Status> {
        let Subject { process, selectors } = self.subject(&call, reference).await?;
        let mut subscription = self.context.subscriptions.join(selectors);
        let update = match what {
            // Who has several identities should get them together.
            What::X509Svids => subscription.settled(&*self.context.clock, PATIENCE).await,
            What::X509Bundles | What::JwtBundles => subscription.current(),
        };
        Ok(replies(Watch { api: self, call, what, process, subscription, update: Some(update), sent: None }))
    }

    async fn jwt_svids(&self, call: &Call, request: FetchJwtsvidRequest) -> Result<Encoded, Status> {
        if request.audience.is_empty() {
            return Err(self.wrong(call, "audience must be specified"));
        }
        let wanted = match request.spiffe_id.as_str() {
            "" => None,
            text => Some(
                SpiffeId::parse(text)
                    .map_err(|error| self.wrong(call, &format!("invalid requested SPIFFE ID: {error}")))?,
            ),
        };
        let subject = self.subject(call, request.reference).await?;
        let mut entries = self.context.state.load().entries.matching(&subject.selectors);
        entries.retain(|held| is_handed_on(&held.entry));
        if entries.len() > 1 {
            let hidden = hints::hidden(entries.iter().map(|held| &*held.entry));
            let hidden: Vec<_> = hidden.into_iter().cloned().collect();
            entries.retain(|held| !hidden.contains(&held.entry.id));
        }
        entries.retain(|held| wanted.as_ref().is_none_or(|id| held.entry.spiffe_id == *id));
        if entries.is_empty() {
            return Err(self.not_entitled(call, &subject.selectors, wanted.as_ref()));
        }
        let tokens = entries.iter().map(async |held| {
            let svid = self.gate.jwt_svid(call, &held.entry, &request.audience).await?;
            let (spiffe_id, hint) = (held.entry.spiffe_id.to_string(), held.entry.hint.clone());
            Ok::<_, Status>(Jwtsvid { spiffe_id, svid: svid.token.to_string(), hint })
        });
        Ok(answers::brokered_jwt_svids(FetchJwtsvidResponse { svids: try_join_all(tokens).await? }))
    }

    /// The workload of a reference, once the broker may use it.
    async fn subject(&self, call: &Call, reference: Option<WorkloadReference>) -> Result<Subject, Status> {
        let reference = reference.and_then(|reference| reference.reference).unwrap_or_default();
        if reference.type_url.is_empty() {
            return Err(refusal::invalid(&self.wrong(call, "workload reference must be provided")));
        }
        let Some(peer) = &call.peer else { return Err(Status::unauthenticated(UNKNOWN_CALLER)) };
        let broker = peer.derived(caller_id);
        let Some(broker) = &*broker else { return Err(Status::unauthenticated(UNKNOWN_CALLER)) };
        let scope = self.scopes.get(broker).cloned().unwrap_or_default();
        scope
            .check(broker, &reference.type_url, peer.is_local())
            .map_err(|why| self.told(call, broker, why))?;

        let pid = reference::pid(&reference).map_err(|why| {
            refusal::invalid(&self.told(call, broker, Status::invalid_argument(why.to_string())))
        })?;
        let gone = || refusal::not_found(&self.told(call, broker, Status::not_found("workload not found")));
        let process = Caller::with_pid(pid).map_err(|_| gone())?;
        match self.attestors.attest(&process).await {
            Ok(selectors) => Ok(Subject { process, selectors }),
            Err(AttestError::Caller(_)) => Err(gone()),
            Err(error @ AttestError::AllFailed) => Err(self.gate.unattested(call, &runtime::chain(&error))),
        }
    }

    fn not_entitled(&self, call: &Call, selectors: &SelectorSet, wanted: Option<&SpiffeId>) -> Status {
        refusal::not_entitled(&self.gate.no_identity(call, selectors, wanted))
    }

    fn told(&self, call: &Call, broker: &SpiffeId, status: Status) -> Status {
        error!(
            broker_peer = %broker,
            error = status.message(),
            method = call.method,
            service = SHORT_NAME,
            subsystem_name = SUBSYSTEM,
            "Workload reference refused"
        );
        status
    }

    fn wrong(&self, call: &Call, why: &str) -> Status {
        error!(
            method = call.method,
            service = SHORT_NAME,
            subsystem_name = SUBSYSTEM,
            "Invalid argument; {why}"
        );
        Status::invalid_argument(why)
    }
}

/// A stream about one workload.
struct Watch {
    api: Arc<BrokerApi>,
    call: Call,
    what: What,
    process: Caller,
    subscription: Subscription,
    /// What has not been answered yet.
    update: Option<Arc<Update>>,
    sent: Option<Encoded>,
}

impl Feed for Watch {
    async fn next(&mut self) -> Result<Encoded, Status> {
        loop {
            let update = match self.update.take() {
                Some(update) => update,
                None => tokio::select! {
                    biased;
                    () = self.api.stop.cancelled() => return Err(Status::unavailable("the agent is stopping")),
                    () = self.process.process.ended() => return Err(ended()),
                    update = self.subscription.changed() => update,
                },
            };
            if !self.process.process.is_alive() {
                return Err(ended());
            }
            let Some(answer) = self.answer(&update)? else { continue };
            if self.sent.as_ref() != Some(&answer) {
                self.sent = Some(answer.clone());
                return Ok(answer);
            }
        }
    }
}

impl Watch {
    /// The answer to an update; nothing while it is being made.
    fn answer(&self, update: &Update) -> Result<Option<Encoded>, Status> {
        let is_entitled = update.entries.iter().any(|held| is_handed_on(&held.entry));
        match self.what {
            What::X509Svids if handed_on(update).next().is_some() => {
                Ok(Some(update.brokered.get(|| answers::x509_svids_of(update, is_handed_on))))
            }
            What::X509Svids if is_coming(update) => Ok(None),
            // A workload's bundles are those that it would get itself.
            What::X509Bundles if is_entitled => {
                Ok(Some(update.x509_bundles.get(|| answers::x509_bundles(update))))
            }
            What::JwtBundles if is_entitled => {
                Ok(Some(update.jwt_bundles.get(|| answers::jwt_bundles(update))))
            }
            What::X509Svids | What::X509Bundles | What::JwtBundles => {
                Err(self.api.not_entitled(&self.call, self.subscription.selectors(), None))
            }
        }
    }
}

/// The process that a stream is about is gone (SPIFFE Broker API, section 4.9).
fn ended() -> Status {
    refusal::not_found(&Status::not_found("the workload has ended"))
}

/// Whom the certificate of a connection names.
fn caller_id(peer: &Peer) -> Option<SpiffeId> {
    let leaf = peer.certificates().first()?;
    leaf_id(&Certificate::parse(leaf).ok()?).ok()
}

/// Exactly one value, and exactly this one (SPIFFE Broker Endpoint, section 3).
pub(super) fn has_security_header(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all("broker.spiffe.io").iter();
    values.next().is_some_and(|value| value == "true") && values.next().is_none()
}

const UNKNOWN_CALLER: &str = "unable to determine caller identity";

/// The service as the log names it.
const SHORT_NAME: &str = "Broker";
