//! How often an address may call: token buckets that make callers wait, as SPIRE's do.
//!
//! A bucket holds as many tokens as it gains in a second. Who takes more than are there goes into debt
//! and waits until it is paid; who would wait longer than it is willing to is refused at once and owes
//! nothing. Buckets that are full again are forgotten. The number of buckets is bounded: when an
//! attacker makes up addresses faster than that, new ones share a bucket until others fall idle.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime::clock::Clock;
use tonic::Status;

use crate::authz::Limit;
use crate::caller::Caller;
use crate::meters::{Meters, of_limit};

/// The buckets of every address. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(crate) struct Limits(Arc<Inner>);

struct Inner {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    clock: Arc<dyn Clock>,
    enabled: config::ServerRateLimits,
    meters: Arc<Meters>,
}

/// Which bucket: that of an address, or the one shared by those for which there is no room.
type Key = (Limit, Option<IpAddr>);

#[derive(Default)]
struct Shard {
    buckets: HashMap<Key, Bucket>,
}

/// Tokens as they were at an instant; fewer than none while callers wait.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// Tokens that were taken and are not used yet: given back if the caller goes away while it waits.
struct Taken<'a> {
    limits: &'a Inner,
    key: Key,
    shard: usize,
    count: f64,
}

impl Limits {
    /// No calls yet.
    pub(crate) fn new(enabled: config::ServerRateLimits, clock: Arc<dyn Clock>, meters: Arc<Meters>) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self(Arc::new(Inner { shards, hasher: RandomState::new(), clock, enabled, meters }))
    }

    /// Waits until `caller` may do `count` of what its method is limited for. Cancel-safe.
    ///
    /// # Errors
    /// `ResourceExhausted` with SPIRE's text if `count` is more than ever fits, or the wait would be
    /// longer than the caller waits for an answer.
    pub(crate) async fn admit(&self, caller: &Caller, count: usize) -> Result<(), Status> {
        let (Some(limit), Some(address)) = (caller.rule.limit, caller.limited_by()) else { return Ok(()) };
        if !self.is_on(limit) {
            return Ok(());
        }
        of_limit(self.0.meters.limit(caller.rule), self.wait(caller, limit, address, count)).await
    }

    async fn wait(&self, caller: &Caller, limit: Limit, address: IpAddr, count: usize) -> Result<(), Status> {
        let burst = burst(limit);
        if count > burst {
            return Err(Status::resource_exhausted(format!("rate ({count}) exceeds burst size ({burst})")));
        }
        let now = self.0.clock.instant();
        let patience =
            caller.deadline.map_or(LONGEST, |deadline| deadline.saturating_duration_since(now).min(LONGEST));
        let (taken, wait) = self.0.take((limit, Some(address)), count, now);
        if wait > patience {
            drop(taken);
            let text = format!("rate: Wait(n={count}) would exceed context deadline");
            return Err(Status::resource_exhausted(text));
        }
        if !wait.is_zero() {
            self.0.clock.sleep(wait).await;
        }
        std::mem::forget(taken);
        Ok(())
    }

    fn is_on(&self, limit: Limit) -> bool {
        match limit {
            Limit::Attestation => self.0.enabled.attestation,
            Limit::X509Signing | Limit::JwtSigning | Limit::WitSigning => self.0.enabled.signing,
            Limit::PushKey | Limit::PostStatus => true,
        }
    }
}

