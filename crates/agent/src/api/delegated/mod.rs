//! The Delegated Identity API: a delegate asks on behalf of workloads that cannot ask themselves.
//!
//! A caller passes three checks in this order: it is attested, one of its entries names an id that the
//! configuration authorizes, and its request says for whom. The second holds for as long as a stream is
//! open: one whose delegate loses its entry ends at once. For whom is a set of selectors, which the
//! delegate answers for, or a process, which is attested here and pinned.
//!
//! Entries of admins and of servers below are for nobody else: they are withheld. Who has no identity
//! is shown none, and is no error, but for tokens. Bundles are all that the agent has, and a bundle
//! that goes is gone from the next answer too, where SPIRE's keeps it.

pub(super) mod answers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use proto::raw::{self, Encoded, Replies};
use proto::spire::agent::delegatedidentity::{
    FetchJwtsviDsRequest, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest,
    SubscribeToX509sviDsRequest,
};
use proto::spire::types;
use runtime::peer::Caller;
use spiffe::{Selector, SelectorSet};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tracing::{debug, enabled, error};

use super::feed::{Feed, replies};
use super::gate::{Call, Gate, SUBSYSTEM};
use super::route::Service;
use crate::attestors::Attestors;
use crate::context::Context;
use crate::state::{Bundles, Held};
use crate::subscribe::{Subscription, Update};

/// The service and its methods.
pub(super) const SERVICE: Service = Service {
    name: "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
    methods: &["SubscribeToX509SVIDs", "SubscribeToX509Bundles", "FetchJWTSVIDs", "SubscribeToJWTBundles"],
};

/// How long the first answer waits for identities that are being made, when others are there already.
const PATIENCE: Duration = Duration::from_secs(1);

/// The Delegated Identity API of an agent.
pub(super) struct DelegatedApi {
    context: Arc<Context>,
    attestors: Arc<Attestors>,
    gate: Gate,
    /// Streams end when this is cancelled.
    stop: CancellationToken,
}

/// For whom a delegate asks.
struct Subject {
    selectors: SelectorSet,
    /// The process that has them, if the delegate named one.
    process: Option<Caller>,
}

impl DelegatedApi {
    pub(super) fn new(context: Arc<Context>, attestors: Arc<Attestors>, stop: CancellationToken) -> Self {
        let gate = Gate::new(Arc::clone(&context), Arc::clone(&attestors), (SERVICE.name, SHORT_NAME));
        Self { context, attestors, gate, stop }
    }

    /// Answers a call of one of [`SERVICE`]'s methods.
    pub(super) async fn answer(
        self: Arc<Self>,
        method: &str,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        match method {
            "SubscribeToX509SVIDs" => {
                let call = Call::of("SubscribeToX509SVIDs", &request);
                raw::server_streaming(request, |request: Request<SubscribeToX509sviDsRequest>| {
                    self.x509_svids(call, request.into_inner())
                })
                .await
            }
            "SubscribeToX509Bundles" => {
                let bundles =
                    self.bundles(Call::of("SubscribeToX509Bundles", &request), answers::x509_bundles);
                raw::server_streaming(request, |_: Request<SubscribeToX509BundlesRequest>| bundles).await
            }
            "SubscribeToJWTBundles" => {
                let bundles = self.bundles(Call::of("SubscribeToJWTBundles", &request), answers::jwt_bundles);
                raw::server_streaming(request, |_: Request<SubscribeToJwtBundlesRequest>| bundles).await
            }
            _ => {
                let call = Call::of("FetchJWTSVIDs", &request);
                raw::unary(request, |request: Request<FetchJwtsviDsRequest>| async move {
                    self.jwt_svids(&call, request.into_inner()).await.map(Response::new)
                })
                .await
            }
        }
    }

    async fn x509_svids(
        self: Arc<Self>,
        call: Call,
        request: SubscribeToX509sviDsRequest,
    ) -> Result<Response<Replies>, Status> {
        let began = self.context.clock.instant();
        let changed = self.context.state.changed();
        let delegate = self.authorized(&call).await?;
        let Subject { selectors, process } = self.subject(&call, &request.selectors, request.pid).await?;

        let mut subscription = self.context.subscriptions.join(selectors);
        let update = subscription.settled(&*self.context.clock, PATIENCE).await;
        if update.entries.is_empty() {
            // To be shown none is no refusal: what the server says comes in this stream.
            self.context.last_look.ask(subscription.selectors());
        }
        let watch = Watch { api: self, call, delegate, changed };
        let feed =
            Svids { watch, subscription, process, update: Some(update), sent: None, began: Some(began) };
        Ok(replies(feed))
    }

