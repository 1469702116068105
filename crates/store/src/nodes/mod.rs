//! Attested agents: rows of `attested_node_entries` and their selectors. (Nodes is what the tables
//! call them.)

mod list;
mod rows;
mod write;

use std::fmt;
use std::sync::Arc;

use spiffe::{Selector, SpiffeId, UnixSecs};

use crate::{Committed, Page, SelectorFilter, Store, StoreError};

pub(crate) use list::list;

/// An attested agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its identity.
    pub id: SpiffeId,
    /// The attestor that vouched for it.
    pub attestation_type: String,
    /// Of its SVID, in decimal digits; empty = banned.
    pub serial: String,
    /// When its SVID runs out.
    pub expires_at: UnixSecs,
    /// Of a renewed SVID that was not used yet; else empty.
    pub new_serial: String,
    /// When that runs out; 0 = not set.
    pub new_expires_at: UnixSecs,
    /// Whether it may attest again.
    pub can_reattest: bool,
    /// What it said it is; may be empty.
    pub agent_version: String,
    /// Its selectors in row order.
    pub selectors: Arc<[Selector]>,
}

impl Agent {
    /// Whether it was banned.
    #[must_use]
    pub const fn is_banned(&self) -> bool {
        self.serial.is_empty()
    }
}

/// Whether an agent that exists may attest again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reattest {
    /// Its row is replaced.
    Allowed,
    /// First use only: an agent that exists is refused.
    Refused,
}

/// The outcome of a node attestation, written as one.
#[derive(Clone)]
pub struct Attestation {
    /// The agent as it is from now on, with its selectors.
    pub agent: Agent,
    /// What holds if it exists.
    pub reattest: Reattest,
    /// The join token this uses up.
    pub join_token: Option<String>,
}

impl fmt::Debug for Attestation {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attestation")
            .field("agent", &self.agent)
            .field("reattest", &self.reattest)
            .finish_non_exhaustive()
    }
}

/// What became of an attestation. All but the first changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attested {
    /// Written.
    Done(Arc<Agent>),
    /// The join token is unknown, or somebody else used it first.
    TokenGone,
    /// The agent is banned.
    Banned,
    /// The agent exists and may not attest again.
    Exists,
}

/// New values of an agent's columns; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct AgentUpdate {
    /// The serial in use.
    pub serial: Option<String>,
    /// Its expiry.
    pub expires_at: Option<UnixSecs>,
    /// The serial of a renewed SVID.
    pub new_serial: Option<String>,
    /// Its expiry; 0 = not set.
    pub new_expires_at: Option<UnixSecs>,
    /// Whether it may attest again.
    pub can_reattest: Option<bool>,
    /// What it says it is.
    pub agent_version: Option<String>,
}

/// What must still hold when an update is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentCondition {
    /// Nothing.
    Any,
    /// The agent is not banned.
    NotBanned,
    /// The agent is not banned and this is its renewed serial.
    Renewed(String),
}

/// Which agents to list or count: all that is set must hold.
#[derive(Clone, Debug, Default)]
pub struct AgentFilter {
    /// By attestor; empty = no filter.
    pub attestation_type: String,
    /// Banned or not.
    pub banned: Option<bool>,
    /// May attest again or not. Rows of old releases, which do not say, match neither.
    pub can_reattest: Option<bool>,
    /// SVID ran out before.
    pub expires_before: Option<UnixSecs>,
    /// SVID runs out then or later.
    pub valid_at: Option<UnixSecs>,
    /// By selectors.
    pub selectors: Option<SelectorFilter>,
    /// Only these; empty = no filter.
    pub ids: Vec<SpiffeId>,
}

/// A page of agents.
#[derive(Clone, Debug, Default)]
pub struct AgentPage {
    /// In order of their rows, with selectors.
    pub agents: Vec<Arc<Agent>>,
    /// Where the next page starts; empty when this one is.
    pub next_token: String,
}

