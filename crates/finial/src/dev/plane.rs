//! Server and agent of a throw-away trust domain, started together.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::Agent;
use anyhow::{Context as _, Result, bail};
use client::dial::{Address, Dialer};
use client::server::ServerClients;
use client::workload::WorkloadApi;
use proto::spire::server::agent::CreateJoinTokenRequest;
use proto::spire::server::bundle::GetBundleRequest;
use proto::spire::server::entry::BatchCreateEntryRequest;
use proto::spire::types;
use runtime::clock::{Clock, SystemClock};
use runtime::log::{Format, Level, Log, Options, Output};
use runtime::shutdown::Shutdown;
use runtime::tasks::Tasks;
use server::Server;
use spiffe::x509::to_pem;
use spiffe::{TrustDomain, UnixSecs};
use tempfile::TempDir;
use tonic::Code;

use super::{Wanted, settings};

/// How long the first identity may take.
const PATIENCE: i64 = 20;
/// How long to wait between two looks for it.
const PAUSE: Duration = Duration::from_millis(2);
/// How much of the log an error shows.
const TAIL: usize = 3;

/// A running trust domain.
pub(super) struct Plane {
    trust_domain: TrustDomain,
    home: Home,
    paths: Paths,
    server_address: std::net::SocketAddr,
    user: User,
}

/// Where state lives.
enum Home {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Home {
    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }
}

/// The files of a trust domain.
pub(super) struct Paths {
    pub(super) server_data: PathBuf,
    pub(super) server_socket: PathBuf,
    pub(super) agent_data: PathBuf,
    pub(super) workload_socket: PathBuf,
    pub(super) admin_socket: PathBuf,
    pub(super) bundle: PathBuf,
    pub(super) log: PathBuf,
    pub(super) server_conf: PathBuf,
    pub(super) agent_conf: PathBuf,
}

/// The calling user.
struct User {
    name: String,
    uid: u32,
}

impl Plane {
    /// Starts a server and an agent and waits until the calling user has an identity. The tasks are to
    /// be joined; they end when `shutdown` is triggered.
    pub(super) async fn start(wanted: &Wanted, shutdown: &Shutdown) -> Result<(Self, Tasks)> {
        let home = home(wanted.data_dir.as_deref())?;
        let dir = home.path();
        let paths = Paths {
            server_data: dir.join("server"),
            server_socket: dir.join("server/api.sock"),
            agent_data: dir.join("agent"),
            workload_socket: wanted.socket.clone().unwrap_or_else(|| dir.join("workload/api.sock")),
            admin_socket: dir.join("agent/admin.sock"),
            bundle: dir.join("agent/bootstrap.pem"),
            log: dir.join("finial.log"),
            server_conf: dir.join("server.conf"),
            agent_conf: dir.join("agent.conf"),
        };
        for data in [&paths.server_data, &paths.agent_data] {
            private_dir(data)?;
        }
        let log = Log::install(&Options {
            level: Level::Info,
            format: Format::Text,
            output: Output::File(paths.log.clone()),
            source_location: false,
        })?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let user = User::calling();
        let mut tasks = Tasks::new(shutdown.token().clone());

        let mut config = settings::server(&wanted.trust_domain, &paths)?;
        // Any free port will do: the agent is told.
        config.bind.set_port(0);
        let server = Server::build(config, log.clone(), Arc::clone(&clock)).await?;
        let server_address = server.address();
        // What would start the same server by hand.
        settings::write_server(&wanted.trust_domain, &paths, server_address.port())?;
        let stop = shutdown.clone();
        tasks.spawn("server", async move { server.run(&stop).await });

        let clients = ServerClients::dial(&Dialer::new(Address::unix(&paths.server_socket)))?;
        let plane = Self { trust_domain: wanted.trust_domain.clone(), home, paths, server_address, user };
        let token = plane.register(&clients).await?;
        plane.write_bundle(&clients).await?;

        let config = settings::agent(&plane.trust_domain, &plane.paths, server_address.port(), token)?;
        let agent = Agent::build(config, log, Arc::clone(&clock)).await?;
        let stop = shutdown.clone();
        tasks.spawn("agent", async move { agent.run(&stop).await });

        plane.await_identity(&*clock, shutdown).await?;
        Ok((plane, tasks))
    }

    /// The Workload API's address.
    pub(super) fn address(&self) -> String {
        format!("unix://{}", self.paths.workload_socket.display())
    }

