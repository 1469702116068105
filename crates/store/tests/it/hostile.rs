//! Text that is not what it seems, and rows that somebody else wrote.

use std::sync::Arc;

use finial_store::{
    Agent, Attestation, Attested, DatabaseType, EntryFilter, JoinToken, Match, Page, Reattest, SelectorFilter,
};
use spiffe::UnixSecs;

use crate::support::{Home, entry, id, on_each_database, selector};

/// Text that means something to SQL, to patterns, to C, or to an encoding.
const TEXTS: [&str; 9] = [
    "it's",
    "'; DROP TABLE registered_entries; --",
    "\" OR \"\"=\"",
    "100%_",
    "back\\slash",
    "key \u{1f511}",
    "caf\u{e9}",
    "cafe\u{301}",
    "?1 $1 :a @a",
];

fn filter_of(text: &str) -> EntryFilter {
    let selectors = vec![selector(&format!("a:{text}"))];
    let matching = SelectorFilter { selectors, matching: Match::Exact };
    EntryFilter { selectors: Some(matching), ..EntryFilter::default() }
}

/// MySQL's older character set, which SPIRE's tables may have, ends at three bytes a character.
fn holds(home: &Home, text: &str) -> bool {
    home.database() != DatabaseType::MySql || text.chars().all(|letter| letter.len_utf8() < 4)
}

fn joining(token: &str, number: usize) -> Attestation {
    let agent = Agent {
        id: id(&format!("/spire/agent/join_token/{number}")),
        attestation_type: "join_token".to_owned(),
        serial: "1".to_owned(),
        expires_at: UnixSecs(2_000_000_000),
        new_serial: String::new(),
        new_expires_at: UnixSecs(0),
        can_reattest: false,
        agent_version: String::new(),
        selectors: Arc::from([]),
    };
    Attestation { agent, reattest: Reattest::Refused, join_token: Some(token.to_owned()) }
}

on_each_database! {
    async fn s02_text_is_data_whatever_it_says(home: &Home) {
        let store = home.open();
        let texts: Vec<_> = TEXTS.into_iter().filter(|text| holds(home, text)).collect();
        for (number, text) in texts.iter().enumerate() {
            let mut new = entry(&format!("/e{number}"), &[&format!("a:{text}")]);
            new.hint = (*text).to_owned();
            store.create_entry(new).await.unwrap();
        }

        for text in &texts {
            let found = store.list_entries(filter_of(text), None).await.unwrap().entries;
            assert_eq!(found.len(), 1, "{text:?}");
            assert_eq!(found[0].entry.hint, *text);
            let by_hint = EntryFilter { hint: (*text).to_owned(), ..EntryFilter::default() };
            let found = store.list_entries(by_hint, None).await.unwrap().entries;
            assert!(found.iter().any(|found| found.entry.hint == *text), "{text:?}");
            // A token of a page is a number, and says nothing else.
            let page = Page { size: 10, token: (*text).to_owned() };
            store.list_entries(EntryFilter::default(), Some(page)).await.unwrap_err();
        }
        assert_eq!(store.load_entries().await.unwrap().len(), texts.len());
    }

    async fn s02_an_agent_is_found_by_the_very_bytes_of_its_id(home: &Home) {
        let store = home.open();
        store.create_agent(joining("", 0).agent).await.unwrap();
        let mut other = joining("", 0).agent;
        other.id = id("/spire/agent/JOIN_token/0");

        assert!(store.fetch_agent(other.id.clone()).await.unwrap().is_none());
        store.delete_agent(other.id.clone()).await.unwrap_err();
        let attested = store
            .attest_agent(Attestation { agent: other, reattest: Reattest::Allowed, join_token: None })
            .await;

        // Where the schema of the database holds the two for one, the second is refused.
        let agents = store.load_agents().await.unwrap();
        assert_eq!(agents[0].id, id("/spire/agent/join_token/0"));
        assert_eq!(agents.len(), if attested.is_ok() { 2 } else { 1 });
        assert_eq!(attested.is_ok(), home.database() != DatabaseType::MySql);
    }

    async fn s03_rows_that_mean_nothing_are_passed_over(home: &Home) {
        let store = home.open();
        for name in ["good", "no-id", "foreign", "no-parent"] {
            store.create_entry(entry(&format!("/{name}"), &["a:1"])).await.unwrap();
        }
        home.sql("UPDATE registered_entries SET spiffe_id = 'no id' WHERE spiffe_id LIKE '%/no-id';");
        home.sql("UPDATE registered_entries SET spiffe_id = 'spiffe://' WHERE spiffe_id LIKE '%/foreign';");
        home.sql("UPDATE registered_entries SET parent_id = '' WHERE spiffe_id LIKE '%/no-parent';");
        home.sql("INSERT INTO attested_node_entries (spiffe_id, data_type) VALUES ('..', 'join_token');");
        home.sql("INSERT INTO bundles (trust_domain, data) VALUES ('spiffe://broken.test', 'no bundle');");

        let entries = store.load_entries().await.unwrap();
        let agents = store.load_agents().await.unwrap();

        let paths: Vec<_> = entries.iter().map(|stored| stored.entry.spiffe_id.path()).collect();
        assert_eq!(paths, ["/good"]);
        assert!(agents.is_empty());
        // Nor does a bundle that is none keep others away, in a list or a page of one.
        let good = spiffe::Bundle::empty(spiffe::TrustDomain::parse("good.test").unwrap());
        store.set_bundle(good).await.unwrap();
        let whole = store.list_bundles(None).await.unwrap();
        let names: Vec<_> = whole.bundles.iter().map(|bundle| bundle.trust_domain.as_str()).collect();
        assert_eq!(names, ["good.test"]);
        let first = store.list_bundles(Some(Page::first(1))).await.unwrap();
        assert!(first.bundles.is_empty() && !first.next_token.is_empty());
        let next = store.list_bundles(Some(Page { size: 1, token: first.next_token })).await.unwrap();
        assert_eq!(next.bundles.len(), 1);
        // Who asks for it is told.
        store.fetch_bundle(spiffe::TrustDomain::parse("broken.test").unwrap()).await.unwrap_err();
    }

    async fn j02_a_token_is_its_bytes(home: &Home) {
        let store = home.open();
        let expires_at = UnixSecs(2_000_000_000);
        let token = JoinToken { token: "Token-\u{e9}".to_owned(), expires_at };
        store.create_join_token(token, None).await.unwrap();

        let others = ["token-\u{e9}", "Token-e", "Token-e\u{301}", "Token-\u{e9} ", "Token", ""];
        for (number, other) in others.iter().enumerate() {
            assert_eq!(store.fetch_join_token((*other).to_owned()).await.unwrap(), None, "{other:?}");
            let outcome = store.attest_agent(joining(other, number)).await.unwrap().value;
            assert!(!matches!(outcome, Attested::Done(_)), "{other:?} is taken for the token");
        }
        assert!(store.load_agents().await.unwrap().is_empty());
        let outcome = store.attest_agent(joining("Token-\u{e9}", 99)).await.unwrap().value;
        assert!(matches!(outcome, Attested::Done(_)));
    }
}
