//! What is written, and what the changes say about it.

use finial_store::{Change, EntryMask, StoreError};
use spiffe::EntryId;

use crate::support::{entry, open};

#[tokio::test]
async fn an_entry_lives_and_dies_with_its_events() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("d"));

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
