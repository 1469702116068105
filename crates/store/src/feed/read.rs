//! What the feed asks, as SQL: one transaction per turn, one query per table.

use std::collections::BTreeSet;
use std::sync::Arc;

use spiffe::{Bundle, EntryId, SpiffeId, TrustDomain};

use super::{Answer, Ask, BundleStamp, EventAsk, Feed, Hints};
use crate::dialect::{Conn, Dialect, Row, Value, int, text, values};
use crate::{Agent, AgentFilter, Event, Store, StoreError, StoredEntry, bundles, entries, nodes};

/// How many rows one query reads.
const CHUNK: usize = 1000;

/// The rows that were hinted. What was hinted and is not here is gone, or cannot be understood.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Entries.
    pub entries: Vec<StoredEntry>,
    /// Agents with their selectors.
    pub agents: Vec<Arc<Agent>>,
    /// Bundles; `None` is gone. One that cannot be understood is left out: the last good one stays.
    pub bundles: Vec<(TrustDomain, Option<Arc<Bundle>>)>,
}

/// What a turn of the feed came to.
#[derive(Clone, Debug)]
pub struct Followed {
    /// The feed, that much further.
    pub feed: Feed,
    /// What was hinted and read.
    pub hints: Hints,
    /// The rows of it that there are.
    pub rows: Rows,
    /// Of the tables, at the same moment; if it was asked for.
    pub fingerprint: Option<Fingerprint>,
}

/// What shows changes that nobody wrote an event for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// How many entries there are.
    pub entries: i64,
    /// The last row of them.
    pub last_row: i64,
    /// The sum of their revisions.
    pub revisions: i64,
    /// How many agents there are.
    pub agents: i64,
}

/// Names the entries that federate with a trust domain, for when its bundle is gone.
pub type Federating = Arc<dyn Fn(&TrustDomain) -> BTreeSet<EntryId> + Send + Sync>;

impl Store {
    /// One turn of the feed, in one transaction and so at one moment: asks what it wants to know, and
    /// reads the rows that were hinted.
    ///
    /// # Errors
    /// If the database fails. The feed as it was before can be asked again and misses nothing.
    pub async fn follow(
        &self,
        feed: Feed,
        federating: Federating,
        with_fingerprint: bool,
    ) -> Result<Followed, StoreError> {
        let now = self.now();
        self.read(move |conn| {
            let mut feed = feed.clone();
            loop {
                let answer = answer(conn, &feed.ask())?;
                let taken = feed.take(now, answer);
                for trust_domain in taken.bundles_gone {
                    feed.hint(now, Hints { entries: federating(&trust_domain), ..Hints::default() });
                }
                if !taken.has_more {
                    break;
                }
            }
            let hints = feed.pending().clone();
            let rows = rows(conn, &hints)?;
            feed.done(&hints);
            let fingerprint = with_fingerprint.then(|| fingerprint(conn)).transpose()?;
            Ok(Followed { feed, hints, rows, fingerprint })
        })
        .await
    }
}

impl Store {
    /// Whether the events that `feed` saw last, in a copy of this database, are here still: then none that
    /// came after them was pruned, and the feed can go on here without missing one.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn goes_on(&self, feed: &Feed) -> Result<bool, StoreError> {
        let Some((entry, agent)) = feed.last() else { return Ok(false) };
        self.read(move |conn| {
            let is_there = |table: &str, id: i64| {
                let sql = format!("SELECT count(*) FROM {table} WHERE id = ?");
                Ok::<_, StoreError>(conn.first(&sql, values![id], |row| int(row, 0))?.unwrap_or(0) > 0)
            };
            Ok(is_there("registered_entries_events", entry)?
                && is_there("attested_node_entries_events", agent)?)
        })
        .await
    }
}

fn answer(conn: &Conn, ask: &Ask) -> Result<Answer, StoreError> {
    Ok(Answer {
        entries: events(conn, "registered_entries_events", "entry_id", &ask.entries)?,
        agents: events(conn, "attested_node_entries_events", "spiffe_id", &ask.agents)?,
        bundles: stamps(conn)?,
        step: step(conn)?,
    })
}

