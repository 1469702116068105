//! The APIs that an agent serves on its sockets.
//!
//! The public socket, for workloads: the Workload API, Envoy's secret discovery, health, reflection, and
//! explanations. The admin socket, off unless configured: debug, logger, delegated identity, and
//! explanations. The endpoint of brokers, off unless configured. `route` finds the method of a call; what is not served is
//! refused as SPIRE's library refuses it. Callers are told by the kernel (`runtime::listen`) and
//! attested per call (`attestors`); nothing they send says who they are.

mod broker;
pub(crate) mod budget;
mod debug;
mod delegated;
mod door;
mod explain;
mod feed;
mod gate;
mod health;
mod json;
pub(crate) mod limits;
mod logger;
mod reflection;
mod route;
pub(crate) mod sds;
mod workload;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use http::HeaderMap;
use runtime::BoxError;
use runtime::listen::{self, Callers, Limits, ListenError, UnixListener, UnixOptions, check_exposure};
use runtime::metrics::observed;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::service_fn;
use tracing::{info, warn};

use crate::attestors::Attestors;
use crate::context::Context;
use crate::meters::Meters;
use broker::BrokerEndpoint;
use budget::BudgetApi;
use debug::DebugApi;
use delegated::DelegatedApi;
pub use door::{Door, Opener};
use explain::ExplainApi;
use health::HealthApi;
use logger::LoggerApi;
use reflection::Reflection;
use route::Service;
use sds::SdsApi;
use workload::WorkloadApi;

/// What is served, and the first part of the keys under which those in flight are counted.
pub(crate) const SERVICES: [(Service, Option<&str>); 9] = [
    (workload::SERVICE, Some("workload_api")),
    (sds::SERVICE, Some("sds_api")),
    (health::SERVICE, None),
    (debug::SERVICE, Some("debug_api")),
    (delegated::SERVICE, Some("delegated_identity_api")),
    (broker::SERVICE, None),
    (logger::SERVICE, Some("logger_api")),
    (explain::SERVICE, None),
    (budget::SERVICE, None),
];

/// The sockets, bound: clients that connect now are answered once [`Apis::run`] runs.
pub struct Apis {
    context: Arc<Context>,
    /// The public socket, unless it is served already.
    door: Option<Door>,
    opener: Opener,
    admin: Option<UnixListener>,
    brokers: Option<BrokerEndpoint>,
}

/// Answers at the door that this opens, and on the admin socket, until the token is cancelled.
///
/// # Errors
/// A socket cannot be made.
pub async fn serve(context: Arc<Context>, opener: Opener, token: CancellationToken) -> Result<(), BoxError> {
    let (admin, brokers) = (admin_socket(&context)?, broker_endpoint(&context)?);
    Apis { context, door: None, opener, admin, brokers }.run(token).await;
    Ok(())
}

fn admin_socket(context: &Context) -> Result<Option<UnixListener>, ListenError> {
    context.config.admin_socket_path.as_deref().map(|path| bind(path, ADMIN)).transpose()
}

fn broker_endpoint(context: &Context) -> Result<Option<BrokerEndpoint>, BoxError> {
    let broker = context.config.experimental.broker.as_ref();
    broker.map(|broker| BrokerEndpoint::bind(context, broker)).transpose()
}

impl Apis {
    /// Makes the sockets. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind(context: Arc<Context>) -> Result<Self, BoxError> {
        let door = Door::bind(&context.config, &context.clock)?;
        let (opener, admin) = (door.opener(), admin_socket(&context)?);
        let brokers = broker_endpoint(&context)?;
        Ok(Self { context, door: Some(door), opener, admin, brokers })
    }

    /// Answers until the token is cancelled; then open streams end and calls get their time to.
    pub async fn run(self, token: CancellationToken) {
        let Self { context, door, opener, admin, brokers } = self;
        let config = &context.config;
        let attestors = Attestors::new(context.workload_attestors.clone(), Arc::clone(&context.clock));
        let attestors = Arc::new(attestors.measured(Arc::clone(&context.meters)));
        let health = HealthApi::new((!config.disable_workload_api).then(|| Arc::clone(&attestors)));

        opener.open(Public::new(&context, Arc::clone(&attestors), health.clone(), token.clone()));
        let public = async {
            if let Some(door) = door {
                // It ends without an error.
                door.run(token.clone()).await.ok();
            }
        };
        let admin = async {
            let Some(listener) = admin else { return };
            let address = listener.path().display().to_string();
            info!(address, network = "unix", "Starting Admin APIs");
            let apis = Arc::new(Admin::new(&context, Arc::clone(&attestors), token.clone()));
            let service = service_fn(move |request| {
                let apis = Arc::clone(&apis);
                async move { Ok::<_, Infallible>(apis.answer(request).await) }
            });
            listen::serve(listener, Limits::delegates(), service, token.clone()).await;
            info!("Admin APIs have stopped");
        };
        let brokers = async {
            if let Some(endpoint) = brokers {
                endpoint.run(&context, Arc::clone(&attestors), &token).await;
            }
        };
        tokio::join!(public, admin, brokers, health.watch(&context, &token));
    }
}

