//! What operators command: prepare, activate, taint and revoke authorities by hand.
//!
//! Commands go to the owner of the authorities and are answered by it, so that none is judged by slots
//! that a rotation changes under it.

use std::sync::Arc;

use ca::slots::{Facts, Family, Held, SlotError, Slots, Status};
use spiffe::{Bundle, JwtAuthority};
use store::{Changes, Committed, StoreError};
use tokio::sync::{mpsc, oneshot};

use super::{Driver, DriverError};

/// Commands that wait; operators who come later wait to be heard.
const WAITING: usize = 16;

/// The way to command the authorities. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Commands(mpsc::Sender<Asked>);

/// Where the owner hears them.
pub(crate) type Inbox = mpsc::Receiver<Asked>;

/// What is asked for and who waits for what it came to.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A command about authorities of this server.
    Order {
        /// Which ones.
        family: Family,
        /// The command.
        order: Order,
        /// Who waits.
        answer: oneshot::Sender<Result<Answer, Refusal>>,
    },
    /// Publish a JWT key of a server below.
    Publish {
        /// The key.
        key: JwtAuthority,
        /// Who waits.
        answer: oneshot::Sender<Result<Committed<Arc<Bundle>>, Refusal>>,
    },
}

/// What is to be done in a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Say what there is.
    Show,
    /// Make the next authority, in place of one that is prepared or old.
    Prepare,
    /// Let the prepared authority of this id sign.
    Activate(String),
    /// Mark the old authority of this id as compromised.
    Taint(String),
    /// Remove a compromised authority from the bundle.
    Revoke(String),
    /// Mark the upstream authority with this subject key id, above the old authority, as compromised.
    TaintUpstream(String),
    /// Remove such an upstream authority from the bundle.
    RevokeUpstream(String),
}

/// What it came to.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The authority that signs now.
    pub(crate) active: Facts,
    /// The other one, if there is one.
    pub(crate) other: Option<(Status, Facts)>,
    /// What was written and may not be served yet.
    pub(crate) changes: Option<Changes>,
}

/// Why a command is not obeyed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The family is turned off.
    #[error("family is disabled")]
    Disabled,
    /// The command needs an id.
    #[error("no authority ID provided")]
    NoId,
    /// The slots do not allow it.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// There is no such authority in the bundle.
    #[error("no JWT authority found with provided authority ID")]
    Unknown,
    /// The authorities of a server below others are those others' affair.
    #[error("there is an upstream authority")]
    BelowUpstream,
    /// The server is below no other.
    #[error("upstream authority is not configured")]
    NoUpstream,
    /// It is not an upstream authority that may be withdrawn.
    #[error("{0}")]
    Upstream(&'static str),
    /// Making or activating an authority failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The datastore refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server is going down.
    #[error("server is stopping")]
    Stopping,
}

impl Commands {
    /// The way to command, and the end where commands arrive.
    pub(crate) fn new() -> (Self, Inbox) {
        let (sender, inbox) = mpsc::channel(WAITING);
        (Self(sender), inbox)
    }

    /// Gives an order and waits for what it came to. One that was heard is carried out whether or not
    /// somebody still waits.
    ///
    /// # Errors
    /// Any of [`Refusal`].
    pub(crate) async fn give(&self, family: Family, order: Order) -> Result<Answer, Refusal> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked::Order { family, order, answer };
        self.0.send(asked).await.map_err(|_| Refusal::Stopping)?;
        answered.await.map_err(|_| Refusal::Stopping)?
    }

    /// Publishes a JWT key of a server below: to the servers above, if there are any, and in the own
    /// bundle, which is the answer.
    ///
    /// # Errors
    /// [`Refusal::Driver`] if the servers above do not take it, [`Refusal::Store`] if its id is in use.
    pub(crate) async fn publish(&self, key: JwtAuthority) -> Result<Committed<Arc<Bundle>>, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Asked::Publish { key, answer }).await.map_err(|_| Refusal::Stopping)?;
        answered.await.map_err(|_| Refusal::Stopping)?
    }
}

impl Driver {
    /// Carries out a command and answers it.
    pub(super) async fn obey(&mut self, asked: Asked) {
        // Who asked may have gone.
        match asked {
            Asked::Order { family, order, answer } => {
                answer.send(self.carry_out(family, order).await).ok();
            }
            Asked::Publish { key, answer } => {
                answer.send(self.publish_for_below(key).await).ok();
            }
        }
    }

    async fn carry_out(&mut self, family: Family, order: Order) -> Result<Answer, Refusal> {
        self.check_upstream(family, &order)?;
        if family != Family::X509 {
            self.tokens_or_refuse(family)?;
        }
        if matches!(&order, Order::Activate(id) | Order::Taint(id) | Order::Revoke(id) if id.is_empty()) {
            return Err(Refusal::NoId);
        }
        let changes = match order {
            Order::Show => {
                self.check_active(family)?;
                None
            }
            Order::Prepare => {
                self.check_active(family)?;
                match family {
                    Family::X509 => self.prepare_x509().await?,
                    Family::Jwt | Family::Wit => self.prepare_tokens(family).await?,
                }
                None
            }
            Order::Activate(id) => {
                match family {
                    Family::X509 => self.x509.check_activate(&id)?,
                    Family::Jwt | Family::Wit => self.tokens_or_refuse(family)?.check_activate(&id)?,
                }
                match family {
                    Family::X509 => self.activate_x509().await?,
                    Family::Jwt | Family::Wit => self.activate_tokens(family).await?,
                }
                None
            }
            Order::Taint(id) => {
                match family {
                    Family::X509 => self.x509.check_withdraw(&id)?,
                    Family::Jwt | Family::Wit => self.tokens_or_refuse(family)?.check_withdraw(&id)?,
                }
                self.taint(family, id).await?
            }
            Order::Revoke(id) => self.revoke(family, id).await?,
            Order::TaintUpstream(id) => self.taint(Family::X509, id).await?,
            Order::RevokeUpstream(id) => {
                let trust_domain = self.parts.profile.trust_domain.clone();
                self.parts.store.revoke_x509_authority(trust_domain, id).await?.changes
            }
        };
        self.answer(family, changes)
    }

