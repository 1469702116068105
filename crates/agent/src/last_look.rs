//! A last look before a workload is refused: the entry for it may be new.
//!
//! The agent asks the server once more, and the workload waits a moment for what comes of it. All who are
//! refused wait equally long, whether they were the reason that the server was asked, came while it was
//! asked, or came too often: how long a refusal takes says nothing of who else is known. The server is
//! asked at most once a second for callers with the same selectors, and ten times in all; the task that
//! asks it does so once for all who wait.

use std::sync::Arc;
use std::time::Duration;

use runtime::clock::Clock;
use runtime::reconcile::Poke;
use spiffe::SelectorSet;
use tokio_util::sync::CancellationToken;

use crate::api::limits::Limit;
use crate::subscribe::{Subscription, Update};

/// How often in a second the server is asked for callers with the same selectors, and for all.
const PER_SELECTORS: u32 = 1;
const IN_ALL: u32 = 10;

/// Looks for entries of callers that would be refused.
pub struct LastLook {
    asked: Poke,
    clock: Arc<dyn Clock>,
    patience: Duration,
    per_selectors: Option<Limit>,
    in_all: Option<Limit>,
}

impl LastLook {
    /// How long a refusal takes: long enough for a server nearby to answer.
    pub const PATIENCE: Duration = Duration::from_millis(300);

    /// Pokes `asked` to have the server asked.
    #[must_use]
    pub fn new(asked: Poke, clock: Arc<dyn Clock>, patience: Duration) -> Self {
        let (per_selectors, in_all) = (Limit::new(PER_SELECTORS, &clock), Limit::new(IN_ALL, &clock));
        Self { asked, clock, patience, per_selectors, in_all }
    }

    /// What the group gets once `is_served` holds of it; when patience or the program ends what there is.
    pub(crate) async fn wait(
        &self,
        subscription: &mut Subscription,
        stop: &CancellationToken,
        is_served: impl Fn(&Update) -> bool,
    ) -> Arc<Update> {
        let mut timeout = self.clock.sleep(self.patience);
        self.ask(subscription.selectors());
        let mut update = subscription.current();
        while !is_served(&update) {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                next = subscription.changed() => update = next,
                () = &mut timeout => break,
            }
        }
        update
    }

    /// Asks, within limits; who is told nothing of the outcome need not wait for it.
    pub(crate) fn ask(&self, selectors: &SelectorSet) {
        let allows = |limit: &Option<Limit>, selectors: &SelectorSet| {
            limit.as_ref().is_none_or(|limit| limit.take(selectors).is_ok())
        };
        // Callers that come too often use up nothing that others need.
        if allows(&self.per_selectors, selectors) && allows(&self.in_all, &SelectorSet::default()) {
            self.asked.poke();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use futures::FutureExt;
    use runtime::clock::ManualClock;
    use runtime::snapshot::Publisher;
    use spiffe::{Selector, UnixSecs};

    use super::*;
    use crate::fixtures;
    use crate::state::{AgentState, Change};
    use crate::subscribe::Subscriptions;

    struct Stage {
        clock: ManualClock,
        asked: Poke,
        look: LastLook,
        state: Publisher<AgentState>,
        subscriptions: Subscriptions,
    }

    impl Stage {
        fn new() -> Self {
            let clock = ManualClock::new(UNIX_EPOCH);
            let shared: Arc<dyn Clock> = Arc::new(clock.clone());
            let state = Publisher::new(fixtures::state());
            let asked = Poke::new();
            let subscriptions = Subscriptions::new(state.snapshot(), Arc::clone(&shared), Poke::new());
            Self {
                look: LastLook::new(asked.clone(), shared, LastLook::PATIENCE),
                clock,
                asked,
                state,
                subscriptions,
            }
        }

        fn join(&self, value: &str) -> Subscription {
            self.subscriptions.join([Selector::new("unix", value)].into_iter().collect())
        }

        fn was_asked(&self) -> bool {
            self.asked.poked().now_or_never().is_some()
        }
    }

    fn has_entry(update: &Update) -> bool {
        !update.entries.is_empty()
    }

    #[tokio::test]
    async fn an_entry_that_comes_in_time_is_served_at_once() {
        let (stage, stop) = (Stage::new(), CancellationToken::new());
        let mut subscription = stage.join("uid:1");
        let mut waiting = Box::pin(stage.look.wait(&mut subscription, &stop, has_entry));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(stage.was_asked());

        let entries = vec![Arc::new(fixtures::entry("a", "/a", &["uid:1"]))];
        let change = Change::Synced { entries, own: None, federated: Vec::new(), at: UnixSecs(1) };
        let next = stage.state.load().apply(change);
        stage.state.publish(Arc::new(next.clone()));
        stage.subscriptions.refresh(&next);

        assert_eq!(waiting.await.entries.len(), 1);
    }

    #[tokio::test]
    async fn all_wait_equally_long_whether_the_server_is_asked_or_not() {
        let (stage, stop) = (Stage::new(), CancellationToken::new());
        for is_first in [true, false, false] {
            let mut subscription = stage.join("uid:1");
            let mut waiting = Box::pin(stage.look.wait(&mut subscription, &stop, has_entry));
            assert!(futures::poll!(&mut waiting).is_pending());
            stage.clock.advance(LastLook::PATIENCE - Duration::from_millis(1));
            assert!(futures::poll!(&mut waiting).is_pending());
            stage.clock.advance(Duration::from_millis(1));
            assert!(waiting.now_or_never().is_some_and(|update| update.entries.is_empty()));
            assert_eq!(stage.was_asked(), is_first);
        }
    }

    #[tokio::test]
    async fn the_server_is_asked_once_a_second_for_equal_callers_and_ten_times_in_all() {
        let (stage, stop) = (Stage::new(), CancellationToken::new());
        let mut asked = 0;
        for number in 0..15 {
            for _ in 0..3 {
                let mut subscription = stage.join(&format!("uid:{number}"));
                stage.look.wait(&mut subscription, &stop, has_entry).now_or_never();
            }
            asked += usize::from(stage.was_asked());
        }
        assert_eq!(asked, 10);

        stage.clock.advance(Duration::from_secs(1));
        let mut subscription = stage.join("uid:14");
        stage.look.wait(&mut subscription, &stop, has_entry).now_or_never();
        assert!(stage.was_asked());
    }

    #[tokio::test]
    async fn a_program_that_ends_keeps_nobody_waiting() {
        let (stage, stop) = (Stage::new(), CancellationToken::new());
        stop.cancel();

        let mut subscription = stage.join("uid:1");

        assert!(stage.look.wait(&mut subscription, &stop, has_entry).now_or_never().is_some());
    }
}
