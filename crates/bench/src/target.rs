//! The server and the agent under load: how to reach them, and who they are.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client::{Address, Dialer, ServerClients, WorkloadApi};
use proto::spire::server::bundle::GetBundleRequest;
use runtime::clock::{Clock, SystemClock};
use rustls::ClientConfig;
use spiffe::tls::{Anchors, OwnCertificate, ServerTrust, ServerVerifier, client_config};
use spiffe::x509::Certificate;
use spiffe::{Bundle, SpiffeId, TrustDomain};
use tonic::transport::Channel;

use crate::process::Process;
use crate::report::TargetFacts;
use crate::{BenchError, Progress, Surroundings, TargetSettings};

/// A server, and perhaps an agent of it.
pub(crate) struct Target {
    settings: TargetSettings,
    /// Calls over the server's own socket.
    pub(crate) admin: ServerClients,
    /// The server's bundle when the run began.
    pub(crate) bundle: Bundle,
    pub(crate) trust_domain: TrustDomain,
    /// The server's process.
    pub(crate) server: Process,
    /// Tells runs apart that follow each other on one target.
    pub(crate) run: String,
    pub(crate) progress: Progress,
    /// Where the addresses of this run's agents begin.
    first_source: u32,
    /// How many agents have an address already.
    agents: Cell<usize>,
}

/// How long a call may take before it counts as failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

impl Target {
    /// Reaches the server and learns its bundle.
    ///
    /// # Errors
    /// It is elsewhere, or not there.
    pub(crate) async fn reach(settings: &TargetSettings, around: &Surroundings) -> Result<Self, BenchError> {
        let socket = socket_of(settings)?;
        check_near(settings)?;
        let server = match settings.server_pid {
            Some(pid) => Process::of_pid(pid)?,
            None => Process::behind(&socket).await?,
        };
        let admin = ServerClients::new(local(socket.clone()).await?).with_receive_limit(MOST_ANSWER);
        let answer = admin.bundle().get_bundle(GetBundleRequest::default()).await;
        let wire = answer.map_err(BenchError::call("get the bundle"))?.into_inner();
        let bundle = Bundle::try_from(&wire)
            .map_err(|error| BenchError::Wrong(format!("the bundle cannot be read: {error}")))?;
        let millis = SystemClock.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
        Ok(Self {
            settings: settings.clone(),
            admin,
            trust_domain: bundle.trust_domain.clone(),
            bundle,
            server,
            run: format!("{millis:x}"),
            progress: Arc::clone(&around.progress),
            // Another window each quarter of a second, so that no limit of an earlier run counts.
            first_source: u32::try_from(millis / 250 % 4096).unwrap_or_default() * 4096,
            agents: Cell::new(0),
        })
    }

    /// Tells the person at the terminal.
    pub(crate) fn say(&self, text: &str) {
        (self.progress)(text);
    }

    /// An id of the trust domain.
    ///
    /// # Errors
    /// The path is none.
    pub(crate) fn id(&self, path: &str) -> Result<SpiffeId, BenchError> {
        self.trust_domain.id_with_path(path).map_err(|error| BenchError::Setting(format!("{path}: {error}")))
    }

    /// Another connection to the server's own socket.
    ///
    /// # Errors
    /// It does not open.
    pub(crate) async fn another_admin(&self) -> Result<ServerClients, BenchError> {
        Ok(ServerClients::new(local(socket_of(&self.settings)?).await?).with_receive_limit(MOST_ANSWER))
    }

    /// One connection to the server's own socket for each of `count` callers.
    ///
    /// # Errors
    /// One does not open.
    pub(crate) async fn admins(&self, count: usize) -> Result<Vec<ServerClients>, BenchError> {
        futures::future::try_join_all((0..count).map(|_| self.another_admin())).await
    }

    /// The process that serves the server's own socket now: another one after a restart.
    pub(crate) async fn server_now(&self) -> Option<Process> {
        Process::behind(&socket_of(&self.settings).ok()?).await.ok()
    }

