//! The agent's own X.509-SVID: renewed in time, replaced when the server says so, given up when the
//! agent is banned.
//!
//! A new SVID is stored before it is used, and its key lies beside the one in use. So a process that
//! is killed at any moment finds an SVID with its key that the server still takes: it takes the old
//! one until it has seen the new one.
//!
//! SPIRE's agent ends when its SVID expired. This one stays and serves what it has: a server that
//! comes back finds it, as far as the attestation allows.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use plugin::Key;
use runtime::backoff::Backoff;
use runtime::chain;
use runtime::snapshot::Snapshot;
use spiffe::UnixSecs;
use spiffe::tls::OwnCertificate;
use spiffe::x509::find_path;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::attest::{AttestError, Attested, Attester, Trust};
use crate::connection::{Connection, Verdict};
use crate::rotation::RotationRule;
use crate::state::{AgentIdentity, AgentState, Change, Inbox};
use crate::stored::{AgentData, StoreError};
use crate::tls;
use crate::words;

/// How often the SVID is looked at.
const CHECK: Duration = Duration::from_secs(5);

/// Where calls that the server refused are told of. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Denials(mpsc::Sender<Denial>);

struct Denial {
    verdict: Verdict,
    generation: u64,
}

impl Denials {
    /// A call failed that was made under the agent's SVID of this generation.
    pub(crate) fn tell(&self, verdict: Verdict, generation: u64) {
        if verdict != Verdict::Transient {
            // While one is being dealt with the others need not be heard.
            self.0.try_send(Denial { verdict, generation }).ok();
        }
    }
}

/// The task.
pub(crate) struct OwnSvid {
    attester: Arc<Attester>,
    connection: Connection,
    certificate: Arc<OwnCertificate>,
    inbox: Inbox,
    state: Snapshot<AgentState>,
    denials: mpsc::Receiver<Denial>,
    rule: RotationRule,
    key: Arc<dyn Key>,
    renew_at: SystemTime,
}

/// Why an agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum GivenUp {
    /// The server does not know the agent, and it may not attest again.
    #[error("agent needs to re-attest: its SVID was removed")]
    Forgotten(#[source] Option<AttestError>),
    /// The server banned the agent.
    #[error("agent is banned: its SVID was removed")]
    Banned,
    /// The bundle and the server disagree.
    #[error(transparent)]
    Disagreement(AttestError),
}

/// What an agent's own SVID needs of the others.
pub(crate) struct Surroundings {
    pub(crate) attester: Arc<Attester>,
    pub(crate) connection: Connection,
    pub(crate) certificate: Arc<OwnCertificate>,
    pub(crate) inbox: Inbox,
    pub(crate) state: Snapshot<AgentState>,
}

impl OwnSvid {
    /// The task for an SVID with this key, and where denials are told.
    pub(crate) fn new(around: Surroundings, key: Arc<dyn Key>) -> (Self, Denials) {
        let (sender, denials) = mpsc::channel(1);
        let mut rule = RotationRule::new(around.attester.config.availability_target);
        let renew_at = renew_at(&mut rule, &around.state.load().agent);
        let Surroundings { attester, connection, certificate, inbox, state } = around;
        let task = Self { attester, connection, certificate, inbox, state, denials, rule, key, renew_at };
        (task, Denials(sender))
    }

