//! Who is federated with, and the refreshers of these: started, replaced and ended as relationships come,
//! change and go.
//!
//! One task owns them. It looks at the relationships every ten seconds, and at once when the API changed
//! one or is asked to refresh.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use runtime::health::Check;
use runtime::tasks::Group;
use spiffe::TrustDomain;
use store::StoreError;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::fetch::FetchFailed;
use super::refresher::{Ask, Refresher, SUBSYSTEM, WAITING};
use super::source::{Source, merged};
use crate::context::Context;

/// The way to the refreshers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Federation(mpsc::Sender<Command>);

/// Where their owner hears.
pub(crate) type Inbox = mpsc::Receiver<Command>;

/// What it is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Look at the relationships, and say when that is done.
    Look(oneshot::Sender<()>),
    /// Poll for a trust domain.
    Refresh(TrustDomain, oneshot::Sender<Result<(), Refusal>>),
}

/// Why a bundle was not refreshed on demand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// There is no relationship.
    #[error("no relationship with trust domain \"{0}\"")]
    Unknown(TrustDomain),
    /// It could not be fetched or stored.
    #[error(transparent)]
    Failed(#[from] Arc<FetchFailed>),
    /// Too many wait already.
    #[error("too many refreshes wait already, try again later")]
    Busy,
    /// The relationship changed meanwhile, or the server is going down.
    #[error("the refresh was interrupted, try again")]
    Interrupted,
}

impl Federation {
    /// The way to the refreshers, and the end where their owner hears.
    pub(crate) fn new() -> (Self, Inbox) {
        let (sender, inbox) = mpsc::channel(WAITING);
        (Self(sender), inbox)
    }

    /// Has the relationships looked at and waits for that: of one that is gone, nothing is written after
    /// it.
    pub(crate) async fn changed(&self) {
        let (done, is_done) = oneshot::channel();
        // The owner is gone only when the program ends; then nothing is written any more either.
        if self.0.send(Command::Look(done)).await.is_ok() {
            is_done.await.ok();
        }
    }

    /// Polls for a trust domain now and waits for what comes of it.
    ///
    /// # Errors
    /// Any of [`Refusal`].
    pub(crate) async fn refresh(&self, trust_domain: TrustDomain) -> Result<(), Refusal> {
        let (answer, answered) = oneshot::channel();
        let sent = self.0.send(Command::Refresh(trust_domain, answer)).await;
        sent.map_err(|_| Refusal::Interrupted)?;
        answered.await.map_err(|_| Refusal::Interrupted)?
    }
}

/// Owns the refreshers until `stop` is cancelled.
///
/// # Errors
/// None: what cannot be read is read again.
pub(crate) async fn run(
    context: Arc<Context>,
    mut inbox: Inbox,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let check = context.health.check("server.federation");
    check.started();
    let mut owner = Owner { context, check, group: Group::new(stop.clone()), running: BTreeMap::new() };
    owner.warn_of_own_trust_domain();
    let mut told = Vec::new();
    loop {
        if let Err(error) = owner.look().await {
            tracing::error!(subsystem_name = SUBSYSTEM, %error, "Failed to reload configs");
        }
        for command in told.drain(..) {
            owner.obey(command);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            count = inbox.recv_many(&mut told, WAITING) => if count == 0 { break },
            () = owner.context.clock.sleep(LOOK_EVERY) => {}
        }
    }
    owner.group.ended().await;
    Ok(())
}

struct Owner {
    context: Arc<Context>,
    check: Check,
    group: Group,
    running: BTreeMap<TrustDomain, Running>,
}

