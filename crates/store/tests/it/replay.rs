//! What SPIRE answered on its own database, asked of this store: every recorded read that the
//! datastore decides. Answers about authorities in use belong to the server.

use std::sync::Arc;

use finial_store::{
    Agent, AgentFilter, DatabaseType, EntryFilter, FederatesWithFilter, FederationRelationship, Match, Page,
    SelectorFilter, Store,
};
use proto::convert::federation::EndpointProfile;
use serde_json::{Map, Value, json};
use spiffe::{Bundle, Entry, EntryId, Selector, SpiffeId, TrustDomain, UnixSecs};

use crate::support::{Home, fixture, on_each_database, recorded};

on_each_database! {
    async fn schema_25_answers_as_recorded(home: &Home) {
        home.restore("datastore.sql");

        assert_eq!(replay(home, "expected.json").await, (59, 2, 5));
    }

    async fn schema_24_answers_as_recorded_after_migration(home: &Home) {
        home.restore("v24.sql");

        assert_eq!(replay(home, "expected-v24.json").await, (59, 2, 5));
    }

    async fn schema_23_answers_as_recorded_after_migration(home: &Home) {
        home.restore("v23.sql");

        assert_eq!(replay(home, "expected-v23.json").await, (59, 2, 5));
    }
}

#[test]
fn the_recorded_dump_and_file_hold_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let other = Home::new(DatabaseType::Sqlite).unwrap();
    other.restore("datastore.sql");
    let expected = std::fs::read_to_string(fixture("sqlite/counts.txt")).unwrap();
    let raw = rusqlite::Connection::open(recorded(dir.path())).unwrap();

    for line in expected.lines() {
        let (table, count) = line.split_once(' ').unwrap();
        let sql = format!("SELECT count(*) FROM {table}");
        let there: i64 = raw.query_row(&sql, [], |row| row.get(0)).unwrap();
        assert_eq!((there.to_string().as_str(), other.sql(&sql).trim()), (count, count), "{table}");
    }
}

/// Answers replayed, answers left to the server, page walks replayed.
async fn replay(home: &Home, expected: &str) -> (usize, usize, usize) {
    let store = home.open();
    let mut expected: Value = serde_json::from_str(&home.fixture(expected)).unwrap();
    let is_server = home.database() != DatabaseType::Sqlite;
    if is_server {
        put_in_order(&mut expected);
    }
    let (mut replayed, mut left) = (0, 0);
    for case in expected["answers"].as_array().unwrap() {
        let method = case["method"].as_str().unwrap();
        match answer(&store, method, &case["request"]).await {
            Some(mut answer) => {
                if is_server {
                    put_in_order(&mut answer);
                }
                assert_eq!(answer, case["response"], "{method} {}", case["request"]);
                replayed += 1;
            }
            None => left += 1,
        }
    }
    let walks = expected["pages"].as_array().unwrap();
    for walk in walks {
        let mut token = String::new();
        for page in walk["pages"].as_array().unwrap() {
            let (items, next) = page_of(&store, walk, token).await;
            assert_eq!(json!({"items": items, "token": next}), *page, "{}", walk["request"]);
            token = next;
        }
    }
    (replayed, left, walks.len())
}

