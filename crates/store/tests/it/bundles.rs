//! Bundles, what federates with them, and CA journals.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use finial_store::{
    BundleMask, CaJournal, Change, DeleteMode, FederationMask, FederationRelationship, NewEntry, Store,
    StoreError,
};
use prost::Message;
use proto::convert::federation::EndpointProfile;
use proto::spire::journal::{Entries, JwtKeyEntry};
use spiffe::{Bundle, JwtAuthority, TrustDomain, UnixSecs};

use crate::support::{Home, entry, on_each_database, open, recorded};

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn key(id: &str, expires_at: i64) -> JwtAuthority {
    JwtAuthority {
        key_id: id.to_owned(),
        public_key: Arc::from([1, 2, 3]),
        expires_at: UnixSecs(expires_at),
        tainted: false,
    }
}

fn with_keys(name: &str, keys: &[JwtAuthority]) -> Bundle {
    Bundle { jwt_authorities: keys.to_vec(), ..Bundle::empty(domain(name)) }
}

async fn stored(store: &Store, name: &str) -> Arc<Bundle> {
    store.fetch_bundle(domain(name)).await.unwrap().unwrap()
}

on_each_database! {
    async fn appending_adds_only_what_is_missing(home: &Home) {
        let store = home.open();

        store.append_bundle(with_keys("a.test", &[key("1", 10)])).await.unwrap();
        let same = store.append_bundle(with_keys("a.test", &[key("1", 10)])).await.unwrap();
        let more = store.append_bundle(with_keys("a.test", &[key("1", 10), key("2", 20)])).await.unwrap();
        let again = store.create_bundle(with_keys("a.test", &[])).await.unwrap_err();

        assert!(same.changes.is_none());
        assert_eq!(same.value.sequence_number, 0);
        assert_eq!(more.value.sequence_number, 1);
        assert_eq!(more.value.jwt_authorities, [key("1", 10), key("2", 20)]);
        home.assert_taken(&again, "bundles.trust_domain", "uix_bundles_trust_domain");
    }

    async fn a_masked_update_keeps_the_rest(home: &Home) {
        let store = home.open();
        store.set_bundle(with_keys("a.test", &[key("1", 10)])).await.unwrap();
        let new = Bundle { refresh_hint: 60, sequence_number: 7, ..with_keys("a.test", &[]) };
        let mask = BundleMask { jwt_authorities: false, sequence_number: false, ..BundleMask::ALL };

        store.update_bundle(new, mask).await.unwrap();
        let nobody = store.update_bundle(with_keys("b.test", &[]), mask).await.unwrap_err();

        let expected = Bundle { refresh_hint: 60, ..with_keys("a.test", &[key("1", 10)]) };
        assert_eq!(*stored(&store, "a.test").await, expected);
        assert!(matches!(nobody, StoreError::NotFound(_)));
    }

    async fn the_mode_decides_about_entries_of_a_deleted_bundle(home: &Home) {
        for (mode, left) in [(DeleteMode::Delete, 1), (DeleteMode::Dissociate, 2)] {
            let home = Home::new(home.database()).unwrap();
            let store = home.open();
            store.set_bundle(with_keys("a.test", &[])).await.unwrap();
            let federated = NewEntry { federates_with: vec![domain("a.test")], ..entry("/f", &["a:1"]) };
            store.create_entry(federated).await.unwrap();
            store.create_entry(entry("/other", &["a:1"])).await.unwrap();

            let kept = store.delete_bundle(domain("a.test"), DeleteMode::Restrict).await.unwrap_err();
            let deleted = store.delete_bundle(domain("a.test"), mode).await.unwrap();

            assert_eq!(
                kept.to_string(),
                "datastore-sql: cannot delete bundle; federated with 1 registration entries"
            );
            assert!(matches!(kept, StoreError::FailedPrecondition(_)));
            let entries = store.load_entries().await.unwrap();
            assert_eq!(entries.len(), left, "{mode:?}");
            assert!(entries.iter().all(|stored| stored.entry.federates_with.is_empty()));
            assert!(entries.iter().all(|stored| stored.entry.revision_number == 0));
            let changes = deleted.changes.unwrap();
            assert_eq!(changes.list.len(), 2);
            assert!(matches!(changes.list.last(), Some(Change::BundleDeleted(_))));
            assert_eq!(store.entry_events_since(2).await.unwrap().len(), 1, "{mode:?}");
            let gone = store.delete_bundle(domain("a.test"), mode).await.unwrap_err();
            assert_eq!(gone.to_string(), "datastore-sql: record not found");
        }
    }
}

