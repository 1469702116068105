//! `spire.api.server.trustdomain.v1.TrustDomain`: federation relationships.

use std::future::Future;
use std::sync::Arc;

use proto::convert::federation::{self, RelationshipError};
use proto::spire::server::trustdomain as wire;
use proto::spire::types;
use spiffe::TrustDomain;
use store::{Committed, FederationMask, FederationRelationship, Page};
use tonic::{Code, Request, Response, Status};

use super::batch::written;
use super::status::{self, failed, failed_because, invalid, refused_as};
use crate::caller::{Caller, tell};
use crate::context::Context;
use crate::federation::Refusal;

/// The service.
pub(crate) struct Relationships(Arc<Context>);

impl Relationships {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }

    /// Runs the writes of a batch; what they change has begun, or ended, when they are answered.
    async fn written<T, W>(&self, writes: impl IntoIterator<Item = W>) -> Vec<Result<T, Status>>
    where
        W: Future<Output = Result<Committed<T>, Status>>,
    {
        let outcomes = written(&self.0, writes).await;
        if outcomes.iter().any(Result::is_ok) {
            self.0.federation.changed().await;
        }
        outcomes
    }

    fn requested_new(&self, wire: &types::FederationRelationship) -> Result<FederationRelationship, Status> {
        let relationship = requested(wire)?;
        if relationship.trust_domain == *self.0.trust_domain() {
            let text = "unable to create federation relationship for server trust domain";
            return Err(Status::invalid_argument(text));
        }
        Ok(relationship)
    }

    /// SPIRE warns too: such an endpoint cannot be authenticated.
    fn warn_if_unverifiable(&self, caller: &Caller, relationship: &FederationRelationship) {
        let federation::EndpointProfile::HttpsSpiffe(endpoint) = &relationship.profile else { return };
        if relationship.bundle.is_none() && self.0.bundles.load().get(&endpoint.trust_domain()).is_none() {
            tell!(
                warn,
                &self.0,
                caller,
                trust_domain_id = %relationship.trust_domain,
                endpoint_spiffe_id = %endpoint,
                "bundle not found for the endpoint SPIFFE ID trust domain"
            );
        }
    }
}

#[tonic::async_trait]
impl wire::trust_domain_server::TrustDomain for Relationships {
    async fn list_federation_relationships(
        &self,
        request: Request<wire::ListFederationRelationshipsRequest>,
    ) -> Result<Response<wire::ListFederationRelationshipsResponse>, Status> {
        let wire::ListFederationRelationshipsRequest { output_mask, page_size, page_token } =
            request.into_inner();
        let page = page(page_size, page_token);
        let listed = self.0.store.list_federation_relationships(page).await;
        let listed = listed.map_err(|why| failed("failed to list federation relationships", why))?;
        let render = |relationship| rendered(relationship, output_mask.as_ref());
        Ok(Response::new(wire::ListFederationRelationshipsResponse {
            federation_relationships: listed.relationships.iter().map(render).collect(),
            next_page_token: listed.next_token,
        }))
    }

    async fn get_federation_relationship(
        &self,
        request: Request<wire::GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let wire::GetFederationRelationshipRequest { trust_domain, output_mask } = request.into_inner();
        let trust_domain = parsed(&trust_domain)?;
        let found = self.0.store.fetch_federation_relationship(trust_domain).await;
        let found = found.map_err(|why| failed("failed to fetch federation relationship", why))?;
        let found = found.ok_or_else(|| Status::not_found("federation relationship does not exist"))?;
        Ok(Response::new(rendered(&found, output_mask.as_ref())))
    }

