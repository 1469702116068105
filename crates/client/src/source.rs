//! Sources: the last good answer of a streaming call, always at hand.
//!
//! A source is two halves. The [`Source`] is what programs hold: the answer as it is now, and a way
//! to wait for the next. The [`Watcher`] is the task behind it, run by whoever made the source: it
//! keeps the stream open, reconnects at once when it ends and backs off while that fails. An answer
//! stays in place through errors; only a `PermissionDenied` withdraws it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use runtime::clock::Clock;
use spiffe::SpiffeId;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::workload::{
    JwtBundles, JwtSvid, ValidatedJwt, WorkloadApi, WorkloadError, X509Bundles, X509Update,
};

/// The caller's X.509-SVIDs and the bundles to verify peers with.
pub type X509Source = Source<X509Update>;

/// The X.509 bundles alone.
pub type BundleSource = Source<X509Bundles>;

/// First wait after a failure, and by how much each further one is longer.
const BACKOFF_STEP: Duration = Duration::from_secs(1);

/// Longest wait.
const BACKOFF_MOST: Duration = Duration::from_secs(30);

/// The last good answer. Cheap to clone.
#[derive(Debug)]
pub struct Source<T> {
    state: watch::Receiver<State<T>>,
}

impl<T> Clone for Source<T> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone() }
    }
}

