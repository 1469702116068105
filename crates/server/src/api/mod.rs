//! The gRPC services: one file each, every method parses, does, renders.
//!
//! All of them are registered here and nowhere else. A call has come through the door when it arrives:
//! it is authorised, and its [`crate::caller::Caller`] is among the extensions of the request.

mod agent;
mod batch;
mod bundle;
mod debug;
mod entry;
mod explain;
mod health;
mod localauthority;
mod logger;
mod status;
mod svid;
mod sync;
mod trustdomain;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use proto::finial::explain::server_server::ServerServer as ExplainServer;
use proto::health::health_server::HealthServer;
use proto::raw;
use proto::spire::server::agent::agent_server::AgentServer;
use proto::spire::server::bundle::bundle_server::BundleServer;
use proto::spire::server::debug::debug_server::DebugServer;
use proto::spire::server::entry::entry_server::EntryServer;
use proto::spire::server::localauthority::local_authority_server::LocalAuthorityServer;
use proto::spire::server::logger::logger_server::LoggerServer;
use proto::spire::server::svid::svid_server::SvidServer;
use proto::spire::server::trustdomain::trust_domain_server::TrustDomainServer;
use tokio_stream::Stream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;

pub(crate) use status::code as code_of;

use crate::context::Context;

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Every service, ready to answer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Services(Arc<All>);

/// The services. One that answers is cloned first: the generated ones want themselves alone.
struct All {
    agent: AgentServer<agent::Agents>,
    bundles: bundle::Bundles,
    entries: entry::Entries,
    sync: sync::Sync,
    bundle: BundleServer<bundle::Bundles>,
    debug: DebugServer<debug::Debug>,
    entry: EntryServer<entry::Entries>,
    explain: ExplainServer<explain::Explain>,
    health: HealthServer<health::Health>,
    local_authority: LocalAuthorityServer<localauthority::LocalAuthorities>,
    logger: LoggerServer<logger::Logger>,
    svid: SvidServer<svid::Svids>,
    trust_domain: TrustDomainServer<trustdomain::Relationships>,
}

impl Services {
    /// The services of this server.
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        let context = || Arc::clone(context);
        let bundles = bundle::Bundles::new(context());
        let entries = entry::Entries::new(context());
        Self(Arc::new(All {
            agent: AgentServer::new(agent::Agents::new(context())),
            bundle: BundleServer::new(bundles.clone()),
            bundles,
            debug: DebugServer::new(debug::Debug::new(context())),
            entry: EntryServer::new(entries.clone()),
            entries,
            sync: sync::Sync::new(context()),
            explain: ExplainServer::new(explain::Explain::new(context())),
            health: HealthServer::new(health::Health::new(context())),
            local_authority: LocalAuthorityServer::new(localauthority::LocalAuthorities::new(context())),
            logger: LoggerServer::new(logger::Logger::new(context())),
            svid: SvidServer::new(svid::Svids::new(context())),
            trust_domain: TrustDomainServer::new(trustdomain::Relationships::new(context())),
        }))
    }

    /// Answers a call whose path is that of a method.
    pub(crate) async fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        let Self(all) = self;
        let (service, method) =
            match request.uri().path().strip_prefix('/').unwrap_or_default().split_once('/') {
                Some((service, method)) => (service, method),
                None => ("", ""),
            };
        // What agents ask for all the time is answered with bytes that were encoded before, and what
        // holds many entries with bytes that were never messages.
        match (service, method) {
            (BUNDLE, "GetBundle") => {
                return raw::unary(request, async |request| all.bundles.own(request)).await;
            }
            (BUNDLE, "GetFederatedBundle") => {
                return raw::unary(request, async |request| all.bundles.federated(request)).await;
            }
            (ENTRY, "BatchCreateEntry") => {
                return raw::unary(request, |request| all.entries.create(request)).await;
            }
            (ENTRY, "BatchUpdateEntry") => {
                return raw::unary(request, |request| all.entries.update(request)).await;
            }
            (ENTRY, "GetAuthorizedEntries") => {
                return raw::unary(request, |request| all.entries.authorised(request)).await;
            }
            (ENTRY, "ListEntries") => return raw::unary(request, |request| all.entries.list(request)).await,
            (ENTRY, "SyncAuthorizedEntries") => {
                return raw::streaming(request, |request| all.entries.sync(request)).await;
            }
            (SYNC, _) => return raw::streaming(request, |request| all.sync.watch(request)).await,
            _ => {}
        }
        let answer = match service {
            "spire.api.server.agent.v1.Agent" => all.agent.clone().call(request).await,
            BUNDLE => all.bundle.clone().call(request).await,
            "spire.api.server.debug.v1.Debug" => all.debug.clone().call(request).await,
            ENTRY => all.entry.clone().call(request).await,
            "finial.explain.v1.Server" => all.explain.clone().call(request).await,
            "grpc.health.v1.Health" => all.health.clone().call(request).await,
            "spire.api.server.localauthority.v1.LocalAuthority" => {
                all.local_authority.clone().call(request).await
            }
            "spire.api.server.logger.v1.Logger" => all.logger.clone().call(request).await,
            "spire.api.server.svid.v1.SVID" => all.svid.clone().call(request).await,
            "spire.api.server.trustdomain.v1.TrustDomain" => all.trust_domain.clone().call(request).await,
            _ => Ok(not_built().into_http()),
        };
        answer.unwrap_or_else(|never: Infallible| match never {})
    }
}

const BUNDLE: &str = "spire.api.server.bundle.v1.Bundle";
const SYNC: &str = "finial.sync.v1.Sync";
const ENTRY: &str = "spire.api.server.entry.v1.Entry";

/// The generated servers want every method; those that [`Services::answer`] answers itself never get
/// to them.
fn encoded_elsewhere() -> Status {
    Status::internal("method is answered before it gets here")
}

/// The answer of a method that is not built yet.
pub(crate) fn not_built() -> Status {
    Status::unimplemented("this method is not part of this version of Finial")
}
