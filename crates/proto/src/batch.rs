//! Batches of entries that are read one by one: whoever has an entry signed for does not wait until a
//! thousand new ones were read.

use bytes::Bytes;
use prost::{Message, Name};
use tonic::Status;

use crate::codec::decoded;
use crate::raw::Replied;
use crate::spire::types;

/// A `BatchCreateEntryRequest` whose entries are not read yet.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CreateEntries {
    /// What [`entry`] reads.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub entries: Vec<Bytes>,
    /// What the answer shows of them.
    #[prost(message, optional, tag = "2")]
    pub output_mask: Option<types::EntryMask>,
}

impl Name for CreateEntries {
    const NAME: &'static str = "BatchCreateEntryRequest";
    const PACKAGE: &'static str = PACKAGE;
}

/// A `BatchUpdateEntryRequest` whose entries are not read yet.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UpdateEntries {
    /// What [`entry`] reads.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub entries: Vec<Bytes>,
    /// Which fields are written.
    #[prost(message, optional, tag = "2")]
    pub input_mask: Option<types::EntryMask>,
    /// What the answer shows of them.
    #[prost(message, optional, tag = "3")]
    pub output_mask: Option<types::EntryMask>,
}

impl Name for UpdateEntries {
    const NAME: &'static str = "BatchUpdateEntryRequest";
    const PACKAGE: &'static str = PACKAGE;
}

const PACKAGE: &str = "spire.api.server.entry.v1";

/// Reads an entry of a batch.
///
/// # Errors
/// It is none; that is what the whole call ends with.
pub fn entry(bytes: &Bytes) -> Result<types::Entry, Status> {
    decoded(bytes).map_err(|error| Replied::Once.unreadable(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spire::server::entry as wire;

    fn request() -> wire::BatchCreateEntryRequest {
        let entry = |hint: &str| types::Entry { hint: hint.to_owned(), ..Default::default() };
        let output_mask = Some(types::EntryMask { hint: true, ..Default::default() });
        wire::BatchCreateEntryRequest { entries: vec![entry("a"), entry(""), entry("b")], output_mask }
    }

    #[test]
    fn entries_are_those_of_the_whole_message() {
        let whole = request();

        let batch = decoded::<CreateEntries>(&whole.encode_to_vec().into()).unwrap();
        let entries: Vec<_> = batch.entries.iter().map(|bytes| entry(bytes).unwrap()).collect();

        assert_eq!(entries, whole.entries);
        assert_eq!(batch.output_mask, whole.output_mask);
        assert_eq!(CreateEntries::full_name(), wire::BatchCreateEntryRequest::full_name());
    }

    #[test]
    fn masks_of_an_update_are_those_of_the_whole_message() {
        let mask = |admin: bool| Some(types::EntryMask { admin, downstream: !admin, ..Default::default() });
        let entries = request().entries;
        let whole =
            wire::BatchUpdateEntryRequest { entries, input_mask: mask(true), output_mask: mask(false) };

        let batch = decoded::<UpdateEntries>(&whole.encode_to_vec().into()).unwrap();

        assert_eq!(batch.entries.len(), 3);
        assert_eq!((batch.input_mask, batch.output_mask), (whole.input_mask, whole.output_mask));
        assert_eq!(UpdateEntries::full_name(), wire::BatchUpdateEntryRequest::full_name());
    }

    #[test]
    fn what_is_no_entry_is_refused_and_fields_of_another_wire_type_are_passed_over() {
        // The id, as a text that is not UTF-8, and as a number.
        let refused = entry(&Bytes::from_static(&[0x0a, 1, 0xff])).unwrap_err();
        let passed = entry(&Bytes::from_static(&[0x08, 1])).unwrap();

        assert_eq!(refused.code(), tonic::Code::Internal);
        assert!(refused.message().starts_with("grpc: error unmarshalling request: "), "{refused}");
        assert_eq!(passed, types::Entry::default());
    }
}
