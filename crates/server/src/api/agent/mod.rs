//! `spire.api.server.agent.v1.Agent`: agents attest, renew and report; operators list, ban and delete
//! them.

mod attest;
mod list;

use std::sync::Arc;

use proto::convert::id;
use proto::convert::status::with_detail;
use proto::spire::server::agent as wire;
use proto::spire::types;
use proto::spire::types::permission_denied_details::Reason;
use spiffe::x509::{CertDer, Csr};
use spiffe::{Selector, SpiffeId, TrustDomain, UnixSecs};
use store::{Agent, AgentCondition, AgentUpdate, JoinToken, NewEntry, StoreError};
use tonic::{Code, Request, Response, Status, Streaming};
use uuid::Uuid;

use super::Answers;
use super::status::{failed, failed_because, invalid, limited};
use super::trustdomain::page;
use crate::caller::{Caller, tell};
use crate::context::Context;

/// The longest version an agent may report.
const LONGEST_VERSION: usize = 255;

/// The service.
pub(crate) struct Agents(Arc<Context>);

impl Agents {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }

    fn agent_id(&self, wire: Option<&types::Spiffeid>) -> Result<SpiffeId, Status> {
        id::agent(self.0.trust_domain(), wire).map_err(|error| invalid("invalid agent ID", error))
    }

    /// Whether an agent that just called may attest again.
    async fn can_reattest(&self, id: &SpiffeId) -> Result<bool, Status> {
        if let Some(known) = self.0.graph.load().agent(id) {
            return Ok(known.can_reattest);
        }
        let fetched = self.0.store.fetch_agent(id.clone()).await;
        let fetched = fetched.map_err(|error| failed("failed to fetch agent", error))?;
        Ok(fetched.ok_or_else(not_found)?.can_reattest)
    }
}

#[tonic::async_trait]
impl wire::agent_server::Agent for Agents {
    async fn count_agents(
        &self,
        request: Request<wire::CountAgentsRequest>,
    ) -> Result<Response<wire::CountAgentsResponse>, Status> {
        let filter = request.into_inner().filter.map(list::Filter::from).unwrap_or_default();
        let counted = self.0.store.count_agents(filter.parse("failed to count agents")?).await;
        let count = counted.map_err(|error| failed("failed to count agents", error))?;
        Ok(Response::new(wire::CountAgentsResponse { count }))
    }

    async fn list_agents(
        &self,
        request: Request<wire::ListAgentsRequest>,
    ) -> Result<Response<wire::ListAgentsResponse>, Status> {
        let request = request.into_inner();
        let filter = request.filter.map(list::Filter::from).unwrap_or_default();
        let filter = filter.parse("failed to list agents")?;
        let page = page(request.page_size, request.page_token);
        let listed = self.0.store.list_agents(filter, page).await;
        let listed = listed.map_err(|error| failed("failed to list agents", error))?;
        let agents = listed.agents.iter().map(|agent| rendered(agent, request.output_mask.as_ref()));
        Ok(Response::new(wire::ListAgentsResponse {
            agents: agents.collect(),
            next_page_token: listed.next_token,
        }))
    }

    async fn get_agent(
        &self,
        request: Request<wire::GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        let request = request.into_inner();
        let id = self.agent_id(request.id.as_ref())?;
        let fetched = self.0.store.fetch_agent(id).await;
        let fetched = fetched.map_err(|error| failed("failed to fetch agent", error))?;
        let agent = fetched.ok_or_else(not_found)?;
        Ok(Response::new(rendered(&agent, request.output_mask.as_ref())))
    }

    async fn delete_agent(&self, request: Request<wire::DeleteAgentRequest>) -> Result<Response<()>, Status> {
        let caller = Caller::of(&request)?;
        let id = self.agent_id(request.get_ref().id.as_ref())?;
        match self.0.store.delete_agent(id.clone()).await {
            Ok(deleted) => self.0.applied(deleted).await,
            Err(StoreError::NotFound(_)) => return Err(not_found()),
            Err(error) => return Err(failed("failed to remove agent", error)),
        }
        tell!(info, &self.0, &caller, spiffe_id = %id, "Agent deleted");
        Ok(Response::new(()))
    }

