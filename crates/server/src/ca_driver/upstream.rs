//! The servers above: has the CA signed there, publishes keys there, and keeps the own bundle like theirs.
//!
//! What comes from above is applied by the owner of the authorities, one thing after the other. When an
//! authority above is compromised, this server first gets a CA below another one and lets that sign, and
//! only then says in its own bundle what it knows: agents and servers below renew what they hold as soon
//! as they read it, and must find an authority that is sound.

use std::collections::HashSet;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use ca::authority::X509Signer;
use ca::issue::{upstream_ca, upstream_csr};
use ca::journal::Journal;
use ca::slots::Held;
use ca::upstream::{KeyChanges, compare_keys, compare_roots, subject_key_id};
use futures::StreamExt;
use plugin::{Code, Key, PluginError, Updates, UpstreamAuthority, UpstreamBundle};
use runtime::clock;
use spiffe::x509::Certificate;
use spiffe::{Bundle, JwtAuthority, UnixSecs, X509Authority};
use store::{Changes, Committed, StoreError};
use tokio_util::sync::CancellationToken;

use super::{Driver, DriverError, Parts, Refusal};

/// How long publishing a key may take.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The upstream authority and what it has to tell.
pub(super) struct Upstream {
    plugin: Arc<dyn UpstreamAuthority>,
    roots: Option<Updates<Vec<X509Authority>>>,
    keys: Option<Updates<Vec<JwtAuthority>>>,
    bundle: Option<Updates<UpstreamBundle>>,
    /// Whether the plugin cannot be watched.
    is_mute: bool,
    /// Whether the log says already that keys are not published.
    warned: bool,
    /// Authorities that are compromised above and not yet here.
    tainted: Vec<X509Authority>,
    /// Ends waiting for the servers above; nothing was written by then.
    stop: CancellationToken,
}

/// What came from above.
pub(super) enum Update {
    /// X.509 authorities.
    Roots(Vec<X509Authority>),
    /// JWT keys.
    Keys(Vec<JwtAuthority>),
    /// Both.
    Bundle(UpstreamBundle),
    /// One of the streams ended.
    Ended(Option<PluginError>),
}

/// A CA that was signed above, and the roots of the trust domain.
pub(super) struct Minted {
    pub(super) signer: X509Signer,
    pub(super) roots: Vec<X509Authority>,
}

impl Upstream {
    pub(super) fn new(plugin: Arc<dyn UpstreamAuthority>) -> Self {
        Self {
            plugin,
            roots: None,
            keys: None,
            bundle: None,
            is_mute: false,
            warned: false,
            tainted: Vec::new(),
            stop: CancellationToken::new(),
        }
    }

    /// From now on nothing is waited for once the token is cancelled.
    pub(super) fn until(&mut self, stop: CancellationToken) {
        self.stop = stop;
    }

    /// Has a CA signed that has this key.
    pub(super) async fn mint(&mut self, parts: &Parts, key: Arc<dyn Key>) -> Result<Minted, DriverError> {
        let csr = upstream_csr(&parts.profile, &*key).await?;
        let minted = unless_stopped(&self.stop, self.plugin.mint(&csr, parts.profile.ca_ttl)).await?;
        let now = parts.clock.now().into();
        let signer = upstream_ca(&parts.profile, key, minted.chain, &minted.roots, now).await?;
        self.roots = minted.updates;
        Ok(Minted { signer, roots: minted.roots })
    }

