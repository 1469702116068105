//! Fuzz targets as plain tests: a target is fed its corpus, then damaged copies of it.
//!
//! An ordinary run feeds the same bytes every time and takes a moment; `FINIAL_FUZZ_SECONDS` makes it
//! as long as one likes, with others each time. A target fails by panicking, and the input that made
//! it panic is kept in a file.

#![expect(clippy::indexing_slicing, reason = "every position is drawn within the length")]

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use std::{env, fs};

/// The longest input that damage makes.
const LONGEST: usize = 1 << 20;

/// Feeds `target` with `corpus` and then with damaged copies, `rounds` of them unless the environment
/// asks for a time. `pieces` are bytes that mean something to the target.
///
/// # Panics
/// If the corpus is empty, or the target panics.
pub fn drive(name: &str, corpus: &[Vec<u8>], pieces: &[&[u8]], rounds: u64, target: impl Fn(&[u8])) {
    assert!(!corpus.is_empty(), "{name} has a corpus");
    let seconds = env::var("FINIAL_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let end = seconds.map(|seconds| now() + Duration::from_secs(seconds));
    let mut random = Random(if end.is_some() { RandomState::new().hash_one(name) } else { 1 });

    for input in corpus {
        feed(name, input, &target);
    }
    let mut round = 0;
    while end.map_or(round < rounds, |end| round % 16 != 0 || now() < end) {
        feed(name, &damaged(&mut random, corpus, pieces), &target);
        round += 1;
    }
}

#[expect(clippy::panic, reason = "how a test fails")]
fn feed(name: &str, input: &[u8], target: &impl Fn(&[u8])) {
    // The target's own message is printed as it panics.
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        let path = env::temp_dir().join(format!("finial-fuzz-{name}-{}", std::process::id()));
        let kept = fs::write(&path, input);
        panic!("{name} fails on {} ({kept:?}): {:?}", path.display(), String::from_utf8_lossy(input));
    }
}

/// A copy of one input of the corpus with up to eight things wrong.
fn damaged(random: &mut Random, corpus: &[Vec<u8>], pieces: &[&[u8]]) -> Vec<u8> {
    let mut input = random.choose(corpus).cloned().unwrap_or_default();
    let most = 1 << random.below(4);
    for _ in 0..=random.below(most) {
        damage(random, &mut input, corpus, pieces);
        input.truncate(LONGEST);
    }
    input
}

fn damage(random: &mut Random, input: &mut Vec<u8>, corpus: &[Vec<u8>], pieces: &[&[u8]]) {
    const EDGES: [u8; 10] = [0, 1, 0x20, 0x30, 0x7f, 0x80, 0x81, 0x84, 0xfe, 0xff];
    let at = random.below(input.len() + 1);
    match random.below(12) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = EDGES[random.below(EDGES.len())];
            }
        }
        2 => {
            // Off by little: lengths and digits.
            if let Some(byte) = input.get_mut(at) {
                *byte = byte.wrapping_add_signed([-2, -1, 1, 2][random.below(4)]);
            }
        }
        3 => input.truncate(at),
        4 => drop(input.drain(random.range(input.len()))),
        5 => {
            let copied = input[random.range(input.len())].to_vec();
            input.splice(at..at, copied);
        }
        6 => {
            let added: Vec<u8> = (0..1 + random.below(8)).map(|_| random.byte()).collect();
            input.splice(at..at, added);
        }
        7 => {
            for byte in &mut input[at..].iter_mut().take(1 + random.below(8)) {
                *byte = random.byte();
            }
        }
        8 => {
            // The end of another input.
            if let Some(other) = random.choose(corpus) {
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
        9 => {
            // A piece of another input.
            if let Some(other) = random.choose(corpus) {
                let copied = other[random.range(other.len())].to_vec();
                input.splice(at..at, copied);
            }
        }
        _ => {
            if let Some(piece) = random.choose(pieces) {
                let end = (at + random.below(piece.len() + 1)).min(input.len());
                input.splice(at..end, piece.iter().copied());
            }
        }
    }
}

/// A splitmix generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 if there is none.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    /// A range within `length`, more often short than long.
    fn range(&mut self, length: usize) -> Range<usize> {
        let start = self.below(length);
        let longest = 1 << self.below(10);
        start..(start + self.below(longest) + 1).min(length)
    }
}

#[expect(clippy::disallowed_methods, reason = "a long run is asked for in seconds")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn an_ordinary_run_is_the_same_each_time() {
        let fed = || {
            let fed = RefCell::new(Vec::new());
            drive("fed", &[b"abc".to_vec(), b"0123456789".to_vec()], &[b"%2f"], 200, |input| {
                fed.borrow_mut().push(input.to_vec());
            });
            fed.into_inner()
        };

        let first = fed();
        assert_eq!(first[..2], [b"abc".to_vec(), b"0123456789".to_vec()]);
        if env::var_os("FINIAL_FUZZ_SECONDS").is_none() {
            assert_eq!(first.len(), 202);
            assert_eq!(first, fed());
            let distinct: std::collections::HashSet<_> = first.into_iter().collect();
            assert!(distinct.len() > 150, "damage differs");
        }
    }

    #[test]
    fn a_panic_of_the_target_comes_through() {
        let driven = catch_unwind(|| {
            drive("panics", &[b"x".to_vec()], &[], 5000, |input| assert!(input.len() < 5, "too long"));
        });

        assert!(driven.is_err());
    }
}
