//! A server in this process, and clients of every kind.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::{Address, Dialer, ServerClients};
use config::{
    CaConfig, FederationConfig, HealthConfig, LogConfig, PluginBlock, PluginData, ProfilingConfig,
    ServerConfig, ServerExperimental, ServerFinial, ServerRateLimits, TelemetryConfig,
};
use proto::spire::server::agent as wire;
use proto::spire::types;
use runtime::clock::{Clock, ManualClock, SystemClock};
use runtime::log::{self, Log};
use runtime::shutdown::Shutdown;
use runtime::tasks::Tasks;
use server::{Server, StartError};
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::tls::{OwnCertificate, ServerTrust, ServerVerifier, client_config};
use spiffe::x509::{CertDer, CsrTemplate, Name};
use spiffe::{SpiffeId, TrustDomain};
use tempfile::TempDir;
use tonic::{Code, Status};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Moves the clock step by step until `look` finds something. After each step it stands for a while: what the
/// step started is written to disk, which has a clock of its own.
pub(crate) async fn in_time<T>(
    clock: &ManualClock,
    step: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    loop {
        for _ in 0..30 {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        clock.advance(step);
    }
}

/// A folder that servers run in, one after the other.
pub(crate) struct Place {
    directory: TempDir,
    pub(crate) config: ServerConfig,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        Self { directory, config }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) async fn build(&self, clock: Arc<dyn Clock>) -> Result<Server, StartError> {
        let options = log::Options { output: log::Output::File(self.path("log")), ..log::Options::default() };
        let (_, log) = Log::new(&options).unwrap();
        Server::build(self.config.clone(), log, clock).await
    }

    pub(crate) async fn start(&self) -> Running {
        self.start_at(Arc::new(SystemClock)).await
    }

    pub(crate) async fn start_at(&self, clock: Arc<dyn Clock>) -> Running {
        let server = self.build(clock).await.unwrap();
        let (address, socket) = (server.address(), server.socket_path().to_owned());
        let statements = Box::new(server.statements());
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.token().clone());
        let stop = shutdown.clone();
        tasks.spawn("server", async move { server.run(&stop).await });
        Running { address, socket, statements, shutdown, tasks }
    }
}

/// A server that runs.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    socket: PathBuf,
    statements: Box<dyn Fn() -> u64 + Send>,
    shutdown: Shutdown,
    tasks: Tasks,
}

impl Running {
    pub(crate) fn statements(&self) -> u64 {
        (self.statements)()
    }

    pub(crate) async fn stop(self) {
        self.shutdown.trigger();
        self.tasks.join().await.unwrap();
    }

    /// By the server's own socket.
    pub(crate) fn local(&self) -> ServerClients {
        ServerClients::dial(&Dialer::new(Address::unix(&self.socket))).unwrap()
    }

    /// By TLS without a certificate.
    pub(crate) fn anonymous(&self) -> ServerClients {
        self.remote(OwnCertificate::empty())
    }

    pub(crate) fn remote(&self, own: Arc<OwnCertificate>) -> ServerClients {
        let id = SpiffeId::parse("spiffe://example.org/spire/server").unwrap();
        let tls = client_config(ServerVerifier::new(ServerTrust::Unverified(id)), own).unwrap();
        let address = Address::tcp("127.0.0.1", self.address.port());
        ServerClients::dial(&Dialer::new(address).with_tls(Arc::new(tls))).unwrap()
    }

    pub(crate) async fn token(&self, token: &str) {
        let request = wire::CreateJoinTokenRequest { ttl: 600, token: token.to_owned(), agent_id: None };
        self.local().agent().create_join_token(request).await.unwrap();
    }

    /// Attests with a join token made for it.
    pub(crate) async fn agent(&self, token: &str) -> TestAgent {
        self.token(token).await;
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let svid = attest(&self.anonymous(), token, &csr(&key)).await.unwrap();
        TestAgent::new(key, &svid)
    }
}

/// An agent that attested.
pub(crate) struct TestAgent {
    pub(crate) id: types::Spiffeid,
    pub(crate) chain: Vec<CertDer>,
    pub(crate) own: Arc<OwnCertificate>,
    key: PrivateKey,
}

impl TestAgent {
    fn new(key: PrivateKey, svid: &types::X509svid) -> Self {
        let own = OwnCertificate::empty();
        let mut agent = Self { id: svid.id.clone().unwrap(), chain: Vec::new(), own, key };
        agent.take(svid);
        agent
    }

