//! Node attestation: the stream, the attestor, the SVID, the row.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::FusedFuture;
use futures::stream;
use plugin::{Attested, Challenger, PluginError};
use proto::spire::server::agent::attest_agent_request::{Params, Step};
use proto::spire::server::agent::attest_agent_response;
use proto::spire::server::agent::{AttestAgentRequest, AttestAgentResponse};
use spiffe::quote::quoted;
use spiffe::{Selector, SpiffeId, UnixSecs};
use store::{Agent, Attestation, Attested as Outcome, Reattest};
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use super::{Signed, joined_id, sign};
use crate::api::Answers;
use crate::api::status::{failed, limited};
use crate::caller::{Caller, tell};
use crate::context::Context;

/// An attestation that is not over by then is given up: a client that stalls must not hold its place.
const PATIENCE: Duration = Duration::from_secs(60);
const JOIN_TOKEN: &str = "join_token";
/// The node attestors that SPIRE has, whether they are in use here or not: agents that they attested may be
/// in the datastore, and entries may name such agents.
const ATTESTORS: [&str; 10] = [
    JOIN_TOKEN,
    "aws_iid",
    "azure_imds",
    "azure_msi",
    "gcp_iit",
    "http_challenge",
    "k8s_psat",
    "sshpop",
    "tpm_devid",
    "x509pop",
];
const TOKEN_GONE: &str = "failed to attest: join token does not exist or has already been used";

