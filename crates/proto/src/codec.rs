//! How messages are read and written on gRPC connections.
//!
//! A field that comes with another wire type than its own is one we do not know: that is how other
//! implementations read it, and so a newer peer may have changed it. The decoder below refuses the
//! whole message instead, so a message that it refuses is looked at again without such fields.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::OnceLock;

use bytes::{Buf, Bytes};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use prost::{DecodeError, Message, Name};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic::Status;
use tonic::codec::DecodeBuf;
use tonic_prost::ProstEncoder;

/// The deepest nesting that is looked at, as in the decoder itself.
const DEEPEST: usize = 100;

/// Writes messages of type `T`, reads those of type `U`.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<fn() -> (T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Name + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Decoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Decoder<U> {
        Decoder::default()
    }
}

/// The reading half of [`Codec`].
#[derive(Debug)]
pub struct Decoder<U>(PhantomData<fn() -> U>);

impl<U> Default for Decoder<U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<U: Message + Default + Name> tonic::codec::Decoder for Decoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        decoded(&bytes).map(Some).map_err(|error| unreadable(&error))
    }
}

/// Reads messages of which nothing is known but their type.
pub(crate) struct AsWritten<U>(PhantomData<fn() -> U>);

impl<U> Default for AsWritten<U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<U: Message + Default> tonic::codec::Decoder for AsWritten<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        U::decode(buffer).map(Some).map_err(|error| unreadable(&error))
    }
}

/// A message of a stream that is none, in the words of SPIRE's library.
pub(crate) fn unreadable(error: &DecodeError) -> Status {
    Status::internal(format!("grpc: failed to unmarshal the received message: {error}"))
}

/// Reads a message.
pub(crate) fn decoded<M: Message + Default + Name>(bytes: &Bytes) -> Result<M, DecodeError> {
    let refusal = match M::decode(bytes.clone()) {
        Ok(message) => return Ok(message),
        Err(refusal) => refusal,
    };
    match without_misfits(&M::full_name(), bytes, DEEPEST) {
        Some(rest) if rest.len() < bytes.len() => M::decode(rest.as_slice()),
        _ => Err(refusal),
    }
}

/// The message without the fields whose wire type is not theirs; `None` if it is broken otherwise.
fn without_misfits(message: &str, mut bytes: &[u8], depth: usize) -> Option<Vec<u8>> {
    let fields = schema().get(message)?;
    let deeper = depth.checked_sub(1)?;
    let mut kept = Vec::with_capacity(bytes.len());
    while !bytes.is_empty() {
        let start = bytes;
        let (number, wire) = decode_key(&mut bytes).ok()?;
        let value = bytes;
        skip_field(wire, number, &mut bytes, DecodeContext::default()).ok()?;
        match fields.get(&number) {
            Some(field) if !field.fits(wire) => {}
            Some(Field { message: Some(inner), .. }) => {
                let mut content = value.get(..value.len() - bytes.len())?;
                decode_varint(&mut content).ok()?;
                let inner = without_misfits(inner, content, deeper)?;
                encode_key(number, wire, &mut kept);
                encode_varint(inner.len() as u64, &mut kept);
                kept.extend_from_slice(&inner);
            }
            Some(_) | None => kept.extend_from_slice(start.get(..start.len() - bytes.len())?),
        }
    }
    Some(kept)
}

/// What is known of a field.
struct Field {
    wire: WireType,
    /// Several may come in one piece.
    is_packable: bool,
    /// The message that it holds.
    message: Option<String>,
}

impl Field {
    fn fits(&self, wire: WireType) -> bool {
        wire == self.wire || (self.is_packable && wire == WireType::LengthDelimited)
    }
}

type Schema = HashMap<String, HashMap<u32, Field>>;

/// The fields of every message, by full name and number.
fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let mut schema = Schema::new();
        // Written by the build of this very crate.
        let set = FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).unwrap_or_default();
        for file in &set.file {
            file.message_type.iter().for_each(|message| note(&mut schema, file.package(), message));
        }
        schema
    })
}

