//! The server program: APIs, authorisation, keepers, CA driver, pruning.
//!
//! [`Server::build`] opens, loads and binds everything that can fail; [`Server::run`] serves until told
//! to stop. The datastore and the key manager are the only state that outlives the process: what is
//! in memory are snapshots of it (`keep`), replaced by one task each and read without locks. Agents that
//! watch are told what changes for them (`sync`).
//!
//! A call comes in through the `door`: that finds its rule (`authz`), judges the caller, and hands it
//! to a service (`api`). Invariants: no method answers that has no rule; no call of a known agent reads
//! the datastore; a write is answered after the snapshots show it; only `ca` signs.

mod api;
mod audit;
mod authz;
mod ca_driver;
mod caller;
mod context;
mod datastore;
mod door;
mod explain;
mod federation;
mod keep;
mod limits;
mod measured;
mod meters;
mod own_svid;
mod prune;
mod start;
mod sync;
mod tls;
mod wellbeing;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use config::ServerConfig;
use futures::future::BoxFuture;
use plugin::Reconfigurables;
use runtime::bulk;
use runtime::clock::Clock;
use runtime::listen::{self, TlsListener, UnixListener};
use runtime::log::Log;
use runtime::manager;
use runtime::profile::{self, Profiling};
use runtime::shutdown::Shutdown;
use runtime::tasks::{TaskFailed, Tasks, apart};
use tokio_util::sync::CancellationToken;

pub use crate::audit::{AuditChain, AuditFault, verify_audit};
pub use crate::authz::PolicyError;
pub use crate::datastore::DatastoreError;
pub use crate::start::StartError;

use crate::api::Services;
use crate::ca_driver::{Driver, Inbox};
use crate::context::Context;
use crate::door::Door;
use crate::federation::Endpoint;
use crate::keep::{Keeper, StoredAnchors};
use crate::own_svid::Renewal;

/// What tells over HTTP how the server is: from its start on, long before it serves.
struct Told {
    serving: BoxFuture<'static, ()>,
    stop: CancellationToken,
}

/// A server whose port and socket are bound.
pub struct Server {
    context: Arc<Context>,
    keeper: Keeper,
    bulk: bulk::Worker,
    driver: Driver,
    commands: Inbox,
    renewal: Renewal,
    port: TlsListener,
    socket: UnixListener,
    told: Option<Told>,
    endpoint: Option<Endpoint>,
    refreshes: federation::Inbox,
    reconfigurables: Reconfigurables,
    address: SocketAddr,
    version: &'static str,
}

