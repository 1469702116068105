//! When the vault is written: soon after something changed, at once after something went.
//!
//! What is gone - an entry, a selector of one, a bundle or an authority in it - must not come back
//! when the process is killed, so it is written without delay. Anything else waits a little for more,
//! the longer the larger the vault is. One write is under way at most; it runs on a thread of its own,
//! from a snapshot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::chain;
use runtime::clock::Clock;
use runtime::health::Check;
use runtime::snapshot::Snapshot;
use spiffe::UnixSecs;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::Vault;
use crate::jwt::JwtSvids;
use crate::state::{AgentState, Stopped};

/// How long a change waits for others.
const SETTLING: Duration = Duration::from_secs(1);
/// How many bytes a second are written at most, where nothing is gone.
const BYTES_PER_SECOND: usize = 256 * 1024;
/// The least time between two writes, whatever happens.
const BREATHER: Duration = Duration::from_millis(50);
/// How old what the vault says of the last sync may get where nothing else changes.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// The first wait after a write that failed.
const RETRY: Duration = Duration::from_secs(10);
/// What the health check calls a vault that cannot be written.
const TROUBLE: &str = "vault_err";

/// The task.
pub(crate) struct Keeping {
    pub(crate) vault: Vault,
    /// What the agent knew at first: nothing, or what the vault holds. By the time that the task begins it
    /// may have heard from a server.
    pub(crate) first: Option<Arc<AgentState>>,
    pub(crate) state: Snapshot<AgentState>,
    pub(crate) jwt_svids: JwtSvids,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) health: Check,
}

/// How soon the vault is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// It holds all there is.
    Nothing,
    /// Only the time of the last sync is another.
    Time,
    /// Something is new.
    News,
    /// Something is gone.
    Loss,
}

/// What is in the vault, and when it may be written next.
struct Written {
    state: Option<Arc<AgentState>>,
    /// Whether a token came or went since.
    are_tokens_other: bool,
    at: Instant,
    pause: Duration,
}

