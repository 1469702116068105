//! Node attestation: how an agent gets its own X.509-SVID.
//!
//! An SVID that is stored, holds and whose key is there is used without asking anybody. Otherwise the
//! node attests, again and again until it succeeds: the server may be away, a token may be made or a
//! bundle put in place later. Only a server that refuses (`PermissionDenied`) ends the agent.

mod bootstrap;
mod stream;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use client::{DialError, Dialer, ServerClients};
use config::{AgentConfig, Rebootstrap};
use plugin::{AgentNodeAttestor, Key, KeyId, KeyManager, PluginError};
use proto::spire::server::agent::{AgentX509svidParams, RenewAgentRequest, RenewAgentResponse};
use proto::spire::server::bundle::GetBundleRequest;
use proto::spire::types;
use runtime::backoff::Backoff;
use runtime::clock::{Clock, within};
use runtime::{chain, shutdown::Shutdown};
use spiffe::key::{KeyKind, SigAlg};
use spiffe::tls::{OwnCertificate, ServerTrust};
use spiffe::x509::{Attribute, Certificate, CsrTemplate, Name, SvidError, find_path, leaf_id};
use spiffe::{Bundle, UnixSecs};
use time::OffsetDateTime;
use tonic::{Code, Status};
use tracing::{info, warn};

pub use bootstrap::BootstrapError;
pub(crate) use bootstrap::Trust;
use stream::AttestationStream;

use crate::connection::{Connection, Lease, Verdict, is_trouble, verdict};
use crate::meters::Meters;
use crate::rotation::RotationRule;
use crate::servers::{Chosen, Servers};
use crate::state::{AgentIdentity, Bundles};
use crate::stored::{AgentData, BootstrapUse, Store, StoreError};
use crate::tls::{self, FixedAnchors, PostQuantum};
use crate::vault::{Kept, Vault};
use crate::words;

/// How long one attestation may take, challenges included.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The first wait after a failure.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// An SVID this near its end is not used.
const SKEW: i64 = 1;

/// Attests the node.
pub(crate) struct Attester {
    pub(crate) config: Arc<AgentConfig>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) key_manager: Arc<dyn KeyManager>,
    pub(crate) node_attestor: Arc<dyn AgentNodeAttestor>,
    pub(crate) store: Store,
    /// Which of the servers is asked.
    pub(crate) servers: Servers,
    /// What workloads got before this start.
    pub(crate) vault: Vault,
    pub(crate) meters: Arc<Meters>,
}

/// An agent's own SVID with its key, and the bundle it goes by.
pub(crate) struct Attested {
    pub(crate) identity: AgentIdentity,
    pub(crate) key: Arc<dyn Key>,
    pub(crate) bundle: Bundle,
    /// What workloads got before this start, where the SVID was stored.
    pub(crate) kept: Option<Kept>,
}

/// A stored SVID, and the key of the stored SVID.
#[derive(Default)]
struct Loaded {
    identity: Option<AgentIdentity>,
    key: Option<Arc<dyn Key>>,
}

/// Why the node is not attested.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// There is no bundle to know the server by.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// An SVID is stored without a bundle: the file was tampered with.
    #[error("SVID loaded but no bundle in cache")]
    NoBundle,
    /// There is no way to the server.
    #[error("create attestation client")]
    Dial(#[from] DialError),
    /// TLS cannot be set up.
    #[error("create attestation client")]
    Tls(#[from] rustls::Error),
    /// The key manager failed.
    #[error("unable to generate private key: {0}")]
    Key(PluginError),
    /// The plugin failed.
    #[error(transparent)]
    Plugin(PluginError),
    /// The server refused, or could not be asked.
    #[error("{doing}: {}", words::refusal(.status))]
    Call {
        /// What was being done.
        doing: &'static str,
        /// What the server said.
        status: Box<Status>,
    },
    /// The server took too long.
    #[error("{0}: the server did not answer in time")]
    Timeout(&'static str),
    /// What the server signed is not for this agent.
    #[error("failed to parse attestation response: {0}")]
    Svid(String),
    /// The server's bundle is none.
    #[error("failed to parse trust domain bundle: {0}")]
    Bundle(String),
    /// The outcome cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bundle and the server disagree for good.
    #[error("shutting down for rebootstrapping")]
    Rebootstrap,
    /// `rebootstrap_mode` asks for what the attestation does not allow.
    #[error(
        "you have requested rebootstrap support but the NodeAttestor plugin or the spire server \
         configuration is not allowing it"
    )]
    NotReattestable,
}

