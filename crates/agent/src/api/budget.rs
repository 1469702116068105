//! `finial.budget.v1.Budget`: how long the workloads of this node go on without a server. Read from what
//! the agent knows, or, where it does not run, from what it stored.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use proto::finial::budget::get_budget_response::{Bundle as BundleSpan, Svid};
use proto::finial::budget::{GetBudgetRequest, GetBudgetResponse};
use proto::raw::{self, Encoded};
use spiffe::x509::{Certificate, leaf_id};
use spiffe::{Bundle, UnixSecs};
use tonic::body::Body;
use tonic::{Request, Response};

use super::route::Service;
use crate::context::Context;
use crate::jwt::JwtSvid;
use crate::rotation::RotationRule;
use crate::state::{AgentIdentity, AgentState};
use crate::stored::Store;
use crate::vault::Vault;

/// The service and its methods.
pub(super) const SERVICE: Service = Service { name: "finial.budget.v1.Budget", methods: &["GetBudget"] };

/// The service.
pub(super) struct BudgetApi {
    context: Arc<Context>,
}

impl BudgetApi {
    pub(super) const fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// Answers `GetBudget`.
    pub(super) async fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        raw::unary(request, |_: Request<GetBudgetRequest>| async {
            let tokens: Vec<Arc<JwtSvid>> =
                self.context.jwt_svids.held().into_iter().map(|(_, svid)| svid).collect();
            let now = UnixSecs::from(self.context.clock.now());
            let mut budget = budget(&self.context.state.load(), &tokens, now);
            budget.outlives_restarts = self.context.config.finial.vault;
            Ok(Response::new(Encoded::of(&budget)))
        })
        .await
    }
}

/// The budget that the files in `data_dir` leave to an agent that starts from them at `now`.
///
/// # Errors
/// What is stored cannot be read, or no agent was ever attested there.
pub fn stored_budget(data_dir: &Path, now: SystemTime) -> Result<GetBudgetResponse, String> {
    if !data_dir.is_dir() {
        return Err(format!("there is no directory {}", data_dir.display()));
    }
    let data = Store::open(data_dir).map_err(|error| runtime::chain(&error))?.data();
    let nobody = || format!("no agent was attested with {}", data_dir.display());
    let id = leaf_id(data.svid.first().ok_or_else(nobody)?).map_err(|error| error.to_string())?;
    let bundle = data.bundle(&id.trust_domain()).ok_or_else(nobody)?;
    let identity = AgentIdentity { id, chain: data.svid.as_slice().into(), reattestable: data.reattestable };
    let is_kept = data_dir.join(crate::vault::FILE).exists();
    let vault = Vault::look(data_dir).map_err(|error| error.to_string())?;
    let kept = vault.open(&identity, &bundle, now, &RotationRule::new(None));
    let mut tokens = Vec::new();
    let state = match kept {
        Some(kept) => {
            tokens = kept.tokens.into_iter().map(|(_, svid)| svid).collect();
            AgentState::recalled(identity, kept.bundles, kept.entries, kept.synced_at)
        }
        None => AgentState::new(identity, bundle),
    };
    let mut budget = budget(&state, &tokens, UnixSecs::from(now));
    budget.outlives_restarts = is_kept;
    Ok(budget)
}

fn budget(state: &AgentState, tokens: &[Arc<JwtSvid>], now: UnixSecs) -> GetBudgetResponse {
    let held: Vec<_> = state.entries.iter().filter_map(|held| held.svid.as_ref()).collect();
    let first = held.iter().min_by_key(|svid| svid.expires_at);
    let lifetimes = held.iter().map(|svid| svid.expires_at.since(svid.not_before));
    let authorities = |bundle: &Bundle| {
        let parse = |der: &[u8]| Certificate::parse_all(der).unwrap_or_default();
        let all = bundle.x509_authorities.iter().flat_map(|authority| parse(&authority.der));
        all.map(|authority| authority.not_after().0).max().unwrap_or_default()
    };
    let bundles = std::iter::once(&state.bundles.own).chain(state.bundles.federated.values());
    GetBudgetResponse {
        now: now.0,
        synced_at: state.synced_at.map_or(0, |at| at.0),
        agent_id: state.agent.id.to_string(),
        agent_expires_at: state.agent.expires_at().0,
        reattestable: state.agent.reattestable,
        outlives_restarts: false,
        entries: count(state.entries.len()),
        x509_svids: count(held.len()),
        first: first.map(|svid| Svid { spiffe_id: svid.id.to_string(), expires_at: svid.expires_at.0 }),
        // Renewed with half of the life left, give or take a tenth of that.
        at_worst: lifetimes.min().unwrap_or_default() * 9 / 20,
        jwt_svids: count(tokens.len()),
        first_jwt_expires_at: tokens.iter().map(|svid| svid.expires_at.0).min().unwrap_or_default(),
        bundles: bundles
            .map(|bundle| BundleSpan {
                trust_domain: bundle.trust_domain.as_str().to_owned(),
                expires_at: authorities(bundle),
            })
            .collect(),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
