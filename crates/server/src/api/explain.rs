//! `finial.explain.v1.Server`: what an agent may serve to a workload, and why not more. On the server's own
//! socket alone.

use std::sync::Arc;

use proto::convert::{id, selector};
use proto::finial::explain as wire;
use runtime::blocking::Blocking;
use tonic::{Request, Response, Status};

use super::status::{failed, invalid};
use crate::context::Context;
use crate::explain::explain;

/// The service.
pub(crate) struct Explain {
    context: Arc<Context>,
    /// All entries may have to be looked at: one question at a time.
    work: Blocking,
}

impl Explain {
    /// The service over this server.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context, work: Blocking::new(1) }
    }
}

#[tonic::async_trait]
impl wire::server_server::Server for Explain {
    async fn explain(
        &self,
        request: Request<wire::ExplainAgentRequest>,
    ) -> Result<Response<wire::ExplainAgentResponse>, Status> {
        let wire::ExplainAgentRequest { agent_id, selectors } = request.into_inner();
        let agent = id::member(self.context.trust_domain(), agent_id.as_ref());
        let agent = agent.map_err(|error| invalid("invalid agent ID", error))?;
        let selectors = selector::all(&selectors).map_err(|error| invalid("invalid selectors", error))?;
        self.context.up_to_date().await?;
        let (graph, now) = (self.context.graph.load(), self.context.now());
        let is_pushed = self.context.hub.has(&agent);
        let explained =
            self.work.run(move || explain(&graph, &agent, &selectors.into_iter().collect(), now)).await;
        let explained = explained.map_err(|error| failed("failed to explain", error))?;
        Ok(Response::new(wire::ExplainAgentResponse { is_pushed, ..explained }))
    }
}
