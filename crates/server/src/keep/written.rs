//! Which rows the snapshots got from where: so that what is older never takes the place of what is
//! newer.
//!
//! Two streams lead to the snapshots: what this server wrote, and rows that were read because another
//! server may have changed them. A row that was read before this server wrote it is dropped (its own
//! event follows). The other way about, a write whose news comes after a row that was read later is
//! applied, and the row is read once more.

use std::time::{Duration, Instant};

use store::Change;
use store::feed::Hints;

/// For how long the news of a write may be under way.
const UNDER_WAY: Duration = Duration::from_secs(60);

/// Adds the row that a change is about.
pub(super) fn note(rows: &mut Hints, change: &Change) {
    match change {
        Change::EntrySet { entry, .. } => _ = rows.entries.insert(entry.id.clone()),
        Change::EntryDeleted { id, .. } => _ = rows.entries.insert(id.clone()),
        Change::AgentSet(agent) => _ = rows.agents.insert(agent.id.clone()),
        Change::AgentDeleted(id) => _ = rows.agents.insert(id.clone()),
        Change::BundleSet(bundle) => _ = rows.bundles.insert(bundle.trust_domain.clone()),
        Change::BundleDeleted(trust_domain) => _ = rows.bundles.insert(trust_domain.clone()),
        Change::FederationSet(_) | Change::FederationDeleted(_) => {}
    }
}

/// Rows that were read lately.
#[derive(Default)]
pub(super) struct Lately {
    young: Hints,
    old: Hints,
    turned: Option<Instant>,
}

impl Lately {
    /// Adds rows that were read just now, and forgets those of long ago.
    pub(super) fn add(&mut self, rows: &Hints, now: Instant) {
        let turned = *self.turned.get_or_insert(now);
        if now.saturating_duration_since(turned) >= UNDER_WAY {
            self.old = std::mem::take(&mut self.young);
            self.turned = Some(now);
        }
        self.young.extend(rows.clone());
    }

    /// Those of some rows that were read lately.
    pub(super) fn of(&self, rows: Hints) -> Hints {
        let Hints { mut entries, mut agents, mut bundles } = rows;
        let read = [&self.young, &self.old];
        entries.retain(|id| read.iter().any(|rows| rows.entries.contains(id)));
        agents.retain(|id| read.iter().any(|rows| rows.agents.contains(id)));
        bundles.retain(|trust_domain| read.iter().any(|rows| rows.bundles.contains(trust_domain)));
        Hints { entries, agents, bundles }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use runtime::clock::{Clock as _, SystemClock};
    use spiffe::EntryId;

    use super::*;

    #[test]
    fn rows_are_remembered_for_a_while() {
        let start = SystemClock.instant();
        let rows = |name: &str| Hints { entries: BTreeSet::from([EntryId::new(name)]), ..Hints::default() };
        let mut lately = Lately::default();

        lately.add(&rows("a"), start);
        lately.add(&rows("b"), start + UNDER_WAY);

        assert_eq!(lately.of(rows("a")), rows("a"));
        assert!(lately.of(rows("c")).is_empty());
        lately.add(&rows("c"), start + 2 * UNDER_WAY);
        assert!(lately.of(rows("a")).is_empty());
        assert_eq!(lately.of(rows("b")), rows("b"));
    }
}
