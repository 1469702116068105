//! Audit lines as a chain: each bears a number, the hash of the one before it, and its own.
//!
//! A line's hash is SHA-256 of its bytes without the line's end, with 64 zeros in place of the hash. So
//! whoever changes a line changes its hash, and whoever leaves out, moves or inserts one breaks the chain
//! around it. Nothing is secret in that: who may write the log can forge the rest of a chain from some line
//! on. What holds against that is a hash that was noted elsewhere; the file `audit-chain` in the data
//! directory has that of the last line, from which the chain goes on after a restart.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use runtime::log::{Level, Log, Value};

use super::Fields;

const NUMBER: &str = "audit_number";
const PREVIOUS: &str = "audit_previous";
const HASH: &str = "audit_hash";

/// In place of a hash that is not known yet, and of one before the first line.
const NONE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The chain that a server's audit lines are.
pub(crate) struct Chain {
    path: PathBuf,
    file: File,
    /// Held from the numbering of a line until it is written, so that they stand in their order.
    last: Mutex<Link>,
}

/// A line's place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    number: u64,
    hash: String,
}

impl Chain {
    /// The chain that goes on from what `directory` says of its last line, or one that begins.
    ///
    /// # Errors
    /// The file cannot be read, or made.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("audit-chain");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o640).open(&path)?;
        let known = Link::parse(&io::read_to_string(&file)?);
        if known.is_none() {
            tracing::info!(path = %path.display(), "A chain of audit lines begins");
        }
        let last = known.unwrap_or_else(|| Link { number: 0, hash: NONE.to_owned() });
        Ok(Self { path, file, last: Mutex::new(last) })
    }

    /// Writes a line as the next of the chain.
    pub(crate) fn record(&self, log: &Log, message: &str, mut fields: Fields) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let number = last.number + 1;
        fields.push((NUMBER.to_owned(), Value::Bare(number.to_string())));
        fields.push((PREVIOUS.to_owned(), Value::Text(last.hash.clone())));
        fields.push((HASH.to_owned(), Value::Text(NONE.to_owned())));
        log.record_sealed(Level::Info, message, fields, |line| {
            let Some(place) = place_of(line.trim_end(), HASH) else { return };
            let hash = hash(line.trim_end());
            line.replace_range(place, &hash);
            *last = Link { number, hash };
            if let Err(error) = self.file.write_all_at(last.to_string().as_bytes(), 0) {
                tracing::warn!(%error, path = %self.path.display(), "Failed to note the last audit line");
            }
        });
    }
}

impl Link {
    fn parse(text: &str) -> Option<Self> {
        let (number, hash) = text.trim_end().split_once(' ')?;
        let is_hash = hash.len() == NONE.len() && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(Self { number: number.parse().ok()?, hash: hash.to_owned() }).filter(|_| is_hash)
    }
}

impl std::fmt::Display for Link {
    /// As long for every number, so that the next is written over it.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(out, "{:020} {}", self.number, self.hash)
    }
}

/// What a log says of its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditChain {
    /// How many of its lines are part of it.
    pub count: u64,
    /// The number of the first.
    pub first: u64,
    /// The number of the last.
    pub last: u64,
    /// The hash of the last.
    pub hash: String,
    /// The lines of the log at which a chain begins, as at a server's first start.
    pub beginnings: Vec<usize>,
}