impl AttestError {
    pub(crate) fn call(doing: &'static str, status: Status) -> Self {
        Self::Call { doing, status: Box::new(status) }
    }

    /// What it means to the agent.
    pub(crate) fn verdict(&self) -> Verdict {
        if let Self::Call { status, .. } = self { verdict(status) } else { Verdict::Transient }
    }

    /// Whether another server may do better.
    fn is_trouble(&self) -> bool {
        match self {
            Self::Call { status, .. } => is_trouble(status),
            Self::Timeout(_) | Self::Dial(_) => true,
            Self::Bootstrap(_)
            | Self::NoBundle
            | Self::Tls(_)
            | Self::Key(_)
            | Self::Plugin(_)
            | Self::Svid(_)
            | Self::Bundle(_)
            | Self::Store(_)
            | Self::Rebootstrap
            | Self::NotReattestable => false,
        }
    }

    /// The code that metrics give.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Call { status, .. } => status.code(),
            Self::Timeout(_) => Code::DeadlineExceeded,
            Self::Bootstrap(_)
            | Self::NoBundle
            | Self::Dial(_)
            | Self::Tls(_)
            | Self::Key(_)
            | Self::Plugin(_)
            | Self::Svid(_)
            | Self::Bundle(_)
            | Self::Store(_)
            | Self::Rebootstrap
            | Self::NotReattestable => Code::Unknown,
        }
    }

    /// Whether the server said that it will not have this agent.
    pub(crate) fn is_final(&self) -> bool {
        if let Self::Call { status, .. } = self {
            return status.code() == Code::PermissionDenied;
        }
        matches!(self, Self::NotReattestable)
    }
}

impl Attester {
    /// The stored SVID, or a new one, whatever it takes. `None` if the program was told to end.
    ///
    /// # Errors
    /// The server refuses the agent.
    pub(crate) async fn until_attested(&self, shutdown: &Shutdown) -> Result<Option<Attested>, AttestError> {
        let mut backoff = Backoff::new(FIRST_RETRY);
        loop {
            let attempt = tokio::select! {
                biased;
                () = shutdown.triggered() => return Ok(None),
                attempt = self.attempt() => attempt,
            };
            let error = match attempt {
                Ok(attested) => return Ok(Some(attested)),
                Err(error) if error.is_final() => {
                    self.vault.give_up();
                    return Err(error);
                }
                Err(error) => error,
            };
            let is_alone = !error.is_trouble() || !self.servers.has_another();
            let wait = if is_alone { backoff.next() } else { Duration::ZERO };
            warn!(error = chain(&error), retry_interval = ?wait, "Failed to retrieve attestation result");
            tokio::select! {
                biased;
                () = shutdown.triggered() => return Ok(None),
                () = self.clock.sleep(wait) => {}
            }
        }
    }

