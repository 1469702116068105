//! `spire.api.server.localauthority.v1.LocalAuthority`: the authorities of this very server, prepared,
//! activated, tainted and revoked by operators.

use std::sync::Arc;

use ca::slots::{Facts, Family, SlotError, Status as SlotStatus};
use proto::spire::server::localauthority as wire;
use proto::spire::server::localauthority::AuthorityState;
use tonic::{Code, Request, Response, Status};

use super::status::{failed, failed_because, invalid};
use crate::ca_driver::{Answer, Order, Refusal};
use crate::caller::{Caller, tell};
use crate::context::Context;

/// The service.
pub(crate) struct LocalAuthorities(Arc<Context>);

impl LocalAuthorities {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }

    /// Gives an order; the answer comes after the snapshots show what was written.
    async fn give(&self, caller: &Caller, family: Family, order: Order) -> Result<Answer, Status> {
        let told = order.clone();
        let given = self.0.authorities.give(family, order).await;
        let answer = given.map_err(|refusal| status(family, &told, &refusal))?;
        if let Some(changes) = &answer.changes {
            self.0.applied.reached(changes).await;
        }
        let name = name(family);
        if let Order::Taint(id) = &told {
            tell!(info, &self.0, caller, local_authority_id = id, "{name} authority tainted successfully");
        } else if let Order::Revoke(id) = &told {
            tell!(info, &self.0, caller, local_authority_id = id, "{name} authority revoked successfully");
        }
        Ok(answer)
    }
}