#[tokio::test]
async fn authorities_are_tainted_then_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&recorded(dir.path()));
    let own = || domain("example.org");
    let active = "a9b367de46cd2c200e1296b4b7c714f7f3587317";
    let old = "7c1c42d79b6365785dfa037efc57378558b319ca";
    let text = |error: Result<_, StoreError>| error.map(|_: ()| ()).unwrap_err().to_string();

    let untainted = store.revoke_x509_authority(own(), active.to_owned()).await;
    assert_eq!(text(untainted.map(drop)), "it is not possible to revoke an untainted root CA");
    let twice = store.taint_x509_authority(own(), old.to_owned()).await;
    assert_eq!(text(twice.map(drop)), "root CA is already tainted");
    let unknown = store.taint_x509_authority(own(), "00".to_owned()).await;
    assert_eq!(text(unknown.map(drop)), "no ca found with provided subject key ID");

    let tainted = store.taint_x509_authority(own(), active.to_owned()).await.unwrap().value;
    assert!(tainted.x509_authorities.iter().all(|authority| authority.tainted));
    let revoked = store.revoke_x509_authority(own(), old.to_owned()).await.unwrap().value;
    assert_eq!(revoked.x509_authorities.len(), 1);
    assert_eq!(revoked.sequence_number, 13);

    let active = "DbML9looPXBufhBiMUvrPzIItzuk1aAf".to_owned();
    let untainted = store.revoke_jwt_authority(own(), active.clone()).await;
    assert_eq!(text(untainted.map(drop)), "it is not possible to revoke an untainted key");
    let key = store.taint_jwt_authority(own(), active.clone()).await.unwrap().value;
    assert!(key.tainted);
    let twice = store.taint_jwt_authority(own(), active.clone()).await;
    assert_eq!(text(twice.map(drop)), "key is already tainted");
    store.revoke_jwt_authority(own(), active.clone()).await.unwrap();
    let gone = store.revoke_jwt_authority(own(), active).await;
    assert_eq!(text(gone.map(drop)), "no JWT Key found with provided key ID");
    assert_eq!(stored(&store, "example.org").await.sequence_number, 15);
}

#[tokio::test]
async fn pruning_never_takes_the_last_authority() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&recorded(dir.path()));
    let before = stored(&store, "example.org").await;
    let expiry = UnixSecs(2_110_781_156);

    let early = store.prune_bundle(domain("example.org"), UnixSecs(expiry.0 - 1)).await.unwrap();
    let late = store.prune_bundle(domain("example.org"), expiry).await.unwrap_err();
    let nobody = store.prune_bundle(domain("nobody.test"), expiry).await.unwrap();

    assert!(!early.value && !nobody.value);
    assert_eq!(late.to_string(), "prune failed: would prune all certificates");
    assert_eq!(stored(&store, "example.org").await, before);

    let mut more = (*before).clone();
    more.jwt_authorities.push(key("soon", 5));
    store.set_bundle(more).await.unwrap();
    assert!(store.prune_bundle(domain("example.org"), UnixSecs(10)).await.unwrap().value);
    let after = stored(&store, "example.org").await;
    assert_eq!(after.jwt_authorities, before.jwt_authorities);
    assert_eq!(after.sequence_number, before.sequence_number + 1);
}