    /// Numbers for `count` agents more, of which this is the first.
    pub(crate) fn numbers(&self, count: usize) -> usize {
        let first = self.agents.get();
        self.agents.set(first + count);
        first
    }

    /// What dials the server as the agent number `number`, which presents `own`.
    ///
    /// # Errors
    /// No address was given.
    pub(crate) fn agent_dialer(&self, number: usize, own: Arc<OwnCertificate>) -> Result<Dialer, BenchError> {
        let (host, port) = address_of(&self.settings)?;
        let dialer =
            Dialer::new(Address::tcp(&host, port)).with_tls(self.tls(own)?).with_call_timeout(CALL_TIMEOUT);
        let is_v4 = host.parse::<IpAddr>().map_or(host == "localhost", |address| address.is_ipv4());
        // One address each, as agents on machines of their own have: servers limit by address.
        Ok(if self.settings.remote || !is_v4 { dialer } else { dialer.with_source(self.source(number)) })
    }

    fn tls(&self, own: Arc<OwnCertificate>) -> Result<Arc<ClientConfig>, BenchError> {
        let anchors = anchors_of(&self.bundle)?;
        let trust = ServerTrust::Id(
            self.id("/spire/server")?,
            Arc::new(Own(self.trust_domain.clone(), anchors.into())),
        );
        let config = client_config(ServerVerifier::new(trust), own).map_err(BenchError::crypto)?;
        Ok(Arc::new(config))
    }

    /// A loopback address for the agent number `number`, away from 127.0.0.1 and its neighbours.
    fn source(&self, number: usize) -> IpAddr {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let host = self.first_source.wrapping_add(number) % (SOURCES - FIRST_SOURCE) + FIRST_SOURCE;
        IpAddr::V4(Ipv4Addr::from(LOOPBACK | host))
    }

    /// The agent's Workload API on a connection of its own, opened at the first call.
    ///
    /// # Errors
    /// No socket was given.
    pub(crate) fn workload(&self) -> Result<WorkloadApi, BenchError> {
        let socket = agent_socket_of(&self.settings)?;
        WorkloadApi::at(Address::unix(&socket)).map_err(|error| BenchError::Unreached(error.to_string()))
    }

    /// The agent's process.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) async fn agent(&self) -> Result<Process, BenchError> {
        match self.settings.agent_pid {
            Some(pid) => Process::of_pid(pid),
            None => Process::behind(&agent_socket_of(&self.settings)?).await,
        }
    }

    /// What the report says of it.
    pub(crate) async fn facts(&self) -> TargetFacts {
        let program = self.server.program();
        TargetFacts {
            label: self.settings.label.clone(),
            trust_domain: self.trust_domain.to_string(),
            version: version_of(&program, self.server.pid()).await,
            program,
            pid: self.server.pid(),
        }
    }
}

/// The X.509 authorities of a bundle.
///
/// # Errors
/// One cannot be read.
pub(crate) fn anchors_of(bundle: &Bundle) -> Result<Vec<Certificate>, BenchError> {
    bundle
        .x509_authorities
        .iter()
        .map(|authority| Certificate::parse(&authority.der))
        .collect::<Result<_, _>>()
        .map_err(|error| BenchError::Wrong(format!("an authority of the bundle cannot be read: {error}")))
}

const UNKNOWN_VERSION: &str = "of unknown version";
/// Lists of entries come in one message.
const MOST_ANSWER: usize = 1 << 30;
const LOOPBACK: u32 = 0x7f00_0000;
const FIRST_SOURCE: u32 = 0x1_0000;
/// The last one would be the broadcast address.
const SOURCES: u32 = 0x00ff_ffff;

#[derive(Debug)]
struct Own(TrustDomain, Arc<[Certificate]>);

impl Anchors for Own {
    fn anchors(&self, trust_domain: &str) -> Option<Arc<[Certificate]>> {
        (trust_domain == self.0.as_str()).then(|| Arc::clone(&self.1))
    }
}

