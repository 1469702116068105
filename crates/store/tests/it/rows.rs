//! Rows that anybody may have written: every column of every table with anything in it.
//!
//! Whatever stands there, nothing panics, what other rows say is read as before, and of the changed row
//! what was not changed: whole, or not at all. What is left out is named in the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use finial_store::feed::{Federating, Feed, Limits};
use finial_store::{
    Agent, AgentFilter, Attestation, CaJournal, EntryFilter, FederationRelationship, JoinToken, NewEntry,
    Page, Reattest, Store, StoreError,
};
use proto::convert::federation::EndpointProfile;
use rusqlite::types::Value;
use rusqlite::{Connection, params};
use spiffe::entry::AdditionalAttributes;
use spiffe::{Bundle, Entry, EntryId, SpiffeId, TrustDomain, UnixSecs, X509Authority};
use tokio::runtime::Runtime;
use tracing::span;

use crate::support::{Home, entry, id, selector};

/// The tables and their columns that hold what anything is made of.
const COLUMNS: &[(&str, &[&str])] = &[
    (
        "registered_entries",
        &[
            "entry_id",
            "spiffe_id",
            "parent_id",
            "ttl",
            "admin",
            "downstream",
            "expiry",
            "revision_number",
            "store_svid",
            "hint",
            "jwt_svid_ttl",
            "additional_attributes",
            "created_at",
            "updated_at",
        ],
    ),
    ("selectors", &["registered_entry_id", "type", "value", "created_at"]),
    ("dns_names", &["registered_entry_id", "value", "updated_at"]),
    ("federated_registration_entries", &["bundle_id", "registered_entry_id"]),
    (
        "attested_node_entries",
        &[
            "spiffe_id",
            "data_type",
            "serial_number",
            "expires_at",
            "new_serial_number",
            "new_expires_at",
            "can_reattest",
            "agent_version",
            "created_at",
        ],
    ),
    ("node_resolver_map_entries", &["spiffe_id", "type", "value"]),
    ("bundles", &["trust_domain", "data", "updated_at"]),
    (
        "federated_trust_domains",
        &["trust_domain", "bundle_endpoint_url", "bundle_endpoint_profile", "endpoint_spiffe_id", "implicit"],
    ),
    ("join_tokens", &["token", "expiry", "created_at"]),
    ("ca_journals", &["data", "active_x509_authority_id", "active_jwt_authority_id"]),
    ("registered_entries_events", &["entry_id", "created_at"]),
    ("attested_node_entries_events", &["spiffe_id", "created_at"]),
];

const JOURNAL: &str = "authority";
const TOKEN: &str = "token";

fn names() -> [TrustDomain; 2] {
    ["example.org", "other.org"].map(|name| TrustDomain::parse(name).unwrap())
}

