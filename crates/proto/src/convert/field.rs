//! Entries as fields of a message, written as they are: what encoding [`masked`] gives, byte by byte,
//! without a message made of copies first, whose parts would each be measured three times.
//!
//! [`masked`]: super::entry::masked

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, message};
use spiffe::entry::AdditionalAttributes;
use spiffe::{Entry, Selector, SpiffeId};

use crate::spire::types::{EntryMask, Status};

/// Puts `entry` behind what is there, as a field of this number, with the fields that `mask` names;
/// without a mask all.
pub fn put_entry(number: u32, entry: &Entry, mask: Option<&EntryMask>, bytes: &mut Vec<u8>) {
    let wanted = |field: fn(&EntryMask) -> bool| mask.is_none_or(field);
    put_message(number, LONG, bytes, |bytes| {
        put_text(1, entry.id.as_str(), bytes);
        if wanted(|mask| mask.spiffe_id) {
            put_id(2, &entry.spiffe_id, bytes);
        }
        if wanted(|mask| mask.parent_id) {
            put_id(3, &entry.parent_id, bytes);
        }
        if wanted(|mask| mask.selectors) {
            entry.selectors.iter().for_each(|selector| put_selector(4, selector, bytes));
        }
        if wanted(|mask| mask.x509_svid_ttl) {
            put_number(5, entry.x509_svid_ttl.into(), bytes);
        }
        if wanted(|mask| mask.federates_with) {
            entry.federates_with.iter().for_each(|name| put_item(6, name.as_str(), bytes));
        }
        if wanted(|mask| mask.admin) {
            put_number(7, entry.admin.into(), bytes);
        }
        if wanted(|mask| mask.downstream) {
            put_number(8, entry.downstream.into(), bytes);
        }
        if wanted(|mask| mask.expires_at) {
            put_number(9, entry.expires_at.0, bytes);
        }
        if wanted(|mask| mask.dns_names) {
            entry.dns_names.iter().for_each(|name| put_item(10, name, bytes));
        }
        if wanted(|mask| mask.revision_number) {
            put_number(11, entry.revision_number, bytes);
        }
        if wanted(|mask| mask.store_svid) {
            put_number(12, entry.store_svid.into(), bytes);
        }
        if wanted(|mask| mask.jwt_svid_ttl) {
            put_number(13, entry.jwt_svid_ttl.into(), bytes);
        }
        if wanted(|mask| mask.hint) {
            put_text(14, &entry.hint, bytes);
        }
        if wanted(|mask| mask.created_at) {
            put_number(15, entry.created_at.0, bytes);
        }
        if let Some(attributes) =
            entry.additional_attributes.filter(|_| wanted(|mask| mask.additional_attributes))
        {
            put_attributes(16, attributes, bytes);
        }
    });
}

/// Puts the outcome for an item of a batch behind what is there, as a field of this number: a message of a status
/// and the entry, of which `mask` names the fields that are shown.
pub fn put_outcome(
    number: u32,
    status: &Status,
    entry: Option<&Entry>,
    mask: Option<&EntryMask>,
    bytes: &mut Vec<u8>,
) {
    put_message(number, LONG, bytes, |bytes| {
        message::encode(1, status, bytes);
        if let Some(entry) = entry {
            put_entry(2, entry, mask, bytes);
        }
    });
}

/// How many bytes the length of a message is expected to take: of most entries, and of what is in them.
const LONG: usize = 2;
const SHORT: usize = 1;

fn put_id(number: u32, id: &SpiffeId, bytes: &mut Vec<u8>) {
    put_message(number, SHORT, bytes, |bytes| {
        put_text(1, id.trust_domain_name(), bytes);
        put_text(2, id.path(), bytes);
    });
}

fn put_selector(number: u32, selector: &Selector, bytes: &mut Vec<u8>) {
    put_message(number, SHORT, bytes, |bytes| {
        put_text(1, selector.kind(), bytes);
        put_text(2, selector.value(), bytes);
    });
}

fn put_attributes(number: u32, attributes: AdditionalAttributes, bytes: &mut Vec<u8>) {
    put_message(number, SHORT, bytes, |bytes| {
        put_number(1, attributes.disable_x509_svid_prefetch.into(), bytes);
        put_number(2, attributes.jwt_svid_include_jti.into(), bytes);
    });
}

/// A message whose content `put` writes. It is moved if its length takes other than `expected` bytes.
fn put_message(number: u32, expected: usize, bytes: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) {
    encode_key(number, WireType::LengthDelimited, bytes);
    let start = bytes.len();
    bytes.extend(std::iter::repeat_n(0, expected));
    put(bytes);
    let length = bytes.len() - start - expected;
    let needed = encoded_len_varint(length as u64);
    if needed != expected {
        bytes.resize(start + length + needed.max(expected), 0);
        bytes.copy_within(start + expected..start + expected + length, start + needed);
        bytes.truncate(start + needed + length);
    }
    if let Some(mut place) = bytes.get_mut(start..start + needed) {
        encode_varint(length as u64, &mut place);
    }
}

