//! Calls: how many, how they ended, how long they took.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::{Counter, Gauge, Metrics, Sample};
use crate::clock::{Clock, SystemClock};
use crate::codes;

/// Calls of one kind. Each is counted with the code that it ends with, and timed. Cheap to clone.
#[derive(Clone, Default)]
pub struct Call(Option<Arc<Kind>>);

struct Kind {
    metrics: Metrics,
    key: Vec<String>,
    labels: Vec<(String, String)>,
    by_code: [OnceLock<(Counter, Sample)>; CODES],
}

/// A call that has begun. Dropped without an end it counts as cancelled.
#[must_use = "a call that is dropped at once was cancelled"]
pub struct Running {
    call: Option<(Arc<Kind>, Instant)>,
    in_flight: Option<Place>,
}

/// How many calls there are at this moment, and how many began. Cheap to clone.
#[derive(Clone, Default)]
pub struct InFlight(Option<Arc<Flight>>);

struct Flight {
    now: AtomicUsize,
    began: Counter,
    shown: Gauge,
}

/// One of those in flight.
struct Place(Arc<Flight>);

impl Call {
    pub(super) fn new(metrics: &Metrics, key: &[&str], labels: &[(&str, &str)]) -> Self {
        if !metrics.is_on() {
            return Self(None);
        }
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self(Some(Arc::new(Kind {
            metrics: metrics.clone(),
            key: key.iter().map(|part| (*part).to_owned()).collect(),
            labels: labels.iter().map(owned).collect(),
            by_code: Default::default(),
        })))
    }

    /// A call begins.
    pub fn start(&self) -> Running {
        let call = self.0.as_ref().map(|kind| (Arc::clone(kind), SystemClock.instant()));
        Running { call, in_flight: None }
    }

    /// Does `work` as such a call, whose error has the code that `code` says.
    ///
    /// # Errors
    /// What the work ends with.
    pub async fn measure<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>>,
        code: impl FnOnce(&E) -> Code,
    ) -> Result<T, E> {
        let running = self.start();
        let outcome = work.await;
        running.done(outcome.as_ref().map_or_else(code, |_| Code::Ok));
        outcome
    }
}

impl Running {
    /// The call has ended with this code.
    pub fn done(mut self, code: Code) {
        self.end(code);
    }

    /// The call does not count.
    pub fn discard(mut self) {
        self.call = None;
    }

    /// It is one of these for as long as it runs.
    pub fn counted_in(mut self, flights: &InFlight) -> Self {
        self.in_flight = flights.enter();
        self
    }

    fn end(&mut self, code: Code) {
        self.in_flight = None;
        if let Some((kind, began)) = self.call.take() {
            kind.count(code, began);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

impl InFlight {
    /// Those counted by `began` when they begin, and by `now` while they run.
    #[must_use]
    pub fn new(metrics: &Metrics, began: &[&str], now: &[&str]) -> Self {
        let flight = || Flight {
            now: AtomicUsize::new(0),
            began: metrics.counter(began, &[]),
            shown: metrics.gauge(now, &[]),
        };
        Self(metrics.is_on().then(|| Arc::new(flight())))
    }

    fn enter(&self) -> Option<Place> {
        let flight = Arc::clone(self.0.as_ref()?);
        flight.began.increment();
        flight.shown.set_count(flight.now.fetch_add(1, Ordering::Relaxed) + 1);
        Some(Place(flight))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let before = self.0.now.fetch_sub(1, Ordering::Relaxed);
        self.0.shown.set_count(before.saturating_sub(1));
    }
}

impl Kind {
    fn count(&self, code: Code, began: Instant) {
        let place = usize::try_from(code as i32).ok().and_then(|number| self.by_code.get(number));
        let Some(place) = place else { return };
        let (counter, timer) = place.get_or_init(|| {
            let mut key: Vec<&str> = self.key.iter().map(String::as_str).collect();
            let own = self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let labels: Vec<_> = own.chain([("status", codes::name(code))]).collect();
            let counter = self.metrics.counter(&key, &labels);
            key.push("elapsed_time");
            (counter, self.metrics.timer(&key, &labels))
        });
        counter.increment();
        timer.observe_duration(SystemClock.instant().duration_since(began));
    }
}

/// The answer to a call, which ends when the answer does: a stream with its last message.
pub fn observed(running: Running, answer: Response<Body>) -> Response<Body> {
    if running.call.is_none() && running.in_flight.is_none() {
        return answer;
    }
    if let Some(code) = code(answer.headers()) {
        running.done(code);
        return answer;
    }
    answer.map(|body| Body::new(Observed { body, running: Some(running) }))
}

/// The body of an answer whose end is noted.
struct Observed {
    body: Body,
    running: Option<Running>,
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        let end = match &frame {
            Some(Ok(frame)) => frame.trailers_ref().map(|trailers| code(trailers).unwrap_or(Code::Unknown)),
            Some(Err(status)) => Some(status.code()),
            None => Some(Code::Unknown),
        };
        if let Some(end) = end
            && let Some(running) = self.running.take()
        {
            running.done(end);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    Some(Code::from_bytes(headers.get("grpc-status")?.as_bytes()))
}

/// The parts of a key that stand for a method such as `/spire.api.server.agent.v1.Agent/BanAgent`,
/// after SPIRE's rule, which is odd for runs of capitals and kept as it is.
#[must_use]
pub fn rpc_key(full_method: &str) -> Vec<String> {
    let (service, method) = full_method.trim_start_matches('/').split_once('/').unwrap_or_default();
    let service = service.strip_prefix("spire.api.server.").unwrap_or(service);
    let service = match service {
        "SpiffeWorkloadAPI" => "WorkloadAPI",
        "envoy.service.secret.v3.SecretDiscoveryService" => "SDS.v3",
        "grpc.health.v1.Health" => "Health",
        "logger.v1.Logger" | "spire.api.agent.logger.v1.Logger" => "Logger",
        "spire.agent.debug.v1.Debug" => "Debug",
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity" => "DelegatedIdentity",
        other => other,
    };
    let method = if method == "SubscribeToX509SVIDs" { "subscribe_to_x509_svids" } else { method };
    service.split('.').chain([method]).map(snake).collect()
}

fn snake(part: &str) -> String {
    let characters: Vec<char> = part.chars().collect();
    let is_lower = |at: Option<usize>| at.and_then(|at| characters.get(at)).is_some_and(|c| c.is_lowercase());
    let mut out = String::with_capacity(part.len() + 8);
    for (at, character) in characters.iter().enumerate() {
        if !character.is_alphanumeric() {
            out.push('_');
            continue;
        }
        let is_inner = at > 0 && at + 1 < characters.len();
        let is_beside_lower = is_lower(at.checked_sub(1)) || is_lower(Some(at + 1));
        if character.is_uppercase() && is_inner && is_beside_lower && !out.ends_with('_') {
            out.push('_');
        }
        out.extend(character.to_lowercase());
    }
    out
}

/// From `OK` to `Unauthenticated`.
const CODES: usize = 17;

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Call")
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Running")
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InFlight")
    }
}