impl Server {
    /// Opens the datastore, loads plugins, authorities and everything that is kept in memory, and binds
    /// port and socket. When it returns the server is whole; clients that connect wait for
    /// [`Server::run`].
    ///
    /// # Errors
    /// Whatever keeps it from working, as one line.
    pub fn build(
        config: ServerConfig,
        log: Log,
        clock: Arc<dyn Clock>,
    ) -> BoxFuture<'static, Result<Self, StartError>> {
        // Boxed, so that it is compiled here, and not once more for each program that calls it.
        Box::pin(start::build(config, log, clock))
    }

    /// Says in its metrics another version of the program than this crate's.
    #[must_use]
    pub const fn with_version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// Where it listens, with the port that was chosen.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the bundle endpoint listens, if there is one.
    #[must_use]
    pub fn bundle_endpoint(&self) -> Option<SocketAddr> {
        self.endpoint.as_ref().map(Endpoint::address)
    }

    /// Where the socket for operators is.
    #[must_use]
    pub fn socket_path(&self) -> &Path {
        self.socket.path()
    }

    /// How many SQL statements were run so far: hot paths run none.
    pub fn statements(&self) -> impl Fn() -> u64 + Send + 'static {
        let store = self.context.store.clone();
        move || store.statements()
    }

    /// Serves until `shutdown` is triggered, then drains for up to ten seconds.
    ///
    /// # Errors
    /// The task that failed first; that ends all others.
    pub fn run(self, shutdown: &Shutdown) -> BoxFuture<'_, Result<(), TaskFailed>> {
        // Boxed for the same reason.
        Box::pin(self.serve(shutdown))
    }

    async fn serve(self, shutdown: &Shutdown) -> Result<(), TaskFailed> {
        let Self { context, keeper, bulk, driver, commands, renewal, port, socket, .. } = self;
        let Self { told, endpoint, refreshes, reconfigurables, address, version, .. } = self;
        let presented = renewal.presented();
        let mut tasks = Tasks::new(shutdown.token().clone());
        // Calls that drain still write, and wait for what they wrote.
        let drained = CancellationToken::new();
        let until = drained.clone();
        tasks.spawn("keeper", apart("keeper", move || keeper.run(until)));
        let until = drained.clone();
        tasks.spawn("bulk", apart("bulk", move || bulk.run(until)));
        tasks.spawn("CA rotation", driver.run(commands, context.applied.clone(), shutdown.token().clone()));
        tasks.spawn("SVID rotation", renewal.run(shutdown.token().clone()));
        tasks.spawn("plugin reconfiguration", reconfigurables.run(shutdown.token().clone()));
        tasks.spawn("health checks", wellbeing::watch(Arc::clone(&context), shutdown.token().clone()));
        tasks.spawn("federation", federation::run(Arc::clone(&context), refreshes, shutdown.token().clone()));
        let (health, clock) = (context.health.clone(), Arc::clone(&context.clock));
        tasks.spawn("service manager", manager::tell(health, clock, shutdown.token().clone()));
        prune::spawn(&mut tasks, &context);
        let metrics = context.meters.metrics.clone();
        context.meters.started(version, context.trust_domain());
        tasks.spawn("metrics", metrics.clone().run(shutdown.token().clone()));
        let (page, stop) = (Arc::clone(&context), shutdown.token().clone());
        let anchors = Arc::new(StoredAnchors(context.bundles.clone()));
        tasks.spawn("metrics page", async move {
            meters::serve_page(&page.config, metrics, presented, anchors, stop).await;
            Ok::<_, Infallible>(())
        });
        if context.config.profiling.enabled {
            let settings = &context.config.profiling;
            let profiling = Profiling {
                port: settings.port,
                every: Duration::from_secs(settings.frequency.into()),
                names: settings.names.clone(),
                tag: "server",
            };
            let running = profile::run(profiling, Arc::clone(&context.clock), shutdown.token().clone());
            tasks.spawn("profiling", async move {
                running.await;
                Ok::<_, Infallible>(())
            });
        }
        if context.config.log.file.is_some() {
            let log = context.log.clone();
            tasks.spawn("log rotation", log.reopen_on_signal(shutdown.token().clone()));
        }

        if let Some(Told { mut serving, stop }) = told {
            let token = shutdown.token().clone();
            tasks.spawn("health listener", async move {
                tokio::select! {
                    () = token.cancelled() => {
                        stop.cancel();
                        serving.await;
                    }
                    () = &mut serving => {}
                }
                Ok::<_, Infallible>(())
            });
        }

        if let Some(endpoint) = endpoint {
            let (clock, stop) = (Arc::clone(&context.clock), shutdown.token().clone());
            tasks.spawn("bundle endpoint", async move {
                endpoint.serve(clock, stop).await;
                Ok::<_, Infallible>(())
            });
        }

        let door = Door::new(Arc::clone(&context), Services::new(&context));
        let stop = shutdown.token().clone();
        let check = context.health.check("server");
        tasks.spawn("APIs", async move {
            tracing::info!(subsystem_name = "endpoints", network = "tcp", %address, "Starting Server APIs");
            let remote = listen::serve(port, listen::Limits::tcp(), door.clone(), stop.clone());
            let path = socket.path().display().to_string();
            tracing::info!(
                subsystem_name = "endpoints",
                network = "unix",
                address = path,
                "Starting Server APIs"
            );
            let local = listen::serve(socket, listen::Limits::local(), door, stop);
            check.started();
            tokio::join!(remote, local);
            drained.cancel();
            tracing::info!(subsystem_name = "endpoints", "Server APIs have stopped");
            Ok::<_, Infallible>(())
        });
        tasks.join().await
    }
}
