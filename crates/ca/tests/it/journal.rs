//! A journal that SPIRE stored is read, kept to the byte, and restores the slots.

use ca::journal::{Journal, JournalError, KeyEntry};
use ca::slots::{Facts, Family, Held, SlotName, Slots, Status};
use spiffe::UnixSecs;

const STORED: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/keys/ca-journal.json"));

fn stored() -> (Vec<u8>, serde_json::Value) {
    let recorded: serde_json::Value = serde_json::from_str(STORED).unwrap();
    let hex = recorded["data_hex"].as_str().unwrap();
    let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
    (bytes.collect(), recorded)
}

#[test]
fn a_stored_journal_is_read_and_written_back_byte_by_byte() {
    let (bytes, recorded) = stored();

    let journal = Journal::decode(&bytes).unwrap();

    assert_eq!(journal.encode(), bytes);
    assert_eq!(journal.counts(), (3, 3, 0));
    assert_eq!(journal.active_x509(), recorded["active_x509_authority_id"].as_str());
    let statuses: Vec<_> = journal.x509().map(|entry| (entry.slot, entry.status)).collect();
    assert_eq!(
        statuses,
        [(SlotName::A, Status::Old), (SlotName::B, Status::Old), (SlotName::A, Status::Active)]
    );
    let kids: Vec<_> = journal.jwt().map(|entry| entry.facts.id).collect();
    let recorded_kids = recorded["decoded"]["jwtKeys"].as_array().unwrap();
    assert_eq!(kids, recorded_kids.iter().map(|key| key["kid"].as_str().unwrap()).collect::<Vec<_>>());
}

#[test]
fn what_was_revoked_is_remembered_beyond_its_end() {
    const DAY: i64 = 24 * 3600;
    let (bytes, _) = stored();
    let mut journal = Journal::decode(&bytes).unwrap();

    journal.withdraw_jwt("a".to_owned(), UnixSecs(DAY), UnixSecs(0));
    journal.withdraw_jwt("without an end".to_owned(), UnixSecs(0), UnixSecs(2 * DAY));
    journal.withdraw_jwt("a".to_owned(), UnixSecs(DAY), UnixSecs(3 * DAY));
    let read = Journal::decode(&journal.encode()).unwrap();
    journal.withdraw_jwt("b".to_owned(), UnixSecs(20 * DAY), UnixSecs(10 * DAY));

    assert_eq!(read.withdrawn_jwt().collect::<Vec<_>>(), ["without an end", "a"]);
    assert_eq!(read.counts(), (3, 3, 0));
    assert_eq!(journal.withdrawn_jwt().collect::<Vec<_>>(), ["without an end", "b"]);
}

#[test]
fn a_stored_journal_restores_the_slots() {
    let (bytes, _) = stored();
    let journal = Journal::decode(&bytes).unwrap();

    let slots = Slots::restore(journal.x509().map(|entry| {
        let held = match entry.status {
            Status::Prepared => Held::Prepared(entry.facts, entry.certificate),
            Status::Active => Held::Active(entry.facts, entry.certificate),
            Status::Old => Held::Old(entry.facts),
        };
        (entry.slot, held)
    }));

    assert_eq!(slots.current_name(), SlotName::A);
    assert_eq!(slots.active().unwrap().0.id, "a9b367de46cd2c200e1296b4b7c714f7f3587317");
    assert_eq!(slots.upcoming().facts().unwrap().id, "7c1c42d79b6365785dfa037efc57378558b319ca");
    assert_eq!(slots.next(UnixSecs(1_795_421_200)), None);
}

#[test]
fn ten_entries_of_a_family_are_kept_and_change_their_status() {
    let mut journal = Journal::default();

    for number in 0..12_i64 {
        journal.append_jwt(KeyEntry {
            slot: SlotName::A,
            facts: Facts {
                id: format!("key-{number}"),
                issued_at: UnixSecs(number),
                not_after: UnixSecs(number + 100),
                upstream_authority_id: String::new(),
            },
            status: Status::Prepared,
            public_key: bytes::Bytes::from_static(b"key"),
        });
    }
    journal.set_status(Family::Jwt, "key-11", Status::Active).unwrap();

    let kept: Vec<_> = Journal::decode(&journal.encode()).unwrap().jwt().collect();
    assert_eq!(kept.len(), 10);
    assert_eq!(kept[0].facts.id, "key-2");
    assert_eq!(kept[9].status, Status::Active);
    assert_eq!(journal.ends(), Some(UnixSecs(111)));
    assert!(matches!(
        journal.set_status(Family::X509, "key-11", Status::Old),
        Err(JournalError::Unknown(id)) if id == "key-11"
    ));
}

#[test]
fn x09_a_damaged_journal_is_refused() {
    assert!(matches!(Journal::decode(&[0x0a, 0xff]), Err(JournalError::Malformed(_))));
}
