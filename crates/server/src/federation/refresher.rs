//! The refresher of one trust domain: polls its endpoint again and again, and when asked.
//!
//! Each has a task of its own, so a slow endpoint delays nobody else's bundle. A poll may be dropped
//! while it fetches, never while it stores: once a refresher has ended, nothing of it is written any
//! more. What fails changes nothing: the old bundle stays, and the next poll is when it would have been.

use std::sync::Arc;
use std::time::Duration;

use proto::convert::federation::EndpointProfile;
use runtime::health::Check;
use spiffe::x509::Certificate;
use spiffe::{Bundle, TrustDomain};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::fetch::{FetchFailed, fetch};
use super::source::Source;
use crate::context::Context;
use crate::meters::of_any;

/// Who waits for the outcome of a poll.
pub(super) type Ask = oneshot::Sender<Result<(), Arc<FetchFailed>>>;

/// How many may wait for one poll; more are told to come back.
pub(super) const WAITING: usize = 64;

/// What the task of a refresher works on.
pub(super) struct Refresher {
    pub(super) context: Arc<Context>,
    pub(super) trust_domain: TrustDomain,
    pub(super) source: Source,
    pub(super) check: Check,
    /// What was fetched last, with the sequence number that it came with.
    pub(super) last: Option<Bundle>,
}

impl Refresher {
    /// Polls until `stop` is cancelled.
    pub(super) async fn run(mut self, mut asks: mpsc::Receiver<Ask>, stop: CancellationToken) {
        let mut waiting = Vec::new();
        loop {
            tracing::debug!(
                subsystem_name = SUBSYSTEM,
                trust_domain = %self.trust_domain,
                "Polling for bundle update"
            );
            let fetched = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                fetched = self.fetch() => fetched,
            };
            let outcome = match fetched {
                Ok(bundle) => self.keep(bundle).await,
                Err(error) => Err(error),
            };
            let is_waiting_for_bundle = matches!(outcome, Err(FetchFailed::NotBootstrapped));
            let outcome = outcome.map_err(Arc::new);
            self.tell(&outcome);
            for ask in waiting.drain(..) {
                let ask: Ask = ask;
                // Who asked may have gone.
                ask.send(outcome.clone()).ok();
            }
            let pause = if is_waiting_for_bundle { MINUTE } else { self.pause().await };
            tracing::debug!(
                subsystem_name = SUBSYSTEM,
                trust_domain = %self.trust_domain,
                at = instant(&self.context, pause),
                "Scheduling next bundle refresh"
            );
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                asked = asks.recv_many(&mut waiting, WAITING) => if asked == 0 { break },
                () = self.bootstrapped(), if is_waiting_for_bundle => {}
                () = self.context.clock.sleep(pause) => {}
            }
        }
        self.check.cleared(self.trust_domain.as_str());
        tracing::info!(
            subsystem_name = SUBSYSTEM,
            trust_domain = %self.trust_domain,
            "No longer polling for updates"
        );
    }

    async fn fetch(&self) -> Result<Bundle, FetchFailed> {
        let fetching = fetch(&self.context, &self.trust_domain, &self.source);
        of_any(&self.context.meters.federated_fetch(&self.trust_domain), fetching).await
    }

    /// Stores what was fetched, if it is news.
    async fn keep(&mut self, fetched: Bundle) -> Result<(), FetchFailed> {
        self.look_for_rollback(&fetched);
        let bundle = normal(&fetched);
        self.last = Some(fetched);
        let store = &self.context.store;
        let stored = store.fetch_bundle(self.trust_domain.clone()).await.map_err(FetchFailed::Read)?;
        if stored.is_some_and(|stored| *stored == bundle) {
            return Ok(());
        }
        let set = store.set_bundle(bundle).await.map_err(FetchFailed::Store)?;
        self.context.applied(set).await;
        self.context.meters.federated_updated(&self.trust_domain).increment();
        tracing::info!(
            subsystem_name = SUBSYSTEM,
            trust_domain = %self.trust_domain,
            "Bundle refreshed"
        );
        Ok(())
    }

    /// A bundle that is older than one before is taken, since a peer may have been restored from a
    /// backup, but not in silence: it may also be a replay that brings a revoked authority back.
    fn look_for_rollback(&self, fetched: &Bundle) {
        let Some(last) = &self.last else { return };
        let (before, now) = (last.sequence_number, fetched.sequence_number);
        let is_same_number = now == before && now != 0;
        if now < before || (is_same_number && normal(last) != normal(fetched)) {
            tracing::warn!(
                subsystem_name = SUBSYSTEM,
                trust_domain = %self.trust_domain,
                sequence_number = now,
                last_sequence_number = before,
                "Bundle endpoint went back in its sequence"
            );
        }
    }

    fn tell(&self, outcome: &Result<(), Arc<FetchFailed>>) {
        let key = self.trust_domain.as_str();
        match outcome {
            Ok(()) => self.check.cleared(key),
            Err(error) => {
                let error = runtime::chain(error.as_ref());
                tracing::error!(
                    subsystem_name = SUBSYSTEM,
                    trust_domain = %self.trust_domain,
                    error,
                    "Error updating bundle"
                );
                self.check.degraded(key, error);
            }
        }
    }

    /// How long to wait, by the bundle that is stored.
    async fn pause(&self) -> Duration {
        let stored = self.context.store.fetch_bundle(self.trust_domain.clone()).await;
        // One that cannot be read has been told when it was compared.
        stored.ok().flatten().map_or(MINUTE, |bundle| pause_after(&bundle))
    }

    /// Ends once there is a bundle by which the endpoint can be verified. Cancel-safe.
    async fn bootstrapped(&self) {
        let EndpointProfile::HttpsSpiffe(endpoint) = &self.source.profile else { return };
        let trust_domain = endpoint.trust_domain();
        let mut changed = self.context.bundles.changed();
        while self.context.bundles.load().get(&trust_domain).is_none() {
            if changed.changed().await.is_err() {
                // Nothing is kept any more: the program ends.
                return std::future::pending().await;
            }
        }
    }
}