    async fn attempt(&self) -> Result<Attested, AttestError> {
        let data = self.store.data();
        let stored = data.bundle(&self.config.trust_domain);
        match &stored {
            Some(bundle) => info!(trust_domain_id = %bundle.trust_domain.id(), "Bundle loaded"),
            None => info!("Bundle is not found"),
        }
        let is_stored = stored.is_some();
        // Who was killed between a doubt and the next attestation has an SVID that still holds, and no
        // bundle.
        let trust = match stored {
            Some(bundle) => Trust::Bundle(bundle),
            None => self.ask_source().await?,
        };
        let Loaded { identity, key } = self.load(&data).await?;
        if let (Some(identity), Some(key)) = (identity, &key) {
            let key = Arc::clone(key);
            let now = self.clock.now();
            let is_expired = UnixSecs::from(now).plus(SKEW) >= identity.expires_at();
            match &trust {
                Trust::Bundle(bundle) => {
                    let bundle = bundle.clone();
                    let rule = RotationRule::new(self.config.availability_target);
                    let kept = self.vault.open(&identity, &bundle, now, &rule);
                    if !is_expired {
                        self.check_rebootstrap(identity.reattestable)?;
                        info!(spiffe_id = %identity.id, "SVID loaded");
                        // A bundle of the source's is stored once the server has proved it.
                        if is_stored {
                            self.store.update(AgentData::settle).await?;
                        }
                    }
                    // Workloads need not wait until the agent has another SVID.
                    if !is_expired || kept.as_ref().is_some_and(Kept::serves) {
                        return Ok(Attested { identity, key, bundle, kept });
                    }
                }
                Trust::Insecure if is_expired => {}
                Trust::Insecure => return Err(AttestError::NoBundle),
            }
        }
        info!("SVID is not found. Starting node attestation");
        // A key that is stored stays: the clock may be wrong, or the server never answer.
        match self.attest(&trust, key.as_ref().map(|key| key.id())).await {
            Ok(attested) => {
                self.check_rebootstrap(attested.identity.reattestable)?;
                let AgentIdentity { id, reattestable, .. } = &attested.identity;
                info!(spiffe_id = %id, reattestable, "Node attestation was successful");
                self.keep(&attested).await?;
                Ok(attested)
            }
            Err(error) => {
                match error.verdict() {
                    Verdict::UnknownAuthority if is_stored => self.doubt_bundle().await?,
                    Verdict::UnknownAuthority => {
                        info!("Trust Bundle and Server don't agree, bootstrapping again");
                    }
                    Verdict::Transient | Verdict::MustReattest | Verdict::Banned => {}
                }
                Err(error)
            }
        }
    }

    /// Stores the outcome of an attestation, so that the next start needs none.
    pub(crate) async fn keep(&self, attested: &Attested) -> Result<(), StoreError> {
        let svid = attested.identity.chain.to_vec();
        let reattestable = attested.identity.reattestable;
        let bundle = certificates(&attested.bundle);
        let keep = move |data: &mut AgentData| {
            data.svid = svid;
            data.reattestable = reattestable;
            data.bundle = bundle;
            data.settle();
        };
        self.store.update(keep).await
    }

    /// The SVID of the last run, which may have expired, and its key: both, or none.
    async fn load(&self, data: &AgentData) -> Result<Loaded, AttestError> {
        let keys = self.key_manager.keys().await.map_err(AttestError::Key)?;
        let Some(leaf) = data.svid.first() else {
            if !keys.is_empty() {
                warn!("Keys recovered, but no SVID found. Generating new keypair");
            }
            return Ok(Loaded::default());
        };
        let are_keys = !keys.is_empty();
        let Some(key) = keys.into_iter().find(|key| key.public() == leaf.public_key()) else {
            let what = if are_keys { "SVID key" } else { "keys" };
            warn!("SVID recovered, but no {what} found. Generating new keypair");
            return Ok(Loaded::default());
        };
        if UnixSecs::from(self.clock.now()).plus(SKEW) >= leaf.not_after() {
            let expiry = words::instant(leaf.not_after());
            warn!(expiry, "SVID key recovered, but SVID is expired. Generating new keypair");
            if !data.reattestable {
                info!("The node was attested once and for all: it needs a new join token, or its eviction");
            }
        }
        let id = leaf_id(leaf).map_err(|error| AttestError::Svid(error.to_string()))?;
        let chain = data.svid.as_slice().into();
        let identity = AgentIdentity { id, chain, reattestable: data.reattestable };
        Ok(Loaded { identity: Some(identity), key: Some(key) })
    }

