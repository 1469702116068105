//! The streams: an answer at once, and again whenever it changes.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use proto::raw::{Encoded, Replies};
use tonic::{Response, Status};
use tracing::{debug, enabled};

use super::{PATIENCE, SHORT_NAME, WorkloadApi, answers};
use crate::api::gate::{Call, SUBSYSTEM};
use crate::subscribe::{Subscription, Update};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    X509Svids,
    X509Bundles,
    JwtBundles,
}

/// What an update means to a caller.
enum Turn {
    Send(Encoded),
    /// Something is being made for it.
    Wait,
    /// There is nothing for it.
    Refuse,
}

/// A stream that has sent its first answer.
struct Watch {
    api: Arc<WorkloadApi>,
    call: Call,
    what: What,
    subscription: Subscription,
    sent: Encoded,
}

impl WorkloadApi {
    /// Answers one of the streaming methods.
    pub(super) async fn watch(self: Arc<Self>, what: What, call: Call) -> Result<Response<Replies>, Status> {
        let selectors = self.gate.attested(&call).await?;
        let limit = match what {
            What::X509Svids => &self.limits.x509_svid,
            What::X509Bundles => &self.limits.x509_bundles,
            What::JwtBundles => &self.limits.jwt_bundles,
        };
        self.gate.check_rate(&call, limit.as_ref(), &selectors).await?;

        let mut subscription = self.context.subscriptions.join(selectors);
        let update = match what {
            // Who has several identities should get them together.
            What::X509Svids => subscription.settled(&*self.context.clock, PATIENCE).await,
            What::X509Bundles | What::JwtBundles => subscription.current(),
        };
        let is_served = |update: &Update| !matches!(self.turn(what, update), Turn::Refuse);
        let update = if is_served(&update) || self.gate.is_own(&call) {
            update
        } else {
            self.context.last_look.wait(&mut subscription, &self.stop, is_served).await
        };
        let first = self.next(what, &call, &mut subscription, update).await?;
        let sent = first.clone();
        let watch = Watch { api: self, call, what, subscription, sent };
        let rest = stream::unfold(Some(watch), async |watch| {
            let mut watch = watch?;
            match watch.next().await {
                Ok(answer) => Some((Ok(answer), Some(watch))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(stream::once(std::future::ready(Ok(first))).chain(rest).boxed()))
    }

    /// The answer to `update`, or to the first that has one.
    async fn next(
        &self,
        what: What,
        call: &Call,
        subscription: &mut Subscription,
        mut update: Arc<Update>,
    ) -> Result<Encoded, Status> {
        loop {
            match self.turn(what, &update) {
                Turn::Send(answer) => {
                    // Looked at last: the answer may have been long in coming.
                    if !call.is_live() {
                        return Err(Status::unavailable("the workload has ended"));
                    }
                    log_sent(what, call, &update);
                    return Ok(answer);
                }
                Turn::Wait => update = self.changed(subscription).await?,
                Turn::Refuse => return Err(self.gate.no_identity(call, subscription.selectors(), None)),
            }
        }
    }

    fn turn(&self, what: What, update: &Update) -> Turn {
        let is_verifier = !update.entries.is_empty() || self.context.config.allow_unauthenticated_verifiers;
        match what {
            What::X509Svids if update.identities().next().is_some() => {
                Turn::Send(update.x509_svids.get(|| answers::x509_svids(update)))
            }
            What::X509Svids if update.is_pending() => Turn::Wait,
            What::X509Bundles if is_verifier => {
                Turn::Send(update.x509_bundles.get(|| answers::x509_bundles(update)))
            }
            What::JwtBundles if is_verifier => {
                Turn::Send(update.jwt_bundles.get(|| answers::jwt_bundles(update)))
            }
            What::X509Svids | What::X509Bundles | What::JwtBundles => Turn::Refuse,
        }
    }

    /// The next update, unless the agent ends before.
    async fn changed(&self, subscription: &mut Subscription) -> Result<Arc<Update>, Status> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Status::unavailable("the agent is stopping")),
            update = subscription.changed() => Ok(update),
        }
    }
}

impl Watch {
    /// The next answer that differs from the last.
    async fn next(&mut self) -> Result<Encoded, Status> {
        loop {
            let update = self.api.changed(&mut self.subscription).await?;
            let answer = self.api.next(self.what, &self.call, &mut self.subscription, update).await?;
            if answer != self.sent {
                self.sent = answer.clone();
                return Ok(answer);
            }
        }
    }
}

fn log_sent(what: What, call: &Call, update: &Update) {
    if what != What::X509Svids || !enabled!(tracing::Level::DEBUG) {
        return;
    }
    let (method, pid, count) = (call.method, call.pid, update.identities().count());
    for (_, svid) in update.identities() {
        debug!(
            count,
            method,
            pid,
            registered = true,
            service = SHORT_NAME,
            spiffe_id = %svid.id,
            subsystem_name = SUBSYSTEM,
            "Fetched X.509 SVID"
        );
    }
}
