//! Judging a caller by the rule of a method, in SPIRE's order: anybody, the own socket, administrators,
//! servers below this one, agents.
//!
//! Everything is looked up in the snapshots. Administrators and servers below this one call seldom and
//! may do much: for them the snapshots are brought up to date first. For agents they may be as old as the
//! configuration allows; what signs or renews judges again, up to date ([`Context::confirm`]). A row is
//! read only for an agent that is not known or whose serial is another than expected, once per call.

use proto::convert::status::with_detail;
use proto::spire::types::PermissionDeniedDetails;
use proto::spire::types::permission_denied_details::Reason;
use store::StoreError;
use tonic::{Code, Status};

use super::rules::Open;
use crate::caller::{ClientCertificate, Peer, Role};
use crate::context::Context;

/// Why a caller may not call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Denied {
    /// The method is not for such callers.
    #[error("caller is not allowed to call this method")]
    NotAllowed,
    /// It is for agents, and the caller shows no SVID.
    #[error("caller does not have an X509-SVID")]
    NoSvid,
    /// The agent's SVID has run out.
    #[error("agent {0:?} SVID is expired")]
    Expired(String),
    /// The caller is no agent that attested here.
    #[error("agent {0:?} is not attested")]
    NotAttested(String),
    /// The agent is banned.
    #[error("agent {0:?} is banned")]
    Banned(String),
    /// The agent has a newer SVID.
    #[error("agent {id:?} expected to have serial number {expected:?}; has {has:?}")]
    NotActive {
        /// The agent.
        id: String,
        /// Of the SVID that is active.
        expected: String,
        /// Of the SVID shown.
        has: String,
    },
    /// The agent's row cannot be read.
    #[error("unable to look up agent information: {0}")]
    LookUp(StoreError),
    /// The agent's new SVID cannot be made the active one.
    #[error("unable to activate the new agent SVID: {0}")]
    Activate(StoreError),
}

impl Denied {
    /// What the caller is told.
    pub(crate) fn status(&self, method: &str) -> Status {
        let reason = match self {
            Self::NotAllowed | Self::NoSvid => None,
            Self::Expired(_) => Some(Reason::AgentExpired),
            Self::NotAttested(_) => Some(Reason::AgentNotAttested),
            Self::Banned(_) => Some(Reason::AgentBanned),
            Self::NotActive { .. } => Some(Reason::AgentNotActive),
            Self::LookUp(_) | Self::Activate(_) => return Status::internal(self.to_string()),
        };
        let text = format!("authorization denied for method {method}");
        match reason {
            None => Status::permission_denied(text),
            Some(reason) => {
                let detail = PermissionDeniedDetails { reason: reason.into() };
                with_detail(Code::PermissionDenied, &text, &detail)
            }
        }
    }
}

/// What `peer` may call a method as that is so open.
///
/// # Errors
/// The reason why it may not.
pub(crate) async fn authorise(context: &Context, open: Open, peer: &Peer) -> Result<Role, Denied> {
    if peer.certificate().is_some() {
        let fresh = match context.config.max_agent_staleness {
            _ if open.anybody => Ok(()),
            Some(age) if open.agents => context.fresh.within(age).await,
            None if open.agents => Ok(()),
            _ if open.admins || open.downstream => context.fresh.wait().await,
            _ => Ok(()),
        };
        fresh.map_err(Denied::LookUp)?;
    }
    judge(context, open, peer).await
}

/// The same by the snapshots as they are.
///
/// # Errors
/// The reason why it may not.
pub(crate) async fn judge(context: &Context, open: Open, peer: &Peer) -> Result<Role, Denied> {
    if open.anybody {
        return Ok(Role::Anybody);
    }
    if *peer == Peer::Local {
        return if open.local { Ok(Role::Local) } else { Err(Denied::NotAllowed) };
    }
    let certificate = peer.certificate();
    if let Some(certificate) = certificate {
        if open.admins && is_admin(context, certificate) {
            return Ok(Role::Admin);
        }
        if open.downstream && is_downstream(context, certificate) {
            return Ok(Role::Downstream);
        }
    }
    if !open.agents {
        return Err(Denied::NotAllowed);
    }
    check_agent(context, certificate.ok_or(Denied::NoSvid)?).await?;
    Ok(Role::Agent)
}

fn is_admin(context: &Context, certificate: &ClientCertificate) -> bool {
    let id = &certificate.id;
    context.config.admin_ids.contains(id) || context.graph.load().entries_of(id).any(|entry| entry.admin)
}

fn is_downstream(context: &Context, certificate: &ClientCertificate) -> bool {
    context.graph.load().entries_of(&certificate.id).any(|entry| entry.downstream)
}

/// Whether the caller is an attested agent and shows its active SVID. The renewed SVID becomes the
/// active one when it is first shown.
async fn check_agent(context: &Context, certificate: &ClientCertificate) -> Result<(), Denied> {
    let ClientCertificate { id, serial, not_after } = certificate;
    // The certificate holds to the end of its last second.
    if context.now() > *not_after {
        return Err(Denied::Expired(id.to_string()));
    }
    if context.graph.load().agent(id).is_some_and(|known| known.serial == *serial) {
        return Ok(());
    }

    let agent = context.store.fetch_agent(id.clone()).await.map_err(Denied::LookUp)?;
    let Some(agent) = agent else { return Err(Denied::NotAttested(id.to_string())) };
    if agent.is_banned() {
        return Err(Denied::Banned(id.to_string()));
    }
    if agent.serial == *serial {
        return Ok(());
    }
    if agent.new_serial == *serial {
        let promoted = context.store.promote_agent(id.clone(), serial.clone()).await;
        let promoted = context.applied(promoted.map_err(Denied::Activate)?).await;
        // Another call may have been faster; a ban may have come between.
        return match promoted {
            Some(_) => Ok(()),
            None => check_row(context, certificate).await,
        };
    }
    Err(Denied::NotActive { id: id.to_string(), expected: agent.serial.clone(), has: serial.clone() })
}

/// What the row says now, when it changed under our hands.
async fn check_row(context: &Context, certificate: &ClientCertificate) -> Result<(), Denied> {
    let ClientCertificate { id, serial, .. } = certificate;
    let agent = context.store.fetch_agent(id.clone()).await.map_err(Denied::LookUp)?;
    match agent {
        None => Err(Denied::NotAttested(id.to_string())),
        Some(agent) if agent.is_banned() => Err(Denied::Banned(id.to_string())),
        Some(agent) if agent.serial == *serial => Ok(()),
        Some(agent) => {
            Err(Denied::NotActive { id: id.to_string(), expected: agent.serial.clone(), has: serial.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::convert::status::detail;

    use super::*;

    #[test]
    fn a_denial_names_the_method_and_gives_the_reason_as_a_detail() {
        let method = "/spire.api.server.agent.v1.Agent/PostStatus";
        let denied = Denied::NotActive { id: "a".into(), expected: "1".into(), has: "2".into() };

        let status = denied.status(method);

        assert_eq!(denied.to_string(), "agent \"a\" expected to have serial number \"1\"; has \"2\"");
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), format!("authorization denied for method {method}"));
        let details = detail::<PermissionDeniedDetails>(&status).unwrap();
        assert_eq!(details.reason(), Reason::AgentNotActive);
        assert_eq!(detail::<PermissionDeniedDetails>(&Denied::NotAllowed.status(method)), None);
    }
}