impl Store {
    /// Writes the outcome of an attestation: uses up the join token, sets the selectors, writes the
    /// agent and the events, all or nothing.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn attest_agent(&self, attestation: Attestation) -> Result<Committed<Attested>, StoreError> {
        self.write(move |tx| write::attest(tx, &attestation)).await
    }

    /// Creates an agent with its selectors.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub async fn create_agent(&self, agent: Agent) -> Result<Committed<Arc<Agent>>, StoreError> {
        self.write(move |tx| write::create(tx, &agent)).await
    }

    /// Writes new values, if the condition holds; `None` if it does not.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn update_agent(
        &self,
        id: SpiffeId,
        update: AgentUpdate,
        condition: AgentCondition,
    ) -> Result<Committed<Option<Arc<Agent>>>, StoreError> {
        self.write(move |tx| write::update(tx, &id, &update, &condition)).await
    }

    /// Makes the renewed SVID, which the agent just used, the one in use. Changes nothing (and
    /// answers `None`) if `new_serial` is not its renewed serial or the agent was banned meanwhile.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn promote_agent(
        &self,
        id: SpiffeId,
        new_serial: String,
    ) -> Result<Committed<Option<Arc<Agent>>>, StoreError> {
        self.write(move |tx| write::promote(tx, &id, &new_serial)).await
    }

    /// Bans an agent: it keeps its row and loses its serials.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn ban_agent(&self, id: SpiffeId) -> Result<Committed<Arc<Agent>>, StoreError> {
        let ban = AgentUpdate {
            serial: Some(String::new()),
            new_serial: Some(String::new()),
            ..AgentUpdate::default()
        };
        self.write(move |tx| {
            write::update(tx, &id, &ban, &AgentCondition::Any)?.ok_or_else(StoreError::not_found)
        })
        .await
    }

    /// Deletes an agent, its selectors, and the alias entry of a join-token agent.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_agent(&self, id: SpiffeId) -> Result<Committed<()>, StoreError> {
        self.write(move |tx| write::delete(tx, &id)).await
    }

    /// Deletes agents that ran out before `before` and are not banned, at most `batch` (0 = 1000);
    /// their ids. Those that cannot attest again only if `non_reattestable` says so.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn prune_agents(
        &self,
        before: UnixSecs,
        non_reattestable: bool,
        batch: u32,
    ) -> Result<Committed<Vec<SpiffeId>>, StoreError> {
        self.write(move |tx| write::prune(tx, before, non_reattestable, batch)).await
    }

    /// Replaces the selectors of an agent, which need not exist yet.
    ///
    /// # Errors
    /// `AlreadyExists` for a selector that is there twice.
    pub async fn set_agent_selectors(
        &self,
        id: SpiffeId,
        selectors: Vec<Selector>,
    ) -> Result<Committed<()>, StoreError> {
        self.write(move |tx| write::set_selectors(tx, &id, &selectors)).await
    }

    /// The selectors of an agent, in row order.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn agent_selectors(&self, id: SpiffeId) -> Result<Vec<Selector>, StoreError> {
        self.read(move |conn| rows::selectors(conn, id.as_str())).await
    }

    /// One agent with its selectors.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn fetch_agent(&self, id: SpiffeId) -> Result<Option<Arc<Agent>>, StoreError> {
        self.read(move |conn| rows::fetch(conn, id.as_str())).await
    }

    /// Lists agents, a page or all.
    ///
    /// # Errors
    /// `InvalidArgument` for an unusable page or filter.
    pub async fn list_agents(
        &self,
        filter: AgentFilter,
        page: Option<Page>,
    ) -> Result<AgentPage, StoreError> {
        self.read(move |conn| list(conn, &filter, page.clone())).await
    }

    /// Counts agents.
    ///
    /// # Errors
    /// `InvalidArgument` for an unusable filter.
    pub async fn count_agents(&self, filter: AgentFilter) -> Result<i32, StoreError> {
        self.read(move |conn| list::count(conn, &filter)).await
    }

    /// All agents with their selectors, in one pass: for start-up.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn load_agents(&self) -> Result<Vec<Arc<Agent>>, StoreError> {
        self.read(rows::all).await
    }
}
