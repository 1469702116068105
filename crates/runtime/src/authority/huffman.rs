//! The Huffman code of header strings (RFC 7541, appendix B).
//!
//! It is canonical: the lengths of the codes say all of it, since codes of one length follow each other
//! in the order of their octets, after those of all shorter ones.

use super::hpack::Malformed;

/// How many bits the code of each octet has. The end of string is 30 ones.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, //
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, //
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, //
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, //
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, //
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, //
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, //
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, //
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, //
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, //
];

/// The longest code.
const LONGEST: usize = 30;

static CODE: Code = Code::new();

/// The code by lengths. Codes are compared as the first bits of a number of 32.
struct Code {
    /// Of each length: what is smaller, and of no shorter code, begins with a code of this length.
    ends: [u32; LONGEST + 1],
    /// Of each length: its first code.
    firsts: [u32; LONGEST + 1],
    /// Of each length: where the octet of its first code is.
    places: [usize; LONGEST + 1],
    /// Octets in the order of their codes.
    octets: [u8; 256],
}

impl Code {
    #[expect(clippy::indexing_slicing, reason = "evaluated when it is compiled")]
    const fn new() -> Self {
        let mut code = Self {
            ends: [0; LONGEST + 1],
            firsts: [0; LONGEST + 1],
            places: [0; LONGEST + 1],
            octets: [0; 256],
        };
        let (mut next, mut place, mut length) = (0_u32, 0, 1);
        while length <= LONGEST {
            code.firsts[length] = next;
            code.places[length] = place;
            let mut octet = 0_u8;
            loop {
                if LENGTHS[octet as usize] as usize == length {
                    code.octets[place] = octet;
                    place += 1;
                    next += 1 << (32 - length);
                }
                if octet == u8::MAX {
                    break;
                }
                octet += 1;
            }
            code.ends[length] = next;
            length += 1;
        }
        code
    }

    /// The octet that these bits begin with, and how many of them are its code; nothing for the end of
    /// string.
    fn first_of(&self, bits: u32) -> Option<(u8, u32)> {
        let length = self.ends.iter().position(|end| bits < *end)?;
        let after_first = (bits - self.firsts.get(length)?) >> (32 - length);
        let place = self.places.get(length)? + usize::try_from(after_first).ok()?;
        Some((*self.octets.get(place)?, u32::try_from(length).ok()?))
    }
}

/// Reads a string.
///
/// # Errors
/// If the end of string is in it, or it is not filled up by less than eight ones (section 5.2).
pub(super) fn read(string: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut octets = Vec::with_capacity(string.len() * 8 / 5);
    let mut rest = string.iter();
    // What was taken and not read yet, from the highest bit on; ones behind it.
    let (mut bits, mut count) = (u64::MAX, 0);
    loop {
        while count <= 56
            && let Some(byte) = rest.next()
        {
            // Only ones are taken away here, and the byte is put in their place.
            bits &= !(u64::from(!byte) << (56 - count));
            count += 8;
        }
        let window = u32::try_from(bits >> 32).unwrap_or(u32::MAX);
        match CODE.first_of(window) {
            Some((octet, length)) if length <= count => {
                octets.push(octet);
                bits = !(!bits << length);
                count -= length;
            }
            _ if count < 8 && bits == u64::MAX => return Ok(octets),
            _ => return Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use loona_hpack::huffman::HuffmanDecoder;
    use proptest::prelude::*;

    use super::*;

    /// A string in this code, by the tables the other way round.
    fn write(octets: &[u8]) -> Vec<u8> {
        let mut bits = String::new();
        for octet in octets {
            let place = CODE.octets.iter().position(|known| known == octet).unwrap();
            let length = usize::from(LENGTHS[usize::from(*octet)]);
            let nth = u32::try_from(place - CODE.places[length]).unwrap();
            let code = (CODE.firsts[length] >> (32 - length)) + nth;
            bits.push_str(&format!("{code:0length$b}"));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        bits.as_bytes()
            .chunks(8)
            .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap())
            .collect()
    }

    #[test]
    fn the_longest_codes_are_the_standards() {
        // The last line of appendix B with an octet, and the first.
        assert_eq!(write(&[22]), [0xff, 0xff, 0xff, 0xfb]);
        assert_eq!(write(b"0"), [0b0000_0111]);
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xfb]), Ok(vec![22]));
        assert_eq!(read(&[]), Ok(Vec::new()));
    }

    #[test]
    fn the_end_of_string_and_padding_that_is_none_are_refused() {
        for string in [&[0xff, 0xff, 0xff, 0xff][..], &[0xff], &[0x07, 0xff], &[0xfe, 0x00], &[0b0000_0110]] {
            assert_eq!(read(string), Err(Malformed), "{string:x?}");
        }
    }

    proptest! {
        #[test]
        fn every_string_is_read_as_another_decoder_reads_it(octets in prop::collection::vec(any::<u8>(), 0..100)) {
            let string = write(&octets);
            prop_assert_eq!(&HuffmanDecoder::new().decode(&string).unwrap(), &octets);
            prop_assert_eq!(read(&string), Ok(octets));
        }

        #[test]
        fn whatever_comes_is_read_or_refused_as_by_another_decoder(string in prop::collection::vec(any::<u8>(), 0..12)) {
            prop_assert_eq!(read(&string).ok(), HuffmanDecoder::new().decode(&string).ok());
        }
    }
}
