//! The owner of the server's own authorities: makes, publishes, activates and forgets them in time.
//!
//! What is to be done says [`ca::slots`]; here it is done: the key manager makes the key, the store
//! takes journal and bundle in one transaction, the bundle that this server serves shows it, and only
//! then the authority counts as prepared. It signs once it is activated and published in the snapshot
//! that issuers read. A server that starts again finds its journal by its keys, as SPIRE's does, so
//! either takes over from the other.

mod command;
mod load;
mod record;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ca::authority::{ActiveAuthorities, AuthorityError, TokenSigner, X509Signer};
use ca::issue::{IssueError, self_signed_ca};
use ca::journal::{Journal, JournalError, KeyEntry, X509Entry};
use ca::profile::Profile;
use ca::slots::{Action, Activation, Family, SlotError, Slots, Status};
use plugin::{KeyId, KeyManager, PluginError, UpstreamAuthority};
use runtime::clock::Clock;
use runtime::health::Check;
use runtime::snapshot::{Publisher, Snapshot};
use spiffe::key::KeyKind;
use spiffe::x509::CertDer;
use spiffe::{Bundle, JwtAuthority, UnixSecs, X509Authority};
use store::StoreError;
use tokio_util::sync::CancellationToken;

pub(crate) use self::command::{Answer, Commands, Inbox, Order, Refusal};

use self::record::Record;
use self::upstream::Upstream;

use crate::keep::Applied;
use crate::measured::Datastore;
use crate::meters::{Meters, of_any};

/// How often it is asked what is to be done.
const TICK: Duration = Duration::from_secs(10);
/// More steps than one look at the slots can ask for.
const STEPS: usize = 4;

/// The owner of the authorities.
pub(crate) struct Driver {
    parts: Parts,
    x509: Slots<Arc<X509Signer>>,
    jwt: Option<Tokens>,
    wit: Option<Tokens>,
    record: Record,
    upstream: Option<Upstream>,
    active: Publisher<ActiveAuthorities>,
    /// How far the bundle is that is served, once it is.
    served: Option<Applied>,
}

/// What it works with.
pub(crate) struct Parts {
    /// The rules of what is issued.
    pub(crate) profile: Arc<Profile>,
    /// Holds the keys.
    pub(crate) keys: Arc<dyn KeyManager>,
    /// Signs the CA, if the server is below others.
    pub(crate) upstream: Option<Arc<dyn UpstreamAuthority>>,
    /// Holds journal and bundle.
    pub(crate) store: Datastore,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
    /// What keys to make.
    pub(crate) kinds: Kinds,
    /// Told when authorities cannot be rotated.
    pub(crate) check: Check,
    /// What is measured.
    pub(crate) meters: Arc<Meters>,
}

/// The kinds of keys; a family without one is turned off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kinds {
    /// Of CA certificates.
    pub(crate) x509: KeyKind,
    /// Of JWT authorities.
    pub(crate) jwt: Option<KeyKind>,
    /// Of WIT authorities.
    pub(crate) wit: Option<KeyKind>,
}

/// A family of token keys.
struct Tokens {
    family: Family,
    /// As the log calls it.
    name: &'static str,
    kind: KeyKind,
    slots: Slots<Arc<TokenSigner>>,
}