#[tonic::async_trait]
impl wire::local_authority_server::LocalAuthority for LocalAuthorities {
    async fn get_jwt_authority_state(
        &self,
        request: Request<wire::GetJwtAuthorityStateRequest>,
    ) -> Result<Response<wire::GetJwtAuthorityStateResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = self.give(&caller, Family::Jwt, Order::Show).await?;
        Ok(Response::new(wire::GetJwtAuthorityStateResponse {
            active: Some(state(&answer.active)),
            prepared: other(&answer, SlotStatus::Prepared),
            old: other(&answer, SlotStatus::Old),
        }))
    }

    async fn prepare_jwt_authority(
        &self,
        request: Request<wire::PrepareJwtAuthorityRequest>,
    ) -> Result<Response<wire::PrepareJwtAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = self.give(&caller, Family::Jwt, Order::Prepare).await?;
        let prepared_authority = other(&answer, SlotStatus::Prepared);
        Ok(Response::new(wire::PrepareJwtAuthorityResponse { prepared_authority }))
    }

    async fn activate_jwt_authority(
        &self,
        request: Request<wire::ActivateJwtAuthorityRequest>,
    ) -> Result<Response<wire::ActivateJwtAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let order = Order::Activate(request.into_inner().authority_id);
        let activated_authority = Some(state(&self.give(&caller, Family::Jwt, order).await?.active));
        Ok(Response::new(wire::ActivateJwtAuthorityResponse { activated_authority }))
    }

    async fn taint_jwt_authority(
        &self,
        request: Request<wire::TaintJwtAuthorityRequest>,
    ) -> Result<Response<wire::TaintJwtAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().authority_id;
        self.give(&caller, Family::Jwt, Order::Taint(id.clone())).await?;
        Ok(Response::new(wire::TaintJwtAuthorityResponse { tainted_authority: Some(named(id)) }))
    }

    async fn revoke_jwt_authority(
        &self,
        request: Request<wire::RevokeJwtAuthorityRequest>,
    ) -> Result<Response<wire::RevokeJwtAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().authority_id;
        self.give(&caller, Family::Jwt, Order::Revoke(id.clone())).await?;
        Ok(Response::new(wire::RevokeJwtAuthorityResponse { revoked_authority: Some(named(id)) }))
    }

    async fn get_x509_authority_state(
        &self,
        request: Request<wire::GetX509AuthorityStateRequest>,
    ) -> Result<Response<wire::GetX509AuthorityStateResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = self.give(&caller, Family::X509, Order::Show).await?;
        Ok(Response::new(wire::GetX509AuthorityStateResponse {
            active: Some(state(&answer.active)),
            prepared: other(&answer, SlotStatus::Prepared),
            old: other(&answer, SlotStatus::Old),
        }))
    }

    async fn prepare_x509_authority(
        &self,
        request: Request<wire::PrepareX509AuthorityRequest>,
    ) -> Result<Response<wire::PrepareX509AuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = self.give(&caller, Family::X509, Order::Prepare).await?;
        let prepared_authority = other(&answer, SlotStatus::Prepared);
        Ok(Response::new(wire::PrepareX509AuthorityResponse { prepared_authority }))
    }

    async fn activate_x509_authority(
        &self,
        request: Request<wire::ActivateX509AuthorityRequest>,
    ) -> Result<Response<wire::ActivateX509AuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let order = Order::Activate(request.into_inner().authority_id);
        let activated_authority = Some(state(&self.give(&caller, Family::X509, order).await?.active));
        Ok(Response::new(wire::ActivateX509AuthorityResponse { activated_authority }))
    }

    async fn taint_x509_authority(
        &self,
        request: Request<wire::TaintX509AuthorityRequest>,
    ) -> Result<Response<wire::TaintX509AuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer =
            self.give(&caller, Family::X509, Order::Taint(request.into_inner().authority_id)).await?;
        let tainted_authority = other(&answer, SlotStatus::Old);
        Ok(Response::new(wire::TaintX509AuthorityResponse { tainted_authority }))
    }

    async fn taint_x509_upstream_authority(
        &self,
        request: Request<wire::TaintX509UpstreamAuthorityRequest>,
    ) -> Result<Response<wire::TaintX509UpstreamAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().subject_key_id.to_lowercase();
        self.give(&caller, Family::X509, Order::TaintUpstream(id.clone())).await?;
        tell!(info, &self.0, &caller, subject_key_id = id, "X.509 upstream authority tainted successfully");
        Ok(Response::new(wire::TaintX509UpstreamAuthorityResponse { upstream_authority_subject_key_id: id }))
    }

    async fn revoke_x509_authority(
        &self,
        request: Request<wire::RevokeX509AuthorityRequest>,
    ) -> Result<Response<wire::RevokeX509AuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().authority_id;
        self.give(&caller, Family::X509, Order::Revoke(id.clone())).await?;
        Ok(Response::new(wire::RevokeX509AuthorityResponse { revoked_authority: Some(named(id)) }))
    }

    async fn revoke_x509_upstream_authority(
        &self,
        request: Request<wire::RevokeX509UpstreamAuthorityRequest>,
    ) -> Result<Response<wire::RevokeX509UpstreamAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().subject_key_id.to_lowercase();
        self.give(&caller, Family::X509, Order::RevokeUpstream(id.clone())).await?;
        tell!(info, &self.0, &caller, subject_key_id = id, "X.509 upstream authority successfully revoked");
        Ok(Response::new(wire::RevokeX509UpstreamAuthorityResponse { upstream_authority_subject_key_id: id }))
    }

    async fn get_wit_authority_state(
        &self,
        _request: Request<wire::GetWitAuthorityStateRequest>,
    ) -> Result<Response<wire::GetWitAuthorityStateResponse>, Status> {
        Err(Status::unimplemented(NO_WIT))
    }

    async fn prepare_wit_authority(
        &self,
        _request: Request<wire::PrepareWitAuthorityRequest>,
    ) -> Result<Response<wire::PrepareWitAuthorityResponse>, Status> {
        Err(Status::unimplemented(NO_WIT))
    }

    async fn activate_wit_authority(
        &self,
        _request: Request<wire::ActivateWitAuthorityRequest>,
    ) -> Result<Response<wire::ActivateWitAuthorityResponse>, Status> {
        Err(Status::unimplemented(NO_WIT))
    }

    async fn taint_wit_authority(
        &self,
        _request: Request<wire::TaintWitAuthorityRequest>,
    ) -> Result<Response<wire::TaintWitAuthorityResponse>, Status> {
        Err(Status::unimplemented(NO_WIT))
    }

    async fn revoke_wit_authority(
        &self,
        _request: Request<wire::RevokeWitAuthorityRequest>,
    ) -> Result<Response<wire::RevokeWitAuthorityResponse>, Status> {
        Err(Status::unimplemented(NO_WIT))
    }
}

