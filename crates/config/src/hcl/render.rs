//! A tree back to HCL text: how a plugin gets its part of the file.
//!
//! Literals stay as they were written, comments go, JSON becomes HCL. Lines are broken where SPIRE's
//! library breaks them, since places in error texts count them: between items that were not on adjacent
//! lines there is a blank one, and those that were are aligned.

use super::error::Position;
use super::tree::{Body, LiteralKind, Node};
use super::view::{self, Entry};

const INDENT: &str = "  ";
/// Stands before lines that are not indented, until all is written: a character for private use.
const KEPT: char = '\u{E123}';

/// A whole body, as a text that reads as the same body. An empty body is the empty text.
pub(super) fn text(body: &Body) -> String {
    let mut out = self::body(body);
    // The end of a heredoc needs the end of its line.
    if body.items.last().is_some_and(|item| is_heredoc(&item.value)) {
        out.push('\n');
    }
    out
}

/// The items of a body, one below the other, as SPIRE hands them to a plugin. A heredoc that is the last
/// of them lacks the end of its line, and the plugin refuses it: the same file is to be good for both.
pub(super) fn body(body: &Body) -> String {
    entries(&view::entries(body))
}

/// Items, one below the other, as [`body`].
pub(super) fn entries(entries: &[Entry<'_>]) -> String {
    let mut out = String::new();
    for (entry, next) in entries.iter().zip(entries.iter().skip(1).map(Some).chain([None])) {
        out.push_str(&item(entry));
        if let Some(next) = next {
            out.push('\n');
            if line(entry) + 1 != line(next) || !is_bare(entry) || !is_bare(next) {
                out.push('\n');
            }
        }
    }
    released(&out)
}

/// A list that starts in `at`.
pub(super) fn list(at: Option<Position>, nodes: &[Node]) -> String {
    released(&elements(at, nodes))
}

/// Keys and value.
fn item(entry: &Entry<'_>) -> String {
    let mut out = String::new();
    for key in entry.keys {
        out.push_str(&key.written);
        out.push(' ');
    }
    if entry.item.assigned && entry.keys.len() == 1 {
        out.push_str("= ");
    }
    out + &value(&entry.item.value)
}

fn value(node: &Node) -> String {
    match node {
        Node::Object { body, .. } => object(&view::entries(body)),
        Node::List { at, nodes } => elements(*at, nodes),
        Node::Literal(literal) => {
            let written = literal.written.strip_suffix('\n').unwrap_or(&literal.written);
            written.replace('\n', &format!("\n{KEPT}"))
        }
    }
}

fn object(entries: &[Entry<'_>]) -> String {
    let mut out = String::from("{");
    let mut index = 0;
    while let Some(entry) = entries.get(index) {
        if index == 0 {
            out.push('\n');
        }
        let count = adjacent(entries, index);
        // A blank line but before the first group.
        if index > 0 {
            out.push('\n');
        }
        let group = entries.get(index..index + count).unwrap_or_default();
        out.push_str(&indented(&if group.is_empty() { item(entry) } else { aligned(group) }));
        out.push('\n');
        index += count.max(1);
    }
    out.push('}');
    out
}

/// How many items from `index` on are short and on adjacent lines.
fn adjacent(entries: &[Entry<'_>], index: usize) -> usize {
    let mut count = 0;
    while let Some(entry) = entries.get(index + count) {
        let at = index + count;
        let is_long = item(entry).matches('\n').count() > 1;
        if entries.len() == 1 || is_long {
            break;
        }
        let follows = entries.get(at + 1).is_some_and(|next| line(entry) + 1 == line(next));
        let before = at.checked_sub(1).and_then(|before| entries.get(before)).map_or(0, line);
        if !follows && line(entry) != before + 1 {
            break;
        }
        count += 1;
        if !follows {
            break;
        }
    }
    count
}

/// Items with their values one below the other.
fn aligned(entries: &[Entry<'_>]) -> String {
    let length = |entry: &Entry<'_>| entry.keys.first().map_or(0, |key| key.written.len());
    let longest = entries.iter().map(length).max().unwrap_or(0);
    let lines: Vec<String> = entries
        .iter()
        .map(|entry| {
            let padded = |key: &str| format!("{key}{}", " ".repeat(longest.saturating_sub(key.len()) + 1));
            let keys: String = entry.keys.iter().map(|key| padded(&key.written)).collect();
            let sign = if entry.keys.len() == 1 { "= " } else { "" };
            keys + sign + &value(&entry.item.value)
        })
        .collect();
    lines.join("\n")
}

/// A list: on one line if it was, and holds nothing but literals.
fn elements(at: Option<Position>, nodes: &[Node]) -> String {
    let line = at.map(|at| at.line);
    let is_plain = |node: &Node| match node {
        Node::Literal(literal) => {
            literal.at.map(|at| at.line) == line && (literal.kind != LiteralKind::Heredoc || nodes.len() == 1)
        }
        Node::Object { .. } | Node::List { .. } => false,
    };
    let end = |node: &Node| if is_heredoc(node) { "\n" } else { "" };
    if nodes.iter().all(is_plain) {
        let texts: Vec<String> = nodes.iter().map(|node| value(node) + end(node)).collect();
        return format!("[{}]", texts.join(", "));
    }
    let mut out = String::from("[\n");
    for node in nodes {
        out.push_str(&indented(&(value(node) + end(node) + ",")));
        out.push('\n');
    }
    out.push(']');
    out
}

fn indented(text: &str) -> String {
    let lines: Vec<String> = text
        .split('\n')
        .map(|line| if line.is_empty() { String::new() } else { format!("{INDENT}{line}") })
        .collect();
    lines.join("\n")
}

/// The text with the lines that are kept as they were written.
fn released(text: &str) -> String {
    let lines: Vec<&str> =
        text.split('\n').map(|line| line.split_once(KEPT).map_or(line, |(_, kept)| kept)).collect();
    lines.join("\n")
}

/// Where an item starts; JSON does not tell.
fn line(entry: &Entry<'_>) -> usize {
    entry.keys.first().and_then(|key| key.at).map_or(0, |at| at.line)
}

/// Whether it is a block with nothing in it.
fn is_bare(entry: &Entry<'_>) -> bool {
    let is_empty = matches!(&entry.item.value, Node::Object { body, .. } if body.items.is_empty());
    is_empty && !entry.item.assigned
}

fn is_heredoc(node: &Node) -> bool {
    matches!(node, Node::Literal(literal) if literal.kind == LiteralKind::Heredoc)
}