    async fn bundles(
        self: Arc<Self>,
        call: Call,
        encode: fn(&Bundles) -> Encoded,
    ) -> Result<Response<Replies>, Status> {
        let changed = self.context.state.changed();
        let delegate = self.authorized(&call).await?;
        let feed = BundleFeed { watch: Watch { api: self, call, delegate, changed }, encode, sent: None };
        Ok(replies(feed))
    }

    async fn jwt_svids(&self, call: &Call, request: FetchJwtsviDsRequest) -> Result<Encoded, Status> {
        let Call { method, pid, .. } = *call;
        if request.audience.is_empty() {
            error!(
                method,
                pid,
                service = SHORT_NAME,
                subsystem_name = SUBSYSTEM,
                "Missing required audience parameter"
            );
            return Err(Status::invalid_argument("audience must be specified"));
        }
        self.authorized(call).await?;
        let subject = self.subject(call, &request.selectors, request.pid).await?;
        let handed_on = || {
            let mut entries = self.context.state.load().entries.matching(&subject.selectors);
            entries.retain(|held| answers::is_handed_on(&held.entry));
            entries
        };
        let mut entries = handed_on();
        if entries.is_empty() {
            let is_served =
                |update: &Update| update.entries.iter().any(|held| answers::is_handed_on(&held.entry));
            self.look(&subject.selectors, is_served).await;
            entries = handed_on();
        }
        if entries.is_empty() {
            return Err(self.gate.no_identity(call, &subject.selectors, None));
        }
        let tokens = entries.iter().map(async |held| {
            let svid = self.gate.jwt_svid(call, &held.entry, &request.audience).await?;
            Ok::<_, Status>((&*held.entry, svid))
        });
        Ok(answers::jwt_svids(&try_join_all(tokens).await?))
    }

    /// The selectors of a caller that is a delegate.
    async fn authorized(&self, call: &Call) -> Result<SelectorSet, Status> {
        let selectors = self.gate.attested(call).await?;
        let is_delegate = |entries: &[Arc<Held>]| {
            entries
                .iter()
                .any(|held| self.context.config.authorized_delegates.contains(&held.entry.spiffe_id))
        };
        if !is_delegate(&self.context.state.load().entries.matching(&selectors)) {
            self.look(&selectors, |update| is_delegate(&update.entries)).await;
        }
        self.check_delegate(call, &selectors)?;
        Ok(selectors)
    }

    /// Has the server asked for what is new, and waits a moment until it is what `is_served` wants.
    async fn look(&self, selectors: &SelectorSet, is_served: impl Fn(&Update) -> bool) {
        let mut subscription = self.context.subscriptions.join(selectors.clone());
        self.context.last_look.wait(&mut subscription, &self.stop, is_served).await;
    }

    /// Refuses who is no delegate, or is none any more.
    fn check_delegate(&self, call: &Call, selectors: &SelectorSet) -> Result<(), Status> {
        let entries = self.context.state.load().entries.matching(selectors);
        let Some(first) = entries.first() else { return Err(self.gate.no_identity(call, selectors, None)) };
        let delegates = &self.context.config.authorized_delegates;
        if entries.iter().any(|held| delegates.contains(&held.entry.spiffe_id)) {
            return Ok(());
        }
        let Call { method, pid, .. } = *call;
        error!(
            default_id = %first.entry.spiffe_id,
            method,
            num_registered_entries = entries.len(),
            pid,
            service = SHORT_NAME,
            subsystem_name = SUBSYSTEM,
            "Permission denied; caller not configured as an authorized delegate."
        );
        Err(Status::permission_denied("caller not configured as an authorized delegate"))
    }

    /// For whom a request is: either its selectors or its process.
    async fn subject(&self, call: &Call, selectors: &[types::Selector], pid: i32) -> Result<Subject, Status> {
        if selectors.is_empty() == (pid == 0) {
            return Err(self.wrong(call, "must provide either selectors or non-zero PID, but not both"));
        }
        if pid == 0 {
            let parsed: Result<SelectorSet, _> = selectors.iter().map(Selector::try_from).collect();
            let selectors = parsed.map_err(|_| self.wrong(call, "could not parse provided selectors"))?;
            return Ok(Subject { selectors, process: None });
        }
        let process = Caller::with_pid(pid);
        let process = process.map_err(|error| self.gate.unattested(call, &runtime::chain(&error)))?;
        match self.attestors.attest(&process).await {
            Ok(selectors) => Ok(Subject { selectors, process: Some(process) }),
            Err(error) => Err(self.gate.unattested(call, &runtime::chain(&error))),
        }
    }

