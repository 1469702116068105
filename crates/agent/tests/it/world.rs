//! An agent's APIs on real sockets, over a state that tests put together: no server is needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent::api::Apis;
use agent::connection::Connection;
use agent::context::Context;
use agent::jwt::JwtSvids;
use agent::last_look::LastLook;
use agent::servers::Servers;
use agent::state::{AgentIdentity, AgentState, Change, Inbox, Keeper, X509Svid};
use agent::subscribe::Subscriptions;
use async_trait::async_trait;
use client::{Address, Dialer, WorkloadApi};
use config::AgentConfig;
use futures::FutureExt as _;
use plugin::{Plugin, PluginError, PluginInfo, PluginKind, WorkloadAttestor};
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use runtime::clock::{Clock, ManualClock};
use runtime::health::Health;
use runtime::log::{Format, Level, Log, Options, Output};
use runtime::peer::Process;
use runtime::reconcile::Poke;
use runtime::tasks::Group;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::tls::OwnCertificate;
use spiffe::{Bundle, Entry, EntryId, Selector, SpiffeId, TrustDomain, UnixSecs};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::authority::{Authority, NOW, now};
use crate::signer::Signer;

/// A running agent without a server, but for what signs tokens.
pub(crate) struct World {
    pub(crate) own: Arc<Authority>,
    pub(crate) clock: ManualClock,
    pub(crate) context: Arc<Context>,
    pub(crate) signer: Signer,
    /// Poked when the server would be asked for what is new.
    looked: Poke,
    /// How often an attestor was asked.
    asked: Arc<AtomicUsize>,
    inbox: Inbox,
    tasks: Group,
    directory: TempDir,
}

impl World {
    /// With no entries and only its own bundle.
    pub(crate) async fn start() -> Self {
        Self::configured(|_| {}).await
    }

    pub(crate) async fn configured(change: impl FnOnce(&mut AgentConfig)) -> Self {
        let attestor: Arc<dyn WorkloadAttestor> = Arc::new(Attestor::new("unix", &["uid:1000", "gid:1000"]));
        Self::attested_by(vec![attestor], change).await
    }

    pub(crate) async fn attested_by(
        attestors: Vec<Arc<dyn WorkloadAttestor>>,
        change: impl FnOnce(&mut AgentConfig),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = crate::config::config(directory.path());
        change(&mut config);
        let (asked, looked) = (Arc::new(AtomicUsize::new(0)), Poke::new());
        let counted =
            |plugin| Arc::new(Counted { plugin, asked: Arc::clone(&asked) }) as Arc<dyn WorkloadAttestor>;
        let own = Arc::new(Authority::new("example.org"));
        let tasks = Group::new(CancellationToken::new());
        let signer = Signer::start(&own, &tasks);
        let clock = ManualClock::new(now());
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());

        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let id = "spiffe://example.org/spire/agent/join_token/1";
        let identity = AgentIdentity {
            id: SpiffeId::parse(id).unwrap(),
            chain: Arc::from([own.issue(id, &key)]),
            reattestable: false,
        };
        let (keeper, inbox) = Keeper::new(AgentState::new(identity, own.bundle()));
        let state = keeper.snapshot();
        let subscriptions = Subscriptions::new(state.clone(), Arc::clone(&shared), Poke::default());
        let servers = Servers::new(Address::tcp("127.0.0.1", signer.port), None, Arc::clone(&shared));
        let connection = Connection::new(servers, Signer::client_tls(&own));
        let patience = config.experimental.jwt_svid_cache_hit_timeout;
        let jwt_svids =
            JwtSvids::new(connection, Arc::clone(&shared), config.jwt_svid_cache_max_size, patience);
        let options = Options {
            level: Level::Debug,
            format: Format::Default,
            output: Output::File(directory.path().join("log")),
            source_location: false,
        };
        let (_subscriber, log) = Log::new(&options).unwrap();
        let context = Arc::new(Context {
            certificate: OwnCertificate::empty(),
            started_at: shared.instant(),
            config: Arc::new(config),
            clock: shared,
            log,
            health: Health::new(),
            state,
            subscriptions: subscriptions.clone(),
            jwt_svids,
            meters: Arc::default(),
            workload_attestors: attestors.into_iter().map(counted).collect(),
            last_look: LastLook::new(looked.clone(), Arc::new(clock.clone()), Duration::ZERO),
            is_pushed: Arc::default(),
        });
        let token = tasks.token().clone();
        tasks.spawn("state", async move {
            keeper.run(token, |state| subscriptions.refresh(state)).await.unwrap();
        });
        let apis = Apis::bind(Arc::clone(&context)).unwrap();
        tasks.spawn("apis", apis.run(tasks.token().clone()));
        // The agent looks whether it can attest at all; what tests count comes after that.
        while config_serves(&context.config) && asked.swap(0, Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        Self { own, clock, context, signer, looked, asked, inbox, tasks, directory }
    }