/// What the public socket serves.
pub(crate) struct Public {
    services: Vec<Service>,
    workload: Option<Arc<WorkloadApi>>,
    sds: Option<Arc<SdsApi>>,
    health: HealthApi,
    explain: ExplainApi,
    reflection: Reflection,
    meters: Arc<Meters>,
}

impl Public {
    fn new(
        context: &Arc<Context>,
        attestors: Arc<Attestors>,
        health: HealthApi,
        stop: CancellationToken,
    ) -> Self {
        let mut services = vec![health::SERVICE, reflection::SERVICE, reflection::OLD_SERVICE];
        let explain = ExplainApi::new(Arc::clone(context), Arc::clone(&attestors), explain::Socket::Public);
        let workload = (!context.config.disable_workload_api).then(|| {
            services.push(workload::SERVICE);
            Arc::new(WorkloadApi::new(Arc::clone(context), Arc::clone(&attestors), stop.clone()))
        });
        let sds = (!context.config.disable_sds_api).then(|| {
            services.push(sds::SERVICE);
            Arc::new(SdsApi::new(Arc::clone(context), attestors, stop))
        });
        let reflection = Reflection::new(&services);
        // Not listed: tools that know SPIRE's agents find what they know.
        services.push(explain::SERVICE);
        Self { services, workload, sds, health, explain, reflection, meters: Arc::clone(&context.meters) }
    }

    async fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        let path = listen::method(request.uri()).to_owned();
        let (service, method) = match route::find(&path, &self.services) {
            Ok(found) => found,
            Err(status) => return status.into_http(),
        };
        let running = self.meters.rpc(service, method);
        let answer = match (&self.workload, &self.sds) {
            (Some(api), _) if service == workload::SERVICE.name => {
                Arc::clone(api).answer(method, request).await
            }
            (_, Some(api)) if service == sds::SERVICE.name => Arc::clone(api).answer(method, request).await,
            _ if service == health::SERVICE.name => self.health.answer(method, request).await,
            _ if service == explain::SERVICE.name => self.explain.answer(request).await,
            _ => self.reflection.clone().answer(request).await,
        };
        observed(running, answer)
    }
}

/// What the admin socket serves.
struct Admin {
    budget: BudgetApi,
    debug: DebugApi,
    logger: LoggerApi,
    explain: ExplainApi,
    delegated: Arc<DelegatedApi>,
    meters: Arc<Meters>,
}

impl Admin {
    fn new(context: &Arc<Context>, attestors: Arc<Attestors>, stop: CancellationToken) -> Self {
        Self {
            delegated: Arc::new(DelegatedApi::new(Arc::clone(context), Arc::clone(&attestors), stop)),
            explain: ExplainApi::new(Arc::clone(context), attestors, explain::Socket::Admin),
            budget: BudgetApi::new(Arc::clone(context)),
            debug: DebugApi::new(Arc::clone(context)),
            logger: LoggerApi::new(Arc::clone(context)),
            meters: Arc::clone(&context.meters),
        }
    }

    async fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        let path = listen::method(request.uri()).to_owned();
        let services =
            [budget::SERVICE, debug::SERVICE, delegated::SERVICE, explain::SERVICE, logger::SERVICE];
        let (service, method) = match route::find(&path, &services) {
            Ok(found) => found,
            Err(status) => return status.into_http(),
        };
        let running = self.meters.rpc(service, method);
        let answer = if service == budget::SERVICE.name {
            self.budget.answer(request).await
        } else if service == debug::SERVICE.name {
            self.debug.answer(request).await
        } else if service == explain::SERVICE.name {
            self.explain.answer(request).await
        } else if service == delegated::SERVICE.name {
            Arc::clone(&self.delegated).answer(method, request).await
        } else {
            self.logger.answer(method, request).await
        };
        observed(running, answer)
    }
}

/// Exactly one value, and exactly this one (Workload Endpoint, section 6).
fn has_security_header(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all("workload.spiffe.io").iter();
    values.next().is_some_and(|value| value == "true") && values.next().is_none()
}

fn bind(path: &Path, options: UnixOptions) -> Result<UnixListener, ListenError> {
    // As an agent of SPIRE's it serves there all the same: the folder may be a container's own.
    if let Err(ListenError::Exposed { path, folder }) = check_exposure(path) {
        warn!(
            path = %path.display(),
            folder = %folder.display(),
            "Everybody may write to the folder of a socket and could put another one in its place"
        );
    }
    UnixListener::bind(path, options)
}

/// Anybody may connect: who they are decides what they get.
const PUBLIC: UnixOptions =
    UnixOptions { directory_mode: 0o755, socket_mode: 0o777, callers: Callers::Required };

/// Who may open the socket may do what it offers.
const ADMIN: UnixOptions =
    UnixOptions { directory_mode: 0o750, socket_mode: 0o770, callers: Callers::Required };