/// A text, unless it is empty.
fn put_text(number: u32, text: &str, bytes: &mut Vec<u8>) {
    if !text.is_empty() {
        put_item(number, text, bytes);
    }
}

/// One of several texts.
fn put_item(number: u32, text: &str, bytes: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, bytes);
    encode_varint(text.len() as u64, bytes);
    bytes.extend_from_slice(text.as_bytes());
}

/// A number or a truth value, unless it is zero.
fn put_number(number: u32, value: i64, bytes: &mut Vec<u8>) {
    if value != 0 {
        encode_key(number, WireType::Varint, bytes);
        encode_varint(value.cast_unsigned(), bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;
    use spiffe::{EntryId, TrustDomain, UnixSecs};

    use super::*;
    use crate::convert::entry::{AGENT_MASK, masked};
    use crate::spire::server::entry::BatchCreateEntryResponse;
    use crate::spire::server::entry::batch_create_entry_response::Result as Outcome;

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://example.org/{path}")).expect("an id")
    }

    /// With this many letters in its texts, and this many of what there may be several of.
    fn entry(letters: usize, several: usize) -> Entry {
        let text = |first: &str| format!("{first}{}", "x".repeat(letters));
        let selectors: Arc<[Selector]> =
            (0..several).map(|number| Selector::new("unix", &text(&number.to_string()))).collect();
        let flag = several % 2 == 1;
        let attributes =
            AdditionalAttributes { disable_x509_svid_prefetch: flag, jwt_svid_include_jti: letters > 9 };
        Entry {
            id: EntryId::new(&text("e")),
            spiffe_id: id(&text("web")),
            parent_id: id("node"),
            selector_set: selectors.iter().cloned().collect(),
            selectors,
            x509_svid_ttl: i32::try_from(several).expect("small"),
            jwt_svid_ttl: if flag { -1 } else { 0 },
            federates_with: (0..several)
                .map(|number| TrustDomain::parse(&format!("t{number}")).expect("a trust domain"))
                .collect(),
            admin: flag,
            downstream: !flag,
            expires_at: UnixSecs(if flag { i64::MAX } else { 0 }),
            dns_names: (0..several)
                .map(|number| if number == 0 { String::new() } else { text("d") })
                .collect(),
            revision_number: i64::try_from(letters).expect("small"),
            store_svid: flag,
            hint: if flag { text("h") } else { String::new() },
            created_at: UnixSecs(-5),
            additional_attributes: (several != 2).then_some(attributes),
        }
    }

    fn check(entry: &Entry, mask: Option<&EntryMask>) {
        let mut expected = b"before".to_vec();
        message::encode(2, &masked(entry, mask), &mut expected);
        let mut written = b"before".to_vec();

        put_entry(2, entry, mask, &mut written);

        assert_eq!(written, expected, "{mask:?}");
    }

    #[test]
    fn an_outcome_is_written_as_its_message_is() {
        let refused = Status { code: 3, message: "no".to_owned() };
        for (status, letters) in [(refused, None), (Status::ok(), Some(3)), (Status::ok(), Some(20_000))] {
            let entry = letters.map(|letters| entry(letters, 1));
            let whole = BatchCreateEntryResponse {
                results: vec![Outcome {
                    status: Some(status.clone()),
                    entry: entry.as_ref().map(|entry| masked(entry, None)),
                }],
            };
            let mut written = Vec::new();

            put_outcome(1, &status, entry.as_ref(), None, &mut written);

            assert_eq!(written, whole.encode_to_vec());
        }
    }

    #[test]
    fn an_entry_is_written_as_its_message_is() {
        // Lengths of one, two and three bytes, of the entry and of what is in it, and their borders.
        for letters in (0..140).chain(16_000..16_400).step_by(3).chain([127, 128, 16_383, 16_384]) {
            for several in 0..3 {
                check(&entry(letters, several), None);
                check(&entry(letters, several), Some(&AGENT_MASK));
            }
        }
    }

    #[test]
    fn each_field_is_written_if_the_mask_names_it() {
        // Its fields are those of the entry but the id, all of them flags.
        for number in 2..=16 {
            let mut flag = Vec::new();
            encode_key(number, WireType::Varint, &mut flag);
            flag.push(1);
            let mask = EntryMask::decode(flag.as_slice()).expect("a mask");
            assert_ne!(mask, EntryMask::default());

            (0..4).for_each(|several| check(&entry(40, several), Some(&mask)));
        }
        check(&entry(40, 3), Some(&EntryMask::default()));
    }
}
