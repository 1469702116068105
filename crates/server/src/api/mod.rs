//! The gRPC services: one file each, every method parses, does, renders.
//!
//! All of them are registered here and nowhere else. A call has come through the door when it arrives:
//! it is authorised, and its [`crate::caller::Caller`] is among the extensions of the request.

mod batch;
mod bundle;
mod entry;
mod localauthority;
mod status;
mod svid;
mod trustdomain;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use proto::raw;
use proto::spire::server::bundle::bundle_server::BundleServer;
use proto::spire::server::entry::entry_server::EntryServer;
use proto::spire::server::localauthority::local_authority_server::LocalAuthorityServer;
use proto::spire::server::svid::svid_server::SvidServer;
use proto::spire::server::trustdomain::trust_domain_server::TrustDomainServer;
use tokio_stream::Stream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;

use crate::context::Context;

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Every service, ready to answer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Services {
    bundles: bundle::Bundles,
    entries: entry::Entries,
    bundle: BundleServer<bundle::Bundles>,
    entry: EntryServer<entry::Entries>,
    local_authority: LocalAuthorityServer<localauthority::LocalAuthorities>,
    svid: SvidServer<svid::Svids>,
    trust_domain: TrustDomainServer<trustdomain::Relationships>,
}

impl Services {
    /// The services of this server.
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        let bundles = bundle::Bundles::new(Arc::clone(context));
        let entries = entry::Entries::new(Arc::clone(context));
        Self {
            bundle: BundleServer::new(bundles.clone()),
            entry: EntryServer::new(entries.clone()),
            bundles,
            entries,
            local_authority: LocalAuthorityServer::new(localauthority::LocalAuthorities::new(Arc::clone(
                context,
            ))),
            svid: SvidServer::new(svid::Svids::new(Arc::clone(context))),
            trust_domain: TrustDomainServer::new(trustdomain::Relationships::new(Arc::clone(context))),
        }
    }

    /// Answers a call whose path is that of a method.
    pub(crate) async fn answer(mut self, request: http::Request<Body>) -> http::Response<Body> {
        let (service, method) =
            match request.uri().path().strip_prefix('/').unwrap_or_default().split_once('/') {
                Some((service, method)) => (service, method),
                None => ("", ""),
            };
        // What agents ask for all the time is answered with bytes that were encoded before.
        match (service, method) {
            (BUNDLE, "GetBundle") => {
                return raw::unary(request, async |request| self.bundles.own(request)).await;
            }
            (BUNDLE, "GetFederatedBundle") => {
                return raw::unary(request, async |request| self.bundles.federated(request)).await;
            }
            (ENTRY, "GetAuthorizedEntries") => {
                return raw::unary(request, |request| self.entries.authorised(request)).await;
            }
            (ENTRY, "SyncAuthorizedEntries") => {
                return raw::streaming(request, |request| self.entries.sync(request)).await;
            }
            _ => {}
        }
        let answer = match service {
            BUNDLE => self.bundle.call(request).await,
            ENTRY => self.entry.call(request).await,
            "spire.api.server.localauthority.v1.LocalAuthority" => self.local_authority.call(request).await,
            "spire.api.server.svid.v1.SVID" => self.svid.call(request).await,
            "spire.api.server.trustdomain.v1.TrustDomain" => self.trust_domain.call(request).await,
            _ => Ok(not_built().into_http()),
        };
        answer.unwrap_or_else(|never: Infallible| match never {})
    }
}

const BUNDLE: &str = "spire.api.server.bundle.v1.Bundle";
const ENTRY: &str = "spire.api.server.entry.v1.Entry";

/// The generated servers want every method; those that [`Services::answer`] answers itself never get
/// to them.
fn encoded_elsewhere() -> Status {
    Status::internal("method is answered before it gets here")
}

/// The answer of a method that is not built yet.
pub(crate) fn not_built() -> Status {
    Status::unimplemented("this method is not part of this version of Finial")
}