    async fn batch_create_federation_relationship(
        &self,
        request: Request<wire::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchCreateFederationRelationshipResponse>, Status> {
        use wire::batch_create_federation_relationship_response::Result as Item;

        let caller = Caller::of(&request)?;
        let wire::BatchCreateFederationRelationshipRequest { federation_relationships, output_mask } =
            request.into_inner();
        let writes = federation_relationships.into_iter().map(async |wire: types::FederationRelationship| {
            let relationship = self.requested_new(&wire)?;
            let created = self.0.store.create_federation_relationship(relationship).await;
            created.map_err(|why| failed("failed to create federation relationship", why))
        });
        let results = self.written(writes).await.into_iter().map(|created| {
            let created = created.inspect(|created| self.warn_if_unverifiable(&caller, created));
            let created = created.map(|created| rendered(&created, output_mask.as_ref()));
            let (status, federation_relationship) = status::item(created);
            Item { status, federation_relationship }
        });
        let results = results.collect();
        Ok(Response::new(wire::BatchCreateFederationRelationshipResponse { results }))
    }

    async fn batch_update_federation_relationship(
        &self,
        request: Request<wire::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchUpdateFederationRelationshipResponse>, Status> {
        use wire::batch_update_federation_relationship_response::Result as Item;

        let caller = Caller::of(&request)?;
        let wire::BatchUpdateFederationRelationshipRequest {
            federation_relationships,
            input_mask,
            output_mask,
        } = request.into_inner();
        let mask = input_mask.map_or(FederationMask::ALL, |mask| FederationMask {
            bundle_endpoint_url: mask.bundle_endpoint_url,
            profile: mask.bundle_endpoint_profile,
            bundle: mask.trust_domain_bundle,
        });
        let writes = federation_relationships.into_iter().map(async |wire: types::FederationRelationship| {
            // All of it must be right, whatever the mask says.
            let relationship = requested(&wire)?;
            let updated = self.0.store.update_federation_relationship(relationship, mask).await;
            updated.map_err(|why| failed("failed to update federation relationship", why))
        });
        let results = self.written(writes).await.into_iter().map(|updated| {
            let updated = updated.inspect(|updated| self.warn_if_unverifiable(&caller, updated));
            let updated = updated.map(|updated| rendered(&updated, output_mask.as_ref()));
            let (status, federation_relationship) = status::item(updated);
            Item { status, federation_relationship }
        });
        let results = results.collect();
        Ok(Response::new(wire::BatchUpdateFederationRelationshipResponse { results }))
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<wire::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchDeleteFederationRelationshipResponse>, Status> {
        use wire::batch_delete_federation_relationship_response::Result as Item;

        let asked = request.into_inner().trust_domains;
        let writes = asked.clone().into_iter().map(async |name: String| {
            if name.is_empty() {
                return Err(Status::invalid_argument("missing trust domain"));
            }
            let deleted = self.0.store.delete_federation_relationship(parsed(&name)?).await;
            deleted.map_err(|why| {
                let missing = "federation relationship not found";
                refused_as(Code::NotFound, missing, "failed to delete federation relationship", &why)
            })
        });
        let outcomes = self.written(writes).await;
        let results = asked.into_iter().zip(outcomes).map(|(asked, outcome)| {
            // The bare name, where it is one.
            let trust_domain = TrustDomain::parse(&asked).map_or(asked, |name| name.as_str().to_owned());
            let (status, _) = status::item(outcome);
            Item { status, trust_domain }
        });
        let results = results.collect();
        Ok(Response::new(wire::BatchDeleteFederationRelationshipResponse { results }))
    }

    async fn refresh_bundle(
        &self,
        request: Request<wire::RefreshBundleRequest>,
    ) -> Result<Response<()>, Status> {
        let trust_domain = parsed(&request.into_inner().trust_domain)?;
        match self.0.federation.refresh(trust_domain).await {
            Ok(()) => Ok(Response::new(())),
            Err(unknown @ Refusal::Unknown(_)) => Err(Status::not_found(unknown.to_string())),
            Err(busy @ Refusal::Busy) => Err(Status::resource_exhausted(busy.to_string())),
            Err(gone @ Refusal::Interrupted) => Err(Status::unavailable(gone.to_string())),
            Err(Refusal::Failed(why)) => Err(failed_because("failed to refresh bundle", why.as_ref())),
        }
    }
}

/// The page that is asked for; all without a size.
pub(super) fn page(size: i32, token: String) -> Option<Page> {
    let size = u32::try_from(size).ok().filter(|size| *size > 0)?;
    Some(Page { size, token })
}

fn parsed(name: &str) -> Result<TrustDomain, Status> {
    TrustDomain::parse(name).map_err(|why| invalid("failed to parse trust domain", why))
}

fn requested(wire: &types::FederationRelationship) -> Result<FederationRelationship, Status> {
    let refused = |why: RelationshipError| invalid("failed to convert federation relationship", why);
    let requested = federation::requested(Some(wire), None).map_err(refused)?;
    Ok(FederationRelationship {
        trust_domain: requested.trust_domain,
        bundle_endpoint_url: requested.bundle_endpoint_url.unwrap_or_default(),
        profile: requested.profile.ok_or(RelationshipError::NoProfile).map_err(refused)?,
        bundle: requested.bundle.map(Arc::new),
    })
}

fn rendered(
    relationship: &FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) -> types::FederationRelationship {
    let mut wire = types::FederationRelationship {
        trust_domain: relationship.trust_domain.as_str().to_owned(),
        bundle_endpoint_url: relationship.bundle_endpoint_url.clone(),
        bundle_endpoint_profile: Some((&relationship.profile).into()),
        trust_domain_bundle: relationship.bundle.as_deref().map(Into::into),
    };
    wire.retain(mask);
    wire
}