/// Attests the agent at the other end. The attestation goes on while the answers are read, and ends
/// when they are dropped.
pub(super) fn attest(
    context: Arc<Context>,
    caller: Caller,
    requests: Streaming<AttestAgentRequest>,
) -> Answers<AttestAgentResponse> {
    let (challenges, mut to_send) = mpsc::channel(1);
    let clock = Arc::clone(&context.clock);
    let attestation = async move {
        let attesting = run(&context, &caller, requests, challenges);
        let attested = runtime::clock::within(&*clock, PATIENCE, attesting).await;
        attested.unwrap_or_else(|| Err(Status::deadline_exceeded("attestation took too long")))
    };
    // Fused, since it may be asked again while the last challenge is still to be sent.
    let mut attestation = attestation.boxed().fuse();
    let mut outcome = None;
    Box::pin(stream::poll_fn(move |context| {
        if let Poll::Ready(ended) = attestation.poll_unpin(context) {
            outcome = Some(ended);
        }
        // What it sent comes before what it came to.
        if let Poll::Ready(Some(challenge)) = to_send.poll_recv(context) {
            return Poll::Ready(Some(Ok(challenge)));
        }
        match outcome.take() {
            Some(ended) => Poll::Ready(Some(ended)),
            None if attestation.is_terminated() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }))
}

async fn run(
    context: &Context,
    caller: &Caller,
    mut requests: Streaming<AttestAgentRequest>,
    challenges: mpsc::Sender<AttestAgentResponse>,
) -> Result<AttestAgentResponse, Status> {
    let admitted = context.limits.admit(caller, 1).await;
    admitted.map_err(|error| limited("rejecting request due to attest agent rate limiting", &error))?;
    let request = Request::parse(requests.message().await)?;

    let attestor = request.attestor.clone();
    let (attested, join_token) = if attestor == JOIN_TOKEN {
        let (attested, token) = judge_token(context, &request.payload).await?;
        (attested, Some(token))
    } else {
        let mut agent = AgentAtOtherEnd { requests, challenges, address: caller.limited_by() };
        (ask_plugin(context, &attestor, request.payload, &mut agent).await?, None)
    };
    let (id, selectors) = judge_id(context, &attestor, &attested)?;
    if let Some(attesting) = &caller.attesting {
        attesting.get_or_init(|| id.clone());
    }
    context.up_to_date().await?;
    if context.graph.load().agent(&id).is_some_and(|known| known.is_banned()) {
        return Err(banned());
    }

    let Signed { rendered, serial, not_after } = sign(context, id.clone(), &request.csr).await?;
    let reattest = match &join_token {
        // The token is what is used once, not the id.
        Some(_) => Reattest::Allowed,
        None if attested.can_reattest => Reattest::Allowed,
        None => Reattest::Refused,
    };
    let agent = Agent {
        id: id.clone(),
        attestation_type: attestor.clone(),
        serial,
        expires_at: not_after,
        new_serial: String::new(),
        new_expires_at: UnixSecs(0),
        can_reattest: attested.can_reattest,
        agent_version: String::new(),
        selectors: selectors.into(),
    };
    let stored = context.store.attest_agent(Attestation { agent, reattest, join_token }).await;
    let stored = stored.map_err(|error| failed("failed to create attested agent", error))?;
    match context.applied(stored).await {
        Outcome::Done(_) => {}
        Outcome::TokenGone => return Err(Status::invalid_argument(TOKEN_GONE)),
        Outcome::Banned => return Err(banned()),
        Outcome::Exists => {
            let text = "attestation data has already been used to attest an agent";
            return Err(Status::permission_denied(text));
        }
    }
    tell!(
        info,
        context,
        caller,
        address = caller.peer.address().map(tracing::field::display),
        agent_id = %id,
        node_attestor_type = attestor,
        "Agent attestation request completed"
    );
    let result = attest_agent_response::Result { svid: Some(rendered), reattestable: attested.can_reattest };
    Ok(AttestAgentResponse { step: Some(attest_agent_response::Step::Result(result)) })
}

/// What the agent asks for.
struct Request {
    attestor: String,
    payload: Bytes,
    csr: Bytes,
}

impl Request {
    fn parse(received: Result<Option<AttestAgentRequest>, Status>) -> Result<Self, Status> {
        let request = match received {
            Ok(Some(request)) => request,
            Ok(None) => {
                return Err(Status::invalid_argument("failed to receive request from stream: EOF"));
            }
            // What is wrong with the stream itself goes back as it is.
            Err(error) => return Err(error),
        };
        let malformed = |what: &str| Err(Status::invalid_argument(format!("malformed param: {what}")));
        let Some(Step::Params(Params { data, params })) = request.step else {
            return malformed("missing params");
        };
        let Some(data) = data else { return malformed("missing attestation data") };
        let Some(params) = params else { return malformed("missing X509-SVID parameters") };
        if params.csr.is_empty() {
            return malformed("missing CSR");
        }
        if data.r#type.is_empty() {
            return malformed("missing attestation data type");
        }
        if data.payload.is_empty() {
            return malformed("missing attestation data payload");
        }
        Ok(Self { attestor: data.r#type, payload: data.payload, csr: params.csr })
    }
}

/// Judges a join token without using it up: that is done together with writing the agent, so that a
/// failure in between costs nobody the token.
async fn judge_token(context: &Context, payload: &[u8]) -> Result<(Attested, String), Status> {
    let unknown = || Status::invalid_argument(TOKEN_GONE);
    let token = std::str::from_utf8(payload).map_err(|_| unknown())?.to_owned();
    let fetched = context.store.fetch_join_token(token).await;
    let fetched = fetched.map_err(|error| failed("failed to fetch join token", error))?;
    let stored = fetched.ok_or_else(unknown)?;
    if stored.expires_at.to_system_time() < context.clock.now() {
        // It is of no use any more; who tries again is told that it is gone, as by SPIRE.
        context.store.delete_join_token(stored.token).await.ok();
        return Err(Status::invalid_argument("join token expired"));
    }
    let id = joined_id(context.trust_domain(), &stored.token)
        .map_err(|error| failed("failed to create join token ID", error))?;
    let attested = Attested { agent_id: id.to_string(), selectors: Vec::new(), can_reattest: false };
    Ok((attested, stored.token))
}

async fn ask_plugin(
    context: &Context,
    attestor: &str,
    payload: Bytes,
    agent: &mut AgentAtOtherEnd,
) -> Result<Attested, Status> {
    let Some(plugin) = context.node_attestors.get(attestor) else {
        let attestor = quoted(attestor);
        let text = format!("error getting node attestor: could not find node attestor type {attestor}");
        return Err(Status::failed_precondition(text));
    };
    let verdict = plugin.attest(payload, agent).await;
    verdict.map_err(|error| Status::new(Code::from(error.code.number()), error.message))
}

/// Takes the id that the attestor gave, if it is one of an agent, and the selectors that go with it.
fn judge_id(
    context: &Context,
    attestor: &str,
    attested: &Attested,
) -> Result<(SpiffeId, Vec<Selector>), Status> {
    let id = SpiffeId::parse(&attested.agent_id).map_err(|error| failed("invalid agent ID", error))?;
    if id.path() == "/spire/server" {
        return Err(Status::internal("agent ID cannot collide with the server ID"));
    }
    if !id.is_member_of(context.trust_domain()) || !id.path().starts_with("/spire/agent/") {
        let trust_domain = context.trust_domain().as_str();
        let text = format!(
            "invalid agent ID: \"{id}\" is not an agent in trust domain \"{trust_domain}\"; \
             path is not in the agent namespace"
        );
        return Err(Status::internal(text));
    }
    // Path templates may lead elsewhere. What another attestor vouches for is never this one's to say.
    let namespace = id.path().split('/').nth(3).unwrap_or_default();
    if namespace != attestor {
        let others = || context.node_attestors.keys().map(String::as_str).chain(ATTESTORS);
        let is_anothers = others().any(|other| other == namespace);
        if is_anothers || !context.config.finial.allow_agent_ids_anywhere {
            let hint = match is_anothers {
                true => "it is another node attestor's",
                false => "experimental.finial.allow_agent_ids_anywhere would allow it",
            };
            let text = format!(
                "invalid agent ID: \"{id}\" is not in the namespace of node attestor \"{attestor}\"; {hint}"
            );
            return Err(Status::internal(text));
        }
        tracing::warn!(
            subsystem_name = "api",
            agent_id = %id,
            node_attestor_type = attestor,
            "The node attestor produced an agent ID outside of its own namespace"
        );
    }
    let mut selectors = attested.selectors.clone();
    if context.config.experimental.agent_spiffe_id_as_selector {
        selectors.push(Selector::new("spiffe_id", id.as_str()));
    }
    Ok((id, selectors))
}

fn banned() -> Status {
    Status::permission_denied("failed to attest: agent is banned")
}

/// The agent, as an attestor challenges it.
struct AgentAtOtherEnd {
    requests: Streaming<AttestAgentRequest>,
    challenges: mpsc::Sender<AttestAgentResponse>,
    address: Option<IpAddr>,
}

#[async_trait::async_trait]
impl Challenger for AgentAtOtherEnd {
    async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes, PluginError> {
        let step = Some(attest_agent_response::Step::Challenge(challenge));
        let sent = self.challenges.send(AttestAgentResponse { step }).await;
        sent.map_err(|_| PluginError::internal("failed to send challenge to agent: stream closed"))?;
        let failed =
            |why: &str| PluginError::internal(format!("failed to receive challenge from agent: {why}"));
        match self.requests.message().await {
            Ok(Some(AttestAgentRequest { step: Some(Step::ChallengeResponse(response)) })) => Ok(response),
            Ok(Some(_)) => Ok(Bytes::new()),
            Ok(None) => Err(failed("EOF")),
            Err(error) => Err(failed(error.message())),
        }
    }

    fn client_address(&self) -> Option<IpAddr> {
        self.address
    }
}
