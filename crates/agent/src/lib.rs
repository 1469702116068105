//! The agent program: attestation, sync, SVID cache, Workload API.
//!
//! [`Agent::build`] reads what is stored and loads the plugins; [`Agent::run`] attests the node, keeps
//! what the server lets it serve up to date and serves it. One task owns [`state::AgentState`] and
//! publishes it; the others (sync, issuing, renewal of the agent's own SVID) send it changes and read
//! snapshots; the APIs read [`context::Context`].
//!
//! Invariants: a workload gets only an SVID that was checked against its entry, its key and the bundle;
//! one entry that the server will not sign for holds up no other; an SVID in use is replaced, never
//! withdrawn first; nothing is stored but the agent's own SVID, its key and its bundle, and, sealed,
//! what workloads get (`vault`).

pub mod api;
mod attest;
pub mod attestors;
#[cfg(test)]
mod behaviour;
pub mod connection;
pub mod context;
mod explain;
#[cfg(test)]
mod fixtures;
mod issue;
pub mod jwt;
pub mod last_look;
mod meters;
mod own_svid;

pub mod rotation;
pub mod servers;
pub mod state;
mod stored;
pub mod subscribe;
mod sync;
pub mod tls;
mod vault;
mod words;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use config::{AgentConfig, HealthConfig, PluginBlock, PluginData};
use futures::future::BoxFuture;
use plugin::catalog::{self, AgentPlugins, CatalogError, Data, Declaration};
use plugin::{AgentNodeAttestor, Host};
use runtime::BoxError;
use runtime::clock::Clock;
use runtime::health::{Health, HealthListener, HealthPaths};
use runtime::log::Log;
use runtime::manager;
use runtime::process::answer_at_once;
use runtime::profile::{self, Profiling};
use runtime::reconcile::Poke;
use runtime::shutdown::Shutdown;
use runtime::tasks::{TaskFailed, Tasks, apart};
use spiffe::tls::{Anchors, OwnCertificate, ServerTrust};
use spiffe::{Bundle, UnixSecs};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};
use zeroize::Zeroizing;

use api::{Door, Opener};
use attest::{Attested, Attester};
use connection::Connection;
use context::Context;
use issue::Issuing;
use jwt::JwtSvids;
use last_look::LastLook;
use own_svid::{OwnSvid, Surroundings};
use rotation::RotationRule;
use servers::Servers;
use state::{AgentIdentity, AgentState, Issuers, Keeper};
use stored::Store;
use subscribe::Subscriptions;
use sync::{Protocol, Sync};
use vault::{Keeping, Kept, Vault};

pub use api::budget::stored_budget;
pub use attest::{AttestError, BootstrapError};
pub use meters::Meters;
pub use own_svid::GivenUp;
pub use stored::StoreError;