async fn local(socket: PathBuf) -> Result<Channel, BenchError> {
    let dialer = Dialer::new(Address::Unix(socket)).with_call_timeout(CALL_TIMEOUT);
    dialer.connect().await.map_err(|error| BenchError::Unreached(runtime::chain(&error)))
}

fn socket_of(settings: &TargetSettings) -> Result<PathBuf, BenchError> {
    let missing = || BenchError::Setting("the server's socket is missing: give -socketPath".to_owned());
    settings.server_socket.clone().ok_or_else(missing)
}

fn agent_socket_of(settings: &TargetSettings) -> Result<PathBuf, BenchError> {
    let missing = || BenchError::Setting("the agent's socket is missing: give -agentSocketPath".to_owned());
    settings.agent_socket.clone().ok_or_else(missing)
}

fn address_of(settings: &TargetSettings) -> Result<(String, u16), BenchError> {
    let text = settings.server_address.as_deref().unwrap_or_default();
    if text.is_empty() {
        let missing = "the server's address for agents is missing: give -serverAddress host:port";
        return Err(BenchError::Setting(missing.to_owned()));
    }
    let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parts
        .ok_or_else(|| BenchError::Setting(format!("the server's address {text:?} is not host:port")))?;
    Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}

/// Refuses servers on other machines, unless told that this is meant.
fn check_near(settings: &TargetSettings) -> Result<(), BenchError> {
    if settings.remote || settings.server_address.as_deref().unwrap_or_default().is_empty() {
        return Ok(());
    }
    let (host, _) = address_of(settings)?;
    let is_near = host.parse::<IpAddr>().map_or(host == "localhost", |address| address.is_loopback());
    if is_near {
        return Ok(());
    }
    Err(BenchError::Setting(format!(
        "{host} is not this machine: load on a server that serves others is an outage; -remote says that you mean it"
    )))
}

/// What the program of the process says its version is; its file is asked, since that is what runs. A
/// file that somebody else could have put there is not.
async fn version_of(program: &str, pid: i32) -> String {
    let file = format!("/proc/{pid}/exe");
    let owner = |path: &str| std::fs::metadata(path).ok().map(|of| of.uid());
    let is_trusted = owner(&file).is_some_and(|uid| uid == 0 || Some(uid) == owner("/proc/self"));
    if !is_trusted {
        return UNKNOWN_VERSION.to_owned();
    }
    let mut command = tokio::process::Command::new(&file);
    // A program of many names goes by the one it was called by.
    command.arg0(program).arg("-version").stdin(std::process::Stdio::null()).kill_on_drop(true);
    let asked = tokio::time::timeout(Duration::from_secs(5), command.output()).await;
    let Ok(Ok(output)) = asked else { return UNKNOWN_VERSION.to_owned() };
    let said = if output.stderr.is_empty() { output.stdout } else { output.stderr };
    let said = String::from_utf8_lossy(&said);
    let said = said.lines().next().unwrap_or_default().trim();
    if said.is_empty() || !output.status.success() { UNKNOWN_VERSION.to_owned() } else { said.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(address: &str, remote: bool) -> bool {
        let settings =
            TargetSettings { server_address: Some(address.to_owned()), remote, ..TargetSettings::default() };
        check_near(&settings).is_ok()
    }

    #[test]
    fn other_machines_have_to_be_asked_for_twice() {
        assert!(near("127.0.0.1:8081", false) && near("127.9.9.9:1", false) && near("[::1]:8081", false));
        assert!(near("localhost:8081", false));
        assert!(!near("10.0.0.1:8081", false) && !near("spire.example.org:8081", false));
        assert!(near("10.0.0.1:8081", true));
    }

    #[test]
    fn addresses_are_taken_apart() {
        let parts = |text: &str| {
            address_of(&TargetSettings { server_address: Some(text.to_owned()), ..TargetSettings::default() })
                .ok()
        };

        assert_eq!(parts("[::1]:8081"), Some(("::1".to_owned(), 8081)));
        assert_eq!(parts("localhost:1"), Some(("localhost".to_owned(), 1)));
        assert_eq!(parts("localhost"), None);
        assert_eq!(parts(""), None);
    }
}