    /// Attests the node to a server that proves `trust`. The new key goes into another place than
    /// `current`, so that what is in use stays usable until its successor is stored.
    pub(crate) async fn attest(
        &self,
        trust: &Trust,
        current: Option<&KeyId>,
    ) -> Result<Attested, AttestError> {
        let key = self.generate(current).await?;
        let call = self.meters.node_attestation(self.node_attestor.info().name());
        call.measure(self.new_svid(trust, key), AttestError::code).await
    }

    async fn new_svid(&self, trust: &Trust, key: Arc<dyn Key>) -> Result<Attested, AttestError> {
        let csr = csr(&*key).await.map_err(AttestError::Key)?;
        let (clients, server) = self.open(trust)?;
        let outcome = self.ask_for_svid(&clients, key, csr).await;
        match &outcome {
            Ok(_) => self.servers.answered(server),
            Err(error) if error.is_trouble() => self.servers.failed(server),
            Err(_) => {}
        }
        outcome
    }

    async fn ask_for_svid(
        &self,
        clients: &ServerClients,
        key: Arc<dyn Key>,
        csr: Vec<u8>,
    ) -> Result<Attested, AttestError> {
        let mut stream = AttestationStream::new(clients.agent(), self.node_attestor.info().name(), csr);
        let attesting = within(&*self.clock, TIMEOUT, self.node_attestor.attest(&mut stream)).await;
        let answer = match (attesting, stream.finish()) {
            (None, _) => return Err(AttestError::Timeout("failed to attest")),
            (Some(_), Err(failure)) => return Err(failure),
            (Some(Err(error)), Ok(_)) => return Err(AttestError::Plugin(error)),
            (Some(Ok(())), Ok(None)) => {
                return Err(AttestError::Svid("the plugin ended before the server did".to_owned()));
            }
            (Some(Ok(())), Ok(Some(answer))) => answer,
        };
        let bundle = self.bundle(clients).await?;
        let identity = self.accept(answer.svid, answer.reattestable, &*key, &bundle)?;
        Ok(Attested { identity, key, bundle, kept: None })
    }

    /// Has the server renew the SVID whose key is `current`.
    pub(crate) async fn renew(
        &self,
        connection: &Connection,
        current: &KeyId,
        bundle: &Bundle,
    ) -> Result<(AgentIdentity, Arc<dyn Key>), AttestError> {
        let key = self.generate(Some(current)).await?;
        let csr = csr(&*key).await.map_err(AttestError::Key)?;
        let lease = connection.lease()?;
        let RenewAgentResponse { svid } = self.ask_to_renew(connection, &lease, csr).await?;
        let identity = self.accept(svid, false, &*key, bundle)?;
        Ok((identity, key))
    }

    async fn ask_to_renew(
        &self,
        connection: &Connection,
        lease: &Lease,
        csr: Vec<u8>,
    ) -> Result<RenewAgentResponse, AttestError> {
        const DOING: &str = "failed to renew agent";
        let request = RenewAgentRequest { params: Some(AgentX509svidParams { csr: csr.into() }) };
        let mut agent = lease.clients.agent();
        match within(&*self.clock, CALL_TIMEOUT, agent.renew_agent(request)).await {
            None => {
                connection.failed(lease);
                Err(AttestError::Timeout(DOING))
            }
            Some(Err(status)) => {
                connection.reset(lease);
                Err(AttestError::call(DOING, status))
            }
            Some(Ok(answer)) => Ok(answer.into_inner()),
        }
    }

    async fn generate(&self, current: Option<&KeyId>) -> Result<Arc<dyn Key>, AttestError> {
        let [first, second] = SLOTS;
        let slot = if current.is_some_and(|id| id.as_str() == first) { second } else { first };
        self.key_manager.generate(&KeyId::new(slot), KeyKind::EcP256).await.map_err(AttestError::Key)
    }

