//! PEM (RFC 7468, and the headers of RFC 1421), read as SPIRE's library reads it: a block begins at the
//! start of a line and ends at the end of one, and what is no whole block is text between blocks.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use zeroize::Zeroizing;

/// One block. Its contents may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct PemBlock {
    /// What it is called.
    pub label: String,
    /// What it holds, in DER as a rule; wiped when it goes.
    pub contents: Zeroizing<Vec<u8>>,
}

/// All blocks of a text, in order.
#[must_use]
pub fn pem(text: &[u8]) -> Vec<PemBlock> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some((block, behind)) = next(rest) {
        blocks.push(block);
        rest = behind;
    }
    blocks
}

/// The contents of all blocks called `label`, in order.
#[must_use]
pub fn pem_blocks(text: &[u8], label: &str) -> Vec<Vec<u8>> {
    let contents = |mut block: PemBlock| std::mem::take(&mut *block.contents);
    pem(text).into_iter().filter(|block| block.label == label).map(contents).collect()
}

/// One PEM block with lines of 64 characters.
#[must_use]
pub fn to_pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for (index, c) in body.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(c);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"\n-----END ";
const DASHES: &[u8] = b"-----";

/// Bits that stand for nothing need not be zero.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// The first block and what stands behind it.
fn next(text: &[u8]) -> Option<(PemBlock, &[u8])> {
    let mut rest = text;
    loop {
        // The last beginning before the first end: one that has no end of its own is passed over.
        let end = find(rest, END)?;
        let (before, trailer) = (rest.get(..end)?, rest.get(end + END.len()..)?);
        let read = begin(before).and_then(|label_at| label(rest.get(label_at..)?));
        let Some((label, mut body)) = read else {
            rest = trailer;
            continue;
        };
        let mut has_headers = false;
        loop {
            if body.is_empty() {
                return None;
            }
            let (header, behind) = line(body);
            if !header.contains(&b':') {
                break;
            }
            has_headers = true;
            body = behind;
        }
        // How much there is between the body's start and the end; none of an empty block, whose label's
        // line ends where the end begins.
        let length = body.len().checked_sub(trailer.len() + END.len());
        if length.is_none() && has_headers {
            if body.len() < trailer.len() {
                return None;
            }
            rest = trailer;
            continue;
        }
        let closing = trailer.strip_prefix(label).and_then(|rest| rest.strip_prefix(DASHES));
        let decoded = decode(body.get(..length.unwrap_or_default())?);
        match (closing.map(line), decoded) {
            (Some(([], behind)), Some(contents)) => {
                return Some((
                    PemBlock { label: String::from_utf8_lossy(label).into_owned(), contents },
                    behind,
                ));
            }
            _ => rest = trailer,
        }
    }
}

/// Where the label of the last beginning stands, if that is at the start of a line.
fn begin(text: &[u8]) -> Option<usize> {
    let at = text.windows(BEGIN.len()).rposition(|window| window == BEGIN)?;
    let starts_line = at.checked_sub(1).is_none_or(|before| text.get(before) == Some(&b'\n'));
    starts_line.then_some(at + BEGIN.len())
}

/// The label that a text begins with, and the lines behind it.
fn label(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, behind) = line(text);
    Some((first.strip_suffix(DASHES)?, behind))
}

/// The first line without blanks at its end, and what stands behind it.
fn line(text: &[u8]) -> (&[u8], &[u8]) {
    let (line, behind) = match text.iter().position(|byte| *byte == b'\n') {
        Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default()),
        None => return (trimmed(text), &[]),
    };
    (trimmed(line.strip_suffix(b"\r").unwrap_or(line)), behind)
}

fn trimmed(mut line: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = line {
        line = rest;
    }
    line
}

fn decode(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut digits = Zeroizing::new(Vec::with_capacity(text.len()));
    digits.extend(text.iter().copied().filter(|byte| !b" \t\r\n".contains(byte)));
    LENIENT.decode(&*digits).ok().map(Zeroizing::new)
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &[u8])]) {
        let read: Vec<_> = pem(text.as_bytes()).into_iter().map(|b| (b.label, b.contents.to_vec())).collect();
        let expected: Vec<_> =
            expected.iter().map(|(label, contents)| ((*label).to_owned(), contents.to_vec())).collect();
        assert_eq!(read, expected, "{text}");
    }

    #[test]
    fn what_is_written_is_read() {
        let text = format!("{}between\n{}", to_pem("A", &[7; 100]), to_pem("B C", b""));

        check(&text, &[("A", &[7; 100]), ("B C", b"")]);
        check(&text.replace('\n', " \t\r\n"), &[("A", &[7; 100]), ("B C", b"")]);
    }

    #[test]
    fn blocks_stand_on_lines_of_their_own() {
        let block = "-----BEGIN A-----\nAAAA\n-----END A-----";

        check(block, &[("A", &[0; 3])]);
        check("-----BEGIN A-----\n-----END A-----", &[("A", b"")]);
        check("-----BEGIN A-----\nK: v\nL:\n\nAA==\n-----END A-----\n", &[("A", &[0])]);
        check("-----BEGIN A-----\nA A\r\nB=\t\n-----END A-----\n", &[("A", &[0, 0])]);
        check("-----BEGIN B-----\n-----BEGIN A-----\nAAAA\n-----END A-----", &[("A", &[0; 3])]);
        for text in
            ["# -----BEGIN A-----\n# AAAA\n# -----END A-----\n", " -----BEGIN A-----\nAAAA\n-----END A-----"]
        {
            check(text, &[]);
            check(&format!("{text}\n{block}"), &[("A", &[0; 3])]);
        }
    }

    #[test]
    fn damaged_blocks_are_text() {
        let good = "\n-----BEGIN A-----\nAAAA\n-----END A-----\n";

        for bad in [
            "-----BEGIN A-----\nA\n-----END A-----",
            "-----BEGIN A-----\nAAAA\n-----END B-----",
            "-----BEGIN A----\nAAAA\n-----END A-----",
            "-----BEGIN A-----\nAAAA\n-----END A----- x",
            "-----BEGIN A-----\nAAAA\n",
        ] {
            check(bad, &[]);
            check(&format!("{bad}{good}"), &[("A", &[0; 3])]);
        }
        check("-----BEGIN A-----\nK: v\n", &[]);
    }
}