on_each_database! {
    async fn relationships_come_and_go_while_the_bundle_stays(home: &Home) {
        let store = home.open();
        let endpoint = spiffe::SpiffeId::parse("spiffe://a.test/server").unwrap();
        let relationship = FederationRelationship {
            trust_domain: domain("a.test"),
            bundle_endpoint_url: "https://a.test/".to_owned(),
            profile: EndpointProfile::HttpsSpiffe(endpoint),
            bundle: Some(Arc::new(with_keys("a.test", &[key("1", 10)]))),
        };
        let web = FederationRelationship {
            profile: EndpointProfile::HttpsWeb,
            bundle_endpoint_url: "https://b.test/".to_owned(),
            ..relationship.clone()
        };
        let mask = FederationMask { bundle_endpoint_url: false, ..FederationMask::ALL };

        store.create_federation_relationship(relationship.clone()).await.unwrap();
        let twice = store.create_federation_relationship(relationship.clone()).await.unwrap_err();
        let updated = store.update_federation_relationship(web, mask).await.unwrap();
        store.delete_federation_relationship(domain("a.test")).await.unwrap();
        let gone = store.delete_federation_relationship(domain("a.test")).await.unwrap_err();

        assert!(matches!(twice, StoreError::AlreadyExists(_)));
        let expected = FederationRelationship { profile: EndpointProfile::HttpsWeb, ..relationship };
        assert_eq!(updated.value, expected);
        assert!(matches!(gone, StoreError::NotFound(_)));
        assert_eq!(stored(&store, "a.test").await.jwt_authorities, [key("1", 10)]);
    }

    async fn journals_are_kept_while_an_authority_lives(home: &Home) {
        let store = home.open();
        let journal = |not_after| {
            let keys = vec![JwtKeyEntry { not_after, ..JwtKeyEntry::default() }];
            let entries = Entries { jwt_keys: keys, ..Entries::default() };
            CaJournal {
                id: 0,
                data: Bytes::from(entries.encode_to_vec()),
                active_x509_authority_id: format!("a{not_after}"),
            }
        };

        let old = store.set_ca_journal(journal(10)).await.unwrap().value;
        let (bundle, new) = store
            .append_bundle_with_journal(with_keys("a.test", &[key("1", 10)]), journal(20))
            .await
            .unwrap()
            .value;
        let moved = CaJournal { active_x509_authority_id: "b".to_owned(), ..new.clone() };
        store.set_ca_journal(moved.clone()).await.unwrap();
        let pruned = store.prune_ca_journals(UnixSecs(10)).await.unwrap().value;

        assert_eq!(bundle.jwt_authorities.len(), 1);
        assert_eq!(pruned, [old.id]);
        assert_eq!(store.list_ca_journals().await.unwrap(), std::slice::from_ref(&moved));
        assert_eq!(store.fetch_ca_journal("b".to_owned()).await.unwrap(), Some(moved.clone()));
        assert_eq!(store.fetch_ca_journal("a20".to_owned()).await.unwrap(), None);
        let lost = CaJournal { id: 99, ..moved };
        assert!(matches!(store.set_ca_journal(lost).await, Err(StoreError::NotFound(_))));
    }
}

#[tokio::test]
async fn old_events_are_pruned_and_ids_are_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&recorded(dir.path()));
    let before = store.latest_events().await.unwrap();
    assert_eq!((before.entries, before.agents), (41, 23));

    let pruned = store.prune_events(Duration::from_secs(3600)).await.unwrap().value;
    store.create_entry(entry("/after", &["a:1"])).await.unwrap();

    assert_eq!(pruned, 64);
    assert_eq!(store.latest_events().await.unwrap().entries, 42);
    assert_eq!(store.prune_events(Duration::from_secs(3600)).await.unwrap().value, 0);
}