    /// A connection of its own, without a client certificate.
    fn open(&self, trust: &Trust) -> Result<(ServerClients, Chosen), AttestError> {
        let server = tls::server_id(&self.config.trust_domain)
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let trust = match trust {
            Trust::Bundle(bundle) => ServerTrust::Id(server, Arc::new(FixedAnchors::of(bundle))),
            Trust::Insecure => {
                warn!("Insecure bootstrap enabled; skipping server certificate verification");
                ServerTrust::Unverified(server)
            }
        };
        let tls = tls::client_config(trust, OwnCertificate::empty(), post_quantum(&self.config))?;
        let (server, address) = self.servers.choose();
        Ok((ServerClients::dial(&Dialer::new(address.clone()).with_tls(tls))?, server))
    }

    async fn bundle(&self, clients: &ServerClients) -> Result<Bundle, AttestError> {
        const DOING: &str = "failed to get updated bundle";
        let mut client = clients.bundle();
        let asking = client.get_bundle(GetBundleRequest { output_mask: None });
        let answer = within(&*self.clock, CALL_TIMEOUT, asking).await;
        let answer = answer.ok_or(AttestError::Timeout(DOING))?;
        let answer = answer.map_err(|status| AttestError::call(DOING, status))?.into_inner();
        let bundle = Bundle::try_from(&answer).map_err(|error| AttestError::Bundle(error.to_string()))?;
        if bundle.trust_domain != self.config.trust_domain {
            return Err(AttestError::Bundle(format!("it is of {}", bundle.trust_domain.id())));
        }
        Ok(bundle)
    }

    /// Judges what the server signed: for this key, an agent of the trust domain, under the bundle.
    fn accept(
        &self,
        svid: Option<types::X509svid>,
        reattestable: bool,
        key: &dyn Key,
        bundle: &Bundle,
    ) -> Result<AgentIdentity, AttestError> {
        let refused = |reason: String| AttestError::Svid(reason);
        let svid = svid.ok_or_else(|| refused("attest response is missing SVID".to_owned()))?;
        let chain: Vec<Certificate> = svid
            .cert_chain
            .iter()
            .map(|der| Certificate::parse(der))
            .collect::<Result<_, _>>()
            .map_err(|error| refused(format!("invalid SVID cert chain: {error}")))?;
        let (leaf, intermediates) =
            chain.split_first().ok_or_else(|| refused("empty SVID cert chain".to_owned()))?;
        if leaf.public_key() != key.public() {
            return Err(refused("the SVID is for another key".to_owned()));
        }
        let id = leaf_id(leaf).map_err(|error| refused(error.to_string()))?;
        if !id.is_member_of(&self.config.trust_domain) {
            return Err(refused(format!("{id} is not a member of {}", self.config.trust_domain.id())));
        }
        let bundles = Bundles::new(Arc::new(bundle.clone()), std::collections::BTreeMap::new());
        let judged_at = UnixSecs::from(self.clock.now()).max(leaf.not_before());
        find_path(leaf, intermediates, &bundles.anchors, judged_at)
            .map_err(|error| refused(SvidError::from(error).to_string()))?;
        Ok(AgentIdentity { id, chain: chain.into(), reattestable })
    }

    /// Asks the configured source for the bundle, and counts the attempt.
    async fn ask_source(&self) -> Result<Trust, AttestError> {
        let now = OffsetDateTime::from(self.clock.now());
        let count = move |data: &mut AgentData| {
            if data.bootstrap == BootstrapUse::Unspecified {
                data.bootstrap = BootstrapUse::Bootstrap;
            }
            data.trying_since.get_or_insert(now);
            data.attempts = data.attempts.saturating_add(1);
        };
        self.store.update(count).await?;
        Ok(bootstrap::fetch(&self.config, &self.store.data(), &*self.clock).await?)
    }

    /// The server does not lead to the stored bundle. If that lasts, and it is configured so, the
    /// bundle is forgotten and the source asked again.
    async fn doubt_bundle(&self) -> Result<(), StoreError> {
        if self.config.rebootstrap == Rebootstrap::Never {
            return Ok(());
        }
        let doubted = self.since_doubt().await?;
        if doubted < self.config.rebootstrap_delay {
            let left = self.config.rebootstrap_delay - doubted;
            info!(time_left = ?left, "Trust Bundle and Server don't agree, ignoring for now");
            return Ok(());
        }
        warn!("Trust Bundle and Server don't agree, rebootstrapping");
        self.vault.give_up();
        self.store.update(|data| data.bundle = Vec::new()).await
    }