async fn fill(store: &Store) {
    for name in names() {
        let mut bundle = Bundle::empty(name);
        bundle.x509_authorities = vec![X509Authority { der: vec![0x30, 0].into(), tainted: false }];
        store.set_bundle(bundle).await.unwrap();
    }
    for number in 0..3 {
        let mut new: NewEntry = entry(&format!("/e{number}"), &["unix:uid:1", "unix:gid:2"]);
        new.id = Some(EntryId::new(&format!("entry-{number}")));
        new.dns_names = vec!["a.test".to_owned(), "b.test".to_owned()];
        new.federates_with = vec![names()[1].clone()];
        new.hint = "hint".to_owned();
        new.expires_at = UnixSecs(1_900_000_000);
        new.x509_svid_ttl = 60;
        new.jwt_svid_ttl = 30;
        new.additional_attributes =
            Some(AdditionalAttributes { disable_x509_svid_prefetch: true, jwt_svid_include_jti: true });
        store.create_entry(new).await.unwrap();
        let agent = Agent {
            id: id(&format!("/spire/agent/x509pop/{number}")),
            attestation_type: "x509pop".to_owned(),
            serial: "11".to_owned(),
            expires_at: UnixSecs(1_900_000_000),
            new_serial: "12".to_owned(),
            new_expires_at: UnixSecs(1_900_000_001),
            can_reattest: true,
            agent_version: "1.0".to_owned(),
            selectors: Arc::from([selector("x509pop:a:b"), selector("x509pop:c:d")]),
        };
        let attestation = Attestation { agent, reattest: Reattest::Allowed, join_token: None };
        store.attest_agent(attestation).await.unwrap();
    }
    let relationship = |trust_domain: &str, profile| FederationRelationship {
        trust_domain: TrustDomain::parse(trust_domain).unwrap(),
        bundle_endpoint_url: "https://other.org/bundle".to_owned(),
        profile,
        bundle: None,
    };
    let endpoint = SpiffeId::parse("spiffe://other.org/server").unwrap();
    for relationship in [
        relationship("other.org", EndpointProfile::HttpsSpiffe(endpoint)),
        relationship("third.org", EndpointProfile::HttpsWeb),
    ] {
        store.create_federation_relationship(relationship).await.unwrap();
    }
    let expires_at = UnixSecs(1_900_000_000);
    store.create_join_token(JoinToken { token: TOKEN.to_owned(), expires_at }, None).await.unwrap();
    let journal = CaJournal { id: 0, data: vec![10, 0].into(), active_x509_authority_id: JOURNAL.to_owned() };
    store.append_bundle_with_journal(Bundle::empty(names()[0].clone()), journal).await.unwrap();
}

/// Everything that is read, by what names it.
#[derive(Debug, Default)]
struct Seen {
    entries: BTreeMap<i64, Arc<Entry>>,
    agents: BTreeMap<String, Arc<Agent>>,
    bundles: BTreeMap<String, Arc<Bundle>>,
    relationships: BTreeMap<String, FederationRelationship>,
    token: Option<UnixSecs>,
}

/// Reads all in every way that there is. What cannot be read is an error, never the end of the store.
async fn look(store: &Store) -> Seen {
    fn fine<T>(read: Result<T, StoreError>) -> Option<T> {
        assert!(!matches!(&read, Err(StoreError::Closed | StoreError::Unavailable(_))), "the store is gone");
        read.ok()
    }
    let mut seen = Seen::default();
    for stored in store.load_entries().await.unwrap() {
        seen.entries.insert(stored.row_id, stored.entry);
    }
    let listed = store.list_entries(EntryFilter::default(), None).await.unwrap().entries;
    assert_eq!(listed.len(), seen.entries.len());
    for stored in listed {
        assert_eq!(seen.entries[&stored.row_id], stored.entry, "list and load differ");
    }
    // Bytes beside a text that reads alike are another key to SQLite; the first of two counts here.
    for agent in store.load_agents().await.unwrap() {
        seen.agents.entry(agent.id.to_string()).or_insert(agent);
    }
    let mut listed = BTreeMap::new();
    for agent in store.list_agents(AgentFilter::default(), None).await.unwrap().agents {
        listed.entry(agent.id.to_string()).or_insert(agent);
    }
    for (id, agent) in &listed {
        assert_eq!(seen.agents[id].serial, agent.serial, "list and load differ");
    }
    assert_eq!(listed.len(), seen.agents.len());
    for bundle in store.list_bundles(None).await.unwrap().bundles {
        seen.bundles.entry(bundle.trust_domain.to_string()).or_insert(bundle);
    }
    for relationship in store.list_federation_relationships(None).await.unwrap().relationships {
        seen.relationships.insert(relationship.trust_domain.to_string(), relationship);
    }
    seen.token = fine(store.fetch_join_token(TOKEN.to_owned()).await).flatten().map(|token| token.expires_at);
    let page = || Some(Page::first(1));
    fine(store.list_entries(EntryFilter::default(), page()).await);
    fine(store.list_agents(AgentFilter::default(), page()).await);
    fine(store.list_bundles(page()).await);
    fine(store.list_federation_relationships(page()).await);
    for number in 0..3 {
        fine(store.fetch_entry(EntryId::new(&format!("entry-{number}"))).await);
        fine(store.fetch_agent(id(&format!("/spire/agent/x509pop/{number}"))).await);
    }
    for name in names() {
        fine(store.fetch_bundle(name.clone()).await);
        fine(store.fetch_federation_relationship(name).await);
    }
    fine(store.list_ca_journals().await);
    fine(store.fetch_ca_journal(JOURNAL.to_owned()).await);
    fine(store.entry_events_since(0).await);
    fine(store.agent_events_since(0).await);
    let federating: Federating = Arc::new(|_| Default::default());
    fine(store.follow(Feed::new(Limits::DEFAULT), federating, true).await.map(drop));
    seen
}

