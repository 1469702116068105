//! From a configuration to a server that is ready to run: everything that can fail fails here.
//!
//! The order is that in which things depend on each other: folder, datastore, plugins, snapshots,
//! authorities, own SVID, listeners. Nothing is half-initialised, and nothing is taken back but by
//! dropping it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use ca::issue::Issuer;
use ca::profile::{CaSubject, Composers, Profile};
use config::{PluginBlock, PluginData, ServerConfig};
use plugin::catalog::{self, CatalogError, Data, Declaration};
use plugin::{CredentialComposer, Host};
use runtime::bulk::Bulk;
use runtime::clock::Clock;
use runtime::health::{Health, HealthListener, HealthPaths};
use runtime::listen::{
    Callers, ListenError, Network, NoNetwork, TlsListener, UnixListener, UnixOptions, check_exposure,
};
use runtime::log::Log;
use runtime::memory::Zeroing;
use runtime::snapshot::{Publisher, Snapshot};
use spiffe::tls::{OwnCertificate, PostQuantum};
use spiffe::{IdError, TrustDomain};
use store::{AgentFilter, EntryFilter, Page, StoreError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::audit::Chain;
use crate::authz::{Policy, PolicyError};
use crate::ca_driver::{Commands, Driver, DriverError, Kinds, Parts};
use crate::context::Context;
use crate::datastore::{self, DatastoreError};
use crate::federation::{Endpoint, EndpointError, Federation};
use crate::keep::{Around, BundleSet, Keeper, QUEUE};
use crate::limits::Limits;
use crate::measured::Datastore;
use crate::meters::{self, Meters};
use crate::own_svid::{Renewal, RenewalError};
use crate::sync::Hub;
use crate::tls;
use crate::{Server, Told};

/// Why the server does not start; with its causes one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be made.
    #[error("cannot create data directory {}", path.display())]
    DataDirectory {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The datastore cannot be opened.
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
    /// The socket is where others could replace it.
    #[error("experimental.finial.allow_exposed_socket is not set")]
    Exposed(#[source] ListenError),
    /// A plugin cannot be loaded.
    #[error(transparent)]
    Plugins(#[from] CatalogError),
    /// The datastore cannot be read.
    #[error("cannot load entries, agents and bundles")]
    Load(#[source] StoreError),
    /// The database belongs to another trust domain.
    #[error(
        "a registration entry with trust domain '{found}' has been detected, which does not match the \
         configured trust domain of '{configured}'. If you want to change the trust domain, please delete \
         all existing registration entries"
    )]
    ForeignEntries {
        /// Of the entry.
        found: String,
        /// Of the configuration.
        configured: TrustDomain,
    },
    /// The trust domain cannot have a server.
    #[error("trust domain is unusable")]
    TrustDomain(#[from] IdError),
    /// Metrics cannot be sent as configured.
    #[error("cannot set up metrics")]
    Metrics(#[from] runtime::metrics::SinkError),
    /// There are no authorities.
    #[error("cannot start certificate authority: {0}")]
    Authorities(String),
    /// There is no SVID for the server.
    #[error("cannot make server SVID: {0}")]
    OwnSvid(String),
    /// The operator's policy cannot be used.
    #[error("unable to obtain authpolicy engine")]
    Policy(#[from] PolicyError),
    /// It is not known, and cannot be kept, where the chain of audit lines is.
    #[error("cannot open audit-chain in the data directory")]
    AuditChain(#[source] io::Error),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// A network of trusted proxies is none.
    #[error("invalid proxy_protocol_trusted_cidrs")]
    Proxies(#[from] NoNetwork),
    /// The port for health checks is no port.
    #[error("health_checks.bind_port {0:?} is not a port")]
    HealthPort(String),
    /// The bundle endpoint cannot be served.
    #[error("cannot start bundle endpoint: {0}")]
    BundleEndpoint(String),
    /// A port or socket cannot be listened on.
    #[error("{0}")]
    Listen(String),
}

impl From<DriverError> for StartError {
    fn from(error: DriverError) -> Self {
        Self::Authorities(runtime::chain(&error))
    }
}

impl From<RenewalError> for StartError {
    fn from(error: RenewalError) -> Self {
        Self::OwnSvid(runtime::chain(&error))
    }
}

impl From<EndpointError> for StartError {
    fn from(error: EndpointError) -> Self {
        Self::BundleEndpoint(runtime::chain(&error))
    }
}

impl From<ListenError> for StartError {
    fn from(error: ListenError) -> Self {
        Self::Listen(runtime::chain(&error))
    }
}

/// Builds a server; see [`Server::build`].
pub(crate) async fn build(
    mut config: ServerConfig,
    log: Log,
    clock: Arc<dyn Clock>,
) -> Result<Server, StartError> {
    if config.profiling.enabled {
        runtime::profile::note_memory();
    }
    let started = clock.now();
    tracing::info!(
        admin_ids = ?config.admin_ids,
        data_dir = %config.data_dir.display(),
        launch_log_level = log.level().launch().name(),
        version = env!("CARGO_PKG_VERSION"),
        "Configured"
    );
    make_data_directory(&config)?;
    let metrics = meters::metrics(&config)?;
    let meters = Meters::new(metrics.clone(), &config.trust_domain);

    let health = Health::new();
    // From here on somebody who asks is told how far the start is.
    let mut told = health_listener(&config, &health).await?;
    // Until the settings of the plugins are forgotten, which may hold passwords.
    let zeroing = Zeroing::begin();
    let (committed, changes) = mpsc::channel(QUEUE);
    let store = datastore::open(&config, &clock, &health, committed, &metrics);
    let (store, replica) = meanwhile(&mut told, store).await?;
    let bundles = Publisher::new(BundleSet::default());
    let plugins = load_plugins(&config, &clock, &bundles).await?;
    config.plugins = Vec::new();
    drop(zeroing);
    check_trust_domain(&store, &config.trust_domain).await?;

    let hub = Hub::new(meters.watchers.clone());
    let keeper = Keeper::load(
        store.clone(),
        replica,
        changes,
        bundles,
        config.trust_domain.clone(),
        Around {
            clock: Arc::clone(&clock),
            check: health.check("catalog.datastore"),
            meters: Arc::clone(&meters),
            hub: hub.clone(),
        },
        &config.experimental,
    );
    let mut keeper = meanwhile(&mut told, keeper).await.map_err(StartError::Load)?;

    let profile = Arc::new(profile(&config, plugins.credential_composers)?);
    let parts = Parts {
        profile: Arc::clone(&profile),
        keys: plugin::metered::server_keys(plugins.key_manager, &metrics),
        upstream: plugins.upstream_authority,
        store: store.clone(),
        clock: Arc::clone(&clock),
        kinds: Kinds {
            x509: config.ca.x509_key,
            jwt: (!config.disable_jwt_svids).then_some(config.ca.jwt_key),
            wit: config.experimental.wit_svid.then_some(config.ca.wit_key),
        },
        check: health.check("server.ca.rotator"),
        meters: Arc::clone(&meters),
    };
    let mut driver = Driver::load(parts).await?;
    driver.rotate().await?;
    keeper.catch_up().await;

    let issuer = Issuer::new(profile, driver.active()).with_metrics(&metrics);
    let renewal = Renewal::start(
        issuer.clone(),
        config.ca.x509_key,
        Arc::clone(&clock),
        keeper.bundles(),
        meters.svid_rotate.clone(),
    )
    .await?;
    let policy = config.experimental.policy.as_ref().map(Policy::load).transpose()?;
    let source = tls::source(&config, keeper.bundles(), renewal.presented(), &clock)?;
    let port = TlsListener::bind(config.bind, source)?.with_trusted_proxies(trusted_proxies(&config)?);
    if !config.finial.allow_exposed_socket {
        // Who may open the socket is an administrator: whoever could put another one in its place would
        // be told what administrators say.
        check_exposure(&config.socket_path).map_err(StartError::Exposed)?;
    }
    let socket = UnixListener::bind(&config.socket_path, SOCKET)?;
    let address: SocketAddr = port.address();

    let endpoint = bundle_endpoint(&config, keeper.bundles(), renewal.presented())?;
    let (federation, refreshes) = Federation::new();
    let (authorities, commands) = Commands::new();
    let is_chained = config.audit_log && config.finial.audit_log_chain;
    let audit_chain = is_chained.then(|| Chain::open(&config.data_dir)).transpose();
    let (bulk, worker) = Bulk::new();
    let context = Context {
        audit_chain: audit_chain.map_err(StartError::AuditChain)?,
        authorities,
        federation,
        policy,
        limits: Limits::new(config.rate_limits, Arc::clone(&clock), Arc::clone(&meters)),
        meters,
        config,
        store,
        graph: keeper.graph(),
        bundles: keeper.bundles(),
        issuer,
        own_svid: renewal.svid(),
        node_attestors: plugins.node_attestors,
        applied: keeper.applied(),
        fresh: keeper.fresh(),
        bulk,
        hub,
        log,
        clock,
        health,
        started,
    };
    Ok(Server {
        context: Arc::new(context),
        keeper,
        bulk: worker,
        driver,
        commands,
        renewal,
        port,
        socket,
        told,
        endpoint,
        refreshes,
        reconfigurables: plugins.reconfigurables,
        address,
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// The own bundle for others, if it is to be served.
fn bundle_endpoint(
    config: &ServerConfig,
    bundles: Snapshot<BundleSet>,
    own: Arc<OwnCertificate>,
) -> Result<Option<Endpoint>, EndpointError> {
    let exchanges = PostQuantum::required_if(config.experimental.require_pq_kem);
    let bind = |endpoint| Endpoint::bind(endpoint, exchanges, config.trust_domain.clone(), bundles, own);
    config.federation.bundle_endpoint.as_ref().map(bind).transpose()
}

/// The networks from which a proxy may tell whom a connection is from.
fn trusted_proxies(config: &ServerConfig) -> Result<Vec<Network>, NoNetwork> {
    let trusted = &config.proxy_protocol_trusted;
    if !trusted.is_empty() {
        let trusted_cidrs = format!("[{}]", trusted.join(" "));
        tracing::info!(subsystem_name = "endpoints", trusted_cidrs, "PROXY protocol enabled on TCP listener");
    }
    trusted.iter().map(|network| network.parse()).collect()
}

fn make_data_directory(config: &ServerConfig) -> Result<(), StartError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o750);
    let path = &config.data_dir;
    builder.create(path).map_err(|source| StartError::DataDirectory { path: path.clone(), source })
}

async fn load_plugins(
    config: &ServerConfig,
    clock: &Arc<dyn Clock>,
    bundles: &Publisher<BundleSet>,
) -> Result<catalog::ServerPlugins, StartError> {
    let declarations: Vec<_> = config.plugins.iter().map(declaration).collect();
    let (bundles, own) = (bundles.snapshot(), config.trust_domain.clone());
    let host = Host {
        clock: Arc::clone(clock),
        own_bundle: Arc::new(move || bundles.load().get(&own).map(|known| Arc::clone(&known.bundle))),
    };
    let loaded =
        catalog::load_server(&declarations, plugins::tables::SERVER, &config.trust_domain, &host).await;
    Ok(loaded?)
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

/// The port for health checks, if one is asked for. It answers while it is polled.
async fn health_listener(config: &ServerConfig, health: &Health) -> Result<Option<Told>, StartError> {
    let settings = &config.health;
    if !settings.enabled {
        return Ok(None);
    }
    let port = settings.bind_port.parse().map_err(|_| StartError::HealthPort(settings.bind_port.clone()))?;
    let paths = HealthPaths { live: settings.live_path.clone(), ready: settings.ready_path.clone() };
    let listener = match HealthListener::bind(&settings.bind_address, port, paths).await {
        Ok(listener) => listener,
        Err(error) => {
            // Whoever probes finds out; the agents do not pay for it.
            let error = runtime::chain(&error);
            tracing::warn!(error, subsystem_name = "health", "Error serving health checks");
            return Ok(None);
        }
    };
    tracing::info!(subsystem_name = "health", address = %listener.address(), "Serving health checks");
    let stop = CancellationToken::new();
    let serving = Box::pin(listener.serve(health.clone(), stop.clone()));
    Ok(Some(Told { serving, stop }))
}

/// Does `work`, and answers who asks how the server is.
async fn meanwhile<T>(told: &mut Option<Told>, work: impl Future<Output = T>) -> T {
    let Some(told) = told else { return work.await };
    tokio::select! {
        biased;
        done = work => done,
        () = &mut told.serving => std::future::pending().await,
    }
}

/// Refuses a database of another trust domain, judged by its first entry; agents only make a warning.
async fn check_trust_domain(store: &Datastore, own: &TrustDomain) -> Result<(), StartError> {
    let first = store.list_entries(EntryFilter::default(), Some(Page::first(1))).await;
    let first = first.map_err(StartError::Load)?;
    if let Some(stored) = first.entries.first()
        && !stored.entry.spiffe_id.is_member_of(own)
    {
        let found = stored.entry.spiffe_id.trust_domain_name().to_owned();
        return Err(StartError::ForeignEntries { found, configured: own.clone() });
    }
    let first = store.list_agents(AgentFilter::default(), Some(Page::first(1))).await;
    let first = first.map_err(StartError::Load)?;
    if let Some(agent) = first.agents.first()
        && !agent.id.is_member_of(own)
    {
        tracing::warn!(
            "An attested node with trust domain '{}' has been detected, which does not match the configured \
             trust domain of '{own}'. Agents may need to be reconfigured to use new trust domain",
            agent.id.trust_domain_name()
        );
    }
    Ok(())
}

fn profile(
    config: &ServerConfig,
    composers: Vec<Arc<dyn CredentialComposer>>,
) -> Result<Profile, StartError> {
    let mut profile = Profile::new(config.trust_domain.clone())?;
    profile.ca_subject = CaSubject {
        country: config.ca.country.clone(),
        organization: config.ca.organization.clone(),
        common_name: config.ca.common_name.clone(),
    };
    profile.ca_ttl = config.ca.ttl;
    profile.x509_svid_ttl = config.x509_svid_ttl;
    profile.jwt_svid_ttl = config.jwt_svid_ttl;
    profile.agent_ttl = config.agent_ttl;
    profile.jwt_issuer.clone_from(&config.ca.jwt_issuer);
    profile.wit_issuer.clone_from(&config.ca.wit_issuer);
    profile.composers = Composers::new(composers);
    Ok(profile)
}

/// Who may open the socket is an operator; nobody asks who that is.
const SOCKET: UnixOptions =
    UnixOptions { directory_mode: 0o750, socket_mode: 0o770, callers: Callers::IfKnown };