    async fn ban_agent(&self, request: Request<wire::BanAgentRequest>) -> Result<Response<()>, Status> {
        let caller = Caller::of(&request)?;
        let id = self.agent_id(request.get_ref().id.as_ref())?;
        match self.0.store.ban_agent(id.clone()).await {
            Ok(banned) => drop(self.0.applied(banned).await),
            Err(StoreError::NotFound(_)) => return Err(not_found()),
            Err(error) => return Err(failed("failed to ban agent", error)),
        }
        tell!(info, &self.0, &caller, spiffe_id = %id, "Agent banned");
        Ok(Response::new(()))
    }

    type AttestAgentStream = Answers<wire::AttestAgentResponse>;

    async fn attest_agent(
        &self,
        request: Request<Streaming<wire::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(attest::attest(Arc::clone(&self.0), caller, request.into_inner())))
    }

    async fn renew_agent(
        &self,
        request: Request<wire::RenewAgentRequest>,
    ) -> Result<Response<wire::RenewAgentResponse>, Status> {
        let caller = Caller::of(&request)?;
        let admitted = self.0.limits.admit(&caller, 1).await;
        admitted.map_err(|error| limited("rejecting request due to renew agent rate limiting", &error))?;
        let id = caller.id()?;
        self.0.confirm(&caller).await?;
        if self.can_reattest(id).await? {
            let reason = types::PermissionDeniedDetails { reason: Reason::AgentMustReattest.into() };
            let text = "agent must reattest instead of renew";
            return Err(with_detail(Code::PermissionDenied, text, &reason));
        }
        tell!(info, &self.0, &caller, "Renewing agent SVID");
        let Some(params) = &request.get_ref().params else {
            return Err(Status::invalid_argument("params cannot be nil"));
        };
        if params.csr.is_empty() {
            return Err(Status::invalid_argument("missing CSR"));
        }

        let svid = sign(&self.0, id.clone(), &params.csr).await?;
        let update = AgentUpdate {
            new_serial: Some(svid.serial),
            new_expires_at: Some(svid.not_after),
            ..AgentUpdate::default()
        };
        let updated = self.0.store.update_agent(id.clone(), update, AgentCondition::NotBanned).await;
        let updated = self.0.applied(updated.map_err(|error| not_updated(&error))?).await;
        if updated.is_none() {
            let reason = types::PermissionDeniedDetails { reason: Reason::AgentBanned.into() };
            return Err(with_detail(Code::PermissionDenied, "agent is banned", &reason));
        }
        Ok(Response::new(wire::RenewAgentResponse { svid: Some(svid.rendered) }))
    }

    async fn create_join_token(
        &self,
        request: Request<wire::CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        let wire::CreateJoinTokenRequest { ttl, token, agent_id } = request.into_inner();
        if ttl < 1 {
            return Err(Status::invalid_argument("ttl is required, you must provide one"));
        }
        let trust_domain = self.0.trust_domain();
        let agent_id = agent_id
            .map(|agent_id| id::workload(trust_domain, Some(&agent_id)))
            .transpose()
            .map_err(|error| invalid("invalid agent ID", error))?;
        let token = if token.is_empty() { Uuid::new_v4().to_string() } else { token };
        // SPIRE takes tokens that can never attest; the operator would find out on the node.
        let own_id = joined_id(trust_domain, &token).map_err(|error| invalid("invalid join token", error))?;

        // Deleting the agent deletes the entry with exactly this parent and selector.
        let alias = agent_id.map(|agent_id| {
            NewEntry::new(agent_id, own_id.clone(), vec![Selector::new("spiffe_id", own_id.as_str())])
        });
        let expires_at = self.0.now().plus(i64::from(ttl));
        let stored = JoinToken { token: token.clone(), expires_at };
        let created = self.0.store.create_join_token(stored, alias).await;
        let created = created.map_err(|error| failed("failed to create token", error))?;
        self.0.applied(created).await;
        Ok(Response::new(types::JoinToken { value: token, expires_at: expires_at.0 }))
    }

    async fn post_status(
        &self,
        request: Request<wire::PostStatusRequest>,
    ) -> Result<Response<wire::PostStatusResponse>, Status> {
        let caller = Caller::of(&request)?;
        let admitted = self.0.limits.admit(&caller, 1).await;
        admitted.map_err(|error| limited("rejecting request due to post status rate limiting", &error))?;
        let id = caller.id()?;
        let version = request.into_inner().agent_version;
        if version.len() > LONGEST_VERSION {
            return Err(Status::invalid_argument("agent version is too long (max 255 characters)"));
        }
        let is_known = || self.0.graph.load().agent(id).is_some_and(|known| known.agent_version == version);
        if !version.is_empty() && !is_known() {
            let update = AgentUpdate { agent_version: Some(version.clone()), ..AgentUpdate::default() };
            let updated = self.0.store.update_agent(id.clone(), update, AgentCondition::Any).await;
            self.0.applied(updated.map_err(|error| not_updated(&error))?).await;
            tracing::debug!(subsystem_name = "api", spiffe_id = %id, agent_version = version, "Agent status updated");
        }
        Ok(Response::new(wire::PostStatusResponse {}))
    }
}

