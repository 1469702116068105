//! What stands in the memory of a process: what a core image of it would give away.

use std::fs;
use std::os::unix::fs::FileExt as _;

/// How much of what stands before a copy is told.
const BEFORE: usize = 64;

/// A place where a secret stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The region, as `/proc` names it.
    pub place: String,
    /// What stands before it there.
    pub before: String,
}

/// The copies of each of these secrets in the memory that a process may write; `None` where nobody may
/// look.
#[must_use]
pub fn copies_in_memory(pid: u32, secrets: &[&[u8]]) -> Option<Vec<Vec<Copy>>> {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut found = vec![Vec::new(); secrets.len()];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next()?.split_once('-')?;
        let (from, to) = (number(range.0)?, number(range.1)?);
        let mut bytes = vec![0; usize::try_from(to - from).ok()?];
        // What cannot be read is nobody's.
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        for (secret, copies) in secrets.iter().zip(&mut found) {
            copies.extend(starts_of(secret, &bytes).map(|at| {
                let before = &bytes[at.saturating_sub(BEFORE)..at];
                Copy { place: line.to_owned(), before: String::from_utf8_lossy(before).into_owned() }
            }));
        }
    }
    Some(found)
}

fn starts_of(secret: &[u8], bytes: &[u8]) -> impl Iterator<Item = usize> {
    let starts = bytes.iter().enumerate().filter(|(_, byte)| Some(*byte) == secret.first());
    starts.map(|(at, _)| at).filter(|at| bytes[*at..].starts_with(secret))
}
