//! The Workload API: typed calls that carry the header it demands.

mod answers;

use futures::{Stream, StreamExt};
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
};
use spiffe::SpiffeId;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::dial::{Address, DialError, Dialer, RECEIVE_LIMIT};

pub use answers::{AnswerError, JwtBundles, JwtSvid, Key, ValidatedJwt, X509Bundles, X509Svid, X509Update};

/// Names the Workload API's address where nothing else does.
pub const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// The metadata every call must carry, so that no browser or proxy can be talked into one.
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// A client of the Workload API. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkloadApi {
    client: SpiffeWorkloadApiClient<InterceptedService<Channel, SecurityHeader>>,
}

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// No address was given and the environment names none.
    #[error("workload endpoint socket address is not configured")]
    NoAddress,
    /// There is no channel.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The API refused.
    #[error("rpc error: code = {:?} desc = {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    /// The API answered something unusable.
    #[error("cannot use the answer of the Workload API")]
    Answer(#[from] AnswerError),
    /// A stream ended, or an answer that must not be empty was.
    #[error("the Workload API ended the call without an answer")]
    Ended,
}

impl WorkloadError {
    /// Whether calling again can help (Workload Endpoint, section 6).
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Refused(status) => matches!(status.code(), Code::InvalidArgument | Code::Unimplemented),
            Self::NoAddress => true,
            Self::Dial(_) | Self::Answer(_) | Self::Ended => false,
        }
    }

    /// Whether what was answered before no longer holds.
    #[must_use]
    pub fn withdraws(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::PermissionDenied)
    }
}

impl From<Status> for WorkloadError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl WorkloadApi {
    /// Over an open channel.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        let client = SpiffeWorkloadApiClient::new(InterceptedService::new(channel, SecurityHeader));
        Self { client: client.max_decoding_message_size(RECEIVE_LIMIT) }
    }

    /// At `address`; connects at the first call.
    ///
    /// # Errors
    /// The address makes no channel.
    pub fn at(address: Address) -> Result<Self, WorkloadError> {
        Ok(Self::new(Dialer::new(address).channel()?))
    }

    /// At the address given, else at the one in `environment` (the value of [`SOCKET_VARIABLE`]).
    ///
    /// # Errors
    /// Neither is an address.
    pub fn configured(given: Option<&str>, environment: Option<&str>) -> Result<Self, WorkloadError> {
        let text = given.or(environment).filter(|text| !text.is_empty()).ok_or(WorkloadError::NoAddress)?;
        Self::at(Address::parse(text).map_err(DialError::from)?)
    }

    /// All X.509-SVIDs and the bundles to verify peers with: now and whenever they change.
    ///
    /// # Errors
    /// The call is refused; so may the stream end.
    pub async fn watch_x509_svids(
        &self,
    ) -> Result<impl Stream<Item = Result<X509Update, WorkloadError>> + Send + use<>, WorkloadError> {
        let stream = self.client.clone().fetch_x509svid(X509svidRequest {}).await?.into_inner();
        Ok(stream.map(|answer| Ok(X509Update::try_from(answer?)?)))
    }

    /// All X.509-SVIDs and bundles as they are now.
    ///
    /// # Errors
    /// The call is refused or answers nothing usable.
    pub async fn x509_svids(&self) -> Result<X509Update, WorkloadError> {
        first(self.watch_x509_svids().await?).await
    }

    /// The X.509 bundles: now and whenever they change.
    ///
    /// # Errors
    /// The call is refused; so may the stream end.
    pub async fn watch_x509_bundles(
        &self,
    ) -> Result<impl Stream<Item = Result<X509Bundles, WorkloadError>> + Send + use<>, WorkloadError> {
        let stream = self.client.clone().fetch_x509_bundles(X509BundlesRequest {}).await?.into_inner();
        Ok(stream.map(|answer| Ok(X509Bundles::try_from(answer?)?)))
    }

    /// The X.509 bundles as they are now.
    ///
    /// # Errors
    /// The call is refused or answers nothing usable.
    pub async fn x509_bundles(&self) -> Result<X509Bundles, WorkloadError> {
        first(self.watch_x509_bundles().await?).await
    }

    /// Fresh tokens for `audience`: of one identity, or of all.
    ///
    /// # Errors
    /// The call is refused or answers nothing usable.
    pub async fn jwt_svids(
        &self,
        audience: &[String],
        id: Option<&SpiffeId>,
    ) -> Result<Vec<JwtSvid>, WorkloadError> {
        let request = JwtsvidRequest {
            audience: audience.to_vec(),
            spiffe_id: id.map(ToString::to_string).unwrap_or_default(),
        };
        let answer = self.client.clone().fetch_jwtsvid(request).await?.into_inner();
        if answer.svids.is_empty() {
            return Err(WorkloadError::Ended);
        }
        Ok(answer.svids.into_iter().map(JwtSvid::try_from).collect::<Result<_, _>>()?)
    }

    /// The JWT bundles: now and whenever they change.
    ///
    /// # Errors
    /// The call is refused; so may the stream end.
    pub async fn watch_jwt_bundles(
        &self,
    ) -> Result<impl Stream<Item = Result<JwtBundles, WorkloadError>> + Send + use<>, WorkloadError> {
        let stream = self.client.clone().fetch_jwt_bundles(JwtBundlesRequest {}).await?.into_inner();
        Ok(stream.map(|answer| Ok(JwtBundles::try_from(answer?)?)))
    }

    /// The JWT bundles as they are now.
    ///
    /// # Errors
    /// The call is refused or answers nothing usable.
    pub async fn jwt_bundles(&self) -> Result<JwtBundles, WorkloadError> {
        first(self.watch_jwt_bundles().await?).await
    }

    /// Has the agent check somebody's token.
    ///
    /// # Errors
    /// The token is not good for `audience`, or the call is refused.
    pub async fn validate_jwt(&self, token: &str, audience: &str) -> Result<ValidatedJwt, WorkloadError> {
        let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.to_owned() };
        let answer = self.client.clone().validate_jwtsvid(request).await?.into_inner();
        Ok(ValidatedJwt::try_from(answer)?)
    }
}

/// Adds the security header.
#[derive(Clone, Copy, Debug)]
pub struct SecurityHeader;

impl Interceptor for SecurityHeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
        Ok(request)
    }
}

async fn first<T>(stream: impl Stream<Item = Result<T, WorkloadError>>) -> Result<T, WorkloadError> {
    std::pin::pin!(stream).next().await.unwrap_or(Err(WorkloadError::Ended))
}
