//! JWT-SVIDs: handed out, and checked for others.

use std::sync::Arc;

use futures::future::try_join_all;
use proto::raw::Encoded;
use proto::workload::{
    Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
};
use spiffe::{Entry, SelectorSet, SpiffeId, TrustDomain, UnixSecs, jwt};
use tonic::Status;
use tracing::{debug, error, warn};

use super::{SHORT_NAME, WorkloadApi, answers};
use crate::api::gate::{Call, SUBSYSTEM};
use crate::api::json;
use crate::state::{AgentState, Held};
use crate::subscribe::Update;

impl WorkloadApi {
    /// Answers `FetchJWTSVID`.
    pub(super) async fn jwt_svids(&self, call: &Call, request: JwtsvidRequest) -> Result<Encoded, Status> {
        let Call { method, pid, .. } = *call;
        if request.audience.is_empty() {
            error!(
                method,
                pid,
                service = SHORT_NAME,
                subsystem_name = SUBSYSTEM,
                "Missing required audience parameter"
            );
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let wanted = match request.spiffe_id.as_str() {
            "" => None,
            text => Some(SpiffeId::parse(text).map_err(|error| {
                error!(%error, method, pid, service = SHORT_NAME, subsystem_name = SUBSYSTEM, "Invalid requested SPIFFE ID");
                Status::invalid_argument(format!("invalid requested SPIFFE ID: {error}"))
            })?),
        };
        let selectors = self.gate.attested(call).await?;
        self.gate.check_rate(call, self.limits.jwt_svid.as_ref(), &selectors).await?;

        let mut entries = shown(&self.context.state.load(), &selectors, wanted.as_ref());
        if entries.is_empty() && !self.gate.is_own(call) {
            let mut subscription = self.context.subscriptions.join(selectors.clone());
            let is_served =
                |_: &Update| !shown(&self.context.state.load(), &selectors, wanted.as_ref()).is_empty();
            self.context.last_look.wait(&mut subscription, &self.stop, is_served).await;
            entries = shown(&self.context.state.load(), &selectors, wanted.as_ref());
        }
        if entries.is_empty() {
            return Err(self.gate.no_identity(call, &selectors, wanted.as_ref()));
        }
        let tokens = entries.iter().map(|held| self.jwt_svid(call, &held.entry, &request.audience));
        let svids = match entries.len() {
            1 => {
                let mut svids = Vec::with_capacity(1);
                for token in tokens {
                    svids.push(token.await?);
                }
                svids
            }
            _ => try_join_all(tokens).await?,
        };
        Ok(answers::jwt_svids(JwtsvidResponse { svids }))
    }

    async fn jwt_svid(&self, call: &Call, entry: &Entry, audience: &[String]) -> Result<Jwtsvid, Status> {
        let svid = self.gate.jwt_svid(call, entry, audience).await?;
        let (spiffe_id, hint) = (entry.spiffe_id.to_string(), entry.hint.clone());
        Ok(Jwtsvid { spiffe_id, svid: svid.token.to_string(), hint })
    }

    /// Answers `ValidateJWTSVID`. The caller needs no identity: the keys of the own trust domain are
    /// for everybody, those of others for callers whose entries federate with them.
    pub(super) async fn validated(
        &self,
        call: &Call,
        request: ValidateJwtsvidRequest,
    ) -> Result<Encoded, Status> {
        let Call { method, pid, .. } = *call;
        let missing = |what: &str| {
            error!(
                method,
                pid,
                service = SHORT_NAME,
                subsystem_name = SUBSYSTEM,
                "Missing required {what} parameter"
            );
            Status::invalid_argument(format!("{what} must be specified"))
        };
        if request.audience.is_empty() {
            return Err(missing("audience"));
        }
        if request.svid.is_empty() {
            return Err(missing("svid"));
        }
        let selectors = self.gate.attested(call).await?;

        let (audience, state) = (request.audience.as_str(), self.context.state.load());
        let now = UnixSecs::from(self.context.clock.now());
        let known = |name: &TrustDomain| known_keys(&state, &selectors, name);
        let mut verified = jwt::verify(&request.svid, audience, now, known).map_err(|error| {
            warn!(%error, audience, method, pid, service = SHORT_NAME, subsystem_name = SUBSYSTEM, "Failed to validate JWT");
            Status::invalid_argument(error.to_string())
        })?;
        debug!(
            audience,
            method,
            pid,
            service = SHORT_NAME,
            spiffe_id = %verified.id,
            subsystem_name = SUBSYSTEM,
            "Successfully validated JWT"
        );
        if verified.id.trust_domain() != state.bundles.own.trust_domain {
            verified.drop_foreign_claims(&self.context.config.allowed_foreign_jwt_claims);
        }
        let claims = Some(json::message(verified.claims));
        Ok(Encoded::of(&ValidateJwtsvidResponse { spiffe_id: verified.id.to_string(), claims }))
    }
}

/// The entries that tokens are made for. What a hint hides is hidden from who asks for it by id, too.
fn shown(state: &AgentState, selectors: &SelectorSet, wanted: Option<&SpiffeId>) -> Vec<Arc<Held>> {
    let mut entries = state.entries.matching(selectors);
    if entries.len() > 1 {
        let hidden: Vec<_> =
            super::hints::hidden(entries.iter().map(|held| &*held.entry)).into_iter().cloned().collect();
        entries.retain(|held| !hidden.contains(&held.entry.id));
    }
    entries.retain(|held| wanted.is_none_or(|id| held.entry.spiffe_id == *id));
    entries
}

fn known_keys<'a>(
    state: &'a AgentState,
    selectors: &SelectorSet,
    name: &TrustDomain,
) -> Option<&'a [spiffe::JwtAuthority]> {
    let bundles = &state.bundles;
    if bundles.own.trust_domain == *name {
        return Some(&bundles.own.jwt_authorities);
    }
    let bundle = bundles.federated.get(name)?;
    let entries = state.entries.matching(selectors);
    entries.iter().any(|held| held.entry.federates_with.contains(name)).then_some(&*bundle.jwt_authorities)
}
