//! Damaged texts: whatever is read, nothing panics.

use std::time::{Duration, Instant};

use finial_config::hcl::{self, Value};

use crate::hcl::cases;

/// Rounds of an ordinary run; `FINIAL_FUZZ_SECONDS` asks for a longer one.
const ROUNDS: usize = 20_000;

#[test]
fn fuzz_configuration_texts() {
    let corpus: Vec<Vec<u8>> = cases().into_iter().map(|case| case.text.into_bytes()).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut rounds = 0;

    for text in &corpus {
        feed(text);
    }
    let enough = until();
    while !enough(rounds) {
        feed(&random.damage(&corpus));
        rounds += 1;
    }

    println!("{rounds} damaged texts");
    assert!(rounds > 0);
}

/// When to stop, given the rounds so far.
#[expect(clippy::disallowed_methods, reason = "a long run is asked for in seconds")]
fn until() -> impl Fn(usize) -> bool {
    let seconds = std::env::var("FINIAL_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    move |rounds| match end {
        Some(end) => rounds > 0 && rounds % 64 == 0 && Instant::now() >= end,
        None => rounds >= ROUNDS,
    }
}

/// Reads a text in every way there is; what is read can be rendered and read again.
fn feed(text: &[u8]) {
    let Ok(body) = hcl::parse(text) else { return };
    drop(Value::of(&body));
    drop(hcl::from_body::<hcl::Kept>(&body));
    let rendered = body.to_hcl();
    let is_json = text.trim_ascii_start().starts_with(b"{");
    if !is_json {
        hcl::parse(rendered.as_bytes()).unwrap_or_else(|error| panic!("{error}: {rendered:?} of {text:?}"));
    }
}

/// A xorshift generator: the same texts on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit.max(1)).expect("fits")).expect("fits")
    }

    fn damage(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        const PIECES: [&[u8]; 20] = [
            b"{",
            b"}",
            b"[",
            b"]",
            b"\"",
            b"${",
            b"=",
            b",",
            b"<<E\n",
            b"<<-E\n",
            b"\nE\n",
            b"\\",
            b"/*",
            b"//",
            b"0x",
            b"1e",
            b"-",
            b"\0",
            b"\xff",
            "\u{e123}é".as_bytes(),
        ];
        let mut text = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(text.len() + 1);
            match self.below(4) {
                0 => text.truncate(at),
                1 => drop(text.splice(at..at, PIECES[self.below(PIECES.len())].iter().copied())),
                2 => {
                    let other = &corpus[self.below(corpus.len())];
                    let start = self.below(other.len() + 1);
                    let end = (start + self.below(40)).min(other.len());
                    drop(text.splice(at..at, other[start..end].iter().copied()));
                }
                _ => {
                    let end = (at + self.below(12)).min(text.len());
                    drop(text.drain(at..end));
                }
            }
        }
        text
    }
}