    fn wrong(&self, call: &Call, why: &'static str) -> Status {
        let Call { method, pid, .. } = *call;
        error!(method, pid, service = SHORT_NAME, subsystem_name = SUBSYSTEM, "Invalid argument; {why}");
        Status::invalid_argument(why)
    }
}

/// A stream of a delegate, and what it takes to go on.
struct Watch {
    api: Arc<DelegatedApi>,
    call: Call,
    delegate: SelectorSet,
    changed: watch::Receiver<u64>,
}

impl Watch {
    /// Ends when what the agent knows has changed.
    async fn changed(&mut self) -> Result<(), Status> {
        tokio::select! {
            biased;
            () = self.api.stop.cancelled() => Err(stopping()),
            changed = self.changed.changed() => changed.map_err(|_| stopping()),
        }
    }

    /// Refuses a delegate that has ended, or is none any more.
    fn check(&self) -> Result<(), Status> {
        if !self.call.is_live() {
            return Err(Status::unavailable("the delegate has ended"));
        }
        self.api.check_delegate(&self.call, &self.delegate)
    }
}

/// A stream of X.509-SVIDs.
struct Svids {
    watch: Watch,
    subscription: Subscription,
    process: Option<Caller>,
    /// What has not been answered yet.
    update: Option<Arc<Update>>,
    sent: Option<Encoded>,
    /// When it began, until the first SVID.
    began: Option<Instant>,
}

impl Feed for Svids {
    async fn next(&mut self) -> Result<Encoded, Status> {
        loop {
            let update = match self.update.take() {
                Some(update) => update,
                None => tokio::select! {
                    biased;
                    changed = self.watch.changed() => {
                        changed?;
                        self.watch.check()?;
                        continue;
                    }
                    () = ended(self.process.as_ref()) => {
                        return Err(Status::unavailable("the workload has ended"));
                    }
                    update = self.subscription.changed() => update,
                },
            };
            self.watch.check()?;
            if self.process.as_ref().is_some_and(|process| !process.process.is_alive()) {
                return Err(Status::unavailable("the workload has ended"));
            }
            let count = answers::handed_on(&update).count();
            if count == 0 && answers::is_coming(&update) {
                continue;
            }
            let answer = update.delegated.get(|| answers::x509_svids(&update));
            if self.sent.as_ref() == Some(&answer) {
                continue;
            }
            self.sent = Some(answer.clone());
            if count > 0
                && let Some(began) = self.began.take()
            {
                let context = &self.watch.api.context;
                context
                    .meters
                    .first_delegated
                    .observe_duration(context.clock.instant().duration_since(began));
            }
            log_sent(&self.watch.call, &update);
            return Ok(answer);
        }
    }
}

/// A stream of all bundles.
struct BundleFeed {
    watch: Watch,
    encode: fn(&Bundles) -> Encoded,
    sent: Option<(Arc<Bundles>, Encoded)>,
}

impl Feed for BundleFeed {
    async fn next(&mut self) -> Result<Encoded, Status> {
        loop {
            if self.sent.is_some() {
                self.watch.changed().await?;
            }
            self.watch.check()?;
            let bundles = Arc::clone(&self.watch.api.context.state.load().bundles);
            if self.sent.as_ref().is_some_and(|(sent, _)| Arc::ptr_eq(sent, &bundles)) {
                continue;
            }
            let answer = (self.encode)(&bundles);
            let is_news = self.sent.as_ref().is_none_or(|(_, sent)| *sent != answer);
            self.sent = Some((bundles, answer.clone()));
            if is_news {
                return Ok(answer);
            }
        }
    }
}

/// Ends when the process does that a stream is about, if it is about one.
async fn ended(process: Option<&Caller>) {
    match process {
        Some(process) => process.process.ended().await,
        None => std::future::pending().await,
    }
}

fn log_sent(call: &Call, update: &Update) {
    if !enabled!(tracing::Level::DEBUG) {
        return;
    }
    let (Call { method, pid, .. }, count) = (call, answers::handed_on(update).count());
    for (_, svid) in answers::handed_on(update) {
        debug!(
            count,
            method,
            pid,
            service = SHORT_NAME,
            spiffe_id = %svid.id,
            subsystem_name = SUBSYSTEM,
            "Fetched X.509 SVID for delegated identity"
        );
    }
}

fn stopping() -> Status {
    Status::unavailable("the agent is stopping")
}

/// The service as the log names it.
const SHORT_NAME: &str = "DelegatedIdentity";