/// As in SPIRE.
const NO_WIT: &str = "WIT-SVID functionality is not yet implemented";

fn state(facts: &Facts) -> AuthorityState {
    AuthorityState {
        authority_id: facts.id.clone(),
        expires_at: facts.not_after.0,
        upstream_authority_subject_key_id: facts.upstream_authority_id.clone(),
    }
}

/// The other authority, if that is its status.
fn other(answer: &Answer, status: SlotStatus) -> Option<AuthorityState> {
    answer.other.as_ref().filter(|(of, _)| *of == status).map(|(_, facts)| state(facts))
}

/// Nothing but the id, as SPIRE answers where it looks nothing else up.
fn named(authority_id: String) -> AuthorityState {
    AuthorityState { authority_id, ..AuthorityState::default() }
}

const fn name(family: Family) -> &'static str {
    match family {
        Family::X509 => "X.509",
        Family::Jwt => "JWT",
        Family::Wit => "WIT",
    }
}

/// A refusal in SPIRE's words.
fn status(family: Family, order: &Order, refusal: &Refusal) -> Status {
    let name = name(family);
    let attempt = match order {
        Order::Show => format!("failed to show {name} authority"),
        Order::Prepare => format!("failed to prepare {name} authority"),
        Order::Activate(_) => format!("failed to activate {name} authority"),
        Order::Taint(_) => format!("failed to taint {name} authority"),
        Order::Revoke(_) => format!("failed to revoke {name} authority"),
        Order::TaintUpstream(_) => "failed to taint upstream authority".to_owned(),
        Order::RevokeUpstream(_) => "failed to revoke X.509 upstream authority".to_owned(),
    };
    match refusal {
        Refusal::BelowUpstream => {
            let done = if matches!(order, Order::Revoke(_)) { "revoked" } else { "tainted" };
            Status::failed_precondition(format!(
                "local authority can't be {done} if there is an upstream authority"
            ))
        }
        Refusal::NoUpstream => Status::failed_precondition(refusal.to_string()),
        Refusal::Upstream(why) if matches!(order, Order::RevokeUpstream(_)) => {
            invalid("invalid subject key ID", why)
        }
        Refusal::Upstream(why) => invalid("provided subject key id is not valid", why),
        Refusal::Disabled => Status::unimplemented(format!("{name} functionality is disabled")),
        Refusal::NoId | Refusal::Unknown if matches!(order, Order::Revoke(_)) => {
            invalid("invalid authority ID", refusal)
        }
        Refusal::NoId | Refusal::Unknown => Status::invalid_argument(refusal.to_string()),
        Refusal::Slot(SlotError::NotActive) => Status::new(Code::Unavailable, "server is initializing"),
        Refusal::Slot(why) if matches!(order, Order::Revoke(_)) => {
            invalid("invalid authority ID", not_revoked(family, *why))
        }
        Refusal::Slot(SlotError::Unexpected) => Status::invalid_argument("unexpected authority ID"),
        Refusal::Slot(SlotError::Current) => {
            Status::invalid_argument("unable to taint current local authority")
        }
        // The other one is prepared or old, so it is the one of these that it should not be.
        Refusal::Slot(SlotError::NotPrepared) => {
            failed("only Prepared authorities can be activated", "unsupported local authority status: OLD")
        }
        Refusal::Slot(SlotError::NotOld) => invalid(
            "only Old local authorities can be tainted",
            "unsupported local authority status: PREPARED",
        ),
        Refusal::Driver(_) | Refusal::Store(_) => failed_because(&attempt, refusal),
        Refusal::Stopping => Status::new(Code::Unavailable, "server is stopping"),
    }
}

const fn not_revoked(family: Family, why: SlotError) -> &'static str {
    match (family, why) {
        (_, SlotError::Current) => "unable to use current authority",
        (Family::Jwt | Family::Wit, _) => "unable to use a prepared key",
        (Family::X509, _) => "only Old local authority can be revoked",
    }
}