/// The first thing that is wrong with a log; lines are counted from 1.
#[derive(Debug, thiserror::Error)]
pub enum AuditFault {
    /// It cannot be read.
    #[error("cannot read the log")]
    Read(#[from] io::Error),
    /// It has no lines that are part of a chain.
    #[error("no line is part of a chain of audit lines")]
    Nothing,
    /// A line is not what was written.
    #[error("line {0} was changed")]
    Changed(usize),
    /// Lines are missing.
    #[error("before line {line}, number {number}, {missing} audit lines were left out")]
    LeftOut {
        /// The line after them.
        line: usize,
        /// Its number.
        number: u64,
        /// How many.
        missing: u64,
    },
    /// A line is not where it was written.
    #[error("line {line}, number {number}, was moved or inserted: number {expected} should stand there")]
    Misplaced {
        /// The line.
        line: usize,
        /// Its number.
        number: u64,
        /// That of the line that should be there.
        expected: u64,
    },
    /// A line has the number of the next, but came after another line than the one before it.
    #[error("line {line}, number {number}, does not belong after the audit line before it")]
    Unlinked {
        /// The line.
        line: usize,
        /// Its number.
        number: u64,
    },
    /// An audit line is not part of the chain.
    #[error("line {0} is an audit line without a number")]
    Unnumbered(usize),
}

/// Follows the chain through a log, in text or JSON. Lines that are no audit lines are passed over.
///
/// # Errors
/// The first fault that there is.
pub fn verify_audit(log: impl BufRead) -> Result<AuditChain, AuditFault> {
    let mut chain: Option<AuditChain> = None;
    for (index, line) in log.split(b'\n').enumerate() {
        let at = index + 1;
        let line = String::from_utf8_lossy(&line?).into_owned();
        let value = |name| place_of(&line, name).and_then(|place| line.get(place));
        let Some(found) = value(HASH) else {
            if chain.is_some() && value("type") == Some("audit") {
                return Err(AuditFault::Unnumbered(at));
            }
            continue;
        };
        let number = value(NUMBER).and_then(|number| number.parse::<u64>().ok());
        let (Some(number), Some(previous)) = (number, value(PREVIOUS)) else {
            return Err(AuditFault::Changed(at));
        };
        let mut blank = line.clone();
        if let Some(place) = place_of(&line, HASH) {
            blank.replace_range(place, NONE);
        }
        if hash(&blank) != found {
            return Err(AuditFault::Changed(at));
        }
        let is_beginning = number == 1 && previous == NONE;
        let mut next = match chain.take() {
            None => {
                AuditChain { count: 0, first: number, last: 0, hash: String::new(), beginnings: Vec::new() }
            }
            Some(chain) if is_beginning || (number == chain.last + 1 && previous == chain.hash) => chain,
            Some(chain) => return Err(broken(at, number, chain.last + 1)),
        };
        if is_beginning {
            next.beginnings.push(at);
        }
        next.count += 1;
        (next.last, next.hash) = (number, found.to_owned());
        chain = Some(next);
    }
    chain.ok_or(AuditFault::Nothing)
}

const fn broken(line: usize, number: u64, expected: u64) -> AuditFault {
    if number > expected {
        AuditFault::LeftOut { line, number, missing: number - expected }
    } else if number < expected {
        AuditFault::Misplaced { line, number, expected }
    } else {
        AuditFault::Unlinked { line, number }
    }
}

fn hash(line: &str) -> String {
    digest(&SHA256, line.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where in a line the value of a field stands that needs no quotes in text. What stands within the quotes
/// of another value is none: in text they are counted, in JSON a quote within a value has a stroke before it.
fn place_of(line: &str, name: &str) -> Option<Range<usize>> {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric();
    let value = |begin: usize| {
        let rest = line.as_bytes().get(begin..)?;
        Some(begin..begin + rest.iter().take_while(|byte| is_word(byte)).count())
    };
    if line.starts_with('{') {
        let key = format!("\"{name}\":");
        let begin = line.find(&key)? + key.len();
        return value(begin + usize::from(line.get(begin..)?.starts_with('"')));
    }
    let key = format!(" {name}=");
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b' ' if !is_quoted && line.get(at..)?.starts_with(&key) => return value(at + key.len()),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use runtime::log::{Format, Options, Output};

    use super::*;

    /// A server's log of six audit lines, between which it was started again, and what its folder says.
    fn written(format: Format) -> (Vec<String>, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let options = Options { format, output: Output::File(path.clone()), ..Options::default() };
        let (_, log) = Log::new(&options).unwrap();
        for round in 0..2 {
            let chain = Chain::open(directory.path()).unwrap();
            log.record(Level::Info, "of another kind", [("round", Value::Bare(round.to_string()))]);
            for text in ["plain", "with audit_hash=1 \"quotes\" audit_number=7", "{\"audit_hash\":\"1\"}"] {
                let fields = vec![
                    ("type".to_owned(), Value::Text("audit".to_owned())),
                    ("a".to_owned(), Value::Text(text.to_owned())),
                ];
                chain.record(&log, "API accessed", fields);
            }
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let state = std::fs::read_to_string(directory.path().join("audit-chain")).unwrap();
        (text.lines().map(str::to_owned).collect(), state)
    }

    fn verified(lines: &[String]) -> Result<AuditChain, String> {
        verify_audit(lines.join("\n").as_bytes()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn s04_what_was_done_to_a_log_is_told() {
        for format in [Format::Default, Format::Json] {
            let (lines, state) = written(format);
            let told = |change: &dyn Fn(&mut Vec<String>)| {
                let mut lines = lines.clone();
                change(&mut lines);
                verified(&lines).err().unwrap_or_default()
            };

            let whole = verified(&lines).unwrap();
            assert_eq!((whole.count, whole.first, whole.last, &*whole.beginnings), (6, 1, 6, &[2][..]));
            assert_eq!(state, format!("{:020} {}\n", 6, whole.hash));
            // A log that was rotated begins somewhere.
            assert_eq!(verified(&lines[3..]).unwrap().first, 3);

            let changed = told(&|lines| lines[2] = lines[2].replace("quotes", "quotas"));
            assert_eq!(changed, "line 3 was changed");
            let left_out = "before line 5, number 4, 1 audit lines were left out";
            assert_eq!(told(&|lines| drop(lines.remove(3))), left_out);
            let swapped = "before line 6, number 6, 2 audit lines were left out";
            assert_eq!(told(&|lines| lines.swap(5, 7)), swapped);
            let again = "line 5, number 2, was moved or inserted: number 4 should stand there";
            assert_eq!(told(&|lines| lines.insert(4, lines[2].clone())), again);
            let unnumbered = told(&|lines| lines.push("time=x type=audit a=b".to_owned()));
            assert_eq!(unnumbered, "line 9 is an audit line without a number");
            assert_eq!(verified(&lines[..1]).unwrap_err(), "no line is part of a chain of audit lines");
        }
    }

    #[test]
    fn s04_a_forged_line_is_told_by_the_one_after_it() {
        let (mut lines, _) = written(Format::Default);
        let place = place_of(&lines[2], HASH).unwrap();
        let mut forged = lines[2].replace("quotes", "quotas");
        forged.replace_range(place.clone(), NONE);
        let hash = hash(&forged);
        forged.replace_range(place, &hash);
        lines[2] = forged;

        assert_eq!(
            verified(&lines).unwrap_err(),
            "line 4, number 3, does not belong after the audit line before it"
        );
    }

    #[test]
    fn a_folder_that_says_nothing_of_a_chain_begins_one() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("audit-chain"), "7 nonsense").unwrap();

        let chain = Chain::open(directory.path()).unwrap();

        assert_eq!(*chain.last.lock().unwrap(), Link { number: 0, hash: NONE.to_owned() });
    }
}
