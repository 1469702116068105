//! Bytes as their difference to others that are known: certificates of one authority differ in less than
//! half of what they are.
//!
//! Packed bytes are steps, one behind the other. One whose first byte is below 128 is followed by so many
//! bytes, and one, as they are. Any other says how many of the known bytes come next, less 128, and in two
//! bytes from where on, the lower first. Nothing here depends on what the bytes mean.

/// What bytes are told by: two texts, counted as if the second stood behind the first.
pub(super) type Known<'a> = [&'a [u8]; 2];

/// The least that is worth a step of its own: that has three bytes, and its neighbour one.
const LEAST: usize = 5;
/// The most in one step.
const MOST: usize = 127;
/// By how many bits bytes of what is known are looked up.
const PLACE_BITS: u32 = 10;

/// `bytes` without what they share with what is known.
pub(super) fn pack(bytes: &[u8], known: Known<'_>) -> Vec<u8> {
    let mut places = [0_u16; 1 << PLACE_BITS];
    let behind = [0, known[0].len()];
    for (text, base) in known.into_iter().zip(behind) {
        for (at, window) in text.windows(4).enumerate() {
            // What cannot be named in two bytes is not known.
            let Ok(number) = u16::try_from(base + at + 1) else { break };
            if let Some(free) = places.get_mut(place(window)).filter(|place| **place == 0) {
                *free = number;
            }
        }
    }

    let mut packed = Packing::new(bytes.len());
    let (mut at, mut plain_from) = (0, 0);
    // Where what comes next stands if it is as it was: before it, as much may be different as is there.
    let mut expected = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let looked_up = rest.get(..4).and_then(|window| places.get(place(window)));
        let looked_up = looked_up.and_then(|number| number.checked_sub(1)).map(usize::from);
        let best = [Some(expected), looked_up].into_iter().flatten();
        let best = best.map(|from| (common(rest, from, known), from)).max_by_key(|(length, _)| *length);
        match best {
            Some((length, from)) if length >= LEAST => {
                packed.plain(bytes.get(plain_from..at).unwrap_or_default());
                packed.copy(from, length);
                at += length;
                plain_from = at;
                expected = from + length;
            }
            Some(_) | None => {
                at += 1;
                expected += 1;
            }
        }
    }
    packed.plain(bytes.get(plain_from..).unwrap_or_default());
    packed.0
}

/// The bytes that [`pack`] made `packed` of; in one piece of memory, which does not move while it is filled.
pub(super) fn unpack(packed: &[u8], known: Known<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(Steps(packed).map(|step| step.length()).sum());
    for step in Steps(packed) {
        bytes.extend_from_slice(match step {
            Step::Plain(plain) => plain,
            Step::Copy { from, length } => {
                behind(from, known).and_then(|text| text.get(..length)).unwrap_or_default()
            }
        });
    }
    bytes
}

/// What is known from a place on, as far as one text goes.
fn behind<'a>(from: usize, known: Known<'a>) -> Option<&'a [u8]> {
    match from.checked_sub(known[0].len()) {
        Some(from) => known[1].get(from..),
        None => known[0].get(from..),
    }
}

/// How much of `bytes` stands where it is known from `from` on. A place that cannot be named has nothing.
fn common(bytes: &[u8], from: usize, known: Known<'_>) -> usize {
    if u16::try_from(from).is_err() {
        return 0;
    }
    let text = behind(from, known).unwrap_or_default();
    bytes.iter().zip(text).take(MOST).take_while(|(one, other)| one == other).count()
}

fn place(window: &[u8]) -> usize {
    let number = window.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    usize::try_from(number.wrapping_mul(0x9e37_79b1) >> (32 - PLACE_BITS)).unwrap_or_default()
}

/// What is packed so far.
struct Packing(Vec<u8>);

impl Packing {
    /// Room for everything as it is, so that nothing is left behind where the bytes moved from.
    fn new(length: usize) -> Self {
        Self(Vec::with_capacity(length + length / (MOST + 1) + 1))
    }