/// A fetched bundle as it is stored. Sequence numbers are the endpoint's own, and SPIRE keeps none;
/// SPIRE serves JWT authorities in another order each time, which is no change.
fn normal(fetched: &Bundle) -> Bundle {
    let mut bundle = Bundle { sequence_number: 0, ..fetched.clone() };
    bundle.jwt_authorities.sort_by(|a, b| a.key_id.cmp(&b.key_id));
    bundle.wit_authorities.sort_by(|a, b| a.key_id.cmp(&b.key_id));
    bundle
}

/// How long after a poll the next one is, while `bundle` is what is stored: four polls within the hint,
/// which is a minute at least; without one a tenth of the shortest life of an authority stands for it.
/// Once a day in any case, so that a wrong hint does not end a federation.
fn pause_after(bundle: &Bundle) -> Duration {
    let hint = u64::try_from(bundle.refresh_hint).unwrap_or(0);
    let hint = if hint > 0 { Duration::from_secs(hint) } else { shortest_life(bundle) / 10 };
    (hint.max(MINUTE) / POLLS_PER_HINT).min(DAY)
}

fn shortest_life(bundle: &Bundle) -> Duration {
    let lives = bundle.x509_authorities.iter().filter_map(|authority| {
        let certificate = Certificate::parse(&authority.der).ok()?;
        u64::try_from(certificate.not_after().since(certificate.not_before())).ok()
    });
    Duration::from_secs(lives.min().unwrap_or(0))
}

fn instant(context: &Context, pause: Duration) -> String {
    let at = OffsetDateTime::from(context.clock.now() + pause).replace_nanosecond(0);
    at.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

/// As SPIRE names it.
pub(super) const SUBSYSTEM: &str = "bundle_client";

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const POLLS_PER_HINT: u32 = 4;

#[cfg(test)]
mod tests {
    use spiffe::{JwtAuthority, UnixSecs};

    use super::*;

    fn empty() -> Bundle {
        Bundle::empty(TrustDomain::parse("foreign.test").unwrap())
    }

    #[test]
    fn polls_are_four_within_the_hint_and_neither_frantic_nor_forgotten() {
        let after = |refresh_hint| pause_after(&Bundle { refresh_hint, ..empty() }).as_secs();

        assert_eq!(after(600), 150);
        assert_eq!(after(1), 15);
        assert_eq!(after(60), 15);
        assert_eq!(after(0), 15, "there is no authority to go by");
        assert_eq!(after(4 * 24 * 3600), 24 * 3600);
        assert_eq!(after(315_360_000), 24 * 3600);
        assert_eq!(after(-1), 15);
    }

    #[test]
    fn order_of_keys_and_sequence_number_make_no_news() {
        let key = |id: &str| JwtAuthority {
            key_id: id.to_owned(),
            public_key: Arc::from([1].as_slice()),
            expires_at: UnixSecs(0),
            tainted: false,
        };
        let one = Bundle { jwt_authorities: vec![key("a"), key("b")], sequence_number: 1, ..empty() };
        let other = Bundle { jwt_authorities: vec![key("b"), key("a")], sequence_number: 2, ..empty() };
        let less = Bundle { jwt_authorities: vec![key("b")], sequence_number: 2, ..empty() };

        assert_eq!(normal(&one), normal(&other));
        assert_ne!(normal(&one), normal(&less));
    }
}