/// An agent that is ready to run.
pub struct Agent {
    config: Arc<AgentConfig>,
    log: Log,
    clock: Arc<dyn Clock>,
    health: Health,
    plugins: AgentPlugins,
    store: Store,
    vault: Vault,
    listener: Option<HealthListener>,
    meters: Arc<Meters>,
    version: &'static str,
    started_at: Instant,
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What is stored cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A plugin cannot be loaded.
    #[error(transparent)]
    Plugins(#[from] CatalogError),
    /// The port of the health checks is none.
    #[error("health_checks.bind_port is no port: {0:?}")]
    HealthPort(String),
    /// The vault cannot be set up.
    #[error("cannot set up the vault")]
    Vault(#[source] std::io::Error),
    /// Metrics cannot be sent as configured.
    #[error("cannot set up metrics")]
    Metrics(#[from] runtime::metrics::SinkError),
    /// Nobody could use the endpoint of brokers.
    #[error("experimental.broker: at least one broker is required")]
    NoBroker,
}

impl Agent {
    /// Reads what is stored and loads the plugins. Nothing is sent yet.
    ///
    /// # Errors
    /// Whatever would make every attempt to run fail.
    pub fn build(
        config: AgentConfig,
        log: Log,
        clock: Arc<dyn Clock>,
    ) -> BoxFuture<'static, Result<Self, StartError>> {
        // Boxed, so that it is compiled here, and not once more for each program that calls it.
        Box::pin(Self::load(config, log, clock))
    }

    async fn load(config: AgentConfig, log: Log, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        if config.profiling.enabled {
            profile::note_memory();
        }
        let started_at = clock.instant();
        info!(data_dir = %config.data_dir.display(), version = VERSION, "Starting agent");
        if config.experimental.broker.as_ref().is_some_and(|broker| broker.brokers.is_empty()) {
            return Err(StartError::NoBroker);
        }
        let meters = Meters::new(meters::metrics(&config)?);
        let store = Store::open(&config.data_dir)?.measured(Arc::clone(&meters));
        let vault = Vault::new(&config.data_dir, config.finial.vault).map_err(StartError::Vault)?;
        let host = Host { clock: Arc::clone(&clock), ..Host::bare() };
        let declarations: Vec<Declaration> = config.plugins.iter().map(declaration).collect();
        let mut plugins =
            catalog::load_agent(&declarations, plugins::tables::AGENT, &config.trust_domain, &host).await?;
        plugins.key_manager = plugin::metered::agent_keys(plugins.key_manager, &meters.metrics);
        let listener = listener(&config.health).await?;
        let (config, health) = (Arc::new(config), Health::new());
        // From now on, not started: live, and not ready.
        let _not_started = health.check(CHECK);
        Ok(Self {
            config,
            log,
            clock,
            health,
            plugins,
            store,
            vault,
            listener,
            meters,
            version: VERSION,
            started_at,
        })
    }

    /// Tells servers another version of the program than this crate's.
    #[must_use]
    pub const fn with_version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// Attests the node and serves until `shutdown`. The workloads' socket is there at once; who comes
    /// before there is anything to serve is held. The admin socket follows with the first answer.
    ///
    /// # Errors
    /// The first part that cannot go on.
    pub fn run(self, shutdown: &Shutdown) -> BoxFuture<'_, Result<(), TaskFailed>> {
        // Boxed for the same reason.
        Box::pin(self.serve(shutdown))
    }

    async fn serve(mut self, shutdown: &Shutdown) -> Result<(), TaskFailed> {
        let mut tasks = Tasks::new(shutdown.token().clone());
        if let Some(listener) = self.listener.take() {
            let (health, token) = (self.health.clone(), shutdown.token().clone());
            info!(address = %listener.address(), subsystem_name = "health", "Serving health checks");
            tasks.spawn("health checks", async move {
                listener.serve(health, token).await;
                Ok::<(), BoxError>(())
            });
        }
        if self.config.profiling.enabled {
            let settings = &self.config.profiling;
            let profiling = Profiling {
                port: settings.port,
                every: Duration::from_secs(settings.frequency.into()),
                names: settings.names.clone(),
                tag: "agent",
            };
            let running = profile::run(profiling, Arc::clone(&self.clock), shutdown.token().clone());
            tasks.spawn("profiling", async move {
                running.await;
                Ok::<(), BoxError>(())
            });
        }
        let metrics = self.meters.metrics.clone();
        self.meters.started(self.version, &self.config.trust_domain);
        tasks.spawn("metrics", metrics.clone().run(shutdown.token().clone()));
        if !meters::page_needs_identity(&self.config) {
            let page = meters::serve_page(Arc::clone(&self.config), metrics, None, shutdown.token().clone());
            tasks.spawn("metrics page", async move {
                page.await;
                Ok::<(), BoxError>(())
            });
        }
        let (health, clock) = (self.health.clone(), Arc::clone(&self.clock));
        tasks.spawn("service manager", manager::tell(health, clock, shutdown.token().clone()));
        let reconfigurables = std::mem::take(&mut self.plugins.reconfigurables);
        tasks.spawn("plugin reconfiguration", reconfigurables.run(shutdown.token().clone()));
        tasks.spawn("log rotation", self.log.clone().reopen_on_signal(shutdown.token().clone()));
        let attester = Arc::new(Attester {
            config: Arc::clone(&self.config),
            clock: Arc::clone(&self.clock),
            key_manager: Arc::clone(&self.plugins.key_manager),
            node_attestor: node_attestor(&self.config, &self.plugins),
            store: self.store.clone(),
            servers: Servers::of(&self.config, Arc::clone(&self.clock)),
            vault: self.vault.clone(),
            meters: Arc::clone(&self.meters),
        });
        let door = Door::bind(&self.config, &self.clock).map_err(|error| failed("endpoints", error))?;
        let opener = door.opener();
        let token = shutdown.token().clone();
        // Workloads wait for nothing that the agent does for itself.
        let at_the_door = move || {
            answer_at_once();
            door.run(token)
        };
        tasks.spawn("public endpoint", apart("workloads", at_the_door));
        let span = info_span!("attestor", subsystem_name = "attestor");
        let attested = attester.until_attested(shutdown).instrument(span).await;
        let attested = attested.map_err(|error| failed("node attestation", error))?;
        let Some(attested) = attested else { return tasks.join().await };
        let keys_are_kept = !self
            .config
            .plugins
            .iter()
            .any(|block| block.enabled && block.kind == "KeyManager" && block.name == "memory");
        if !attested.identity.reattestable && !keys_are_kept {
            warn!(
                "The node cannot attest anew, and the key manager 'memory' forgets its keys: once restarted, \
                 this agent stays out until it is evicted"
            );
        }
        let started = self.start(attester, attested, &mut tasks);
        let context = started.map_err(|error| failed("agent", error))?;
        tasks.spawn("endpoints", serve(context, opener, shutdown.token().clone()));
        let ended = tasks.join().await;
        if ended.is_ok() {
            info!("Agent stopped");
        }
        ended
    }

    /// Starts everything but the APIs, which are given the context.
    fn start(
        self,
        attester: Arc<Attester>,
        attested: Attested,
        tasks: &mut Tasks,
    ) -> Result<Arc<Context>, BoxError> {
        let config = Arc::clone(&self.config);
        let Attested { identity, key, bundle, kept } = attested;
        let certificate = OwnCertificate::empty();
        tls::present(&certificate, &identity.chain, &key);
        let (first, tokens) = first_state(identity, bundle, kept, self.clock.now());
        let (keeper, inbox) = Keeper::new(first);
        let state = keeper.snapshot();

        let server = tls::server_id(&config.trust_domain)?;
        let trust = ServerTrust::Id(server, Arc::new(tls::OwnAnchors(state.clone())));
        let post_quantum = attest::post_quantum(&config);
        let tls = tls::client_config(trust, Arc::clone(&certificate), post_quantum)?;
        let connection = Connection::new(attester.servers.clone(), tls);

        if meters::page_needs_identity(&config) {
            let anchors: Arc<dyn Anchors> = Arc::new(tls::AllAnchors(state.clone()));
            let identity = Some((Arc::clone(&certificate), anchors));
            let (metrics, token) = (self.meters.metrics.clone(), tasks.token().clone());
            let page = meters::serve_page(Arc::clone(&config), metrics, identity, token);
            tasks.spawn("metrics page", async move {
                page.await;
                Ok::<(), BoxError>(())
            });
        }

        let around = Surroundings {
            attester,
            connection: connection.clone(),
            certificate: Arc::clone(&certificate),
            inbox: inbox.clone(),
            state: state.clone(),
        };
        let (own_svid, denials) = OwnSvid::new(around, key);
        let wanted = Poke::new();
        let subscriptions = Subscriptions::new(state.clone(), Arc::clone(&self.clock), wanted.clone());
        let jwt_svids = JwtSvids::new(
            connection.clone(),
            Arc::clone(&self.clock),
            config.jwt_svid_cache_max_size,
            config.experimental.jwt_svid_cache_hit_timeout,
        )
        .measured(Arc::clone(&self.meters));
        let (asked, is_pushed) = (Poke::new(), Arc::new(AtomicBool::new(false)));
        jwt_svids.recall(tokens);
        let keeping = Keeping {
            vault: self.vault,
            first: Some(state.load()),
            state: state.clone(),
            jwt_svids: jwt_svids.clone(),
            clock: Arc::clone(&self.clock),
            health: self.health.check(CHECK),
        };
        let sync = Sync {
            connection: connection.clone(),
            inbox: inbox.clone(),
            state: state.clone(),
            clock: Arc::clone(&self.clock),
            denials: denials.clone(),
            store: self.store,
            health: self.health.check(CHECK),
            interval: config.experimental.sync_interval,
            protocol: if config.experimental.use_sync_authorized_entries {
                Protocol::Pages
            } else {
                Protocol::Whole
            },
            version: self.version,
            meters: Arc::clone(&self.meters),
            asked: asked.clone(),
            is_pushed: Arc::clone(&is_pushed),
        };
        let issuing = Issuing {
            connection,
            inbox,
            state: state.clone(),
            clock: Arc::clone(&self.clock),
            denials,
            subscriptions: subscriptions.clone(),
            wanted,
            key_kind: config.workload_key,
            most: config.x509_svid_cache_max_size,
            rule: RotationRule::new(config.availability_target),
            issuers: Issuers::default(),
            meters: Arc::clone(&self.meters),
        };
        let last_look = LastLook::new(asked, Arc::clone(&self.clock), LastLook::PATIENCE);
        let context = Arc::new(Context {
            certificate,
            config,
            clock: self.clock,
            log: self.log,
            health: self.health,
            state,
            subscriptions: subscriptions.clone(),
            jwt_svids: jwt_svids.clone(),
            workload_attestors: self.plugins.workload_attestors,
            started_at: self.started_at,
            meters: Arc::clone(&self.meters),
            last_look,
            is_pushed,
        });

        let token = tasks.token().clone();
        let meters = self.meters;
        let mut before = Arc::clone(&context.state.load().entries);
        let published = move |state: &AgentState| {
            meters.show_entries(&before, state);
            before = Arc::clone(&state.entries);
            jwt_svids.purge(&state.bundles.own);
            subscriptions.refresh(state);
        };
        // What SPIRE's logs call the part that does all this.
        let manager = info_span!("manager", subsystem_name = "manager");
        tasks.spawn("state", keeper.run(token.clone(), published).instrument(manager.clone()));
        tasks.spawn("own SVID", own_svid.run(token.clone()).instrument(manager.clone()));
        tasks.spawn("sync", sync.run(token.clone()).instrument(manager.clone()));
        tasks.spawn("issuing", issuing.run(token.clone()).instrument(manager.clone()));
        tasks.spawn("vault", keeping.run(token.clone()).instrument(manager));
        tasks.spawn("age of knowledge", age_of_knowledge(Arc::clone(&context), token));
        Ok(context)
    }
}

/// What the agent knows at first, and the tokens it has.
fn first_state(
    identity: AgentIdentity,
    bundle: Bundle,
    kept: Option<Kept>,
    now: SystemTime,
) -> (AgentState, Vec<vault::Token>) {
    let Some(kept) = kept else { return (AgentState::new(identity, bundle), Vec::new()) };
    let Kept { bundles, entries, tokens, synced_at } = kept;
    let svids = entries.iter().filter(|(_, svid, _)| svid.is_some()).count();
    info!(
        synced_at = words::instant(synced_at),
        age_seconds = UnixSecs::from(now).since(synced_at),
        entries = entries.len(),
        x509_svids = svids,
        jwt_svids = tokens.len(),
        "Serving from the vault until a server is heard from"
    );
    (AgentState::recalled(identity, bundles, entries, synced_at), tokens)
}

/// Shows how old what the agent knows is.
async fn age_of_knowledge(context: Arc<Context>, token: CancellationToken) -> Result<(), BoxError> {
    loop {
        if let Some(synced_at) = context.state.load().synced_at {
            let age = UnixSecs::from(context.clock.now()).since(synced_at);
            context.meters.knowledge_age.set_seconds(age.max(0));
        }
        tokio::select! {
            biased;
            () = token.cancelled() => return Ok(()),
            () = context.clock.sleep(SHOW_AGE) => {}
        }
    }
}

/// Serves the APIs as soon as there is anything to serve: from the first sync on, or from the vault.
async fn serve(context: Arc<Context>, opener: Opener, token: CancellationToken) -> Result<(), BoxError> {
    let mut changed = context.state.changed();
    while context.state.load().synced_at.is_none() {
        tokio::select! {
            biased;
            () = token.cancelled() => return Ok(()),
            change = changed.changed() => change?,
        }
    }
    context.health.check(CHECK).started();
    api::serve(context, opener, token).await
}

/// The port of the health checks, if they are wanted.
async fn listener(config: &HealthConfig) -> Result<Option<HealthListener>, StartError> {
    if !config.enabled {
        return Ok(None);
    }
    let port = config.bind_port.parse().map_err(|_| StartError::HealthPort(config.bind_port.clone()))?;
    let paths = HealthPaths { live: config.live_path.clone(), ready: config.ready_path.clone() };
    match HealthListener::bind(&config.bind_address, port, paths).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => {
            // Whoever probes finds out; the workloads of the node do not pay for it.
            warn!(error = %runtime::chain(&error), subsystem_name = "health", "Error serving health checks");
            Ok(None)
        }
    }
}

/// The health check of everything but the APIs.
const CHECK: &str = "agent";

/// How often the age of what the agent knows is shown.
const SHOW_AGE: Duration = Duration::from_secs(5);

/// The version of this crate, for those who do not say another.
const VERSION: &str = env!("CARGO_PKG_VERSION");

fn failed(name: &'static str, error: impl Into<BoxError>) -> TaskFailed {
    TaskFailed { name, source: error.into() }
}

/// The attestor that is configured, unless there is a join token.
fn node_attestor(config: &AgentConfig, plugins: &AgentPlugins) -> Arc<dyn AgentNodeAttestor> {
    match &config.join_token {
        Some(token) => plugins::agent::nodeattestor::join_token::with_token(Zeroizing::new(token.0.clone())),
        None => Arc::clone(&plugins.node_attestor),
    }
}

fn declaration(block: &PluginBlock) -> Declaration {
    Declaration {
        kind: block.kind.clone(),
        name: block.name.clone(),
        command: block.command.clone(),
        enabled: block.enabled,
        data: match &block.data {
            PluginData::Absent => Data::Absent,
            PluginData::Inline(text) => Data::Inline(text.clone()),
            PluginData::File(path) => Data::File(path.clone()),
        },
    }
}