    fn plain(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(MOST + 1) {
            self.0.extend(u8::try_from(piece.len() - 1));
            self.0.extend_from_slice(piece);
        }
    }

    fn copy(&mut self, from: usize, length: usize) {
        self.0.extend(u8::try_from(length).map(|length| length | 0x80));
        self.0.extend(u16::try_from(from).map_or([0; 2], u16::to_le_bytes));
    }
}

enum Step<'a> {
    Plain(&'a [u8]),
    Copy { from: usize, length: usize },
}

impl Step<'_> {
    const fn length(&self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            Self::Copy { length, .. } => *length,
        }
    }
}

/// The steps that packed bytes are made of.
struct Steps<'a>(&'a [u8]);

impl<'a> Iterator for Steps<'a> {
    type Item = Step<'a>;

    fn next(&mut self) -> Option<Step<'a>> {
        let (first, rest) = self.0.split_first()?;
        let length = usize::from(first & 0x7f);
        if *first < 0x80 {
            let (bytes, rest) = rest.split_at_checked(length + 1)?;
            self.0 = rest;
            return Some(Step::Plain(bytes));
        }
        let ([low, high], rest) = rest.split_first_chunk()?;
        self.0 = rest;
        Some(Step::Copy { from: usize::from(u16::from_le_bytes([*low, *high])), length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn check(bytes: &[u8], known: Known<'_>, most: usize) {
        let packed = pack(bytes, known);

        assert_eq!(unpack(&packed, known), bytes);
        assert!(packed.len() <= most, "{} of {}", packed.len(), bytes.len());
    }

    #[test]
    fn what_is_known_takes_little_and_what_is_not_hardly_more() {
        let long: Vec<u8> = (0..=255)
            .cycle()
            .take(700)
            .enumerate()
            .map(|(at, byte): (_, u8)| byte ^ u8::try_from(at / 256).unwrap())
            .collect();
        let mut other = long.clone();
        other[300] ^= 0x55;

        check(b"", [b"", b""], 0);
        check(b"", [&long, &long], 0);
        check(&long, [b"", b""], 706);
        check(&long, [&long, b""], 6 * 3);
        check(&long, [b"something else", &long], 6 * 3);
        check(&other, [&long, b""], 7 * 3 + 2);
        check(&[&long[..], b"tail"].concat(), [&long, b""], 6 * 3 + 5);
        check(
            &[&long[..350], b"spiffe://example.org/a", &long[350..]].concat(),
            [&long, b"spiffe://example.org/a"],
            9 * 3,
        );
    }

    /// Texts of chance that have much in common, or little.
    #[test]
    fn whatever_was_packed_is_unpacked_as_it_was() {
        let mut below = fixtures::chance();
        for round in 0..3000 {
            let letters = [2, 7, 256][round % 3];
            let mut text = |most: usize| -> Vec<u8> {
                (0..below(most)).map(|_| u8::try_from(below(letters)).unwrap()).collect()
            };
            let (first, second, new) = (text(900), text(90), text(300));
            let (cut, end) = (below(first.len() + 1), below(second.len() + 1));
            let bytes = [&first[cut..], &new, &second[..end], &first[..cut]].concat();
            check(&bytes, [&first, &second], bytes.len() + bytes.len() / 128 + 1);
        }
    }

    #[test]
    fn what_is_known_beyond_what_can_be_named_is_not_used() {
        let known: Vec<u8> = (0..20_000_u32).flat_map(u32::to_be_bytes).collect();

        check(&known, [&known, b"more"], known.len());
        check(b"more and more", [&known, b"more and more"], 14);
    }

    #[test]
    fn what_was_never_packed_is_cut_off() {
        for broken in [&[5_u8, 1][..], &[0x81], &[0x81, 0], &[0x85, 9, 9], &[0xff, 0, 0]] {
            assert_eq!(unpack(broken, [b"ab", b""]), b"");
        }
    }
}