/// A refresher at work.
struct Running {
    source: Source,
    asks: mpsc::Sender<Ask>,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Owner {
    fn warn_of_own_trust_domain(&self) {
        let own = self.context.trust_domain();
        let configured = &self.context.config.federation.federates_with;
        if configured.iter().any(|configured| configured.trust_domain == *own) {
            tracing::error!(
                subsystem_name = SUBSYSTEM,
                trust_domain = %own,
                "federates_with names the server's own trust domain, whose bundle is never fetched; remove \
                 the block"
            );
        }
    }

    /// Makes what runs what should run.
    async fn look(&mut self) -> Result<(), StoreError> {
        let stored = self.context.store.list_federation_relationships(None).await?.relationships;
        let configured = &self.context.config.federation.federates_with;
        let mut sources = merged(self.context.trust_domain(), configured, stored);

        let mut leaving = Vec::new();
        for trust_domain in self.running.keys().cloned().collect::<Vec<_>>() {
            let now = sources.get(&trust_domain);
            // One that panicked has ended without being told to.
            let is_right = |running: &Running| now == Some(&running.source) && !running.ended.is_cancelled();
            if self.running.get(&trust_domain).is_some_and(is_right) {
                sources.remove(&trust_domain);
                continue;
            }
            if now.is_none() {
                tracing::info!(
                    subsystem_name = SUBSYSTEM,
                    entry = %trust_domain,
                    "Trust domain no longer managed"
                );
            }
            leaving.extend(self.running.remove(&trust_domain).map(|running| (trust_domain, running)));
        }
        leaving.iter().for_each(|(_, running)| running.stop.cancel());
        for (_, running) in &leaving {
            running.ended.cancelled().await;
        }

        for (trust_domain, source) in sources {
            let is_changed = leaving.iter().any(|(known, _)| *known == trust_domain);
            self.start(trust_domain, source, is_changed);
        }
        Ok(())
    }

    fn start(&mut self, trust_domain: TrustDomain, source: Source, is_changed: bool) {
        let (bundle_endpoint_url, bundle_endpoint_profile) = (&source.url, source.profile_name());
        if is_changed {
            tracing::info!(
                subsystem_name = SUBSYSTEM,
                bundle_endpoint_profile,
                bundle_endpoint_url,
                entry = %trust_domain,
                "Updated configuration for managed trust domain"
            );
        } else {
            tracing::info!(
                subsystem_name = SUBSYSTEM,
                bundle_endpoint_profile,
                bundle_endpoint_url,
                trust_domain = %trust_domain,
                "Trust domain is now managed"
            );
        }
        let (asks, asked) = mpsc::channel(WAITING);
        let (stop, ended) = (self.group.token().child_token(), CancellationToken::new());
        let refresher = Refresher {
            context: Arc::clone(&self.context),
            trust_domain: trust_domain.clone(),
            source: source.clone(),
            check: self.check.clone(),
            last: None,
        };
        let (told_to_stop, at_the_end) = (stop.clone(), ended.clone().drop_guard());
        self.group.spawn("bundle refresher", async move {
            refresher.run(asked, told_to_stop).await;
            drop(at_the_end);
        });
        self.running.insert(trust_domain, Running { source, asks, stop, ended });
    }

    /// Does what it is told; the relationships have just been looked at.
    fn obey(&self, command: Command) {
        match command {
            // Who asked may have gone.
            Command::Look(done) => drop(done.send(())),
            Command::Refresh(trust_domain, answer) => {
                let Some(running) = self.running.get(&trust_domain) else {
                    answer.send(Err(Refusal::Unknown(trust_domain))).ok();
                    return;
                };
                let (ask, outcome) = oneshot::channel();
                match running.asks.try_send(ask) {
                    Ok(()) => self.group.spawn("bundle refresh", async move {
                        let outcome = match outcome.await {
                            Ok(outcome) => outcome.map_err(Refusal::from),
                            Err(_gone) => Err(Refusal::Interrupted),
                        };
                        answer.send(outcome).ok();
                    }),
                    Err(TrySendError::Full(_)) => drop(answer.send(Err(Refusal::Busy))),
                    Err(TrySendError::Closed(_)) => drop(answer.send(Err(Refusal::Interrupted))),
                }
            }
        }
    }
}

/// How often the relationships are looked at, for those that other servers wrote.
const LOOK_EVERY: Duration = Duration::from_secs(10);
