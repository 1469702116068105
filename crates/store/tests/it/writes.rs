//! What is written, and what the changes say about it.

use finial_store::{
    AgentFilter, Change, EntryFilter, EntryMask, Match, NewEntry, Page, SelectorFilter, StoreError,
    as_written,
};
use spiffe::entry::AdditionalAttributes;
use spiffe::{Bundle, EntryId, TrustDomain, UnixSecs};

use crate::support::{entry, on_each_database};

on_each_database! {
    async fn an_entry_lives_and_dies_with_its_events(home: &Home) {
        let store = home.open();

        let created = store.create_entry(entry("/w", &["b:1", "a:2"])).await.unwrap();
        let id = created.value.stored.entry.id.clone();
        let again = store.create_entry(entry("/w", &["a:2", "b:1"])).await.unwrap();
        let mut draft = entry("/w2", &["c:3"]);
        draft.id = Some(id.clone());
        let mask = EntryMask { spiffe_id: true, ..EntryMask::NONE };
        let updated = store.update_entry(draft.clone(), mask).await.unwrap();
        store.delete_entry(id.clone()).await.unwrap();

        assert!(!created.value.existing);
        assert_eq!(created.changes.as_ref().map(|changes| changes.sequence), Some(1));
        assert!(again.value.existing);
        assert!(again.changes.is_none());
        assert_eq!(again.value.stored.entry.id, id);
        assert_eq!(updated.value.entry.spiffe_id, crate::support::id("/w2"));
        assert_eq!(updated.value.entry.revision_number, 1);
        assert_eq!(updated.value.entry.selectors.len(), 2);
        let changes = updated.changes.unwrap();
        assert!(matches!(&changes.list[..], [Change::EntrySet { row_id: 1, .. }]));
        assert!(store.fetch_entry(id.clone()).await.unwrap().is_none());
        let events = store.entry_events_since(0).await.unwrap();
        assert_eq!(events.iter().filter(|event| event.subject == id.as_str()).count(), 3);
        let gone = store.update_entry(draft, mask).await.unwrap_err();
        assert_eq!(gone.to_string(), "datastore-sql: record not found");
        let gone = store.delete_entry(EntryId::new("nobody")).await.unwrap_err();
        assert!(matches!(gone, StoreError::NotFound(_)));
    }

    async fn entries_are_refused_in_the_words_of_spire(home: &Home) {
        let store = home.open();
        let with_id = |id: &str| NewEntry { id: Some(EntryId::new(id)), ..entry("/w", &["a:1"]) };
        let stored = |selectors: &[&str]| NewEntry { store_svid: true, ..entry("/w", selectors) };
        for (new, text) in [
            (entry("/w", &[]), "missing selector list"),
            (with_id("a b"), "entry ID contains invalid characters"),
            (with_id(&"x".repeat(256)), "entry ID too long"),
            (stored(&["a:1", "b:1"]), "selector types must be the same when store SVID is enabled"),
            (NewEntry { x509_svid_ttl: -1, ..entry("/w", &["a:1"]) }, "X509SvidTtl is not set"),
            (NewEntry { jwt_svid_ttl: -1, ..entry("/w", &["a:1"]) }, "JwtSvidTtl is not set"),
        ] {
            let error = store.create_entry(new).await.unwrap_err();

            assert!(matches!(error, StoreError::InvalidArgument(_)), "{error}");
            let expected = format!("datastore-validation: invalid registration entry: {text}");
            assert_eq!(error.to_string(), expected);
        }
        let twice = store.create_entry(entry("/w", &["a:1", "a:1"])).await.unwrap_err();
        let columns = "selectors.registered_entry_id, selectors.type, selectors.value";
        home.assert_taken(&twice, columns, "idx_selector_entry");
        assert_eq!(store.count_entries(EntryFilter::default()).await.unwrap(), 0);
        assert!(store.entry_events_since(0).await.unwrap().is_empty());
    }

    async fn expired_entries_are_pruned_with_their_events(home: &Home) {
        let store = home.open();
        for (path, expires_at) in [("/never", 0), ("/old", 10), ("/odd", -5), ("/later", 20)] {
            let expires_at = UnixSecs(expires_at);
            let new = NewEntry { expires_at, id: Some(EntryId::new(&path[1..])), ..entry(path, &["a:1"]) };
            store.create_entry(new).await.unwrap();
        }

        let pruned = store.prune_entries(UnixSecs(20)).await.unwrap();

        assert_eq!(pruned.value, [EntryId::new("old"), EntryId::new("odd")]);
        assert_eq!(pruned.changes.unwrap().list.len(), 2);
        assert_eq!(store.load_entries().await.unwrap().len(), 2);
        assert_eq!(store.entry_events_since(4).await.unwrap().len(), 2);
    }

    async fn answers_to_writes_show_an_order_of_their_own(home: &Home) {
        let store = home.open();
        let new = NewEntry {
            dns_names: vec!["z".to_owned(), "a".to_owned()],
            ..entry("/w", &["c:1", "a:2", "b:3", "a:1"])
        };

        let entry = store.create_entry(new).await.unwrap().value.stored.entry;

        let texts =
            |entry: &spiffe::Entry| -> Vec<String> { entry.selectors.iter().map(ToString::to_string).collect() };
        assert_eq!(texts(&entry), ["c:1", "a:2", "b:3", "a:1"]);
        assert_eq!(texts(&as_written(&entry)), ["a:1", "a:2", "b:3", "c:1"]);
        assert_eq!(as_written(&entry).dns_names[..], ["a".to_owned(), "z".to_owned()]);
    }

    async fn unusable_pages_and_filters_are_refused(home: &Home) {
        let store = home.open();
        let page = |size, token: &str| Some(Page { size, token: token.to_owned() });
        let list = async |page| {
            let listed = store.list_entries(EntryFilter::default(), page).await;
            listed.map(|_| ()).map_err(|error| error.to_string())
        };

        assert_eq!(list(page(0, "")).await, Err("cannot paginate with pagesize = 0".to_owned()));
        for token in ["x", "-1", "+1", "4294967296", " 1"] {
            let expected = format!("could not parse token '{token}'");
            assert_eq!(list(page(1, token)).await, Err(expected));
        }
        assert_eq!(list(page(1, "4294967295")).await, Ok(()));
        let nothing = SelectorFilter { selectors: Vec::new(), matching: Match::Any };
        let filter = EntryFilter { selectors: Some(nothing.clone()), ..EntryFilter::default() };
        let error = store.list_entries(filter, None).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot list by empty selector set");
        let filter = AgentFilter { selectors: Some(nothing), ..AgentFilter::default() };
        let error = store.count_agents(filter).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot list by empty selectors set");
    }

    async fn rows_that_cannot_be_understood_are_left_out_of_lists(home: &Home) {
        let store = home.open();
        for name in ["one", "two", "three"] {
            let new = NewEntry { id: Some(EntryId::new(name)), ..entry("/w", &[&format!("a:{name}")]) };
            store.create_entry(new).await.unwrap();
        }
        drop(store);
        home.sql("UPDATE registered_entries SET spiffe_id = 'web' WHERE entry_id = 'two';");

        let store = home.open();
        let all = store.load_entries().await.unwrap();
        let page = store.list_entries(EntryFilter::default(), Some(Page::first(2))).await.unwrap();
        let fetched = store.fetch_entry(EntryId::new("two")).await.unwrap_err();

        assert_eq!(all.len(), 2);
        assert_eq!((page.entries.len(), page.next_token.as_str()), (1, "2"));
        assert!(matches!(fetched, StoreError::Internal(_)));
    }

    async fn only_equal_selectors_make_an_entry_similar(home: &Home) {
        let store = home.open();
        let mut existing = Vec::new();

        for selectors in [
            &["a:1", "b:\"quoted\" \\ {"][..],
            &["a:1"],
            &["a:1", "b:2", "c:3"],
            &["b:\"quoted\" \\ {", "a:1"],
            &["c:3", "b:2", "a:1"],
            &["b:2"],
        ] {
            let created = store.create_entry(entry("/w", selectors)).await.unwrap();
            existing.push(created.value.existing.then_some(created.value.stored.row_id));
        }

        assert_eq!(existing, [None, None, None, Some(1), Some(3), None]);
    }

    async fn what_a_create_answers_is_what_is_read_later(home: &Home) {
        let store = home.open();
        for name in ["b.test", "a.test"] {
            store.set_bundle(Bundle::empty(TrustDomain::parse(name).unwrap())).await.unwrap();
        }
        let full = NewEntry {
            x509_svid_ttl: 1,
            jwt_svid_ttl: 2,
            federates_with: ["b.test", "a.test", "b.test"].map(|n| TrustDomain::parse(n).unwrap()).into(),
            admin: true,
            downstream: true,
            expires_at: UnixSecs(2_000_000_000),
            dns_names: vec!["z".to_owned(), "a".to_owned()],
            hint: "hint".to_owned(),
            additional_attributes: Some(AdditionalAttributes {
                disable_x509_svid_prefetch: true,
                jwt_svid_include_jti: false,
            }),
            ..entry("/full", &["c:1", "a:2", "a:1"])
        };
        let silent = NewEntry {
            additional_attributes: Some(AdditionalAttributes::default()),
            ..entry("/silent", &["a:1"])
        };
        for new in [full, silent, entry("/plain", &["a:1"])] {
            let created = store.create_entry(new).await.unwrap().value.stored;

            let read = store.fetch_entry(created.entry.id.clone()).await.unwrap().unwrap();

            assert_eq!(format!("{created:?}"), format!("{read:?}"));
        }
    }
}