    /// Keeps the SVID until the token is cancelled.
    ///
    /// # Errors
    /// The agent cannot go on.
    pub(crate) async fn run(mut self, token: CancellationToken) -> Result<(), GivenUp> {
        let clock = Arc::clone(&self.attester.clock);
        let mut backoff = Backoff::new(CHECK);
        // At once: the agent may have been away for long.
        let mut wait = Duration::ZERO;
        loop {
            let denial = tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                denial = self.denials.recv() => denial,
                () = clock.sleep(wait) => None,
            };
            let work = async {
                match denial {
                    Some(denial) if denial.generation == self.connection.generation() => {
                        self.heed(denial.verdict).await
                    }
                    Some(_) => Ok(()),
                    None => self.check(&mut backoff).await,
                }
            };
            tokio::select! {
                biased;
                // Each step of the work is whole: what is stored can be used, and is stored first.
                () = token.cancelled() => return Ok(()),
                done = work => done?,
            }
            wait = backoff.next();
        }
    }

    /// Renews the SVID if it is time.
    async fn check(&mut self, backoff: &mut Backoff) -> Result<(), GivenUp> {
        let is_due = self.attester.clock.now() >= self.renew_at || self.is_tainted();
        if !is_due {
            backoff.reset();
            return Ok(());
        }
        let agent = Arc::clone(&self.state.load().agent);
        match self.replace(&agent).await {
            Ok(()) => {
                backoff.reset();
                Ok(())
            }
            Err(error) => {
                let is_expired = self.is_expired(&agent);
                let doing = match agent.reattestable || is_expired {
                    true => "reattest agent",
                    false => "rotate agent SVID",
                };
                error!(error = chain(&error), is_expired, "Could not {doing}");
                if is_expired {
                    self.advise(&agent, &error);
                }
                match error.verdict() {
                    Verdict::Transient => Ok(()),
                    // The server just refused an attestation; another would end alike.
                    Verdict::MustReattest if agent.reattestable => Err(self.forget(Some(error)).await),
                    verdict @ (Verdict::MustReattest | Verdict::Banned | Verdict::UnknownAuthority) => {
                        self.heed(verdict).await
                    }
                }
            }
        }
    }

    /// Does what a refused call asks for.
    async fn heed(&mut self, verdict: Verdict) -> Result<(), GivenUp> {
        let agent = Arc::clone(&self.state.load().agent);
        match verdict {
            Verdict::Transient => Ok(()),
            Verdict::UnknownAuthority => match self.attester.disagree(&agent).await {
                Ok(()) => Ok(()),
                // Nobody is helped if workloads go without what still holds.
                Err(error) if self.serves() && !matches!(error, AttestError::Rebootstrap) => {
                    error!(
                        error = chain(&error),
                        hint = "bring back a server of the known authority; or, if it was replaced for good, \
                                stop the agent, remove agent-data.json from its data directory, give it the \
                                new bundle and start it: it attests anew",
                        "The server's certificate leads to no authority of the trust bundle; serving what still holds"
                    );
                    Ok(())
                }
                Err(error) => Err(GivenUp::Disagreement(error)),
            },
            Verdict::Banned => {
                warn!("Agent is banned: removing SVID and shutting down");
                self.remove().await;
                Err(GivenUp::Banned)
            }
            Verdict::MustReattest if agent.reattestable => {
                warn!("Agent needs to re-attest; will attempt to re-attest");
                // It was evicted, perhaps. What it was given is written again once it is known anew.
                self.attester.vault.discard();
                match self.reattest(&agent).await {
                    Ok(()) => Ok(()),
                    // The server may be gone by now; its next refusal tries again.
                    Err(error) if error.verdict() == Verdict::Transient && !error.is_final() => {
                        error!(error = chain(&error), "Could not reattest agent");
                        Ok(())
                    }
                    Err(error) => Err(self.forget(Some(error)).await),
                }
            }
            Verdict::MustReattest => Err(self.forget(None).await),
        }
    }

    /// With an SVID that has expired the server takes no calls: it is the node that must attest.
    async fn replace(&mut self, agent: &AgentIdentity) -> Result<(), AttestError> {
        if agent.reattestable || self.is_expired(agent) {
            self.reattest(agent).await
        } else {
            self.rotate().await
        }
    }

    fn is_expired(&self, agent: &AgentIdentity) -> bool {
        UnixSecs::from(self.attester.clock.now()) >= agent.expires_at()
    }

    async fn reattest(&mut self, agent: &AgentIdentity) -> Result<(), AttestError> {
        let call = self.attester.meters.reattest.clone();
        call.measure(self.attest_anew(agent), AttestError::code).await
    }

    async fn rotate(&mut self) -> Result<(), AttestError> {
        let call = self.attester.meters.rotate.clone();
        call.measure(self.renew(), AttestError::code).await
    }

    async fn attest_anew(&mut self, agent: &AgentIdentity) -> Result<(), AttestError> {
        debug!("Reattesting node");
        let bundle = self.state.load().bundles.own.as_ref().clone();
        let attested = self.attester.attest(&Trust::Bundle(bundle), Some(self.key.id())).await?;
        if attested.identity.id != agent.id {
            warn!(before = %agent.id, now = %attested.identity.id, "The agent has another id now");
        }
        self.attester.keep(&attested).await?;
        let Attested { identity, key, .. } = attested;
        info!(spiffe_id = %identity.id, "Successfully reattested node");
        self.take(identity, key).await;
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), AttestError> {
        debug!("Rotating agent SVID");
        let bundle = Arc::clone(&self.state.load().bundles.own);
        let (identity, key) = self.attester.renew(&self.connection, self.key.id(), &bundle).await?;
        let svid = identity.chain.to_vec();
        self.attester
            .store
            .update(move |data| {
                data.svid = svid;
                data.reattestable = false;
            })
            .await?;
        info!(spiffe_id = %identity.id, "Successfully rotated agent SVID");
        self.take(identity, key).await;
        Ok(())
    }

    /// Uses a new SVID that is stored.
    async fn take(&mut self, identity: AgentIdentity, key: Arc<dyn Key>) {
        self.renew_at = renew_at(&mut self.rule, &identity);
        tls::present(&self.certificate, &identity.chain, &key);
        self.key = key;
        self.connection.renewed();
        // If nobody keeps the state any more the agent is ending.
        self.inbox.apply(Change::Renewed(identity)).await.ok();
    }

    /// Whether the authority behind the SVID is tainted, or was revoked before anybody here had heard
    /// of that.
    fn is_tainted(&self) -> bool {
        let state = self.state.load();
        let Some((leaf, intermediates)) = state.agent.chain.split_first() else { return false };
        // A clock that is behind is no reason.
        let now = UnixSecs::from(self.attester.clock.now()).max(leaf.not_before());
        if state.bundles.anchors.is_empty() || now >= leaf.not_after() {
            return false;
        }
        match find_path(leaf, intermediates, &state.bundles.anchors, now) {
            Ok(path) => path
                .last()
                .is_some_and(|anchor| state.bundles.tainted_keys.contains(&anchor.public_key().key_id())),
            Err(_) => true,
        }
    }

    /// Whether workloads get anything from this agent.
    fn serves(&self) -> bool {
        self.state.load().entries.svid_count() > 0
    }

    /// Says what to do about an SVID that has expired and a server that gives no other.
    fn advise(&self, agent: &AgentIdentity, error: &AttestError) {
        let expired_at = words::instant(agent.expires_at());
        // What the server says of the attestation stands; anything else passes with the outage.
        let is_refused = matches!(
            error,
            AttestError::Call { status, .. } if std::error::Error::source(&**status).is_none()
        );
        let hint = if is_refused {
            format!(
                "this attestation holds once: `finial server agent evict -spiffeID {}` lets the node attest \
                 again by itself; with join tokens, make one (`finial server token generate`) and start the \
                 agent with it",
                agent.id
            )
        } else {
            "the agent tries again by itself".to_owned()
        };
        warn!(expired_at, hint, "The agent's own SVID has expired; serving what still holds");
    }

    async fn forget(&self, error: Option<AttestError>) -> GivenUp {
        warn!("Agent needs to re-attest: removing SVID and shutting down");
        self.remove().await;
        GivenUp::Forgotten(error)
    }

    async fn remove(&self) {
        self.attester.vault.give_up();
        let removed: Result<(), StoreError> = self.attester.store.update(AgentData::forget_svid).await;
        if let Err(error) = removed {
            error!(error = chain(&error), "Failed to remove SVID");
        }
    }
}

fn renew_at(rule: &mut RotationRule, agent: &AgentIdentity) -> SystemTime {
    agent.chain.first().map_or(SystemTime::UNIX_EPOCH, |leaf| rule.x509(leaf.not_before(), leaf.not_after()))
}
