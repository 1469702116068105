//! What the APIs of an agent are given.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use config::AgentConfig;
use plugin::WorkloadAttestor;
use runtime::clock::Clock;
use runtime::health::Health;
use runtime::log::Log;
use runtime::snapshot::Snapshot;
use spiffe::tls::OwnCertificate;

use crate::jwt::JwtSvids;
use crate::last_look::LastLook;
use crate::meters::Meters;
use crate::state::AgentState;
use crate::subscribe::Subscriptions;

/// Everything an API needs, shared by all of them.
pub struct Context {
    /// The configuration.
    pub config: Arc<AgentConfig>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The log, whose level can be changed.
    pub log: Log,
    /// The checks that the health listener answers with.
    pub health: Health,
    /// What the agent knows.
    pub state: Snapshot<AgentState>,
    /// The updates of workloads.
    pub subscriptions: Subscriptions,
    /// The tokens of workloads.
    pub jwt_svids: JwtSvids,
    /// What finds out the selectors of a process.
    pub workload_attestors: Vec<Arc<dyn WorkloadAttestor>>,
    /// When the agent started.
    pub started_at: Instant,
    /// The agent's own certificate.
    pub certificate: Arc<OwnCertificate>,
    /// What is measured.
    pub meters: Arc<Meters>,
    /// Looks for entries of workloads that would be refused.
    pub last_look: LastLook,
    /// Whether the server pushes changes.
    pub is_pushed: Arc<AtomicBool>,
}