/// The source will never have an answer (again): calling again cannot help, or its task is gone.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the source has ended")]
pub struct Ended(#[source] pub Option<Arc<WorkloadError>>);

impl<T> Source<T> {
    /// The answer as it is now; none before the first, and none after it was withdrawn.
    #[must_use]
    pub fn current(&self) -> Option<Arc<T>> {
        self.state.borrow().value.clone()
    }

    /// What went wrong last, unless an answer came since.
    #[must_use]
    pub fn trouble(&self) -> Option<Arc<WorkloadError>> {
        self.state.borrow().trouble.clone()
    }

    /// Waits until there is an answer. Cancel-safe.
    ///
    /// # Errors
    /// There will be none.
    pub async fn ready(&mut self) -> Result<Arc<T>, Ended> {
        let state = self.state.wait_for(|state| state.value.is_some() || state.over).await;
        let ended = match state {
            Ok(state) => match &state.value {
                Some(value) => return Ok(Arc::clone(value)),
                None => Ended(state.trouble.clone()),
            },
            Err(_) => Ended(None),
        };
        Err(ended)
    }

    /// Waits until the answer (or the trouble) is another than the one last waited for, here or in
    /// [`Source::ready`]. Cancel-safe.
    ///
    /// # Errors
    /// Nothing will change any more.
    pub async fn changed(&mut self) -> Result<Option<Arc<T>>, Ended> {
        if self.state.changed().await.is_err() {
            return Err(Ended(self.trouble()));
        }
        Ok(self.state.borrow_and_update().value.clone())
    }
}

impl X509Source {
    /// A source of X.509-SVIDs, and the task to run for it.
    #[must_use]
    pub fn x509(api: &WorkloadApi) -> (Self, Watcher<X509Update>) {
        let api = api.clone();
        watched("X.509-SVIDs", move || {
            let api = api.clone();
            async move { Ok(api.watch_x509_svids().await?.boxed()) }.boxed()
        })
    }
}

impl BundleSource {
    /// A source of X.509 bundles, and the task to run for it.
    #[must_use]
    pub fn bundles(api: &WorkloadApi) -> (Self, Watcher<X509Bundles>) {
        let api = api.clone();
        watched("X.509 bundles", move || {
            let api = api.clone();
            async move { Ok(api.watch_x509_bundles().await?.boxed()) }.boxed()
        })
    }
}

/// JWT-SVIDs on demand, and the bundles to verify others with.
///
/// Tokens are not kept here: the agent has them, and knows when they must be replaced.
#[derive(Clone, Debug)]
pub struct JwtSource {
    api: WorkloadApi,
    bundles: Source<JwtBundles>,
}

impl JwtSource {
    /// A source of tokens and JWT bundles, and the task to run for it.
    #[must_use]
    pub fn new(api: &WorkloadApi) -> (Self, Watcher<JwtBundles>) {
        let watching = api.clone();
        let (bundles, watcher) = watched("JWT bundles", move || {
            let api = watching.clone();
            async move { Ok(api.watch_jwt_bundles().await?.boxed()) }.boxed()
        });
        (Self { api: api.clone(), bundles }, watcher)
    }

    /// A token for `audience`: of `id`, or of the default identity.
    ///
    /// # Errors
    /// The call is refused or answers nothing usable.
    pub async fn token(&self, audience: &[String], id: Option<&SpiffeId>) -> Result<JwtSvid, WorkloadError> {
        self.api.jwt_svids(audience, id).await?.into_iter().next().ok_or(WorkloadError::Ended)
    }

    /// Has the agent check somebody's token.
    ///
    /// # Errors
    /// The token is not good for `audience`, or the call is refused.
    pub async fn validate(&self, token: &str, audience: &str) -> Result<ValidatedJwt, WorkloadError> {
        self.api.validate_jwt(token, audience).await
    }

    /// The bundles.
    #[must_use]
    pub const fn bundles(&self) -> &Source<JwtBundles> {
        &self.bundles
    }
}

#[derive(Debug)]
struct State<T> {
    value: Option<Arc<T>>,
    trouble: Option<Arc<WorkloadError>>,
    over: bool,
}

type Open<T> = Box<
    dyn Fn() -> BoxFuture<'static, Result<BoxStream<'static, Result<T, WorkloadError>>, WorkloadError>>
        + Send,
>;

fn watched<T>(
    what: &'static str,
    open: impl Fn() -> BoxFuture<'static, Result<BoxStream<'static, Result<T, WorkloadError>>, WorkloadError>>
    + Send
    + 'static,
) -> (Source<T>, Watcher<T>) {
    let (sender, state) = watch::channel(State { value: None, trouble: None, over: false });
    (Source { state }, Watcher { what, open: Box::new(open), state: sender })
}

/// The task behind a [`Source`].
pub struct Watcher<T> {
    what: &'static str,
    open: Open<T>,
    state: watch::Sender<State<T>>,
}

impl<T> std::fmt::Debug for Watcher<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("what", &self.what).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Watcher<T> {
    /// Runs until nobody holds the source any more. `clock` times the waits between attempts.
    ///
    /// # Errors
    /// Calling again cannot help.
    pub async fn run(self, clock: Arc<dyn Clock>) -> Result<(), Arc<WorkloadError>> {
        let mut failures = 0;
        loop {
            let error = tokio::select! {
                () = self.state.closed() => return Ok(()),
                error = self.follow(&mut failures) => Arc::new(error),
            };
            let over = error.is_final();
            self.state.send_modify(|state| {
                if error.withdraws() {
                    state.value = None;
                }
                state.trouble = Some(Arc::clone(&error));
                state.over = over;
            });
            if over {
                return Err(error);
            }
            let wait = backoff(failures);
            failures = failures.saturating_add(1);
            if wait.is_zero() {
                debug!(what = self.what, error = %error, "workload API stream ended");
                continue;
            }
            warn!(what = self.what, error = %error, "cannot follow the workload API");
            tokio::select! {
                () = self.state.closed() => return Ok(()),
                () = clock.sleep(wait) => {}
            }
        }
    }

    /// Publishes what one stream brings; `failures` is forgotten with its first answer.
    async fn follow(&self, failures: &mut u32) -> WorkloadError {
        let mut stream = match (self.open)().await {
            Ok(stream) => stream,
            Err(error) => {
                *failures = (*failures).max(1);
                return error;
            }
        };
        loop {
            match stream.next().await {
                Some(Ok(value)) => {
                    *failures = 0;
                    let value = Some(Arc::new(value));
                    self.state.send_replace(State { value, trouble: None, over: false });
                }
                Some(Err(error)) => return error,
                None => return WorkloadError::Ended,
            }
        }
    }
}

/// A stream that had answered is opened again at once; after that each failure waits longer.
fn backoff(failures: u32) -> Duration {
    BACKOFF_STEP.saturating_mul(failures).min(BACKOFF_MOST)
}
