//! `spire.api.server.bundle.v1.Bundle`: the own bundle and those of other trust domains.
//!
//! The two methods that agents call every few seconds answer from the snapshot, with bytes that were
//! encoded when the bundle was stored; the rest is for administrators and goes to the datastore.

use std::sync::Arc;

use proto::convert::bundle::{appended_jwt, appended_x509, requested, requested_jwt};
use proto::raw::Encoded;
use proto::spire::server::bundle as wire;
use proto::spire::types;
use spiffe::{Bundle, TrustDomain, UnixSecs};
use store::{BundleMask, DeleteMode, StoreError};
use tonic::{Code, Request, Response, Status};

use super::batch::written;
use super::encoded_elsewhere;
use super::status::{self, failed, failed_because, invalid, limited, refused_as};
use super::trustdomain::page;
use crate::ca_driver::Refusal;
use crate::caller::{Caller, tell};
use crate::context::Context;
use crate::keep::KnownBundle;

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Bundles(Arc<Context>);

impl Bundles {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }

    /// `GetBundle`.
    pub(super) fn own(&self, request: Request<wire::GetBundleRequest>) -> Result<Response<Encoded>, Status> {
        let mask = request.into_inner().output_mask;
        let known = self.0.own_bundle().ok_or_else(not_found)?;
        Ok(Response::new(encoded(&known, mask.as_ref())))
    }

    /// `GetFederatedBundle`.
    pub(super) fn federated(
        &self,
        request: Request<wire::GetFederatedBundleRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let wire::GetFederatedBundleRequest { trust_domain, output_mask } = request.into_inner();
        let trust_domain = self.foreign(
            &trust_domain,
            "getting a federated bundle for the server's own trust domain is not allowed",
        )?;
        let bundles = self.0.bundles.load();
        let known = bundles.get(&trust_domain).ok_or_else(not_found)?;
        Ok(Response::new(encoded(known, output_mask.as_ref())))
    }

    /// A trust domain that is not the own one.
    fn foreign(&self, name: &str, if_own: &str) -> Result<TrustDomain, Status> {
        let trust_domain = TrustDomain::parse(name);
        let trust_domain = trust_domain.map_err(|why| invalid("trust domain argument is not valid", why))?;
        if trust_domain == *self.0.trust_domain() {
            return Err(Status::invalid_argument(if_own));
        }
        Ok(trust_domain)
    }

    /// The bundle of a foreign trust domain, as a request describes it.
    fn requested(&self, wire: &types::Bundle, if_own: &str) -> Result<Bundle, Status> {
        self.foreign(&wire.trust_domain, if_own)?;
        requested(Some(wire)).map_err(|why| invalid("failed to convert bundle", why))
    }

    /// What a request adds to the own bundle.
    fn additions(&self, request: &wire::AppendBundleRequest) -> Result<Bundle, Status> {
        if request.jwt_authorities.is_empty() && request.x509_authorities.is_empty() {
            return Err(Status::invalid_argument("no authorities to append"));
        }
        let jwt_authorities = appended_jwt(&request.jwt_authorities)
            .map_err(|why| invalid("failed to convert JWT authority", why))?;
        let x509_authorities = appended_x509(&request.x509_authorities)
            .map_err(|why| invalid("failed to convert X.509 authority", why))?;
        if !request.wit_authorities.is_empty() {
            return Err(invalid("failed to convert WIT authority", "WIT authorities cannot be appended"));
        }
        Ok(Bundle { jwt_authorities, x509_authorities, ..Bundle::empty(self.0.trust_domain().clone()) })
    }
}

#[tonic::async_trait]
impl wire::bundle_server::Bundle for Bundles {
    async fn count_bundles(
        &self,
        _request: Request<wire::CountBundlesRequest>,
    ) -> Result<Response<wire::CountBundlesResponse>, Status> {
        let count = self.0.store.count_bundles().await;
        let count = count.map_err(|why| failed("failed to count bundles", why))?;
        Ok(Response::new(wire::CountBundlesResponse { count }))
    }

    async fn get_bundle(
        &self,
        _request: Request<wire::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        Err(encoded_elsewhere())
    }

