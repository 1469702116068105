//! The stream of an attestation, as the plugin sees it.

use async_trait::async_trait;
use bytes::Bytes;
use plugin::{AgentStream, Code, PluginError};
use proto::spire::server::agent::agent_client::AgentClient;
use proto::spire::server::agent::attest_agent_request::{self, Params};
use proto::spire::server::agent::attest_agent_response::{Result as Answer, Step};
use proto::spire::server::agent::{AgentX509svidParams, AttestAgentRequest, AttestAgentResponse};
use proto::spire::types::AttestationData;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::AttestError;

/// One attestation. It opens with the payload and ends with the server's answer.
pub(super) struct AttestationStream {
    client: AgentClient<Channel>,
    kind: String,
    csr: Bytes,
    open: Option<Open>,
    answer: Option<Answer>,
    failure: Option<AttestError>,
}

struct Open {
    requests: mpsc::Sender<AttestAgentRequest>,
    responses: Streaming<AttestAgentResponse>,
}

impl AttestationStream {
    /// A stream for an attestation of this `kind` that asks for a signature of `csr`.
    pub(super) fn new(client: AgentClient<Channel>, kind: &str, csr: Vec<u8>) -> Self {
        Self { client, kind: kind.to_owned(), csr: csr.into(), open: None, answer: None, failure: None }
    }

    /// What the server answered in the end, if it came to that.
    ///
    /// # Errors
    /// The stream failed.
    pub(super) fn finish(self) -> Result<Option<Answer>, AttestError> {
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok(self.answer),
        }
    }

    async fn open(&mut self, first: AttestAgentRequest) -> Result<Option<Bytes>, PluginError> {
        // One request at a time: each waits for the answer to the one before.
        let (requests, receiver) = mpsc::channel(1);
        if requests.try_send(first).is_err() {
            return Err(PluginError::internal("the attestation stream ended"));
        }
        let opened = self.client.attest_agent(ReceiverStream::new(receiver)).await;
        let responses = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => {
                return Err(self.failed("could not open attestation stream to SPIRE server", status));
            }
        };
        self.open = Some(Open { requests, responses });
        self.receive().await
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, PluginError> {
        let Some(open) = &mut self.open else {
            return Err(PluginError::internal("the attestation stream is not open"));
        };
        let step = match open.responses.message().await {
            Ok(Some(response)) => response.step,
            Ok(None) => {
                let status = Status::unknown("EOF");
                return Err(self.failed("failed to receive attestation response", status));
            }
            Err(status) => return Err(self.failed("failed to receive attestation response", status)),
        };
        match step {
            Some(Step::Challenge(challenge)) => Ok(Some(challenge)),
            Some(Step::Result(answer)) => {
                self.answer = Some(answer);
                // Dropping the sender tells the server that nothing more comes.
                self.open = None;
                Ok(None)
            }
            None => {
                self.failure = Some(AttestError::Svid("attest response is missing SVID".to_owned()));
                Err(PluginError::internal("attest response is missing SVID"))
            }
        }
    }

    /// The failure as the plugin sees it; the agent looks at the one that is kept.
    fn failed(&mut self, doing: &'static str, status: Status) -> PluginError {
        let error = PluginError::new(Code::from_number(status.code().into()), status.message());
        self.failure = Some(AttestError::call(doing, status));
        error
    }
}

#[async_trait]
impl AgentStream for AttestationStream {
    async fn send_payload(&mut self, payload: Bytes) -> Result<Option<Bytes>, PluginError> {
        let params = Params {
            data: Some(AttestationData { r#type: self.kind.clone(), payload }),
            params: Some(AgentX509svidParams { csr: self.csr.clone() }),
        };
        self.open(AttestAgentRequest { step: Some(attest_agent_request::Step::Params(params)) }).await
    }

    async fn send_response(&mut self, response: Bytes) -> Result<Option<Bytes>, PluginError> {
        let Some(open) = &self.open else {
            return Err(PluginError::internal("the attestation stream is not open"));
        };
        let step = attest_agent_request::Step::ChallengeResponse(response);
        if open.requests.send(AttestAgentRequest { step: Some(step) }).await.is_err() {
            // The server ended the stream; what it says comes with the answer.
            return self.receive().await;
        }
        self.receive().await
    }
}