    fn take(&mut self, svid: &types::X509svid) {
        self.chain = svid.cert_chain.iter().map(|der| CertDer::new(der)).collect();
        self.own.set(&self.chain, &self.key).unwrap();
    }

    /// Shows the SVID it has now for good, whatever it gets later.
    pub(crate) fn as_it_is(&self) -> Arc<OwnCertificate> {
        let own = OwnCertificate::empty();
        own.set(&self.chain, &self.key).unwrap();
        own
    }

    pub(crate) async fn renew(&mut self, clients: &ServerClients) -> Result<(), Status> {
        let params = Some(wire::AgentX509svidParams { csr: csr(&self.key).into() });
        let renewed = clients.agent().renew_agent(wire::RenewAgentRequest { params }).await?;
        self.take(&renewed.into_inner().svid.unwrap());
        Ok(())
    }
}

pub(crate) fn csr(key: &PrivateKey) -> Vec<u8> {
    CsrTemplate { subject: Name::new(&[]), id: None, dns_names: Vec::new() }.sign(key).unwrap()
}

pub(crate) async fn attest(
    clients: &ServerClients,
    token: &str,
    csr: &[u8],
) -> Result<types::X509svid, Status> {
    let request = wire::AttestAgentRequest {
        step: Some(wire::attest_agent_request::Step::Params(wire::attest_agent_request::Params {
            data: Some(types::AttestationData {
                r#type: "join_token".to_owned(),
                payload: token.as_bytes().to_vec().into(),
            }),
            params: Some(wire::AgentX509svidParams { csr: csr.to_vec().into() }),
        })),
    };
    let answers = clients.agent().attest_agent(futures::stream::iter([request])).await?;
    match answers.into_inner().message().await?.unwrap().step.unwrap() {
        wire::attest_agent_response::Step::Result(result) => Ok(result.svid.unwrap()),
        wire::attest_agent_response::Step::Challenge(_) => panic!("a join token needs no challenge"),
    }
}

pub(crate) fn expect_status<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

fn config(directory: &Path) -> ServerConfig {
    let database = directory.join("data.sqlite3");
    let sql = format!("database_type = \"sqlite3\"\nconnection_string = \"{}\"", database.display());
    let keys = format!("keys_path = \"{}\"", directory.join("keys.json").display());
    ServerConfig {
        trust_domain: TrustDomain::parse("example.org").unwrap(),
        bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        socket_path: directory.join("private").join("api.sock"),
        data_dir: directory.join("data"),
        log: LogConfig {
            level: "INFO".to_owned(),
            format: String::new(),
            file: None,
            source_location: false,
        },
        admin_ids: Vec::new(),
        audit_log: false,
        ca: CaConfig {
            ttl: 24 * HOUR,
            x509_key: KeyKind::EcP256,
            jwt_key: KeyKind::EcP256,
            wit_key: KeyKind::EcP256,
            country: Vec::new(),
            organization: Vec::new(),
            common_name: String::new(),
            jwt_issuer: String::new(),
            wit_issuer: String::new(),
        },
        x509_svid_ttl: HOUR,
        jwt_svid_ttl: Duration::from_secs(300),
        agent_ttl: HOUR,
        disable_jwt_svids: false,
        rate_limits: ServerRateLimits { attestation: false, signing: true },
        max_agent_staleness: None,
        proxy_protocol_trusted: Vec::new(),
        prune_agents: None,
        federation: FederationConfig::default(),
        experimental: ServerExperimental {
            agent_spiffe_id_as_selector: false,
            cache_reload_interval: Duration::from_secs(5),
            full_cache_reload_interval: 24 * HOUR,
            events_based_cache: false,
            prune_events_older_than: 12 * HOUR,
            event_timeout: Duration::from_secs(900),
            require_pq_kem: false,
            wit_svid: false,
            policy: None,
        },
        finial: ServerFinial::default(),
        plugins: vec![
            block("DataStore", "sql", &sql),
            block("KeyManager", "disk", &keys),
            block("NodeAttestor", "join_token", ""),
        ],
        health: HealthConfig {
            enabled: false,
            bind_address: String::new(),
            bind_port: String::new(),
            live_path: String::new(),
            ready_path: String::new(),
        },
        telemetry: TelemetryConfig::default(),
        profiling: ProfilingConfig::default(),
    }
}

pub(crate) fn block(kind: &str, name: &str, data: &str) -> PluginBlock {
    PluginBlock {
        kind: kind.to_owned(),
        name: name.to_owned(),
        command: String::new(),
        args: Vec::new(),
        checksum: String::new(),
        enabled: true,
        data: PluginData::Inline(data.to_owned()),
    }
}