/// One change: where, and to what.
struct Damage {
    table: &'static str,
    column: &'static str,
    row: i64,
    value: Value,
}

impl Damage {
    /// What an input stands for: four bytes say where and of which type, the rest what.
    fn of(input: &[u8]) -> Option<Self> {
        let (&[table, column, row, kind], rest) = input.split_first_chunk()?;
        let (table, columns) = COLUMNS[usize::from(table) % COLUMNS.len()];
        let column = columns[usize::from(column) % columns.len()];
        let number = rest.iter().fold(0_i64, |number, byte| number.wrapping_mul(256) + i64::from(*byte));
        let value = match kind % 6 {
            0 => Value::Null,
            1 => Value::Integer(number),
            2 => Value::Real(f64::from_bits(number.cast_unsigned())),
            3 | 4 => Value::Text(String::from_utf8_lossy(rest).into_owned()),
            _ => Value::Blob(rest.to_vec()),
        };
        Some(Self { table, column, row: i64::from(row % 4), value })
    }

    /// Puts it in; `None` where the schema forbids it. What was there before.
    fn put(&self, raw: &Connection) -> Option<(i64, Value)> {
        let sql =
            format!("SELECT rowid, {} FROM {} ORDER BY rowid LIMIT 1 OFFSET ?1", self.column, self.table);
        let found = raw.query_row(&sql, params![self.row], |row| Ok((row.get(0)?, row.get(1)?)));
        let (row, before) = found.ok()?;
        let sql = format!("UPDATE {} SET {} = ?1 WHERE rowid = ?2", self.table, self.column);
        raw.execute(&sql, params![self.value, row]).ok()?;
        // Also text that is none.
        if let Value::Blob(bytes) = &self.value
            && bytes.first().is_some_and(|first| first % 2 == 0)
        {
            let sql =
                format!("UPDATE {} SET {1} = CAST({1} AS TEXT) WHERE rowid = ?1", self.table, self.column);
            raw.execute(&sql, params![row]).ok()?;
        }
        Some((row, before))
    }

    fn undo(&self, raw: &Connection, row: i64, before: &Value) {
        let sql = format!("UPDATE {} SET {} = ?1 WHERE rowid = ?2", self.table, self.column);
        raw.execute(&sql, params![before, row]).unwrap();
    }
}

