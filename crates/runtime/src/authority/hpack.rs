//! Header blocks (RFC 7541): read with the client's dynamic table, written without one.
//!
//! The static table comes from a library. Its decoder is not used as a whole: it has no limit on what a
//! small block may unfold to, and makes 257 entries of a map for every string.

use std::collections::VecDeque;
use std::sync::LazyLock;

use super::huffman;

/// A header field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: Vec<u8>,
    pub(super) value: Vec<u8>,
    /// Whether no table may hold it.
    pub(super) is_secret: bool,
}

/// A block that cannot be read, or that unfolds to more than [`LIST_LIMIT`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads the blocks of one connection, in order.
pub(super) struct Decoder {
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
    size: usize,
    /// What the client set, up to [`TABLE_LIMIT`].
    limit: usize,
}

impl Decoder {
    pub(super) const fn new() -> Self {
        Self { table: VecDeque::new(), size: 0, limit: TABLE_LIMIT }
    }

    /// The fields of a block. After an error the decoder is of no use.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Vec<Field>, Malformed> {
        let mut rest = block;
        let mut fields = Vec::new();
        let mut room = LIST_LIMIT;
        while let Some(&first) = rest.first() {
            let field = match first {
                0x80.. => {
                    let (name, value) = self.lookup(integer(&mut rest, 7)?)?;
                    Field { name, value, is_secret: false }
                }
                0x40..0x80 => {
                    let field = self.literal(&mut rest, 6, false)?;
                    self.insert(field.name.clone(), field.value.clone());
                    field
                }
                0x20..0x40 => {
                    let limit = integer(&mut rest, 5)?;
                    // Only ever at the beginning of a block (section 4.2), and before a field.
                    if !fields.is_empty() || rest.is_empty() || limit > TABLE_LIMIT {
                        return Err(Malformed);
                    }
                    self.limit = limit;
                    self.shrink();
                    continue;
                }
                0x10..0x20 => self.literal(&mut rest, 4, true)?,
                0x00..0x10 => self.literal(&mut rest, 4, false)?,
            };
            room = room.checked_sub(size(&field.name, &field.value)).ok_or(Malformed)?;
            fields.push(field);
        }
        Ok(fields)
    }

    fn literal(&self, rest: &mut &[u8], prefix: u8, is_secret: bool) -> Result<Field, Malformed> {
        let name = match integer(rest, prefix)? {
            0 => string(rest)?,
            index => self.lookup(index)?.0,
        };
        Ok(Field { name, value: string(rest)?, is_secret })
    }

    /// From both tables; indices begin with 1.
    fn lookup(&self, index: usize) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
        let index = index.checked_sub(1).ok_or(Malformed)?;
        let field = STATIC.get(index).or_else(|| self.table.get(index.checked_sub(STATIC.len())?));
        field.cloned().ok_or(Malformed)
    }

    fn insert(&mut self, name: Vec<u8>, value: Vec<u8>) {
        self.size += size(&name, &value);
        self.table.push_front((name, value));
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.size > self.limit
            && let Some((name, value)) = self.table.pop_back()
        {
            self.size -= size(&name, &value);
        }
    }
}

impl std::fmt::Debug for Decoder {
    /// Headers may hold secrets.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Decoder").field("size", &self.size).finish_non_exhaustive()
    }
}

/// A block of these fields that touches no dynamic table.
pub(super) fn write(fields: &[Field]) -> Vec<u8> {
    let mut block = Vec::new();
    for field in fields {
        block.push(if field.is_secret { 0x10 } else { 0 });
        for string in [&field.name, &field.value] {
            put_length(&mut block, string.len());
            block.extend_from_slice(string);
        }
    }
    block
}

/// What a field counts for (section 4.1).
const fn size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + 32
}

/// Reads a string (section 5.2).
fn string(rest: &mut &[u8]) -> Result<Vec<u8>, Malformed> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (string, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    if is_huffman { huffman::read(string) } else { Ok(string.to_vec()) }
}

/// Reads an integer (section 5.1) of which the first byte holds `prefix` bits.
fn integer(rest: &mut &[u8], prefix: u8) -> Result<usize, Malformed> {
    let (&first, mut after) = rest.split_first().ok_or(Malformed)?;
    let most = (1_usize << prefix) - 1;
    let mut value = usize::from(first) & most;
    if value == most {
        // Four bytes more are far beyond any length that is let through.
        for shift in [0, 7, 14, 21] {
            let (&byte, further) = after.split_first().ok_or(Malformed)?;
            after = further;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                *rest = after;
                return Ok(value);
            }
        }
        return Err(Malformed);
    }
    *rest = after;
    Ok(value)
}

/// Writes the length of a plain string.
fn put_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut over) = length.checked_sub(0x7f) else {
        block.push(u8::try_from(length).unwrap_or_default());
        return;
    };
    block.push(0x7f);
    while over >= 0x80 {
        block.push(u8::try_from(over & 0x7f).unwrap_or_default() | 0x80);
        over >>= 7;
    }
    block.push(u8::try_from(over).unwrap_or_default());
}