    /// For how long the bundle has been doubted; the clock starts with the first call.
    async fn since_doubt(&self) -> Result<Duration, StoreError> {
        let now: SystemTime = self.clock.now();
        self.store
            .update(move |data| {
                data.bootstrap = BootstrapUse::Rebootstrap;
                data.trying_since.get_or_insert_with(|| OffsetDateTime::from(now));
            })
            .await?;
        let since = self.store.data().trying_since.map_or(now, SystemTime::from);
        Ok(now.duration_since(since).unwrap_or_default())
    }

    /// What a running agent does when the server does not lead to its bundle: `Ok` is to go on.
    ///
    /// # Errors
    /// The agent is to end: for good, or to start again with a bundle from the source.
    pub(crate) async fn disagree(&self, agent: &AgentIdentity) -> Result<(), AttestError> {
        if self.config.rebootstrap == Rebootstrap::Never || !agent.reattestable {
            return Err(AttestError::Bundle(
                "failed to sync with SPIRE Server: certificate signed by unknown authority".to_owned(),
            ));
        }
        let doubted = self.since_doubt().await?;
        if doubted < self.config.rebootstrap_delay {
            let left = self.config.rebootstrap_delay - doubted;
            info!(time_left = ?left, "Trust Bundle and Server don't agree, ignoring for now");
            return Ok(());
        }
        warn!("Trust Bundle and Server don't agree, rebootstrapping");
        self.vault.give_up();
        let now = OffsetDateTime::from(self.clock.now());
        self.store
            .update(move |data| {
                data.forget_svid();
                data.bundle = Vec::new();
                data.bootstrap = BootstrapUse::Rebootstrap;
                data.trying_since = Some(now);
                data.attempts = 0;
            })
            .await?;
        Err(AttestError::Rebootstrap)
    }

    fn check_rebootstrap(&self, reattestable: bool) -> Result<(), AttestError> {
        match self.config.rebootstrap {
            Rebootstrap::Always if !reattestable => Err(AttestError::NotReattestable),
            Rebootstrap::Auto if !reattestable => {
                warn!(
                    "you have requested rebootstrap support but the NodeAttestor plugin or the spire server \
                     configuration is not allowing it. Disabling"
                );
                Ok(())
            }
            Rebootstrap::Always | Rebootstrap::Auto | Rebootstrap::Never => Ok(()),
        }
    }
}

/// What the configuration says of key exchanges.
pub(crate) fn post_quantum(config: &AgentConfig) -> PostQuantum {
    PostQuantum::required_if(config.experimental.require_pq_kem)
}

/// The X.509 authorities of `bundle` as they are stored.
pub(crate) fn certificates(bundle: &Bundle) -> Vec<Certificate> {
    let parse =
        |authority: &spiffe::X509Authority| Certificate::parse_all(&authority.der).unwrap_or_default();
    bundle.x509_authorities.iter().flat_map(parse).collect()
}

/// The ids of the agent's keys, used in turn.
const SLOTS: [&str; 2] = ["agent-svid-A", "agent-svid-B"];

/// A request for `key` that names nobody: whom it is for is the server's to say.
async fn csr(key: &dyn Key) -> Result<Vec<u8>, PluginError> {
    let template = CsrTemplate {
        subject: Name::new(&[(Attribute::Country, "US"), (Attribute::Organization, "SPIRE")]),
        id: None,
        dns_names: Vec::new(),
    };
    let tbs = template.tbs(key.public());
    let signature = key.sign(SigAlg::EcdsaP256Sha256, &tbs).await?;
    Ok(CsrTemplate::assemble(&tbs, SigAlg::EcdsaP256Sha256, &signature))
}