/// Why authorities cannot be loaded or rotated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// The key manager or the upstream authority failed; its words say which of them.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The upstream authority signs below what it says is compromised.
    #[error("the upstream authority still signs with a tainted authority")]
    StillTainted,
    /// The datastore failed.
    #[error("cannot read or write authorities")]
    Store(#[from] StoreError),
    /// The journal cannot be read, or names no such authority.
    #[error("CA journal is unusable")]
    Journal(#[from] JournalError),
    /// An entry of the journal holds something that is no authority.
    #[error("authority {id:?} of the CA journal cannot be used")]
    Authority {
        /// The entry.
        id: String,
        /// What is wrong with it.
        #[source]
        source: AuthorityError,
    },
    /// The key made cannot be that of an authority.
    #[error("new key cannot be an authority's")]
    NewKey(#[from] AuthorityError),
    /// The new CA certificate was not signed.
    #[error("cannot make CA certificate")]
    Issue(#[from] IssueError),
    /// The slots are not as they should be.
    #[error("cannot activate authority")]
    Slots(#[from] SlotError),
}

impl Driver {
    /// Who reads the authorities that are active.
    pub(crate) fn active(&self) -> Snapshot<ActiveAuthorities> {
        self.active.snapshot()
    }

    /// Does all that is due. A family that fails does not keep the others from being rotated, unless
    /// there is no CA at all.
    ///
    /// # Errors
    /// The first failure; what was done until then holds.
    pub(crate) async fn rotate(&mut self) -> Result<(), DriverError> {
        let x509 = self.rotate_x509().await;
        if let Err(error) = &x509 {
            tracing::error!(
                subsystem_name = "ca_manager",
                error = runtime::chain(error),
                "Unable to rotate X509 CA"
            );
            if self.x509.active().is_err() {
                return x509;
            }
        }
        let jwt = self.rotate_tokens(Family::Jwt).await;
        if let Err(error) = &jwt {
            tracing::error!(
                subsystem_name = "ca_manager",
                error = runtime::chain(error),
                "Unable to rotate JWT key"
            );
        }
        let wit = self.rotate_tokens(Family::Wit).await;
        if let Err(error) = &wit {
            tracing::error!(
                subsystem_name = "ca_manager",
                error = runtime::chain(error),
                "Unable to rotate WIT key"
            );
        }
        let left = self.leave_tainted().await;
        if let Err(error) = &left {
            tracing::warn!(
                subsystem_name = "ca_manager",
                error = runtime::chain(error),
                "Failed to process tainted keys on upstream authority"
            );
        }
        self.record.save_if_needed(&self.parts.store).await;
        x509.and(jwt).and(wit).and(left)
    }

    /// Rotates, and does what is commanded, until the token is cancelled. `served` tells how far the
    /// snapshots are, which until now nobody reads.
    ///
    /// # Errors
    /// None: what failed is tried again at the next tick.
    pub(crate) async fn run(
        mut self,
        mut commands: Inbox,
        served: Applied,
        token: CancellationToken,
    ) -> Result<(), DriverError> {
        self.served = Some(served);
        let mut tick = self.parts.clock.sleep(TICK);
        if let Some(upstream) = &mut self.upstream {
            upstream.until(token.clone());
        }
        self.watch_upstream().await;
        loop {
            // What is begun is not dropped half-way: each of its steps writes.
            tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                // First, so that no flood of commands keeps authorities from being rotated.
                () = &mut tick => {}
                Some(asked) = commands.recv() => {
                    self.obey(asked).await;
                    continue;
                }
                update = upstream::next(&mut self.upstream) => {
                    self.follow(update).await;
                    continue;
                }
            }
            self.watch_upstream().await;
            tick = self.parts.clock.sleep(TICK);
            match self.rotate().await {
                Ok(()) => self.parts.check.cleared(TROUBLE),
                Err(error) if self.is_signing() => {
                    self.parts.check.degraded(TROUBLE, runtime::chain(&error));
                }
                Err(error) => self.parts.check.failing(TROUBLE, runtime::chain(&error)),
            }
        }
    }

    /// Whether there is a CA that has not ended.
    fn is_signing(&self) -> bool {
        self.x509.active().is_ok_and(|(facts, _)| facts.not_after >= self.now())
    }

    fn now(&self) -> UnixSecs {
        UnixSecs::from(self.parts.clock.now())
    }

    async fn rotate_x509(&mut self) -> Result<(), DriverError> {
        for _ in 0..STEPS {
            match self.x509.next(self.now()) {
                None => break,
                Some(Action::Prepare(_)) => self.prepare_x509().await?,
                Some(Action::Activate) => self.activate_x509().await?,
            }
        }
        Ok(())
    }

    /// Makes the next CA.
    async fn prepare_x509(&mut self) -> Result<(), DriverError> {
        let meters = Arc::clone(&self.parts.meters);
        of_any(&meters.x509_prepare, self.make_x509()).await
    }

    async fn make_x509(&mut self) -> Result<(), DriverError> {
        let slot = self.x509.to_prepare();
        tracing::debug!(subsystem_name = "ca_manager", slot = slot.as_str(), "Preparing X509 CA");
        self.x509.vacate();
        let id = KeyId::new(Family::X509.key_id(slot));
        let key = self.parts.keys.generate(&id, self.parts.kinds.x509).await?;
        let now = self.now();
        let (signer, added) = match &mut self.upstream {
            None => {
                let signer = self_signed_ca(&self.parts.profile, key, now).await?;
                let root = X509Authority { der: signer.certificate().to_shared(), tainted: false };
                (signer, vec![root])
            }
            Some(upstream) => {
                let minted = upstream.mint(&self.parts, key).await?;
                (minted.signer, self.news_of_roots(&minted.roots).await?)
            }
        };
        let facts = signer.facts(now);

        let mut journal = self.record.journal.clone();
        let shared = |der: &CertDer| Bytes::copy_from_slice(der.as_bytes());
        journal.append_x509(X509Entry {
            slot,
            facts: facts.clone(),
            status: Status::Prepared,
            certificate: Bytes::copy_from_slice(signer.certificate().der()),
            upstream_chain: signer.upstream_chain().iter().map(shared).collect(),
        });
        let mut more = Bundle::empty(self.parts.profile.trust_domain.clone());
        more.x509_authorities = added;
        self.publish(more, journal).await?;

        tracing::info!(
            subsystem_name = "ca_manager",
            slot = slot.as_str(),
            issued_at = facts.issued_at.0,
            expiration = facts.not_after.0,
            self_signed = self.upstream.is_none(),
            local_authority_id = facts.id,
            upstream_authority_id = facts.upstream_authority_id,
            "X509 CA prepared"
        );
        self.x509.prepared(facts, Arc::new(signer));
        Ok(())
    }

    /// Stores journal and bundle; done when whoever asks this server for its bundle gets that one.
    async fn publish(&mut self, more: Bundle, journal: Journal) -> Result<(), DriverError> {
        let changes = self.record.publish(&self.parts.store, more, journal).await?;
        if let (Some(served), Some(changes)) = (&self.served, &changes) {
            served.reached(changes).await;
        }
        Ok(())
    }

    async fn activate_x509(&mut self) -> Result<(), DriverError> {
        let activation = self.x509.activate()?;
        self.publish_active();
        self.show_active_x509();
        self.note_activation(Family::X509, &activation).await
    }

    async fn rotate_tokens(&mut self, family: Family) -> Result<(), DriverError> {
        for _ in 0..STEPS {
            let now = self.now();
            let Some(tokens) = self.tokens(family) else { return Ok(()) };
            match tokens.slots.next(now) {
                None => break,
                Some(Action::Prepare(_)) => self.prepare_tokens(family).await?,
                Some(Action::Activate) => self.activate_tokens(family).await?,
            }
        }
        Ok(())
    }

    /// Makes the next key of tokens.
    async fn prepare_tokens(&mut self, family: Family) -> Result<(), DriverError> {
        let meters = Arc::clone(&self.parts.meters);
        let call = if family == Family::Wit { &meters.wit_prepare } else { &meters.jwt_prepare };
        of_any(call, self.make_tokens(family)).await
    }

    async fn make_tokens(&mut self, family: Family) -> Result<(), DriverError> {
        let now = self.now();
        let Some(tokens) = self.tokens(family) else { return Ok(()) };
        let (slot, kind, name) = (tokens.slots.to_prepare(), tokens.kind, tokens.name);
        tracing::debug!(subsystem_name = "ca_manager", slot = slot.as_str(), "Preparing {name}");
        tokens.slots.vacate();
        let key = self.parts.keys.generate(&KeyId::new(family.key_id(slot)), kind).await?;
        let ttl = i64::try_from(self.parts.profile.ca_ttl.as_secs()).unwrap_or(i64::MAX);
        let signer = TokenSigner::with_new_id(key, now.plus(ttl))?;
        let facts = signer.facts(now);

        let public_key = signer.public_key().spki();
        let entry = KeyEntry {
            slot,
            facts: facts.clone(),
            status: Status::Prepared,
            public_key: Bytes::copy_from_slice(public_key),
        };
        let authority = JwtAuthority {
            key_id: facts.id.clone(),
            public_key: public_key.into(),
            expires_at: facts.not_after,
            tainted: false,
        };
        let mut journal = self.record.journal.clone();
        let mut more = Bundle::empty(self.parts.profile.trust_domain.clone());
        match family {
            Family::X509 => return Ok(()),
            Family::Jwt => {
                journal.append_jwt(entry);
                more.jwt_authorities = self.publish_above(authority).await?;
            }
            Family::Wit => {
                journal.append_wit(entry);
                more.wit_authorities.push(authority);
            }
        }
        self.publish(more, journal).await?;

        tracing::info!(
            subsystem_name = "ca_manager",
            slot = slot.as_str(),
            issued_at = facts.issued_at.0,
            expiration = facts.not_after.0,
            local_authority_id = facts.id,
            "{name} prepared"
        );
        if let Some(tokens) = self.tokens(family) {
            tokens.slots.prepared(facts, Arc::new(signer));
        }
        Ok(())
    }

    async fn activate_tokens(&mut self, family: Family) -> Result<(), DriverError> {
        let meters = Arc::clone(&self.parts.meters);
        let Some(tokens) = self.tokens(family) else { return Ok(()) };
        let activation = tokens.slots.activate()?;
        tokens.show_active(&meters);
        self.publish_active();
        self.note_activation(family, &activation).await
    }

    /// Tells the journal. Signing does not wait for it: an activation that is not written down is
    /// found prepared after a restart, and activated again.
    async fn note_activation(&mut self, family: Family, activation: &Activation) -> Result<(), DriverError> {
        let journal = &mut self.record.journal;
        if let Some(outgoing) = &activation.outgoing {
            // Long ago it may have been dropped from the journal.
            journal.set_status(family, outgoing, Status::Old).ok();
        }
        journal.set_status(family, &activation.incoming, Status::Active)?;
        self.record.needs_saving = true;
        self.record.save_if_needed(&self.parts.store).await;
        Ok(())
    }

    const fn tokens(&mut self, family: Family) -> Option<&mut Tokens> {
        match family {
            Family::X509 => None,
            Family::Jwt => self.jwt.as_mut(),
            Family::Wit => self.wit.as_mut(),
        }
    }

    fn publish_active(&self) {
        let token = |tokens: &Option<Tokens>| {
            tokens
                .as_ref()
                .and_then(|tokens| tokens.slots.active().ok())
                .map(|(_, signer)| Arc::clone(signer))
        };
        let active = ActiveAuthorities {
            x509: self.x509.active().ok().map(|(_, signer)| Arc::clone(signer)),
            jwt: token(&self.jwt),
            wit: token(&self.wit),
        };
        self.active.publish(Arc::new(active));
    }

    fn show_active_x509(&self) {
        let Ok((facts, _)) = self.x509.active() else { return };
        let (meters, ttl) = (&self.parts.meters, facts.not_after.since(self.now()));
        meters.x509_activated.increment();
        meters.x509_expiration.set_seconds(facts.not_after.0);
        meters.x509_ttl.set_seconds(ttl);
        tracing::info!(
            subsystem_name = "ca_manager",
            slot = self.x509.current_name().as_str(),
            issued_at = facts.issued_at.0,
            expiration = facts.not_after.0,
            local_authority_id = facts.id,
            upstream_authority_id = facts.upstream_authority_id,
            "X509 CA activated"
        );
        tracing::debug!(
            subsystem_name = "ca_manager",
            trust_domain_id = %self.parts.profile.trust_domain.id(),
            ttl,
            "Successfully rotated X.509 CA"
        );
    }
}

impl Tokens {
    fn show_active(&self, meters: &Meters) {
        let Ok((facts, _)) = self.slots.active() else { return };
        match self.family {
            Family::X509 => {}
            Family::Jwt => meters.jwt_activated.increment(),
            Family::Wit => meters.wit_activated.increment(),
        }
        let name = self.name;
        tracing::info!(
            subsystem_name = "ca_manager",
            slot = self.slots.current_name().as_str(),
            issued_at = facts.issued_at.0,
            expiration = facts.not_after.0,
            local_authority_id = facts.id,
            "{name} activated"
        );
    }
}

const TROUBLE: &str = "rotation_err";