/// From one event id to the next: a cluster of MySQL servers may give each member every third.
fn step(conn: &Conn) -> Result<i64, StoreError> {
    match conn.dialect() {
        Dialect::Sqlite | Dialect::Postgres => Ok(1),
        Dialect::MySql => {
            let step = conn.first("SELECT @@auto_increment_increment", values![], |row| int(row, 0))?;
            Ok(step.unwrap_or(1).max(1))
        }
    }
}

fn rows(conn: &Conn, hints: &Hints) -> Result<Rows, StoreError> {
    let mut rows = Rows::default();
    for ids in chunks(&hints.entries) {
        rows.entries.extend(entries::of_ids(conn, &ids)?);
    }
    for ids in chunks(&hints.agents) {
        let filter = AgentFilter { ids, ..AgentFilter::default() };
        rows.agents.extend(nodes::list(conn, &filter, None)?.agents);
    }
    for trust_domain in &hints.bundles {
        match bundles::fetch(conn, trust_domain) {
            Ok(bundle) => rows.bundles.push((trust_domain.clone(), bundle.map(Arc::new))),
            Err(error) => tracing::warn!(%trust_domain, %error, "bundle row skipped"),
        }
    }
    Ok(rows)
}

fn fingerprint(conn: &Conn) -> Result<Fingerprint, StoreError> {
    let number = match conn.dialect() {
        Dialect::Sqlite => "INTEGER",
        Dialect::Postgres => "BIGINT",
        Dialect::MySql => "SIGNED",
    };
    let sql = format!(
        "SELECT count(*), COALESCE(max(id), 0), CAST(COALESCE(sum(revision_number), 0) AS {number}) \
         FROM registered_entries"
    );
    let entries = conn.first(&sql, values![], |row| Ok((int(row, 0)?, int(row, 1)?, int(row, 2)?)))?;
    let agents = conn.first("SELECT count(*) FROM attested_node_entries", values![], |row| int(row, 0))?;
    let (entries, last_row, revisions) = entries.unwrap_or_default();
    Ok(Fingerprint { entries, last_row, revisions, agents: agents.unwrap_or_default() })
}

fn chunks<T: Clone>(ids: &BTreeSet<T>) -> impl Iterator<Item = Vec<T>> + use<'_, T> {
    let mut ids = ids.iter().cloned();
    std::iter::from_fn(move || {
        let chunk: Vec<T> = ids.by_ref().take(CHUNK).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

fn events(conn: &Conn, table: &str, subject: &str, ask: &EventAsk) -> Result<Vec<Event>, StoreError> {
    let read = |row: &Row<'_>| Ok(Event { id: int(row, 0)?, subject: text(row, 1)? });
    match ask {
        EventAsk::Latest(limit) => {
            let sql = format!("SELECT id, {subject} FROM {table} ORDER BY id DESC LIMIT {limit}");
            let mut events = conn.rows(&sql, values![], read)?;
            events.reverse();
            Ok(events)
        }
        EventAsk::Since { after, holes, limit } => {
            let mut params = vec![Value::from(*after)];
            let mut sql = format!("SELECT id, {subject} FROM {table} WHERE id > ?");
            // Few different texts, so that few statements are prepared: the last hole fills up.
            if let Some(last) = holes.last() {
                for place in 0..holes.len().next_power_of_two() {
                    let (first, last) = holes.get(place).unwrap_or(last);
                    params.extend([Value::from(*first), Value::from(*last)]);
                    sql.push_str(" OR id BETWEEN ? AND ?");
                }
            }
            sql.push_str(&format!(" ORDER BY id LIMIT {limit}"));
            conn.rows(&sql, &params, read)
        }
    }
}

fn stamps(conn: &Conn) -> Result<Vec<BundleStamp>, StoreError> {
    let sql = "SELECT trust_domain, id, updated_at, length(data) FROM bundles ORDER BY id";
    let rows = conn.rows(sql, values![], |row| {
        let name = text(row, 0)?;
        let Ok(id) = SpiffeId::parse(&name) else { return Ok(None) };
        Ok(Some(BundleStamp {
            trust_domain: id.trust_domain(),
            row_id: int(row, 1)?,
            updated_at: text(row, 2)?,
            length: int(row, 3)?,
        }))
    })?;
    Ok(rows.into_iter().flatten().collect())
}
