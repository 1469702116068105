//! `spire.api.server.debug.v1.Debug`: what the server is and how much it holds.

use std::sync::Arc;
use std::time::Duration;

use proto::spire::server::debug as wire;
use proto::spire::server::debug::get_info_response::Cert;
use proto::spire::types;
use spiffe::x509::{self, Certificate};
use spiffe::{SpiffeId, UnixSecs};
use tonic::{Request, Response, Status};

use crate::context::Context;

/// The service.
pub(crate) struct Debug(Arc<Context>);

impl Debug {
    /// The service over this server.
    pub(crate) const fn new(context: Arc<Context>) -> Self {
        Self(context)
    }

    /// The server's own chain up to the root. Where no root of the bundle leads to it any more, as
    /// just after a revocation, what the server presents; SPIRE fails then.
    fn chain(&self) -> Vec<Cert> {
        let svid = self.0.own_svid.load();
        let presented: Vec<_> =
            svid.chain.iter().filter_map(|der| Certificate::parse(der.as_bytes()).ok()).collect();
        let Some((leaf, intermediates)) = presented.split_first() else { return Vec::new() };
        let known = self.0.own_bundle();
        let anchors = known.as_ref().map_or(&[][..], |known| &known.anchors);
        x509::find_path(leaf, intermediates, anchors, UnixSecs::from(self.0.clock.now())).map_or_else(
            |_| presented.iter().map(rendered).collect(),
            |path| path.into_iter().map(rendered).collect(),
        )
    }
}

#[tonic::async_trait]
impl wire::debug_server::Debug for Debug {
    async fn get_info(
        &self,
        _request: Request<wire::GetInfoRequest>,
    ) -> Result<Response<wire::GetInfoResponse>, Status> {
        let counts = self.0.graph.load().counts();
        let uptime = self.0.clock.now().duration_since(self.0.started).unwrap_or(Duration::ZERO);
        Ok(Response::new(wire::GetInfoResponse {
            svid_chain: self.chain(),
            uptime: i32::try_from(uptime.as_secs()).unwrap_or(i32::MAX),
            agents_count: narrow(counts.agents),
            entries_count: narrow(counts.entries),
            federated_bundles_count: narrow(self.0.bundles.load().len()),
        }))
    }
}

fn rendered(certificate: &Certificate) -> Cert {
    let id = match certificate.uris() {
        [uri] => SpiffeId::parse(uri).ok(),
        _ => None,
    };
    Cert {
        id: id.as_ref().map(types::Spiffeid::from),
        expires_at: certificate.not_after().0,
        subject: certificate.subject().to_string(),
    }
}

fn narrow(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