/// That an entry says what it said, but for the column that was changed.
fn check_entry(damage: &Damage, was: &Entry, is: &Entry) {
    let owns = |column: &str| damage.table == "registered_entries" && damage.column == column;
    macro_rules! same {
        ($($field:ident: $column:literal),*) => { $(
            assert!(
                was.$field == is.$field || owns($column),
                "{} {}: {:?} became {:?}", damage.table, damage.column, was.$field, is.$field
            );
        )* };
    }
    same! {
        id: "entry_id", spiffe_id: "spiffe_id", parent_id: "parent_id", x509_svid_ttl: "ttl",
        jwt_svid_ttl: "jwt_svid_ttl", admin: "admin", downstream: "downstream", expires_at: "expiry",
        revision_number: "revision_number", store_svid: "store_svid", hint: "hint",
        created_at: "created_at", additional_attributes: "additional_attributes"
    }
    // Rights are there only if they are said.
    let is_said = match &damage.value {
        Value::Null | Value::Blob(_) => false,
        Value::Integer(number) => *number != 0,
        Value::Real(number) => *number != 0.0,
        // The column makes numbers of texts that are one.
        Value::Text(text) => {
            matches!(text.as_str(), "1" | "t" | "true" | "TRUE")
                || text.trim().parse::<f64>().is_ok_and(|number| number != 0.0)
        }
    };
    assert!(is_said || !owns("admin") || !is.admin, "{:?} makes an administrator", damage.value);
    assert!(is_said || !owns("downstream") || !is.downstream, "{:?} makes a server", damage.value);
    // Nor does it last longer than it is said, which is for ever where nothing is.
    if owns("expiry") && is.expires_at == UnixSecs(0) {
        let is_nothing = match &damage.value {
            Value::Null => true,
            Value::Integer(number) => *number == 0,
            Value::Real(number) => number.abs() < 1.0 || number.is_nan(),
            Value::Text(text) => text.parse() == Ok(0_i64),
            Value::Blob(_) => false,
        };
        assert!(is_nothing, "{:?} is no expiry", damage.value);
    }
    if let (Value::Text(text), true) = (&damage.value, owns("spiffe_id")) {
        assert_eq!(is.spiffe_id.as_str(), text);
    }
    if let (Value::Text(text), true) = (&damage.value, owns("hint")) {
        assert_eq!(&is.hint, text);
    }
    if damage.table != "selectors" {
        assert_eq!(was.selectors, is.selectors);
    } else if damage.column != "registered_entry_id" {
        // As many as before: without one it would be for more workloads.
        assert_eq!(is.selectors.len(), was.selectors.len(), "{:?}", damage.value);
        let differ = was.selectors.iter().zip(is.selectors.iter()).filter(|(was, is)| was != is).count();
        assert!(differ <= 1);
        if let Value::Text(text) = &damage.value {
            let parts = |entry: &Entry| entry.selectors.iter().map(ToString::to_string).collect::<String>();
            assert!(differ == 0 || parts(is).contains(text.as_str()), "{text:?} became {}", parts(is));
        }
    }
    if damage.table != "dns_names" {
        assert_eq!(was.dns_names, is.dns_names);
    }
}

fn check(damage: &Damage, row: i64, baseline: &Seen, seen: &Seen, skipped: u64) {
    let mut left_out = 0;
    for (number, was) in &baseline.entries {
        match seen.entries.get(number) {
            Some(is) if damage.table == "registered_entries" && *number != row => assert_eq!(was, is),
            Some(is) => check_entry(damage, was, is),
            None => {
                let may_go = ["registered_entries", "selectors", "dns_names"].contains(&damage.table);
                assert!(may_go, "{} {} takes an entry away", damage.table, damage.column);
                left_out += 1;
            }
        }
    }
    assert!(left_out <= 1, "{left_out} entries are gone with one");
    for (name, was) in &baseline.agents {
        match seen.agents.get(name) {
            Some(is) if damage.table == "attested_node_entries" => {
                let same_but_for = |column: &str, same: bool| same || damage.column == column;
                assert!(same_but_for("serial_number", was.serial == is.serial));
                assert!(same_but_for("new_serial_number", was.new_serial == is.new_serial));
                assert!(same_but_for("expires_at", was.expires_at == is.expires_at));
                assert!(same_but_for("new_expires_at", was.new_expires_at == is.new_expires_at));
                assert!(same_but_for("can_reattest", was.can_reattest == is.can_reattest));
                assert_eq!(was.selectors, is.selectors);
            }
            Some(is) if damage.table == "node_resolver_map_entries" => assert_eq!(was.serial, is.serial),
            Some(is) => assert_eq!(was, is),
            // It is another's row now, or nobody's.
            None => assert_eq!((damage.table, damage.column), ("attested_node_entries", "spiffe_id")),
        }
    }
    for (name, was) in &baseline.bundles {
        match seen.bundles.get(name) {
            Some(is) if damage.table == "bundles" && was != is => assert_eq!(damage.column, "data"),
            Some(is) => assert_eq!(was, is),
            None => {
                assert_eq!(damage.table, "bundles");
                left_out += 1;
            }
        }
    }
    for name in baseline.relationships.keys() {
        if !seen.relationships.contains_key(name) {
            assert_eq!(damage.table, "federated_trust_domains");
            left_out += 1;
        }
    }
    if damage.table != "join_tokens" {
        assert_eq!(seen.token, baseline.token);
    }
    // A row that is somebody else's now is not left out.
    let is_named_anew = ["trust_domain", "entry_id"].contains(&damage.column);
    assert!(
        left_out == 0 || skipped > 0 || is_named_anew,
        "{} {} with {:?} is left out without a word",
        damage.table,
        damage.column,
        damage.value
    );
}