    /// What runs where, and what to try next.
    pub(super) fn described(&self, took: Duration) -> String {
        let kept = match &self.home {
            Home::Kept(path) => format!("{} (kept)", path.display()),
            Home::Temporary(dir) => format!("{} (removed at the end)", dir.path().display()),
        };
        let server = self.paths.server_socket.display();
        let User { name, uid } = &self.user;
        format!(
            "\
{td} is up after {took} ms. Ctrl-C ends it.

  server        {address}, local API {server}
  agent         Workload API {workload}
  you           {id} (every process of uid {uid}, {name})
  state, log    {kept}

Try in another terminal:

  export SPIFFE_ENDPOINT_SOCKET={workload}
  finial agent api fetch x509 -socketPath {socket}
  finial agent api fetch jwt -audience test -socketPath {socket}
  finial server entry show -socketPath {server}
",
            td = self.trust_domain,
            took = took.as_millis(),
            address = self.server_address,
            workload = self.address(),
            socket = self.paths.workload_socket.display(),
            id = self.workload_id(),
        )
    }

    /// The last lines of the log that tell of trouble, for an error.
    pub(super) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.paths.log).unwrap_or_default();
        let bad = |line: &&str| line.contains("level=error") || line.contains("level=warning");
        let mut lines: Vec<&str> = text.lines().filter(bad).rev().take(TAIL).collect();
        lines.reverse();
        if lines.is_empty() { "the log tells nothing".to_owned() } else { lines.join(" | ") }
    }

    fn workload_id(&self) -> String {
        format!("spiffe://{}/user/{}", self.trust_domain, self.user.path())
    }

    /// Registers the calling user below an alias of this machine's agent, and hands back a join token
    /// with that alias.
    async fn register(&self, clients: &ServerClients) -> Result<String> {
        let id = |path: String| Some(types::Spiffeid { trust_domain: self.trust_domain.to_string(), path });
        let node = || id("/node".to_owned());
        let entry = types::Entry {
            spiffe_id: id(format!("/user/{}", self.user.path())),
            parent_id: node(),
            selectors: vec![types::Selector {
                r#type: "unix".to_owned(),
                value: format!("uid:{}", self.user.uid),
            }],
            ..types::Entry::default()
        };
        let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
        let results = clients.entry().batch_create_entry(request).await?.into_inner().results;
        let status = results.into_iter().next().and_then(|result| result.status).unwrap_or_default();
        // With kept state it was registered before.
        if status.code != 0 && status.code != Code::AlreadyExists as i32 {
            bail!("cannot register the calling user: {}", status.message);
        }
        let request = CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: node() };
        Ok(clients.agent().create_join_token(request).await?.into_inner().value)
    }

    async fn write_bundle(&self, clients: &ServerClients) -> Result<()> {
        let bundle = clients.bundle().get_bundle(GetBundleRequest::default()).await?.into_inner();
        let pem: String =
            bundle.x509_authorities.iter().map(|authority| to_pem("CERTIFICATE", &authority.asn1)).collect();
        settings::write(&self.paths.bundle, &pem)
    }

    async fn await_identity(&self, clock: &dyn Clock, shutdown: &Shutdown) -> Result<()> {
        let api = WorkloadApi::at(Address::unix(&self.paths.workload_socket))?;
        let deadline = UnixSecs::from(clock.now()).plus(PATIENCE);
        loop {
            let Err(error) = api.x509_svids().await else { return Ok(()) };
            if shutdown.is_triggered() || UnixSecs::from(clock.now()) > deadline {
                return Err(error)
                    .with_context(|| format!("this user got no identity in time: {}", self.log_tail()));
            }
            clock.sleep(PAUSE).await;
        }
    }
}

impl User {
    fn calling() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let name = std::env::var("USER").ok().filter(|name| !name.is_empty());
        Self { name: name.unwrap_or_else(|| format!("uid-{uid}")), uid }
    }

    /// The name as a segment of a SPIFFE ID.
    fn path(&self) -> String {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if self.name.bytes().all(allowed) { self.name.clone() } else { format!("uid-{}", self.uid) }
    }
}

fn home(kept: Option<&Path>) -> Result<Home> {
    let Some(path) = kept else {
        let dir = tempfile::Builder::new().prefix("finial-dev-").tempdir();
        return Ok(Home::Temporary(dir.context("cannot make a temporary directory")?));
    };
    private_dir(path)?;
    let path = path.canonicalize().with_context(|| format!("cannot use {}", path.display()))?;
    Ok(Home::Kept(path))
}

fn private_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))
}