fn note(schema: &mut Schema, scope: &str, message: &DescriptorProto) {
    let name =
        if scope.is_empty() { message.name().to_owned() } else { format!("{scope}.{}", message.name()) };
    message.nested_type.iter().for_each(|nested| note(schema, &name, nested));
    let fields = message.field.iter().filter_map(|field| {
        let wire = match field.r#type() {
            Type::Double | Type::Fixed64 | Type::Sfixed64 => WireType::SixtyFourBit,
            Type::Float | Type::Fixed32 | Type::Sfixed32 => WireType::ThirtyTwoBit,
            Type::String | Type::Bytes | Type::Message => WireType::LengthDelimited,
            Type::Group => return None,
            Type::Int64
            | Type::Uint64
            | Type::Int32
            | Type::Uint32
            | Type::Sint32
            | Type::Sint64
            | Type::Bool
            | Type::Enum => WireType::Varint,
        };
        let message =
            (field.r#type() == Type::Message).then(|| field.type_name().trim_start_matches('.').to_owned());
        let is_packable = field.label() == Label::Repeated && wire != WireType::LengthDelimited;
        Some((u32::try_from(field.number()).ok()?, Field { wire, is_packable, message }))
    });
    let fields = fields.collect();
    schema.insert(name, fields);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spire::server::bundle::GetBundleRequest;
    use crate::spire::server::entry::{BatchCreateEntryRequest, GetEntryRequest};
    use crate::spire::types;

    #[test]
    fn a_field_of_another_wire_type_is_one_we_do_not_know() {
        let number_for_text: GetEntryRequest = decoded(&Bytes::from_static(&[8, 1])).unwrap();
        let number_for_message: GetBundleRequest = decoded(&Bytes::from_static(&[8, 1])).unwrap();

        // A group: of a version of the language that nothing here is written in.
        let group_for_text: GetEntryRequest =
            decoded(&Bytes::from_static(&[10, 1, b'a', 0x0b, 0x10, 5, 0x13, 0x14, 0x0c])).unwrap();

        assert_eq!(group_for_text, GetEntryRequest { id: "a".to_owned(), ..GetEntryRequest::default() });
        assert_eq!(number_for_text, GetEntryRequest::default());
        assert_eq!(number_for_message, GetBundleRequest::default());
    }

    #[test]
    fn all_but_the_misfit_is_kept() {
        let entry = types::Entry { id: "e".to_owned(), hint: "h".to_owned(), ..types::Entry::default() };
        let mut inner = entry.encode_to_vec();
        // `hint` again, as a number, and a field of tomorrow.
        inner.extend([14 << 3, 5, 0xfa, 0x3f, 1, b'x']);
        let mut bytes = vec![1 << 3 | 2, u8::try_from(inner.len()).unwrap()];
        bytes.extend(inner);

        let read: BatchCreateEntryRequest = decoded(&bytes.into()).unwrap();

        assert_eq!(read.entries, [entry]);
    }

    #[test]
    fn what_is_broken_stays_refused() {
        let ends = [&[10][..], &[0xff; 4], &[10, 5, b'a'], &[10, 1, 0xff], &[0, 0], &[8, 1, 10]];
        let groups = [&[0x0b][..], &[0x0c], &[0x0b, 0x14], &[0x0b, 0x13, 0x0c, 0x14]];
        for broken in ends.into_iter().chain(groups) {
            assert!(decoded::<GetEntryRequest>(&Bytes::from(broken.to_vec())).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn deep_nesting_ends() {
        let mut bytes = vec![8, 1];
        for _ in 0..1000 {
            let mut outer = vec![10];
            encode_varint(bytes.len() as u64, &mut outer);
            outer.extend(bytes);
            bytes = outer;
        }

        assert!(decoded::<BatchCreateEntryRequest>(&bytes.into()).is_err());
    }
}
