//! The Workload API (SPIFFE Workload API; Workload Endpoint, section 6).
//!
//! A call passes, in this order: the security header, its arguments, attestation, the rate limit; then
//! it is answered. Streams are in `watch`, tokens in `tokens`; `answers` encodes and `hints` decides
//! which of several identities with one hint is shown. Codes and texts are SPIRE's. What is answered is
//! encoded once for all callers with the same selectors and sent from the same memory.

pub(super) mod answers;
pub(super) mod hints;
mod tokens;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use proto::raw;
use proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
    X509BundlesRequest, X509svidRequest,
};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Request, Response, Status};

use super::gate::{Call, Gate};
use super::has_security_header;
use super::limits::Limit;
use super::route::Service;
use crate::attestors::Attestors;
use crate::context::Context;
use watch::What;

/// The service and its methods.
pub(super) const SERVICE: Service = Service {
    name: "SpiffeWorkloadAPI",
    methods: &[
        "FetchX509SVID",
        "FetchX509Bundles",
        "FetchJWTSVID",
        "FetchJWTBundles",
        "ValidateJWTSVID",
        "FetchWITSVID",
        "FetchWITBundles",
    ],
};

/// How long the first answer waits for identities that are being made, when others are there already.
const PATIENCE: Duration = Duration::from_secs(1);

/// The Workload API of an agent.
pub(super) struct WorkloadApi {
    context: Arc<Context>,
    gate: Gate,
    limits: Limits,
    /// Streams end when this is cancelled.
    stop: CancellationToken,
}

struct Limits {
    x509_svid: Option<Limit>,
    x509_bundles: Option<Limit>,
    jwt_svid: Option<Limit>,
    jwt_bundles: Option<Limit>,
}

impl WorkloadApi {
    pub(super) fn new(context: Arc<Context>, attestors: Arc<Attestors>, stop: CancellationToken) -> Self {
        let configured = context.config.experimental.rate_limits;
        let limit = |per_second| Limit::new(per_second, &context.clock);
        let limits = Limits {
            x509_svid: limit(configured.fetch_x509_svid),
            x509_bundles: limit(configured.fetch_x509_bundles),
            jwt_svid: limit(configured.fetch_jwt_svid),
            jwt_bundles: limit(configured.fetch_jwt_bundles),
        };
        let gate = Gate::new(Arc::clone(&context), attestors, (SERVICE.name, SHORT_NAME));
        Self { context, gate, limits, stop }
    }

    /// Answers a call of one of [`SERVICE`]'s methods.
    pub(super) async fn answer(
        self: Arc<Self>,
        method: &str,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        if !has_security_header(request.headers()) {
            return Status::invalid_argument("security header missing from request").into_http();
        }
        match method {
            "FetchX509SVID" => {
                let watched = self.watch(What::X509Svids, Call::of("FetchX509SVID", &request));
                raw::server_streaming(request, |_: Request<X509svidRequest>| watched).await
            }
            "FetchX509Bundles" => {
                let watched = self.watch(What::X509Bundles, Call::of("FetchX509Bundles", &request));
                raw::server_streaming(request, |_: Request<X509BundlesRequest>| watched).await
            }
            "FetchJWTBundles" => {
                let watched = self.watch(What::JwtBundles, Call::of("FetchJWTBundles", &request));
                raw::server_streaming(request, |_: Request<JwtBundlesRequest>| watched).await
            }
            "FetchJWTSVID" => {
                let call = Call::of("FetchJWTSVID", &request);
                let answer = |request: Request<JwtsvidRequest>| async move {
                    self.jwt_svids(&call, request.into_inner()).await.map(Response::new)
                };
                raw::unary(request, answer).await
            }
            "ValidateJWTSVID" => {
                let call = Call::of("ValidateJWTSVID", &request);
                let answer = |request: Request<ValidateJwtsvidRequest>| async move {
                    self.validated(&call, request.into_inner()).await.map(Response::new)
                };
                raw::unary(request, answer).await
            }
            "FetchWITSVID" => {
                raw::server_streaming(request, |_: Request<WitsvidRequest>| async {
                    Err(Status::unimplemented("fetching WIT-SVIDs is not implemented"))
                })
                .await
            }
            _ => {
                raw::server_streaming(request, |_: Request<WitBundlesRequest>| async {
                    Err(Status::unimplemented("fetching WIT bundles is not implemented"))
                })
                .await
            }
        }
    }
}

/// The service as the log names it.
const SHORT_NAME: &str = "WorkloadAPI";

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn w14_the_header_is_there_once_with_one_spelling() {
        let has = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("workload.spiffe.io", HeaderValue::from_static(value));
            }
            has_security_header(&headers)
        };

        assert!(has(&["true"]));
        for wrong in
            [&[][..], &["True"], &["1"], &[""], &["true", "true"], &["true", "false"], &["true,true"]]
        {
            assert!(!has(wrong), "{wrong:?}");
        }
    }
}