    /// Whether the servers above allow the order.
    fn check_upstream(&self, family: Family, order: &Order) -> Result<(), Refusal> {
        match order {
            Order::Taint(_) | Order::Revoke(_) if family == Family::X509 && self.upstream.is_some() => {
                Err(Refusal::BelowUpstream)
            }
            Order::TaintUpstream(_) | Order::RevokeUpstream(_) if self.upstream.is_none() => {
                Err(Refusal::NoUpstream)
            }
            Order::TaintUpstream(id) | Order::RevokeUpstream(id) => self.check_withdraw_upstream(id),
            Order::Show | Order::Prepare | Order::Activate(_) | Order::Taint(_) | Order::Revoke(_) => Ok(()),
        }
    }

    /// Only an upstream authority that the old authority is below, and the active one not, may be
    /// withdrawn.
    fn check_withdraw_upstream(&self, id: &str) -> Result<(), Refusal> {
        let is_above = |held: &Held<_>| held.facts().is_some_and(|facts| facts.upstream_authority_id == id);
        if id.is_empty() {
            return Err(Refusal::Upstream("no subject key ID provided"));
        }
        if is_above(self.x509.current()) {
            return Err(Refusal::Upstream("unable to use upstream authority singing current authority"));
        }
        if !is_above(self.x509.upcoming()) {
            return Err(Refusal::Upstream("upstream authority didn't sign the old local authority"));
        }
        if self.x509.upcoming().status() == Some(Status::Prepared) {
            return Err(Refusal::Upstream("only upstream authorities signing an old authority can be used"));
        }
        Ok(())
    }

    async fn taint(&mut self, family: Family, id: String) -> Result<Option<Changes>, Refusal> {
        let (store, trust_domain) = (&self.parts.store, self.parts.profile.trust_domain.clone());
        Ok(match family {
            Family::X509 => store.taint_x509_authority(trust_domain, id).await?.changes,
            Family::Jwt => store.taint_jwt_authority(trust_domain, id).await?.changes,
            Family::Wit => return Err(Refusal::Disabled),
        })
    }

    async fn revoke(&mut self, family: Family, id: String) -> Result<Option<Changes>, Refusal> {
        let trust_domain = self.parts.profile.trust_domain.clone();
        match family {
            Family::X509 => {
                self.x509.check_withdraw(&id)?;
                Ok(self.parts.store.revoke_x509_authority(trust_domain, id).await?.changes)
            }
            Family::Jwt => {
                match self.tokens_or_refuse(family)?.check_withdraw(&id) {
                    // Of another server, or of this one before its last.
                    Err(SlotError::Unexpected) => self.check_in_bundle(&id).await?,
                    checked => checked?,
                }
                if self.upstream.is_some() {
                    return self.withdraw_jwt(id).await;
                }
                Ok(self.parts.store.revoke_jwt_authority(trust_domain, id).await?.changes)
            }
            Family::Wit => Err(Refusal::Disabled),
        }
    }

    async fn check_in_bundle(&mut self, key_id: &str) -> Result<(), Refusal> {
        let trust_domain = self.parts.profile.trust_domain.clone();
        let bundle = self.parts.store.fetch_bundle(trust_domain).await?;
        let is_there = bundle
            .is_some_and(|bundle| bundle.jwt_authorities.iter().any(|authority| authority.key_id == key_id));
        if is_there { Ok(()) } else { Err(Refusal::Unknown) }
    }

    fn tokens_or_refuse(
        &mut self,
        family: Family,
    ) -> Result<&mut Slots<Arc<ca::authority::TokenSigner>>, Refusal> {
        Ok(&mut self.tokens(family).ok_or(Refusal::Disabled)?.slots)
    }

    fn check_active(&mut self, family: Family) -> Result<(), Refusal> {
        match family {
            Family::X509 => self.x509.active().map(drop)?,
            Family::Jwt | Family::Wit => self.tokens_or_refuse(family)?.active().map(drop)?,
        }
        Ok(())
    }

    fn answer(&mut self, family: Family, changes: Option<Changes>) -> Result<Answer, Refusal> {
        match family {
            Family::X509 => answer(&self.x509, changes),
            Family::Jwt | Family::Wit => answer(self.tokens_or_refuse(family)?, changes),
        }
    }
}

fn answer<M>(slots: &Slots<M>, changes: Option<Changes>) -> Result<Answer, Refusal> {
    let (active, _) = slots.active()?;
    let other = match slots.upcoming() {
        Held::Empty => None,
        held @ (Held::Prepared(..) | Held::Active(..) | Held::Old(_)) => {
            held.status().zip(held.facts().cloned())
        }
    };
    Ok(Answer { active: active.clone(), other, changes })
}
