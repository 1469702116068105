//! What a run is told: where the target is, how much load, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

/// Where a target is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TargetSettings {
    /// How the target is called in the report.
    pub label: String,
    /// The server's own socket.
    pub server_socket: Option<PathBuf>,
    /// The server's port for agents, `host:port`.
    pub server_address: Option<String>,
    /// The agent's socket for workloads.
    pub agent_socket: Option<PathBuf>,
    /// The agent's socket for administrators.
    pub agent_admin_socket: Option<PathBuf>,
    /// The server process, where its socket does not tell.
    pub server_pid: Option<i32>,
    /// The agent process, where its socket does not tell.
    pub agent_pid: Option<i32>,
    /// Whether the server may be on another machine. Load on a server that serves others is an outage.
    pub remote: bool,
}

/// How much load, and for how long. Commands take of it what concerns them.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Where.
    pub target: TargetSettings,
    /// How long each phase lasts.
    pub duration: Duration,
    /// Calls a second; none measures how many there can be first, and then the time of an answer at half
    /// of that.
    pub rate: Option<f64>,
    /// How many calls are under way at a time, at most.
    pub callers: usize,
    /// How many agents are simulated.
    pub agents: usize,
    /// How many entries: in all, or of each agent. Commands that take several do each.
    pub entries: Vec<usize>,
    /// Below how many parents entries are spread.
    pub parents: usize,
    /// How many items a call carries. Commands that take several do each.
    pub batches: Vec<usize>,
    /// How often something is done that is not timed by a duration.
    pub count: usize,
    /// How often an idle agent asks.
    pub interval: Duration,
    /// How many streams are held open.
    pub streams: usize,
    /// On how many connections; none: on one each.
    pub connections: Option<usize>,
    /// Of how many new SVIDs the streams are told.
    pub rotations: usize,
    /// One answer in so many is checked in full.
    pub check_every: u64,
    /// Whether entries and agents are left in place.
    pub keep: bool,
    /// Whose entries a workload's are to be: an id below which the agent is. None for the agent itself,
    /// which must then be the only one.
    pub parent_id: Option<String>,
    /// What restarts the server, for the shell.
    pub restart: Option<String>,
    /// How long something may take to happen.
    pub patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            target: TargetSettings::default(),
            duration: Duration::from_secs(10),
            rate: None,
            callers: 16,
            agents: 64,
            entries: vec![1000],
            parents: 100,
            batches: vec![1, 50, 500],
            count: 100,
            interval: Duration::from_secs(5),
            streams: 1000,
            connections: None,
            rotations: 5,
            check_every: 1000,
            keep: false,
            parent_id: None,
            restart: None,
            patience: Duration::from_secs(60),
        }
    }
}

impl Settings {
    /// The first size of `sizes`, for commands that take one.
    pub(crate) fn first(sizes: &[usize]) -> usize {
        sizes.first().copied().unwrap_or(1).max(1)
    }
}
