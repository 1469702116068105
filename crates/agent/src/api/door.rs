//! The public socket, from the first moment on.
//!
//! It listens before the agent has anything to serve: a workload that starts with the machine finds
//! somebody at home. Whoever calls then is held until the APIs open, but only so many callers and only
//! so long; the others are told to come back. Asked for its health, the agent says that it is not
//! ready. Nobody is attested here, and nothing of a call is read.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use config::AgentConfig;
use runtime::BoxError;
use runtime::clock::{Clock, within};
use runtime::listen::{self, Limits, ListenError, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::service_fn;
use tracing::info;

use super::{PUBLIC, Public, bind, health};

/// The public socket, bound.
pub struct Door {
    /// Nothing where no API for workloads is wanted.
    listener: Option<UnixListener>,
    names: &'static str,
    shared: Arc<Shared>,
}

/// What opens a door, once.
#[derive(Clone)]
pub struct Opener(Arc<Shared>);

struct Shared {
    apis: OnceLock<Public>,
    /// Cancelled when they are there.
    opened: CancellationToken,
    places: Semaphore,
    clock: Arc<dyn Clock>,
    config: Arc<AgentConfig>,
}

impl Door {
    /// Makes the socket. To be called within a Tokio runtime.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind(config: &Arc<AgentConfig>, clock: &Arc<dyn Clock>) -> Result<Self, ListenError> {
        let is_wanted = !config.disable_workload_api || !config.disable_sds_api;
        let listener = is_wanted.then(|| bind(&config.socket_path, PUBLIC)).transpose()?;
        let names = match (config.disable_workload_api, config.disable_sds_api) {
            (false, false) => "Workload and SDS APIs",
            (false, true) => "Workload API",
            (true, _) => "SDS API",
        };
        let shared = Shared {
            apis: OnceLock::new(),
            opened: CancellationToken::new(),
            places: Semaphore::new(config.finial.held_callers.min(Semaphore::MAX_PERMITS)),
            clock: Arc::clone(clock),
            config: Arc::clone(config),
        };
        Ok(Self { listener, names, shared: Arc::new(shared) })
    }

    /// What opens it.
    #[must_use]
    pub fn opener(&self) -> Opener {
        Opener(Arc::clone(&self.shared))
    }

    /// Answers until the token is cancelled; then open streams end and calls get their time to.
    ///
    /// # Errors
    /// None: the type fits [`runtime::tasks::Tasks::spawn`].
    pub async fn run(self, token: CancellationToken) -> Result<(), BoxError> {
        let Self { listener: Some(listener), names, shared } = self else { return Ok(()) };
        let address = listener.path().display().to_string();
        info!(address, apis = names, network = "unix", subsystem_name = "endpoints", "Starting agent APIs");
        let stop = token.clone();
        let service = service_fn(move |request| {
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            async move {
                let answer = match shared.apis.get() {
                    Some(apis) => apis.answer(request).await,
                    None => shared.hold(request, &stop).await,
                };
                Ok::<_, Infallible>(answer)
            }
        });
        let limits = Limits { users_take_turns: true, ..Limits::local() };
        listen::serve(listener, limits, service, token).await;
        info!(apis = names, subsystem_name = "endpoints", "Stopping agent APIs");
        Ok(())
    }
}

impl Opener {
    /// From now on calls are answered by `apis`, also those that are held. Only the first counts.
    pub(super) fn open(&self, apis: Public) {
        self.0.apis.set(apis).ok();
        self.0.opened.cancel();
    }
}

impl Shared {
    /// Has a call wait until the APIs are there.
    async fn hold(&self, request: http::Request<Body>, stop: &CancellationToken) -> http::Response<Body> {
        if health::is_asked(listen::method(request.uri())) {
            return health::not_serving(request).await;
        }
        let Ok(_place) = self.places.try_acquire() else {
            return Status::unavailable("the agent has nothing to serve yet, and too many wait").into_http();
        };
        let waiting = within(&*self.clock, self.config.finial.hold_timeout, self.opened.cancelled());
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => return Status::unavailable("the agent is stopping").into_http(),
            opened = waiting => opened,
        };
        match self.apis.get() {
            Some(apis) if opened.is_some() => apis.answer(request).await,
            _ => Status::unavailable("the agent has nothing to serve yet").into_http(),
        }
    }
}
