//! JWT-SVIDs: cached, fetched once however many ask, renewed at half of their life.
//!
//! A token that still holds is served when the server cannot be asked. Entries whose tokens carry a
//! `jti` are never cached: each token of theirs is to be used once. Where more is asked for than the
//! server signs, identities take turns (`lanes`).

mod cache;
mod lanes;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared as SharedFuture, WeakShared};
use proto::spire::server::svid::NewJwtsvidRequest;
use proto::spire::types;
use runtime::backoff::Backoff;
use runtime::chain;
use runtime::clock::{Clock, within};
use runtime::reconcile::Poke;
use spiffe::{Bundle, Entry, IdError, SpiffeId, UnixSecs};
use tonic::{Code, Status};
use tracing::{error, warn};
use zeroize::Zeroizing;

use crate::connection::Connection;
use crate::meters::Meters;
use crate::rotation::RotationRule;

pub use cache::Key;
use cache::{Cache, Found};
use lanes::Lanes;

/// How long asking the server may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The first wait before asking again.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Requests that are under way at once. A server signs 500 tokens a second for an agent: who has a turn
/// waits for an eighth of a second there at most, and as many are enough for a server that is as far away.
const AT_ONCE: usize = 64;
/// Flights that nobody waits for any more are cleared away when there are so many.
const MANY_FLIGHTS: usize = 64;

/// A JWT-SVID as workloads get it. The token is wiped; there is no `Debug`.
pub struct JwtSvid {
    /// Whom it names.
    pub id: SpiffeId,
    /// The token.
    pub token: Zeroizing<String>,
    /// When it was made.
    pub issued_at: UnixSecs,
    /// When it ends.
    pub expires_at: UnixSecs,
}

/// Why there is no token.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JwtSvidError {
    /// The server refused, or could not be asked.
    #[error("failed to fetch JWT SVID: rpc error: code = {:?} desc = {}", .0.code(), .0.message())]
    Call(Box<Status>),
    /// There is no way to the server.
    #[error("failed to fetch JWT SVID: {0}")]
    Dial(String),
    /// The server took too long.
    #[error("failed to fetch JWT SVID: the server did not answer in time")]
    Timeout,
    /// The answer lacks something.
    #[error("{0}")]
    Incomplete(&'static str),
    /// The answer names nobody.
    #[error("could not parse JWT-SVID SPIFFE ID: {0}")]
    BadId(IdError),
    /// The answer names somebody else.
    #[error("the server answered a JWT-SVID of {found} for an entry of {wanted}")]
    OtherId {
        /// Whom it should name.
        wanted: SpiffeId,
        /// Whom it names.
        found: SpiffeId,
    },
}

/// The tokens of an agent. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct JwtSvids(Arc<Shared>);

struct Shared {
    connection: Connection,
    clock: Arc<dyn Clock>,
    patience_with_hit: Duration,
    lanes: Lanes,
    tokens: Mutex<Tokens>,
    /// Poked when a token comes or goes.
    changed: Poke,
    meters: OnceLock<Arc<Meters>>,
}

struct Tokens {
    cache: Cache,
    rule: RotationRule,
    flights: HashMap<Key, WeakShared<Flight>>,
}

type Flight = BoxFuture<'static, Result<Arc<JwtSvid>, JwtSvidError>>;

impl JwtSvids {
    /// No tokens yet, and at most `most` later. While a token still holds, the server is given
    /// `patience_with_hit` to make its successor.
    #[must_use]
    pub fn new(
        connection: Connection,
        clock: Arc<dyn Clock>,
        most: usize,
        patience_with_hit: Duration,
    ) -> Self {
        let tokens =
            Tokens { cache: Cache::new(most), rule: RotationRule::new(None), flights: HashMap::new() };
        Self(Arc::new(Shared {
            connection,
            clock,
            patience_with_hit,
            lanes: Lanes::new(AT_ONCE),
            tokens: Mutex::new(tokens),
            changed: Poke::new(),
            meters: OnceLock::new(),
        }))
    }