/// Puts in order what SPIRE has in any on database servers: federated trust domains, selectors of agents,
/// whole lists of bundles.
fn put_in_order(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let is_agent = fields.contains_key("attestation_type");
            for (name, value) in fields {
                let is_unordered =
                    matches!(name.as_str(), "federates_with" | "bundles") || is_agent && name == "selectors";
                if let Value::Array(items) = value
                    && is_unordered
                {
                    items.sort_by_key(Value::to_string);
                } else {
                    put_in_order(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(put_in_order),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

async fn answer(store: &Store, method: &str, request: &Value) -> Option<Value> {
    let mask = request.get("output_mask");
    let missing = |what: &str| json!({"code": "NOT_FOUND", "message": format!("{what} not found")});
    let own = TrustDomain::parse("example.org").unwrap();
    Some(match method.rsplit_once('/').unwrap().1 {
        "ListEntries" => {
            let page = store.list_entries(entry_filter(request), None).await.unwrap();
            list("entries", page.entries.iter().map(|s| masked(entry(&s.entry), mask, "id")))
        }
        "CountEntries" => count(store.count_entries(entry_filter(request)).await.unwrap()),
        "GetEntry" => {
            let id = EntryId::new(request["id"].as_str().unwrap());
            match store.fetch_entry(id).await.unwrap() {
                Some(stored) => masked(entry(&stored.entry), mask, "id"),
                None => missing("entry"),
            }
        }
        "ListAgents" => {
            let page = store.list_agents(agent_filter(request), None).await.unwrap();
            list("agents", page.agents.iter().map(|found| masked(agent(found), mask, "id")))
        }
        "CountAgents" => count(store.count_agents(agent_filter(request)).await.unwrap()),
        "GetAgent" => match store.fetch_agent(id_of(&request["id"])).await.unwrap() {
            Some(found) => masked(agent(&found), mask, "id"),
            None => missing("agent"),
        },
        "GetBundle" => bundle(&store.fetch_bundle(own).await.unwrap().unwrap()),
        "GetFederatedBundle" => {
            let of = TrustDomain::parse(request["trust_domain"].as_str().unwrap()).unwrap();
            match store.fetch_bundle(of).await.unwrap() {
                Some(found) => bundle(&found),
                None => missing("bundle"),
            }
        }
        "ListFederatedBundles" => {
            let page = store.list_bundles(None).await.unwrap();
            let foreign = page.bundles.iter().filter(|found| found.trust_domain != own);
            list("bundles", foreign.map(|found| bundle(found)))
        }
        "CountBundles" => count(store.count_bundles().await.unwrap()),
        "ListFederationRelationships" => {
            let page = store.list_federation_relationships(None).await.unwrap();
            list("federation_relationships", page.relationships.iter().map(relationship))
        }
        "GetFederationRelationship" => {
            let of = TrustDomain::parse(request["trust_domain"].as_str().unwrap()).unwrap();
            relationship(&store.fetch_federation_relationship(of).await.unwrap().unwrap())
        }
        "GetX509AuthorityState" | "GetJWTAuthorityState" => return None,
        other => panic!("unknown method {other}"),
    })
}

async fn page_of(store: &Store, walk: &Value, token: String) -> (Vec<Value>, String) {
    let request = &walk["request"];
    let size = u32::try_from(request["page_size"].as_u64().unwrap()).unwrap();
    let page = Some(Page { size, token });
    match walk["field"].as_str().unwrap() {
        "entries" => {
            let page = store.list_entries(entry_filter(request), page).await.unwrap();
            let ids = page.entries.iter().map(|stored| json!(stored.entry.id.as_str()));
            (ids.collect(), page.next_token)
        }
        "agents" => {
            let page = store.list_agents(agent_filter(request), page).await.unwrap();
            (page.agents.iter().map(|found| id(&found.id)).collect(), page.next_token)
        }
        "bundles" => {
            let page = store.list_bundles(page).await.unwrap();
            let names = page.bundles.iter().map(|found| found.trust_domain.to_string());
            let foreign = names.filter(|name| name != "example.org");
            (foreign.map(Value::from).collect(), page.next_token)
        }
        "federation_relationships" => {
            let page = store.list_federation_relationships(page).await.unwrap();
            let names = page.relationships.iter().map(|found| json!(found.trust_domain.as_str()));
            (names.collect(), page.next_token)
        }
        other => panic!("unknown field {other}"),
    }
}

fn entry_filter(request: &Value) -> EntryFilter {
    let filter = &request["filter"];
    EntryFilter {
        parent_id: filter.get("by_parent_id").map(id_of),
        spiffe_id: filter.get("by_spiffe_id").map(id_of),
        hint: filter["by_hint"].as_str().unwrap_or_default().to_owned(),
        selectors: filter.get("by_selectors").map(selector_filter),
        federates_with: filter.get("by_federates_with").map(|filter| FederatesWithFilter {
            trust_domains: filter["trust_domains"]
                .as_array()
                .unwrap()
                .iter()
                .map(|name| TrustDomain::parse(name.as_str().unwrap()).unwrap())
                .collect(),
            matching: matching(filter),
        }),
        downstream: filter["by_downstream"].as_bool().unwrap_or(false),
    }
}

fn agent_filter(request: &Value) -> AgentFilter {
    let filter = &request["filter"];
    AgentFilter {
        attestation_type: filter["by_attestation_type"].as_str().unwrap_or_default().to_owned(),
        banned: filter["by_banned"].as_bool(),
        can_reattest: filter["by_can_reattest"].as_bool(),
        expires_before: match filter["by_expires_before"].as_str() {
            Some("2030-01-01 00:00:00 +0000 +00") => Some(UnixSecs(1_893_456_000)),
            // A text that is no time is ignored: the API's affair.
            Some("not a time") | None => None,
            Some(other) => panic!("unknown time {other}"),
        },
        selectors: filter.get("by_selector_match").map(selector_filter),
        ..AgentFilter::default()
    }
}

fn selector_filter(filter: &Value) -> SelectorFilter {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let selectors = filter["selectors"].as_array().unwrap().iter();
    SelectorFilter {
        selectors: selectors.map(|s| Selector::new(&text(&s["type"]), &text(&s["value"]))).collect(),
        matching: matching(filter),
    }
}

fn matching(filter: &Value) -> Match {
    match filter["match"].as_str().unwrap() {
        "MATCH_EXACT" => Match::Exact,
        "MATCH_SUBSET" => Match::Subset,
        "MATCH_SUPERSET" => Match::Superset,
        "MATCH_ANY" => Match::Any,
        other => panic!("unknown match {other}"),
    }
}

fn id_of(value: &Value) -> SpiffeId {
    let trust_domain = TrustDomain::parse(value["trust_domain"].as_str().unwrap()).unwrap();
    trust_domain.id_with_path(value["path"].as_str().unwrap_or_default()).unwrap()
}

fn id(id: &SpiffeId) -> Value {
    json!({"trust_domain": id.trust_domain_name(), "path": id.path()})
}

fn count(count: i32) -> Value {
    present(json!({"count": count}))
}

fn list(field: &str, items: impl Iterator<Item = Value>) -> Value {
    present(json!({field: items.collect::<Vec<_>>()}))
}

/// As protobuf's JSON: fields that hold their default are left out.
fn present(value: Value) -> Value {
    let Value::Object(fields) = value else { panic!("no object") };
    let keep = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_i64() != Some(0),
        Value::String(text) => !text.is_empty() && text != "0",
        Value::Array(items) => !items.is_empty(),
        Value::Object(_) => true,
    };
    Value::Object(fields.into_iter().filter(|(_, value)| keep(value)).collect::<Map<_, _>>())
}

/// The key, and the fields of the mask.
fn masked(value: Value, mask: Option<&Value>, key: &str) -> Value {
    let (Some(mask), Value::Object(fields)) = (mask, &value) else { return value };
    let keep = |name: &String| name == key || mask.get(name).is_some();
    Value::Object(fields.clone().into_iter().filter(|(name, _)| keep(name)).collect())
}

fn selectors(selectors: &[Selector]) -> Vec<Value> {
    selectors.iter().map(|s| present(json!({"type": s.kind(), "value": s.value()}))).collect()
}

fn entry(entry: &Entry) -> Value {
    let names = entry.federates_with.iter().map(TrustDomain::as_str).collect::<Vec<_>>();
    present(json!({
        "id": entry.id.as_str(),
        "spiffe_id": id(&entry.spiffe_id),
        "parent_id": id(&entry.parent_id),
        "selectors": selectors(&entry.selectors),
        "x509_svid_ttl": entry.x509_svid_ttl,
        "jwt_svid_ttl": entry.jwt_svid_ttl,
        "federates_with": names,
        "admin": entry.admin,
        "downstream": entry.downstream,
        "expires_at": entry.expires_at.0.to_string(),
        "dns_names": entry.dns_names.to_vec(),
        "revision_number": entry.revision_number.to_string(),
        "store_svid": entry.store_svid,
        "hint": entry.hint,
        "created_at": entry.created_at.0.to_string(),
        "additional_attributes": entry.additional_attributes.map(|set| present(json!({
            "disable_x509_svid_prefetch": set.disable_x509_svid_prefetch,
            "jwt_svid_include_jti": set.jwt_svid_include_jti,
        }))),
    }))
}

fn agent(agent: &Arc<Agent>) -> Value {
    present(json!({
        "id": id(&agent.id),
        "attestation_type": agent.attestation_type,
        "x509svid_serial_number": agent.serial,
        "x509svid_expires_at": agent.expires_at.0.to_string(),
        "selectors": selectors(&agent.selectors),
        "banned": agent.is_banned(),
        "can_reattest": agent.can_reattest,
        "agent_version": agent.agent_version,
    }))
}

fn bundle(bundle: &Bundle) -> Value {
    let x509 = bundle
        .x509_authorities
        .iter()
        .map(|authority| present(json!({"asn1": base64(&authority.der), "tainted": authority.tainted})));
    let keys = |keys: &[spiffe::JwtAuthority]| -> Vec<Value> {
        keys.iter()
            .map(|key| {
                present(json!({
                    "public_key": base64(&key.public_key),
                    "key_id": key.key_id,
                    "expires_at": key.expires_at.0.to_string(),
                    "tainted": key.tainted,
                }))
            })
            .collect()
    };
    present(json!({
        "trust_domain": bundle.trust_domain.as_str(),
        "x509_authorities": x509.collect::<Vec<_>>(),
        "jwt_authorities": keys(&bundle.jwt_authorities),
        "wit_authorities": keys(&bundle.wit_authorities),
        "refresh_hint": bundle.refresh_hint.to_string(),
        "sequence_number": bundle.sequence_number.to_string(),
    }))
}

fn relationship(found: &FederationRelationship) -> Value {
    let (field, profile) = match &found.profile {
        EndpointProfile::HttpsWeb => ("https_web", json!({})),
        EndpointProfile::HttpsSpiffe(id) => ("https_spiffe", json!({"endpoint_spiffe_id": id.as_str()})),
    };
    present(json!({
        "trust_domain": found.trust_domain.as_str(),
        "bundle_endpoint_url": found.bundle_endpoint_url,
        field: profile,
        "trust_domain_bundle": found.bundle.as_deref().map(bundle),
    }))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            if place <= chunk.len() {
                let digit = word >> (18 - 6 * place) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}