impl Inner {
    fn take(&self, key: Key, count: usize, now: Instant) -> (Taken<'_>, Duration) {
        let shard = usize::try_from(self.hasher.hash_one(key)).unwrap_or(usize::MAX) % SHARDS;
        let count = as_tokens(count);
        let (key, tokens) = self.locked(shard, |shard| {
            let key = shard.place(key, now);
            let bucket = shard.buckets.entry(key).or_insert_with(|| Bucket::full(key.0, now));
            bucket.gain(key.0, now);
            bucket.tokens -= count;
            (key, bucket.tokens)
        });
        let wait = if tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(-tokens / as_tokens(burst(key.0)))
        };
        (Taken { limits: self, key, shard, count }, wait)
    }

    fn locked<T>(&self, index: usize, act: impl FnOnce(&mut Shard) -> T) -> T {
        let Some(shard) = self.shards.get(index) else { return act(&mut Shard::default()) };
        act(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shard {
    /// The bucket for `key`: its own if there is one or room for one.
    fn place(&mut self, key: Key, now: Instant) -> Key {
        if self.buckets.contains_key(&key) {
            return key;
        }
        if self.buckets.len() >= MOST_PER_SHARD {
            self.buckets.retain(|(limit, _), bucket| !bucket.is_idle(*limit, now));
        }
        if self.buckets.len() >= MOST_PER_SHARD { (key.0, None) } else { key }
    }
}

impl Bucket {
    fn full(limit: Limit, at: Instant) -> Self {
        Self { tokens: as_tokens(burst(limit)), at }
    }

    fn gain(&mut self, limit: Limit, now: Instant) {
        let most = as_tokens(burst(limit));
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = passed.mul_add(most, self.tokens).min(most);
        self.at = self.at.max(now);
    }

    /// Whether forgetting it changes nothing.
    fn is_idle(mut self, limit: Limit, now: Instant) -> bool {
        self.gain(limit, now);
        self.tokens >= as_tokens(burst(limit))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.limits.locked(self.shard, |shard| {
            if let Some(bucket) = shard.buckets.get_mut(&self.key) {
                bucket.tokens = (bucket.tokens + self.count).min(as_tokens(burst(self.key.0)));
            }
        });
    }
}

/// How many a second, and at once.
const fn burst(limit: Limit) -> usize {
    match limit {
        Limit::Attestation => 1,
        Limit::X509Signing | Limit::JwtSigning | Limit::WitSigning | Limit::PushKey => 500,
        Limit::PostStatus => 10,
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most 500")]
const fn as_tokens(count: usize) -> f64 {
    count as f64
}

const SHARDS: usize = 16;
/// 64 Ki buckets in all: about 4 MB.
const MOST_PER_SHARD: usize = 4096;
/// Nobody waits longer than this, whatever the client says.
const LONGEST: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::UNIX_EPOCH;

    use futures::FutureExt;
    use runtime::clock::ManualClock;

    use super::*;
    use crate::authz::{Lookup, Open, look_up};
    use crate::caller::{Peer, Role};

    const ATTEST: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";
    const SIGN: &str = "/spire.api.server.svid.v1.SVID/BatchNewX509SVID";

    fn limits() -> (Limits, ManualClock) {
        let clock = ManualClock::new(UNIX_EPOCH);
        let enabled = config::ServerRateLimits { attestation: true, signing: true };
        let trust_domain = spiffe::TrustDomain::parse("example.org").unwrap();
        let meters = Meters::new(runtime::metrics::Metrics::none(), &trust_domain);
        (Limits::new(enabled, Arc::new(clock.clone()), meters), clock)
    }

    fn caller(method: &'static str, last: u8, patience: Option<(&ManualClock, u64)>) -> Caller {
        let Lookup::Method(rule) = look_up(method, true) else { panic!("{method}") };
        let address = SocketAddr::from((Ipv4Addr::new(192, 0, 2, last), 1000));
        Caller {
            peer: Arc::new(Peer::Remote { address, certificate: None }),
            role: Role::Anybody,
            rule,
            open: Open::to(rule.who),
            deadline: patience.map(|(clock, seconds)| clock.instant() + Duration::from_secs(seconds)),
            attesting: None,
            request_id: Arc::default(),
        }
    }

    #[tokio::test]
    async fn n08_r02_the_second_attestation_in_a_second_waits_and_other_addresses_do_not() {
        let (limits, clock) = limits();
        let one = caller(ATTEST, 1, None);
        limits.admit(&one, 1).await.unwrap();

        let mut second = Box::pin(limits.admit(&one, 1));
        assert!(futures::poll!(&mut second).is_pending());
        limits.admit(&caller(ATTEST, 2, None), 1).now_or_never().unwrap().unwrap();
        clock.advance(Duration::from_secs(1));

        second.await.unwrap();
    }

    #[tokio::test]
    async fn r02_more_than_fits_and_more_than_the_caller_waits_for_are_refused() {
        let (limits, clock) = limits();

        let refused = limits.admit(&caller(SIGN, 1, None), 501).await.unwrap_err();
        assert_eq!(refused.message(), "rate (501) exceeds burst size (500)");
        let hasty = caller(ATTEST, 1, Some((&clock, 0)));
        limits.admit(&hasty, 1).await.unwrap();
        let refused = limits.admit(&hasty, 1).await.unwrap_err();
        assert_eq!(refused.message(), "rate: Wait(n=1) would exceed context deadline");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        // It owes nothing.
        clock.advance(Duration::from_secs(1));
        limits.admit(&hasty, 1).now_or_never().unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_goes_away_while_waiting_gives_its_place_back() {
        let (limits, clock) = limits();
        let caller = caller(ATTEST, 1, None);
        limits.admit(&caller, 1).await.unwrap();
        let mut gone = Box::pin(limits.admit(&caller, 1));
        assert!(futures::poll!(&mut gone).is_pending());

        drop(gone);
        clock.advance(Duration::from_secs(1));

        limits.admit(&caller, 1).now_or_never().unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_own_socket_is_not_limited() {
        let (limits, _) = limits();
        let mut local = caller(ATTEST, 1, None);
        local.peer = Arc::new(Peer::Local);

        for _ in 0..100 {
            limits.admit(&local, 1).now_or_never().unwrap().unwrap();
        }
    }

    #[test]
    fn made_up_addresses_share_a_bucket_when_there_is_no_room_left() {
        let now = runtime::clock::SystemClock.instant();
        let mut shard = Shard::default();
        for number in 0..u32::try_from(MOST_PER_SHARD).unwrap() {
            let key = (Limit::Attestation, Some(IpAddr::from(number.to_be_bytes())));
            assert_eq!(shard.place(key, now), key);
            shard.buckets.insert(key, Bucket { tokens: 0.0, at: now });
        }

        let newcomer = (Limit::Attestation, Some(IpAddr::from([255, 0, 0, 1])));
        assert_eq!(shard.place(newcomer, now), (Limit::Attestation, None));
        assert_eq!(shard.place(newcomer, now + Duration::from_secs(1)), newcomer);
    }
}