    /// Shows how many there are.
    pub(crate) fn measured(self, meters: Arc<Meters>) -> Self {
        meters.jwt_svids.set(0.0);
        // Set once only: there is one program.
        self.0.meters.set(meters).ok();
        self
    }

    /// A token of `entry` for `audience`. Cancel-safe.
    ///
    /// # Errors
    /// There is no token that still holds, and the server gives none.
    pub async fn fetch(&self, entry: &Entry, audience: &[String]) -> Result<Arc<JwtSvid>, JwtSvidError> {
        let request = Request {
            entry_id: entry.id.as_str().to_owned(),
            id: entry.spiffe_id.clone(),
            audience: audience.to_vec(),
        };
        if entry.additional_attributes.is_some_and(|attributes| attributes.jwt_svid_include_jti) {
            return self.0.mint(&request, TIMEOUT).await.map(Arc::new);
        }
        let key = Key::new(&entry.spiffe_id, audience);
        let (cached, flight) = {
            let mut tokens = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            let cached = match tokens.cache.find(&key, self.0.clock.now()) {
                Found::Fresh(svid) => return Ok(svid),
                Found::Stale(svid) => Some(svid),
                Found::Nothing => None,
            };
            let patience = if cached.is_some() { self.0.patience_with_hit } else { TIMEOUT };
            (cached, self.flight(&mut tokens, key, request, patience))
        };
        match (flight.await, cached) {
            (Ok(svid), _) => Ok(svid),
            (Err(error), Some(svid)) if UnixSecs::from(self.0.clock.now()) < svid.expires_at => {
                warn!(error = %error, spiffe_id = %svid.id, "Unable to renew JWT; returning cached copy");
                Ok(svid)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Takes over tokens that were judged, those used least recently first.
    pub(crate) fn recall(&self, tokens: Vec<(Key, Arc<JwtSvid>)>) {
        let mut held = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, svid) in tokens {
            let renew_at = held.rule.jwt(svid.issued_at, svid.expires_at);
            held.cache.insert(key, svid, renew_at);
        }
        if let Some(meters) = self.0.meters.get() {
            meters.jwt_svids.set_count(held.cache.len());
        }
    }

    /// All tokens, those used least recently first.
    pub(crate) fn held(&self) -> Vec<(Key, Arc<JwtSvid>)> {
        let tokens = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.cache.iter().map(|(key, svid)| (key.clone(), Arc::clone(svid))).collect()
    }

    /// Poked when a token comes or goes.
    pub(crate) fn changed(&self) -> &Poke {
        &self.0.changed
    }

    /// Forgets the tokens that tainted authorities of `bundle` signed.
    pub fn purge(&self, bundle: &Bundle) {
        let tainted = |key_id: &str| {
            bundle.jwt_authorities.iter().any(|authority| authority.tainted && authority.key_id == key_id)
        };
        if bundle.jwt_authorities.iter().any(|authority| authority.tainted) {
            let running = self.0.meters.get().map(|meters| meters.process_tainted_jwt.start());
            let mut tokens = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            let before = tokens.cache.len();
            tokens.cache.remove_signed_by(tainted);
            if tokens.cache.len() < before {
                self.0.changed.poke();
            }
            if let (Some(meters), Some(running)) = (self.0.meters.get(), running) {
                let gone = before - tokens.cache.len();
                if gone > 0 {
                    meters.tainted_jwt.observe(gone as f64);
                }
                meters.jwt_svids.set_count(tokens.cache.len());
                running.done(Code::Ok);
            }
        }
    }

    /// How many tokens are cached.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner).cache.len()
    }

    /// The flight for `key` that is under way, or a new one. It moves while anybody waits for it.
    fn flight(
        &self,
        tokens: &mut Tokens,
        key: Key,
        request: Request,
        patience: Duration,
    ) -> SharedFuture<Flight> {
        if let Some(flight) = tokens.flights.get(&key).and_then(WeakShared::upgrade) {
            return flight;
        }
        if tokens.flights.len() >= MANY_FLIGHTS {
            tokens.flights.retain(|_, flight| flight.upgrade().is_some());
        }
        let (shared, of) = (Arc::clone(&self.0), key.clone());
        let flight = async move {
            let minted = shared.mint(&request, patience).await.map(Arc::new);
            let mut tokens = shared.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            tokens.flights.remove(&of);
            if let Ok(svid) = &minted {
                let renew_at = tokens.rule.jwt(svid.issued_at, svid.expires_at);
                tokens.cache.insert(of, Arc::clone(svid), renew_at);
                shared.changed.poke();
                if let Some(meters) = shared.meters.get() {
                    meters.jwt_svids.set_count(tokens.cache.len());
                }
            }
            minted
        };
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            tokens.flights.insert(key, weak);
        }
        flight
    }
}