    /// Publishes a JWT key above; all keys of the trust domain, or nothing if nobody above takes keys.
    async fn publish(
        &mut self,
        parts: &Parts,
        key: &JwtAuthority,
    ) -> Result<Option<Vec<JwtAuthority>>, PluginError> {
        let published = clock::within(&*parts.clock, PUBLISH_TIMEOUT, self.plugin.publish(key)).await;
        let late = || Err(PluginError::new(Code::DeadlineExceeded, "publishing took too long"));
        match published.unwrap_or_else(late) {
            Ok(published) => {
                self.keys = published.updates;
                Ok(Some(published.keys))
            }
            Err(error) if error.code == Code::Unimplemented => {
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!(
                        subsystem_name = "ca_manager",
                        plugin_name = self.plugin.info().name(),
                        "UpstreamAuthority plugin does not support JWT-SVIDs. Workloads managed by this \
                         server may have trouble communicating with workloads outside this cluster when \
                         using JWT-SVIDs."
                    );
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Begins to watch the bundle above, if that is possible and not done yet.
    async fn watch(&mut self) {
        if self.is_mute || self.bundle.is_some() {
            return;
        }
        match self.plugin.watch().await {
            Ok(bundle) => self.bundle = Some(bundle),
            Err(error) if error.code == Code::Unimplemented => self.is_mute = true,
            Err(error) => tracing::warn!(
                subsystem_name = "ca_manager",
                %error,
                "Cannot watch the bundle of the upstream authority; will retry"
            ),
        }
    }

    /// What comes next from above. Cancel-safe.
    async fn next(&mut self) -> Update {
        tokio::select! {
            roots = next_of(&mut self.roots) => match roots {
                Some(Ok(roots)) => Update::Roots(roots),
                ended => {
                    self.roots = None;
                    Update::Ended(ended.and_then(Result::err))
                }
            },
            keys = next_of(&mut self.keys) => match keys {
                Some(Ok(keys)) => Update::Keys(keys),
                ended => {
                    self.keys = None;
                    Update::Ended(ended.and_then(Result::err))
                }
            },
            bundle = next_of(&mut self.bundle) => match bundle {
                Some(Ok(bundle)) => Update::Bundle(bundle),
                ended => {
                    self.bundle = None;
                    Update::Ended(ended.and_then(Result::err))
                }
            },
        }
    }
}

/// What a call upwards comes to, unless the server stops before.
async fn unless_stopped<T>(
    stop: &CancellationToken,
    call: impl Future<Output = Result<T, PluginError>>,
) -> Result<T, PluginError> {
    tokio::select! {
        biased;
        outcome = call => outcome,
        () = stop.cancelled() => Err(PluginError::new(Code::Cancelled, "server is stopping")),
    }
}

/// The next item of a stream; never one of no stream.
async fn next_of<T>(updates: &mut Option<Updates<T>>) -> Option<Result<T, PluginError>> {
    match updates {
        Some(updates) => updates.next().await,
        None => pending().await,
    }
}

/// What comes next from above; never anything without anybody there. Cancel-safe.
pub(super) async fn next(upstream: &mut Option<Upstream>) -> Update {
    match upstream {
        Some(upstream) => upstream.next().await,
        None => pending().await,
    }
}

impl Driver {
    /// Begins to watch the servers above, if there are any that can be watched.
    pub(super) async fn watch_upstream(&mut self) {
        if let Some(upstream) = &mut self.upstream {
            upstream.watch().await;
        }
    }

    /// Does what an update from above asks for. What fails is told again by the next one, or tried again
    /// at the next tick.
    pub(super) async fn follow(&mut self, update: Update) {
        let outcome = match update {
            Update::Roots(roots) => self.follow_roots(&roots).await,
            Update::Keys(keys) => self.follow_keys(&keys).await,
            Update::Bundle(bundle) => match self.follow_roots(&bundle.roots).await {
                Ok(()) => self.follow_keys(&bundle.keys).await,
                failed => failed,
            },
            Update::Ended(None) => Ok(()),
            Update::Ended(Some(error)) => Err(error.into()),
        };
        let outcome = match outcome {
            Ok(()) => self.leave_tainted().await,
            failed => failed,
        };
        if let Err(error) = outcome {
            tracing::error!(
                subsystem_name = "ca_manager",
                error = runtime::chain(&error),
                "Cannot follow the upstream authority"
            );
        }
    }

    /// What of the roots above is to be added here. What is compromised there is remembered, and what is
    /// gone there goes.
    pub(super) async fn news_of_roots(
        &mut self,
        above: &[X509Authority],
    ) -> Result<Vec<X509Authority>, DriverError> {
        let stored = self.stored().await?;
        let changes = compare_roots(&stored.x509_authorities, above);
        let Some(upstream) = &mut self.upstream else { return Ok(changes.added) };
        for root in changes.tainted {
            if upstream.tainted.iter().all(|known| known.der != root.der) {
                tracing::info!(
                    subsystem_name = "ca_manager",
                    subject_key_id = subject_key_id(&root),
                    "X.509 authority tainted"
                );
                upstream.tainted.push(root);
            }
        }
        for id in changes.gone {
            self.parts.store.revoke_x509_authority(stored.trust_domain.clone(), id.clone()).await?;
            tracing::info!(subsystem_name = "ca_manager", subject_key_id = id, "X.509 authority revoked");
        }
        Ok(changes.added)
    }

    async fn follow_roots(&mut self, above: &[X509Authority]) -> Result<(), DriverError> {
        let added = self.news_of_roots(above).await?;
        if !added.is_empty() {
            let trust_domain = self.parts.profile.trust_domain.clone();
            let more = Bundle { x509_authorities: added, ..Bundle::empty(trust_domain) };
            self.parts.store.append_bundle(more).await?;
        }
        Ok(())
    }

    async fn follow_keys(&mut self, above: &[JwtAuthority]) -> Result<(), DriverError> {
        let stored = self.stored().await?;
        let changes = self.news_of_keys(&stored, above).await?;
        if !changes.set.is_empty() {
            let more = Bundle { jwt_authorities: changes.set, ..Bundle::empty(stored.trust_domain.clone()) };
            self.parts.store.append_bundle(more).await?;
        }
        for id in changes.gone {
            self.parts.store.revoke_jwt_authority(stored.trust_domain.clone(), id.clone()).await?;
            tracing::info!(subsystem_name = "ca_manager", local_authority_id = id, "JWT authority revoked");
        }
        Ok(())
    }

    /// What of the JWT keys above is to be changed here. What an operator revoked here or at a server of
    /// the same database does not come back, though those above may still have it.
    async fn news_of_keys(
        &mut self,
        stored: &Bundle,
        above: &[JwtAuthority],
    ) -> Result<KeyChanges, DriverError> {
        let changes = compare_keys(&stored.jwt_authorities, above, &HashSet::new());
        if changes.set.is_empty() {
            return Ok(changes);
        }
        let mut withdrawn: HashSet<_> = self.record.journal.withdrawn_jwt().map(str::to_owned).collect();
        for row in self.parts.store.list_ca_journals().await? {
            // A damaged journal is its server's trouble.
            if let Ok(journal) = Journal::decode(&row.data) {
                withdrawn.extend(journal.withdrawn_jwt().map(str::to_owned));
            }
        }
        Ok(compare_keys(&stored.jwt_authorities, above, &withdrawn))
    }

    /// Takes a compromised JWT key out of the bundle for good; what was written.
    pub(super) async fn withdraw_jwt(&mut self, id: String) -> Result<Option<Changes>, Refusal> {
        let stored = self.stored().await?;
        let key = stored.jwt_authorities.iter().find(|key| key.key_id == id);
        let mut journal = self.record.journal.clone();
        journal.withdraw_jwt(id.clone(), key.map_or(UnixSecs(0), |key| key.expires_at), self.now());
        let trust_domain = stored.trust_domain;
        Ok(self.record.revoke_jwt(&self.parts.store, trust_domain, id, journal).await?)
    }

    async fn stored(&mut self) -> Result<Bundle, DriverError> {
        let trust_domain = self.parts.profile.trust_domain.clone();
        let stored = self.parts.store.fetch_bundle(trust_domain.clone()).await?;
        Ok(stored.map_or_else(|| Bundle::empty(trust_domain), |bundle| (*bundle).clone()))
    }

    /// Gets out from below compromised authorities, then says in the own bundle that they are.
    pub(super) async fn leave_tainted(&mut self) -> Result<(), DriverError> {
        let tainted = match &self.upstream {
            Some(upstream) if !upstream.tainted.is_empty() => upstream.tainted.clone(),
            Some(_) | None => return Ok(()),
        };
        tracing::debug!(subsystem_name = "ca_manager", "Processing tainted keys on upstream authority");
        let roots: Vec<_> = tainted.iter().filter_map(|root| Certificate::parse(&root.der).ok()).collect();
        let now = self.now();
        if self.x509.active().is_ok_and(|(_, signer)| signer.is_below(&roots, now)) {
            tracing::info!(
                subsystem_name = "ca_manager",
                "Current root CA is signed by a tainted upstream authority, preparing rotation"
            );
            let is_sound = |held: &Held<Arc<X509Signer>>| {
                held.material().is_some_and(|next| !next.is_below(&roots, now))
            };
            if !is_sound(self.x509.upcoming()) {
                self.prepare_x509().await?;
            }
            if !is_sound(self.x509.upcoming()) {
                return Err(DriverError::StillTainted);
            }
            self.activate_x509().await?;
        }
        for root in &tainted {
            self.taint_root(root).await?;
        }
        if let Some(upstream) = &mut self.upstream {
            upstream.tainted.retain(|root| !tainted.contains(root));
        }
        Ok(())
    }

    async fn taint_root(&mut self, root: &X509Authority) -> Result<(), DriverError> {
        let trust_domain = self.parts.profile.trust_domain.clone();
        match self.parts.store.taint_x509_authority(trust_domain, subject_key_id(root)).await {
            // By an operator, or by another server that shares the database.
            Ok(_) | Err(StoreError::InvalidArgument(_) | StoreError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The JWT keys to store for a new one: it alone, or all that the servers above have, once they took
    /// it.
    pub(super) async fn publish_above(
        &mut self,
        key: JwtAuthority,
    ) -> Result<Vec<JwtAuthority>, DriverError> {
        let stored = self.stored().await?;
        let Some(upstream) = &mut self.upstream else { return Ok(vec![key]) };
        let Some(above) = upstream.publish(&self.parts, &key).await? else { return Ok(vec![key]) };
        let mut keys = self.news_of_keys(&stored, &above).await?.set;
        if keys.iter().all(|known| known.key_id != key.key_id) {
            keys.push(key);
        }
        Ok(keys)
    }

    /// Publishes a key of a server below.
    pub(super) async fn publish_for_below(
        &mut self,
        key: JwtAuthority,
    ) -> Result<Committed<Arc<Bundle>>, Refusal> {
        let jwt_authorities = self.publish_above(key).await?;
        let trust_domain = self.parts.profile.trust_domain.clone();
        let more = Bundle { jwt_authorities, ..Bundle::empty(trust_domain) };
        Ok(self.parts.store.append_bundle(more).await?)
    }
}