    async fn append_bundle(
        &self,
        request: Request<wire::AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let request = request.into_inner();
        let additions = self.additions(&request)?;
        let appended = self.0.store.append_bundle(additions).await;
        let appended = appended.map_err(|why| {
            if let StoreError::InvalidArgument(why) = &why {
                return invalid("failed to convert JWT authority", why);
            }
            failed("failed to append bundle", why)
        })?;
        let bundle = self.0.applied(appended).await;
        Ok(Response::new(masked(&bundle, request.output_mask.as_ref())))
    }

    async fn publish_jwt_authority(
        &self,
        request: Request<wire::PublishJwtAuthorityRequest>,
    ) -> Result<Response<wire::PublishJwtAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        let admitted = self.0.limits.admit(&caller, 1).await;
        admitted
            .map_err(|refusal| limited("rejecting request due to key publishing rate limiting", &refusal))?;
        let key = request.into_inner().jwt_authority;
        let key = key.ok_or_else(|| Status::invalid_argument("missing JWT authority"))?;
        let refused = |why: &dyn std::fmt::Display| invalid("invalid JWT authority", why);
        let mut keys = requested_jwt(&[key]).map_err(|why| refused(&why))?;
        let key = keys.pop().ok_or_else(|| Status::invalid_argument("missing JWT authority"))?;
        if key.expires_at != UnixSecs(0) && key.expires_at < self.0.now() {
            return Err(refused(&"key has expired"));
        }
        // The servers above this one, if there are any, must know it before anything is signed by it.
        let published = self.0.authorities.publish(key).await;
        let appended = published.map_err(|why| {
            if let Refusal::Store(StoreError::InvalidArgument(why)) = &why {
                return refused(why);
            }
            failed_because("failed to publish JWT key", &why)
        })?;
        let bundle = self.0.applied(appended).await;
        Ok(Response::new(wire::PublishJwtAuthorityResponse {
            jwt_authorities: bundle.jwt_authorities.iter().map(Into::into).collect(),
        }))
    }

    async fn publish_wit_authority(
        &self,
        _request: Request<wire::PublishWitAuthorityRequest>,
    ) -> Result<Response<wire::PublishWitAuthorityResponse>, Status> {
        // As in SPIRE 1.15.3.
        Err(Status::unimplemented("WIT-SVID functionality is not yet implemented"))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<wire::ListFederatedBundlesRequest>,
    ) -> Result<Response<wire::ListFederatedBundlesResponse>, Status> {
        let wire::ListFederatedBundlesRequest { output_mask, page_size, page_token } = request.into_inner();
        let listed = self.0.store.list_bundles(page(page_size, page_token)).await;
        let listed = listed.map_err(|why| failed("failed to list bundles", why))?;
        // The own one is left out after the page was cut: a page may be one short.
        let foreign = listed.bundles.iter().filter(|bundle| bundle.trust_domain != *self.0.trust_domain());
        Ok(Response::new(wire::ListFederatedBundlesResponse {
            bundles: foreign.map(|bundle| masked(bundle, output_mask.as_ref())).collect(),
            next_page_token: listed.next_token,
        }))
    }

    async fn get_federated_bundle(
        &self,
        _request: Request<wire::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        Err(encoded_elsewhere())
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<wire::BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchCreateFederatedBundleResponse>, Status> {
        let wire::BatchCreateFederatedBundleRequest { bundle, output_mask } = request.into_inner();
        let own = "creating a federated bundle for the server's own trust domain is not allowed";
        let writes = bundle.into_iter().map(async |wire: types::Bundle| {
            let bundle = self.requested(&wire, own)?;
            let reply = masked(&bundle, output_mask.as_ref());
            let created = self.0.store.create_bundle(bundle).await.map_err(|why| {
                refused_as(Code::AlreadyExists, "bundle already exists", "unable to create bundle", &why)
            })?;
            Ok(created.map(|()| reply))
        });
        let results = written(&self.0, writes).await.into_iter().map(|created| {
            let (status, bundle) = status::item(created);
            wire::batch_create_federated_bundle_response::Result { status, bundle }
        });
        Ok(Response::new(wire::BatchCreateFederatedBundleResponse { results: results.collect() }))
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<wire::BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchUpdateFederatedBundleResponse>, Status> {
        let wire::BatchUpdateFederatedBundleRequest { bundle, input_mask, output_mask } =
            request.into_inner();
        let mask =
            input_mask.map_or(BundleMask { wit_authorities: false, ..BundleMask::ALL }, |mask| BundleMask {
                x509_authorities: mask.x509_authorities,
                jwt_authorities: mask.jwt_authorities,
                wit_authorities: false,
                refresh_hint: mask.refresh_hint,
                sequence_number: mask.sequence_number,
            });
        let own = "updating a federated bundle for the server's own trust domain is not allowed";
        let writes = bundle.into_iter().map(async |wire: types::Bundle| {
            let updated = self.0.store.update_bundle(self.requested(&wire, own)?, mask).await;
            updated.map_err(|why| refused_as(Code::NotFound, NOT_FOUND, "failed to update bundle", &why))
        });
        let results = written(&self.0, writes).await.into_iter().map(|updated| {
            let updated = updated.map(|bundle| masked(&bundle, output_mask.as_ref()));
            let (status, bundle) = status::item(updated);
            wire::batch_update_federated_bundle_response::Result { status, bundle }
        });
        Ok(Response::new(wire::BatchUpdateFederatedBundleResponse { results: results.collect() }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<wire::BatchSetFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchSetFederatedBundleResponse>, Status> {
        let caller = Caller::of(&request)?;
        let wire::BatchSetFederatedBundleRequest { bundle, output_mask } = request.into_inner();
        let own = "setting a federated bundle for the server's own trust domain is not allowed";
        let writes = bundle.into_iter().map(async |wire: types::Bundle| {
            let bundle = self.requested(&wire, own)?;
            let reply = masked(&bundle, output_mask.as_ref());
            let trust_domain_id = bundle.trust_domain.to_string();
            let set = self.0.store.set_bundle(bundle).await;
            let set = set.map_err(|why| failed("failed to set bundle", why))?;
            tell!(info, &self.0, &caller, trust_domain_id, "Bundle set successfully");
            Ok(set.map(|()| reply))
        });
        let results = written(&self.0, writes).await.into_iter().map(|set| {
            let (status, bundle) = status::item(set);
            wire::batch_set_federated_bundle_response::Result { status, bundle }
        });
        Ok(Response::new(wire::BatchSetFederatedBundleResponse { results: results.collect() }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<wire::BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchDeleteFederatedBundleResponse>, Status> {
        use wire::batch_delete_federated_bundle_request::Mode;

        let wire::BatchDeleteFederatedBundleRequest { trust_domains, mode } = request.into_inner();
        let mode = match Mode::try_from(mode) {
            Ok(Mode::Restrict) => DeleteMode::Restrict,
            Ok(Mode::Delete) => DeleteMode::Delete,
            Ok(Mode::Dissociate) => DeleteMode::Dissociate,
            Err(_) => {
                let why = format!("unhandled delete mode \"{mode}\"");
                return Err(invalid("failed to parse deletion mode", why));
            }
        };
        let own = "removing the bundle for the server trust domain is not allowed";
        let writes = trust_domains.clone().into_iter().map(async |name: String| {
            let trust_domain = self.foreign(&name, own)?;
            self.0.store.delete_bundle(trust_domain, mode).await.map_err(|why| {
                let code = status::code(&why);
                if code == Code::NotFound {
                    return not_found();
                }
                Status::new(code, format!("failed to delete federated bundle: {why}"))
            })
        });
        let outcomes = written(&self.0, writes).await;
        let results = trust_domains.into_iter().zip(outcomes).map(|(trust_domain, outcome)| {
            let (status, _) = status::item(outcome);
            wire::batch_delete_federated_bundle_response::Result { status, trust_domain }
        });
        let results = results.collect();
        Ok(Response::new(wire::BatchDeleteFederatedBundleResponse { results }))
    }
}

const NOT_FOUND: &str = "bundle not found";

fn not_found() -> Status {
    Status::not_found(NOT_FOUND)
}

fn masked(bundle: &Bundle, mask: Option<&types::BundleMask>) -> types::Bundle {
    let mut wire = types::Bundle::from(bundle);
    wire.retain(mask);
    wire
}

/// All of it was encoded before; parts are encoded here.
fn encoded(known: &KnownBundle, mask: Option<&types::BundleMask>) -> Encoded {
    match mask {
        None => Encoded::new(vec![known.encoded().clone()]),
        Some(_) => Encoded::of(&masked(&known.bundle, mask)),
    }
}