struct Request {
    entry_id: String,
    id: SpiffeId,
    audience: Vec<String>,
}

impl Shared {
    /// Asks the server, again and again for as long as `patience` lasts.
    async fn mint(&self, request: &Request, patience: Duration) -> Result<JwtSvid, JwtSvidError> {
        let last = Mutex::new(None);
        let attempts = async {
            let mut backoff = Backoff::new(FIRST_RETRY);
            loop {
                match self.ask(request).await {
                    Err(error) if error.may_pass() => {
                        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        self.clock.sleep(backoff.next()).await;
                    }
                    outcome => return outcome,
                }
            }
        };
        let outcome = within(&*self.clock, patience, attempts).await;
        let minted = outcome.unwrap_or_else(|| {
            let last = last.into_inner().unwrap_or_else(PoisonError::into_inner);
            Err(last.unwrap_or(JwtSvidError::Timeout))
        });
        if let Err(error) = &minted {
            error!(error = %error, spiffe_id = %request.id, "Failed to fetch JWT SVID");
        }
        minted
    }

    async fn ask(&self, request: &Request) -> Result<JwtSvid, JwtSvidError> {
        let _turn = self.lanes.turn(&request.id).await;
        let lease = self.connection.lease().map_err(|error| JwtSvidError::Dial(chain(&error)))?;
        let message =
            NewJwtsvidRequest { entry_id: request.entry_id.clone(), audience: request.audience.clone() };
        match lease.clients.svid().new_jwtsvid(message).await {
            Ok(answer) => request.accept(answer.into_inner().svid),
            Err(status) => {
                // What a denial means to the agent is for the next sync to find out.
                let _verdict = self.connection.judge(&lease, &status);
                Err(JwtSvidError::Call(Box::new(status)))
            }
        }
    }
}

impl Request {
    fn accept(&self, answered: Option<types::Jwtsvid>) -> Result<JwtSvid, JwtSvidError> {
        let svid = answered.ok_or(JwtSvidError::Incomplete("JWTSVID response missing SVID"))?;
        let token = Zeroizing::new(svid.token);
        if svid.issued_at == 0 {
            return Err(JwtSvidError::Incomplete("JWTSVID missing issued at"));
        }
        if svid.expires_at == 0 {
            return Err(JwtSvidError::Incomplete("JWTSVID missing expires at"));
        }
        if svid.issued_at > svid.expires_at {
            return Err(JwtSvidError::Incomplete("JWTSVID issued after it has expired"));
        }
        let id = svid.id.unwrap_or_default();
        let id = SpiffeId::try_from(&id).map_err(JwtSvidError::BadId)?;
        if id != self.id {
            return Err(JwtSvidError::OtherId { wanted: self.id.clone(), found: id });
        }
        Ok(JwtSvid { id, token, issued_at: UnixSecs(svid.issued_at), expires_at: UnixSecs(svid.expires_at) })
    }
}

impl JwtSvidError {
    /// Whether asking once more may help. What the transport says of itself may always pass; what the
    /// server decided will not be decided otherwise a second later, and who waits should know.
    fn may_pass(&self) -> bool {
        match self {
            Self::Call(status) => {
                std::error::Error::source(&**status).is_some()
                    || matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::Aborted)
            }
            Self::Dial(_) | Self::Timeout | Self::Incomplete(_) | Self::BadId(_) | Self::OtherId { .. } => {
                false
            }
        }
    }
}