/// An agent's new SVID.
struct Signed {
    rendered: types::X509svid,
    serial: String,
    not_after: UnixSecs,
}

/// Signs an SVID for the key of a request, of which nothing else is used. Unlike SPIRE, a request that
/// its key did not sign is refused.
async fn sign(context: &Context, id: SpiffeId, csr: &[u8]) -> Result<Signed, Status> {
    let csr = Csr::verify(csr).map_err(|error| invalid("failed to parse CSR", error))?;
    let request = ca::issue::X509Request::Agent { id, public_key: csr.public_key };
    let not_signed = |error: ca::issue::IssueError| failed_because("failed to sign X509 SVID", &error);
    let prepared = context.issuer.prepare_x509(request, context.now()).map_err(not_signed)?;
    let svid = prepared.sign().await.map_err(not_signed)?;
    Ok(Signed {
        rendered: types::X509svid {
            id: Some(types::Spiffeid::from(&svid.id)),
            cert_chain: svid.chain.iter().map(der).collect(),
            expires_at: svid.not_after.0,
            hint: String::new(),
        },
        serial: svid.serial.to_string(),
        not_after: svid.not_after,
    })
}

fn der(certificate: &CertDer) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(certificate.as_bytes())
}

/// The id of the agent that joins by a token.
fn joined_id(trust_domain: &TrustDomain, token: &str) -> Result<SpiffeId, spiffe::IdError> {
    if token.contains('/') {
        return Err(spiffe::IdError::BadPathSegmentChar);
    }
    trust_domain.id_with_path(&format!("/spire/agent/join_token/{token}"))
}

fn rendered(agent: &Agent, mask: Option<&types::AgentMask>) -> types::Agent {
    let all = types::AgentMask {
        attestation_type: true,
        x509svid_serial_number: true,
        x509svid_expires_at: true,
        selectors: true,
        banned: true,
        can_reattest: true,
        agent_version: true,
    };
    let mask = mask.unwrap_or(&all);
    let text = |shown: bool, value: &String| if shown { value.clone() } else { String::new() };
    types::Agent {
        id: Some(types::Spiffeid::from(&agent.id)),
        attestation_type: text(mask.attestation_type, &agent.attestation_type),
        x509svid_serial_number: text(mask.x509svid_serial_number, &agent.serial),
        x509svid_expires_at: if mask.x509svid_expires_at { agent.expires_at.0 } else { 0 },
        selectors: if mask.selectors {
            agent.selectors.iter().map(types::Selector::from).collect()
        } else {
            Vec::new()
        },
        banned: mask.banned && agent.is_banned(),
        can_reattest: mask.can_reattest && agent.can_reattest,
        agent_version: text(mask.agent_version, &agent.agent_version),
    }
}

fn not_found() -> Status {
    Status::not_found("agent not found")
}

fn not_updated(error: &StoreError) -> Status {
    if matches!(error, StoreError::NotFound(_)) {
        return not_found();
    }
    failed("failed to update agent", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_segment_of_a_path() {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let id = |token| joined_id(&trust_domain, token).map(|id| id.to_string());

        assert_eq!(id("a-1").as_deref(), Ok("spiffe://example.org/spire/agent/join_token/a-1"));
        for bad in ["a b", "a/b", "..", "a%41", "a\n", "/"] {
            assert!(id(bad).is_err(), "{bad:?}");
        }
    }
}
