//! A profile in the format of pprof (`github.com/google/pprof/proto/profile.proto`), in a gzip file.

use std::collections::HashMap;

use super::symbols::{Mapping, Symbols};

/// A kind of number, and its unit.
pub(super) type Kind = (&'static str, &'static str);

/// What was measured.
pub(super) struct Measured<'a> {
    /// What the numbers of each sample are.
    pub(super) kinds: &'a [Kind],
    /// Stacks of addresses, the innermost first, and their numbers.
    pub(super) samples: Vec<(&'a [usize], Vec<u64>)>,
    /// Nanoseconds since 1970 at which it began.
    pub(super) began: u64,
    /// Nanoseconds that it took.
    pub(super) took: u64,
    /// What a sample was taken each so many of.
    pub(super) period: (Kind, u64),
}

/// Equal stacks as one, with how many they are and how much they stand for, each `period`.
pub(super) fn counted(stacks: &[Vec<usize>], period: u64) -> Vec<(&[usize], Vec<u64>)> {
    let mut counts: HashMap<&[usize], u64> = HashMap::new();
    for stack in stacks.iter().filter(|stack| !stack.is_empty()) {
        *counts.entry(stack).or_default() += 1;
    }
    counts.into_iter().map(|(stack, count)| (stack, vec![count, count * period])).collect()
}

/// The file.
pub(super) fn file(measured: &Measured<'_>, symbols: &Symbols) -> Vec<u8> {
    gzip(&profile(measured, symbols))
}

fn profile(measured: &Measured<'_>, symbols: &Symbols) -> Vec<u8> {
    let mut strings = Strings::default();
    let mut profile = Message::default();
    let of = |strings: &mut Strings, (kind, unit): Kind| {
        let mut value = Message::default();
        value.number(1, strings.place(kind));
        value.number(2, strings.place(unit));
        value
    };
    for kind in measured.kinds {
        profile.message(1, &of(&mut strings, *kind));
    }

    let mut locations: HashMap<usize, u64> = HashMap::new();
    for (stack, numbers) in &measured.samples {
        let place = |address: &usize| {
            let next = locations.len() as u64 + 1;
            *locations.entry(*address).or_insert(next)
        };
        let mut sample = Message::default();
        sample.numbers(1, stack.iter().map(place));
        sample.numbers(2, numbers.iter().copied());
        profile.message(2, &sample);
    }
    for (mapping, id) in symbols.mappings().iter().zip(1..) {
        profile.message(3, &described(mapping, id, &mut strings));
    }
    let mut functions: HashMap<&str, u64> = HashMap::new();
    for (address, id) in locations {
        let mut location = Message::default();
        location.number(1, id);
        location.number(2, symbols.mapping_of(address));
        location.number(3, address as u64);
        if let Some(name) = symbols.name_of(address) {
            let next = functions.len() as u64 + 1;
            let mut line = Message::default();
            line.number(1, *functions.entry(name).or_insert(next));
            location.message(4, &line);
        }
        profile.message(4, &location);
    }
    for (name, id) in functions {
        let mut function = Message::default();
        function.number(1, id);
        function.number(2, strings.place(name));
        function.number(3, strings.place(name));
        profile.message(5, &function);
    }
    profile.number(9, measured.began);
    profile.number(10, measured.took);
    let (kind, period) = measured.period;
    profile.message(11, &of(&mut strings, kind));
    profile.number(12, period);
    for string in strings.in_order() {
        profile.bytes(6, string.as_bytes());
    }
    profile.0
}

fn described(mapping: &Mapping, id: u64, strings: &mut Strings) -> Message {
    let mut message = Message::default();
    message.number(1, id);
    message.number(2, mapping.start as u64);
    message.number(3, mapping.end as u64);
    message.number(4, mapping.offset);
    message.number(5, strings.place(&mapping.file));
    message.number(7, u64::from(mapping.has_names));
    message
}

/// Texts, each once; the first is empty.
#[derive(Default)]
struct Strings(HashMap<String, u64>);

impl Strings {
    fn place(&mut self, text: &str) -> u64 {
        if text.is_empty() {
            return 0;
        }
        let next = self.0.len() as u64 + 1;
        *self.0.entry(text.to_owned()).or_insert(next)
    }

    fn in_order(self) -> Vec<String> {
        let mut all: Vec<(u64, String)> = self.0.into_iter().map(|(text, place)| (place, text)).collect();
        all.sort_unstable();
        std::iter::once(String::new()).chain(all.into_iter().map(|(_, text)| text)).collect()
    }
}

/// A message of protocol buffers that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            varint(&mut self.0, field << 3);
            varint(&mut self.0, value);
        }
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        varint(&mut self.0, field << 3 | 2);
        varint(&mut self.0, value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn message(&mut self, field: u64, value: &Self) {
        self.bytes(field, &value.0);
    }

    fn numbers(&mut self, field: u64, values: impl IntoIterator<Item = u64>) {
        let mut packed = Vec::new();
        values.into_iter().for_each(|value| varint(&mut packed, value));
        self.bytes(field, &packed);
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A gzip file (RFC 1952) whose contents are stored as they are: profiles are small and seldom, and so
/// need no compressor in the program.
fn gzip(contents: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut chunks = contents.chunks(usize::from(u16::MAX)).peekable();
    if chunks.peek().is_none() {
        out.extend([1, 0, 0, 0xff, 0xff]);
    }
    while let Some(chunk) = chunks.next() {
        let length = u16::try_from(chunk.len()).unwrap_or(u16::MAX);
        out.push(u8::from(chunks.peek().is_none()));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend_from_slice(chunk);
    }
    out.extend(crc32(contents).to_le_bytes());
    out.extend((contents.len() as u32).to_le_bytes());
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_sizes_are_those_of_the_standards() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let file = gzip(b"ab");
        assert_eq!(file.get(10..17), Some(&[1, 2, 0, 0xfd, 0xff, b'a', b'b'][..]));
        assert_eq!(file.len(), 10 + 5 + 2 + 8);
        assert_eq!(gzip(&[]).len(), 10 + 5 + 8);
        assert_eq!(gzip(&[0; 70_000]).len(), 10 + 2 * 5 + 70_000 + 8);
    }

    #[test]
    fn equal_stacks_are_one_sample() {
        let stacks = [vec![1, 2], vec![1, 2], vec![3], Vec::new()];
        let cpu = ("cpu", "nanoseconds");
        let samples = counted(&stacks, 10);
        assert!(samples.contains(&(&[1, 2][..], vec![2, 20])) && samples.len() == 2);
        let measured = Measured { kinds: &[cpu], samples, began: 1, took: 2, period: (cpu, 10) };

        let profile = profile(&measured, &Symbols::none());

        let samples = profile.windows(2).filter(|window| *window == [2 << 3 | 2, 8]).count();
        assert!(samples >= 1, "{profile:?}");
        assert!(profile.windows(11).any(|window| window == b"nanoseconds"));
    }
}