/// Counts what the log says of rows that are left out.
struct Listener;

static SKIPPED: AtomicU64 = AtomicU64::new(0);

struct Message(bool);

impl tracing::field::Visit for Message {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0 |= field.name() == "message" && format!("{value:?}").contains("skipped");
    }
}

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut message = Message(false);
        event.record(&mut message);
        SKIPPED.fetch_add(u64::from(message.0), Ordering::Relaxed);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[test]
fn s03_fuzz_rows_of_every_table() {
    // The threads that read have no subscriber of this one's.
    tracing::subscriber::set_global_default(Listener).ok();
    let home = Home::new(finial_store::DatabaseType::Sqlite).unwrap();
    let runtime = Runtime::new().unwrap();
    let store = home.open();
    runtime.block_on(fill(&store));
    let raw = Connection::open(home.options().connection_string).unwrap();
    let baseline = runtime.block_on(look(&store));
    assert_eq!((baseline.entries.len(), baseline.agents.len(), baseline.bundles.len()), (3, 3, 2));
    assert_eq!(baseline.relationships.len(), 2);
    let corpus = corpus(&raw);
    // One change at a time: an ordinary run feeds from one thread, and the count is this process's.
    let one_by_one = Mutex::new(());

    let pieces: [&[u8]; 6] =
        [b"spiffe://", b"example.org", b"\xff", b"\0", b"\x0a\x02", b"2020-01-01 00:00:00"];
    testkit::fuzz::drive("database_rows", &corpus, &pieces, 600, |input| {
        let _one = one_by_one.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(damage) = Damage::of(input) else { return };
        let Some((row, before)) = damage.put(&raw) else { return };
        let told = SKIPPED.load(Ordering::Relaxed);

        let seen = runtime.block_on(look(&store));

        damage.undo(&raw, row, &before);
        check(&damage, row, &baseline, &seen, SKIPPED.load(Ordering::Relaxed) - told);
    });

    let after = runtime.block_on(look(&store));
    assert_eq!(format!("{after:?}"), format!("{baseline:?}"));
}

/// Each column of each table, with what is in it, nothing, a number, and bytes that are no text.
fn corpus(raw: &Connection) -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    for (table, (name, columns)) in (0_u8..).zip(COLUMNS) {
        for (column, of) in (0_u8..).zip(*columns) {
            let held: Value = raw
                .query_row(&format!("SELECT {of} FROM {name} ORDER BY rowid LIMIT 1"), [], |row| row.get(0))
                .unwrap_or(Value::Null);
            let held = match held {
                Value::Text(text) => text.into_bytes(),
                Value::Blob(bytes) => bytes,
                Value::Integer(number) => number.to_be_bytes().to_vec(),
                Value::Null | Value::Real(_) => b"1.5".to_vec(),
            };
            for kind in 0..6 {
                corpus.push([&[table, column, kind % 3, kind][..], &held].concat());
            }
            corpus.push([&[table, column, 1, 5][..], b"\xfe\xff not text"].concat());
            corpus.push([&[table, column, 1, 3][..], b"nonsense"].concat());
        }
    }
    corpus
}