/// The static table (appendix A): what a fresh decoder makes of each index.
static STATIC: LazyLock<Vec<(Vec<u8>, Vec<u8>)>> = LazyLock::new(|| {
    (1..=61_u8)
        .filter_map(|index| loona_hpack::Decoder::new().decode(&[0x80 | index]).ok()?.into_iter().next())
        .collect()
});

/// The size of the dynamic table where SETTINGS say nothing of it, as those of our HTTP/2 library.
const TABLE_LIMIT: usize = 4096;

/// The most that the fields of one block may count for; the HTTP/2 library takes less.
const LIST_LIMIT: usize = 64 << 10;

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::authority) fn field(name: &str, value: &str) -> Field {
        Field { name: name.into(), value: value.into(), is_secret: false }
    }

    #[test]
    fn requests_of_the_standard_are_read_with_their_table() {
        // RFC 7541, appendix C.4: three requests of one connection, Huffman coded.
        let blocks: [&[u8]; 3] = [
            &[
                0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90,
                0xf4, 0xff,
            ],
            &[0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf],
            &[
                0x82, 0x87, 0x85, 0xbf, 0x40, 0x88, 0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f, 0x89,
                0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf,
            ],
        ];
        let mut decoder = Decoder::new();
        let mut read = |block| decoder.read(block).unwrap();

        let first = read(blocks[0]);
        let second = read(blocks[1]);
        let third = read(blocks[2]);

        let authority = field(":authority", "www.example.com");
        assert_eq!(first[..3], [field(":method", "GET"), field(":scheme", "http"), field(":path", "/")]);
        assert_eq!(first[3], authority);
        assert_eq!(second[3..], [authority.clone(), field("cache-control", "no-cache")]);
        assert_eq!(third[3..], [authority, field("custom-key", "custom-value")]);
        assert_eq!(decoder.size, 164);
    }

    #[test]
    fn a_block_may_not_unfold_without_limit() {
        let mut decoder = Decoder::new();
        // One entry of about 4,000 bytes, then 60,000 bytes that each name it.
        let mut block = vec![0x40, 1, b'a'];
        put_length(&mut block, 4000);
        block.extend(std::iter::repeat_n(b'x', 4000));
        block.extend(std::iter::repeat_n(0x80 | 62, 60_000));

        assert_eq!(decoder.read(&block), Err(Malformed));
    }

    #[test]
    fn malformed_blocks_are_refused() {
        for block in [
            &[0x80][..],                           // index 0
            &[0x80 | 62],                          // beyond the tables
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0x01], // an integer without end
            &[0x40, 5, b'a'],                      // a string cut short
            &[0x20],                               // a size and no field
            &[0x82, 0x20, 0x84],                   // a size after a field
            &[0x3f, 0xe2, 0x1f, 0x82],             // a size of 4097
            &[0x40, 0x81, 0xfe, 0x00],             // bad Huffman padding
        ] {
            assert_eq!(Decoder::new().read(block), Err(Malformed), "{block:x?}");
        }
        assert!(Decoder::new().read(&[0x3f, 0xe1, 0x1f, 0x20, 0x82]).is_ok(), "two sizes, then a field");
    }

    #[test]
    fn an_entry_larger_than_the_table_empties_it() {
        let mut decoder = Decoder::new();
        decoder.insert(b"a".to_vec(), b"b".to_vec());

        decoder.insert(b"c".to_vec(), vec![0; TABLE_LIMIT]);

        assert!(decoder.table.is_empty());
        assert_eq!(decoder.size, 0);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            fields in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..300), prop::collection::vec(any::<u8>(), 0..300), any::<bool>()),
                0..20,
            )
        ) {
            let fields: Vec<Field> = fields
                .into_iter()
                .map(|(name, value, is_secret)| Field { name, value, is_secret })
                .collect();
            let block = write(&fields);

            let read = Decoder::new().read(&block).unwrap();
            let independent = loona_hpack::Decoder::new().decode(&block).unwrap();
            prop_assert_eq!(&read, &fields);
            let pairs: Vec<_> = fields.into_iter().map(|field| (field.name, field.value)).collect();
            prop_assert_eq!(independent, pairs);
        }

        #[test]
        fn blocks_of_a_real_encoder_are_read(
            lists in prop::collection::vec(
                prop::collection::vec(("[a-e]{1,3}", "[a-zA-Z0-9 ]{0,40}"), 1..8), 1..8,
            )
        ) {
            let mut encoder = loona_hpack::Encoder::new();
            let mut decoder = Decoder::new();
            for list in lists {
                let pairs = list.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
                let block = encoder.encode(pairs);
                let expected: Vec<Field> = list.iter().map(|(name, value)| field(name, value)).collect();
                prop_assert_eq!(decoder.read(&block).unwrap(), expected);
            }
        }
    }
}