impl Keeping {
    /// Keeps the vault until the token is cancelled, then writes once more what is not written yet.
    ///
    /// # Errors
    /// The state is not kept any more.
    pub(crate) async fn run(mut self, token: CancellationToken) -> Result<(), Stopped> {
        if !self.vault.is_on() {
            return Ok(());
        }
        let mut changed = self.state.changed();
        let mut written = Written {
            // What was recalled is what is there. It goes with the next write: it holds on to what it had.
            state: self.first.take().filter(|first| first.synced_at.is_some()),
            are_tokens_other: false,
            at: self.clock.instant(),
            pause: SETTLING,
        };
        let mut since = None;
        loop {
            changed.mark_unchanged();
            let state = self.state.load();
            let urgency = written.urgency(&state);
            let now = self.clock.instant();
            let due = match urgency {
                Urgency::Nothing => {
                    since = None;
                    None
                }
                Urgency::Time => Some(written.at + REFRESH),
                Urgency::News => Some((*since.get_or_insert(now) + SETTLING).max(written.at + written.pause)),
                Urgency::Loss => Some(written.at + BREATHER),
            };
            if due.is_some_and(|due| due <= now) || (token.is_cancelled() && urgency > Urgency::Nothing) {
                since = None;
                self.write(state, urgency, &mut written).await;
                if token.is_cancelled() {
                    return Ok(());
                }
                continue;
            }
            drop(state);
            if token.is_cancelled() {
                return Ok(());
            }
            let wake = async {
                match due {
                    Some(due) => self.clock.sleep(due.duration_since(now)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                change = changed.changed() => if change.is_err() {
                    Stopped.unless_told_to(&token)?;
                },
                () = self.jwt_svids.changed().poked() => written.are_tokens_other = true,
                () = wake => {}
            }
        }
    }

    async fn write(&self, state: Arc<AgentState>, urgency: Urgency, written: &mut Written) {
        // Tokens first: one that comes while this runs is written next time.
        written.are_tokens_other = false;
        let tokens = self.jwt_svids.held();
        let now = UnixSecs::from(self.clock.now());
        let outcome = self.vault.write(Arc::clone(&state), tokens, now).await;
        written.at = self.clock.instant();
        match outcome {
            Ok(bytes) => {
                debug!(bytes, "Wrote the vault");
                self.health.cleared(TROUBLE);
                written.pause = pause(bytes);
                written.state = Some(state);
            }
            Err(error) => {
                let text = chain(&error);
                error!(error = text, "Could not write the vault");
                if urgency == Urgency::Loss {
                    // Better no vault than one with what is gone.
                    self.vault.discard();
                    written.state = None;
                }
                self.health.degraded(TROUBLE, text);
                written.are_tokens_other = true;
                written.at += RETRY;
                written.pause = RETRY;
            }
        }
    }
}

impl Written {
    fn urgency(&self, state: &Arc<AgentState>) -> Urgency {
        let Some(old) = &self.state else {
            let is_something = state.synced_at.is_some();
            return if is_something { Urgency::News } else { Urgency::Nothing };
        };
        if Arc::ptr_eq(old, state) {
            return if self.are_tokens_other { Urgency::News } else { Urgency::Nothing };
        }
        let is_gone = !Arc::ptr_eq(&old.bundles, &state.bundles)
            || (!Arc::ptr_eq(&old.entries, &state.entries)
                && old.entries.iter().any(|held| {
                    state.entries.get(&held.entry.id).is_none_or(|now| !Arc::ptr_eq(&now.entry, &held.entry))
                }));
        if is_gone {
            return Urgency::Loss;
        }
        let is_new = !Arc::ptr_eq(&old.entries, &state.entries) || !Arc::ptr_eq(&old.agent, &state.agent);
        match is_new || self.are_tokens_other {
            true => Urgency::News,
            false if old.synced_at == state.synced_at => Urgency::Nothing,
            false => Urgency::Time,
        }
    }
}

/// How long to wait after a write of so many bytes.
fn pause(bytes: usize) -> Duration {
    let seconds = u32::try_from(bytes / BYTES_PER_SECOND).unwrap_or(u32::MAX);
    SETTLING.max(Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use runtime::clock::SystemClock;
    use runtime::health::Health;
    use spiffe::{Bundle, Entry, TrustDomain};

    use super::*;
    use crate::connection::Connection;
    use crate::fixtures::{self, entry, svid};
    use crate::state::{Change, Keeper};

    fn synced(state: &AgentState, entries: Vec<Entry>, federated: &[&str]) -> Arc<AgentState> {
        let bundle = |name: &&str| Bundle::empty(TrustDomain::parse(name).unwrap());
        Arc::new(state.apply(Change::Synced {
            entries: entries.into_iter().map(Arc::new).collect(),
            own: None,
            federated: federated.iter().map(bundle).collect(),
            at: UnixSecs(1),
        }))
    }

    /// How urgent it is to write `now` where `old` was written.
    fn urgency(old: &Arc<AgentState>, now: &Arc<AgentState>) -> Urgency {
        let at = SystemClock.instant();
        let state = Some(Arc::clone(old));
        Written { state, are_tokens_other: false, at, pause: SETTLING }.urgency(now)
    }

    #[test]
    fn what_is_gone_or_changed_is_urgent_what_is_new_is_not() {
        let a = || entry("a", "/a", &["uid:1"]);
        let b = || entry("b", "/b", &["uid:2"]);
        let both = synced(&fixtures::state(), vec![a(), b()], &["other.org"]);
        let check = |entries: Vec<Entry>, federated: &[&str], expected: Urgency| {
            assert_eq!(urgency(&both, &synced(&both, entries, federated)), expected, "{federated:?}");
        };

        check(vec![a(), b()], &["other.org"], Urgency::Nothing);
        check(vec![a()], &["other.org"], Urgency::Loss);
        check(vec![a(), b()], &[], Urgency::Loss);
        check(vec![a(), entry("b", "/b", &["uid:2", "gid:2"])], &["other.org"], Urgency::Loss);
        check(vec![a(), b(), entry("c", "/c", &["uid:3"])], &["other.org"], Urgency::News);
        let issued = Change::Issued(vec![(a().id, Some(svid(&a(), UNIX_EPOCH)))]);
        assert_eq!(urgency(&both, &Arc::new(both.apply(issued))), Urgency::News);
    }

    #[tokio::test]
    async fn what_was_heard_before_it_began_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::new(directory.path(), true).unwrap();
        let (keeper, inbox) = Keeper::new(fixtures::state());
        let keeping = Keeping {
            vault,
            first: Some(keeper.snapshot().load()),
            state: keeper.snapshot(),
            jwt_svids: JwtSvids::new(Connection::to_nobody(), Arc::new(SystemClock), 1, Duration::ZERO),
            clock: Arc::new(SystemClock),
            health: Health::default().check("agent"),
        };
        let token = CancellationToken::new();
        let heard = Change::Synced {
            entries: vec![Arc::new(entry("a", "/a", &["uid:1"]))],
            own: None,
            federated: Vec::new(),
            at: UnixSecs(1),
        };
        tokio::select! {
            ended = keeper.run(token.clone(), |_| {}) => panic!("{ended:?}"),
            applied = inbox.apply(heard) => applied.unwrap(),
        }

        token.cancel();
        keeping.run(token).await.unwrap();

        assert!(directory.path().join(super::super::FILE).exists());
    }

    #[test]
    fn an_agent_that_knows_nothing_writes_nothing_and_the_time_alone_waits() {
        let nothing = Arc::new(fixtures::state());
        let written =
            Written { state: None, are_tokens_other: false, at: SystemClock.instant(), pause: SETTLING };
        assert_eq!(written.urgency(&nothing), Urgency::Nothing);

        let first = synced(&nothing, Vec::new(), &[]);
        let later = Arc::new(first.apply(Change::Confirmed { at: UnixSecs(2) }));

        assert_eq!(written.urgency(&first), Urgency::News);
        assert_eq!(urgency(&first, &later), Urgency::Time);
    }

    #[test]
    fn large_vaults_are_written_less_often() {
        assert_eq!(pause(1000), Duration::from_secs(1));
        assert_eq!(pause(10 * BYTES_PER_SECOND), Duration::from_secs(10));
    }
}