    pub(crate) fn times_asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether the server would have been asked for what is new since this was called last.
    pub(crate) fn has_looked(&self) -> bool {
        self.looked.poked().now_or_never().is_some()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.context.config.socket_path.clone()
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A new connection to the public socket.
    pub(crate) fn channel(&self) -> Channel {
        Dialer::new(Address::unix(&self.socket())).channel().unwrap()
    }

    /// A new connection to the admin socket.
    pub(crate) fn admin(&self) -> Channel {
        let path = self.context.config.admin_socket_path.clone().unwrap();
        Dialer::new(Address::unix(&path)).channel().unwrap()
    }

    /// A typed client, as workloads use one.
    pub(crate) fn client(&self) -> WorkloadApi {
        WorkloadApi::new(self.channel())
    }

    /// A bare client that adds no security header.
    pub(crate) fn bare(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(self.channel())
    }

    /// The agent learns that these are all entries and foreign bundles there are.
    pub(crate) async fn sync(&self, entries: &[Entry], federated: &[Bundle]) {
        self.sync_with(entries, self.own.bundle(), federated).await;
    }

    pub(crate) async fn sync_with(&self, entries: &[Entry], own: Bundle, federated: &[Bundle]) {
        let entries = entries.iter().map(|entry| Arc::new(copy(entry))).collect();
        let change = Change::Synced { entries, own: Some(own), federated: federated.to_vec(), at: NOW };
        self.inbox.apply(change).await.unwrap();
    }

    /// The agent gets X.509-SVIDs of these.
    pub(crate) async fn issue(&self, entries: &[Entry]) {
        let svids = entries.iter().map(|entry| (entry.id.clone(), Some(self.own.svid(entry)))).collect();
        self.inbox.apply(Change::Issued(svids)).await.unwrap();
    }

    /// The agent gets this X.509-SVID.
    pub(crate) async fn hold(&self, id: &str, svid: X509Svid) {
        self.inbox.apply(Change::Issued(vec![(EntryId::new(id), Some(svid))])).await.unwrap();
    }

    /// The server will not sign for this entry.
    pub(crate) async fn refuse(&self, entry: &Entry) {
        self.inbox.apply(Change::Issued(vec![(entry.id.clone(), None)])).await.unwrap();
    }

    /// [`World::sync`] and [`World::issue`].
    pub(crate) async fn serve(&self, entries: &[Entry]) {
        self.sync(entries, &[]).await;
        self.issue(entries).await;
    }

    /// Stops it and waits until nothing of it runs any more.
    pub(crate) async fn ended(&self) {
        self.stop();
        self.tasks.ended().await;
    }

    pub(crate) fn stop(&self) {
        self.tasks.token().cancel();
    }
}

const fn config_serves(config: &AgentConfig) -> bool {
    !config.disable_workload_api
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

/// An attestor that finds what it is told to.
pub(crate) struct Attestor {
    info: PluginInfo,
    selectors: Vec<String>,
}

impl Attestor {
    pub(crate) fn new(name: &str, selectors: &[&str]) -> Self {
        Self {
            info: PluginInfo::new(PluginKind::WorkloadAttestor, name),
            selectors: selectors.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Plugin for Attestor {
    fn info(&self) -> &PluginInfo {
        &self.info
    }
}

#[async_trait]
impl WorkloadAttestor for Attestor {
    async fn attest(&self, _caller: &Process) -> Result<Vec<Selector>, PluginError> {
        Ok(self.selectors.iter().map(|value| Selector::new(self.info.name(), value)).collect())
    }
}

/// An attestor whose calls are counted.
struct Counted {
    plugin: Arc<dyn WorkloadAttestor>,
    asked: Arc<AtomicUsize>,
}

impl Plugin for Counted {
    fn info(&self) -> &PluginInfo {
        self.plugin.info()
    }
}

#[async_trait]
impl WorkloadAttestor for Counted {
    async fn attest(&self, caller: &Process) -> Result<Vec<Selector>, PluginError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.plugin.attest(caller).await
    }
}

/// An entry of `example.org` for these selectors of type `unix`.
pub(crate) fn entry(id: &str, path: &str, selectors: &[&str]) -> Entry {
    let selectors: Arc<[Selector]> = selectors.iter().map(|value| Selector::new("unix", value)).collect();
    Entry {
        id: EntryId::new(id),
        spiffe_id: SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap(),
        parent_id: SpiffeId::parse("spiffe://example.org/spire/agent/join_token/1").unwrap(),
        selector_set: selectors.iter().cloned().collect(),
        selectors,
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Arc::from([]),
        admin: false,
        downstream: false,
        expires_at: UnixSecs(0),
        dns_names: Arc::from([]),
        revision_number: 0,
        store_svid: false,
        hint: String::new(),
        created_at: UnixSecs(1),
        additional_attributes: None,
    }
}

/// The entry of the caller: all attestors here say uid 1000.
pub(crate) fn own_entry(id: &str, path: &str) -> Entry {
    entry(id, path, &["uid:1000"])
}

pub(crate) fn federated(mut entry: Entry, with: &[&Authority]) -> Entry {
    entry.federates_with = with.iter().map(|authority| authority.trust_domain.clone()).collect();
    entry
}

pub(crate) fn hinted(mut entry: Entry, hint: &str, created_at: i64) -> Entry {
    hint.clone_into(&mut entry.hint);
    entry.created_at = UnixSecs(created_at);
    entry
}

/// Entries are shared, never cloned, so there is no `Clone`.
pub(crate) fn copy(entry: &Entry) -> Entry {
    Entry {
        id: entry.id.clone(),
        spiffe_id: entry.spiffe_id.clone(),
        parent_id: entry.parent_id.clone(),
        selectors: Arc::clone(&entry.selectors),
        selector_set: entry.selector_set.clone(),
        federates_with: Arc::clone(&entry.federates_with),
        dns_names: Arc::clone(&entry.dns_names),
        hint: entry.hint.clone(),
        ..*entry
    }
}

/// The names of trust domains, in order.
pub(crate) fn names<T>(bundles: &BTreeMap<TrustDomain, T>) -> Vec<&str> {
    bundles.keys().map(TrustDomain::as_str).collect()
}
