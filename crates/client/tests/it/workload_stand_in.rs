//! A Workload API that says what a test tells it to.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use proto::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use tokio::sync::broadcast;
use tonic::{Request, Response, Status};

/// What a test makes an X.509 stream do.
#[derive(Clone)]
pub(crate) enum Step {
    /// One SVID with this path and hint.
    Answer(&'static str),
    /// The stream ends with this.
    End(Status),
}

pub(crate) struct StandIn {
    pub(crate) steps: broadcast::Sender<Step>,
}

type Answers<T> = Result<Response<BoxStream<'static, Result<T, Status>>>, Status>;

fn guarded<T>(request: &Request<T>) -> Result<(), Status> {
    let header = request.metadata().get("workload.spiffe.io");
    if header.is_none_or(|value| value != "true") {
        return Err(Status::invalid_argument("security header missing from request"));
    }
    Ok(())
}

pub(crate) fn svid(path: &str) -> X509svid {
    X509svid {
        spiffe_id: format!("spiffe://example.org{path}"),
        x509_svid: Bytes::from_static(&[0x30, 1, 1]),
        x509_svid_key: Bytes::from_static(b"key"),
        bundle: Bytes::from_static(&[0x30, 1, 2, 0x30, 1, 3]),
        hint: String::new(),
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for StandIn {
    type FetchX509SVIDStream = BoxStream<'static, Result<X509svidResponse, Status>>;
    type FetchX509BundlesStream = BoxStream<'static, Result<X509BundlesResponse, Status>>;
    type FetchJWTBundlesStream = BoxStream<'static, Result<JwtBundlesResponse, Status>>;
    type FetchWITSVIDStream = BoxStream<'static, Result<WitsvidResponse, Status>>;
    type FetchWITBundlesStream = BoxStream<'static, Result<WitBundlesResponse, Status>>;

    async fn fetch_x509svid(&self, request: Request<X509svidRequest>) -> Answers<X509svidResponse> {
        guarded(&request)?;
        let answers = futures::stream::unfold(Some(self.steps.subscribe()), |steps| async move {
            let mut steps = steps?;
            Some(match steps.recv().await.ok()? {
                Step::Answer(path) => {
                    (Ok(X509svidResponse { svids: vec![svid(path)], ..Default::default() }), Some(steps))
                }
                Step::End(status) => (Err(status), None),
            })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn fetch_x509_bundles(&self, request: Request<X509BundlesRequest>) -> Answers<X509BundlesResponse> {
        guarded(&request)?;
        let bundles =
            [("spiffe://example.org", &[0x30, 1, 2][..]), ("spiffe://other.org", &[0x30, 1, 4, 0x30, 1, 5])]
                .map(|(id, der)| (id.to_owned(), Bytes::from_static(der)));
        let answer = X509BundlesResponse { bundles: bundles.into(), ..Default::default() };
        Ok(Response::new(futures::stream::iter([Ok(answer)]).boxed()))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        guarded(&request)?;
        let request = request.into_inner();
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let svid = Jwtsvid {
            spiffe_id: "spiffe://example.org/a".into(),
            svid: request.audience.join("+"),
            hint: "h".into(),
        };
        Ok(Response::new(JwtsvidResponse { svids: vec![svid] }))
    }

    async fn fetch_jwt_bundles(&self, request: Request<JwtBundlesRequest>) -> Answers<JwtBundlesResponse> {
        guarded(&request)?;
        let bundles = [("spiffe://example.org".to_owned(), Bytes::from_static(b"{\"keys\":[]}"))];
        let answer = JwtBundlesResponse { bundles: bundles.into() };
        Ok(Response::new(futures::stream::iter([Ok(answer)]).boxed()))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        guarded(&request)?;
        if request.get_ref().svid != "good" {
            return Err(Status::invalid_argument("jwtsvid: unable to parse JWT token"));
        }
        let spiffe_id = "spiffe://example.org/a".into();
        Ok(Response::new(ValidateJwtsvidResponse { spiffe_id, claims: None }))
    }

    async fn fetch_witsvid(&self, _: Request<WitsvidRequest>) -> Answers<WitsvidResponse> {
        Err(Status::unimplemented("fetching WIT-SVIDs is not implemented"))
    }

    async fn fetch_wit_bundles(&self, _: Request<WitBundlesRequest>) -> Answers<WitBundlesResponse> {
        Err(Status::unimplemented("fetching WIT bundles is not implemented"))
    }
}
