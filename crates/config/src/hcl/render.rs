//! A tree back to HCL text: how a plugin gets its part of the file.
//!
//! Literals stay as they were written, comments go, JSON becomes HCL.

use super::tree::{Body, LiteralKind, Node};
use super::view::{self, Entry};

const INDENT: &str = "  ";

/// The items of a body, one below the other. An empty body is the empty text.
pub(super) fn body(body: &Body) -> String {
    entries(&view::entries(body))
}

/// Items, one below the other.
pub(super) fn entries(entries: &[Entry<'_>]) -> String {
    let mut out = String::new();
    items(entries, 0, &mut out);
    // The end of a heredoc needs the end of its line.
    let heredoc = entries.last().is_some_and(|entry| is_heredoc(&entry.item.value));
    if out.ends_with('\n') && !heredoc {
        out.pop();
    }
    out
}

/// A list.
pub(super) fn list(nodes: &[Node]) -> String {
    let mut out = String::new();
    elements(nodes, 0, &mut out);
    out
}

fn items(entries: &[Entry<'_>], depth: usize, out: &mut String) {
    for entry in entries {
        out.push_str(&INDENT.repeat(depth));
        for key in entry.keys {
            out.push_str(&key.written);
            out.push(' ');
        }
        if entry.item.assigned && entry.keys.len() == 1 {
            out.push_str("= ");
        }
        write(&entry.item.value, depth, out);
        if !out.ends_with('\n') {
            out.push('\n');
        }
    }
}

fn write(node: &Node, depth: usize, out: &mut String) {
    match node {
        Node::Object { body, .. } if body.items.is_empty() => out.push_str("{}"),
        Node::Object { body, .. } => {
            out.push_str("{\n");
            items(&view::entries(body), depth + 1, out);
            out.push_str(&INDENT.repeat(depth));
            out.push('}');
        }
        Node::List { nodes, .. } => elements(nodes, depth, out),
        Node::Literal(literal) => {
            out.push_str(&literal.written);
            if literal.kind == LiteralKind::Heredoc && !out.ends_with('\n') {
                out.push('\n');
            }
        }
    }
}

fn elements(nodes: &[Node], depth: usize, out: &mut String) {
    out.push('[');
    for (index, node) in nodes.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write(node, depth, out);
    }
    out.push(']');
}

fn is_heredoc(node: &Node) -> bool {
    matches!(node, Node::Literal(literal) if literal.kind == LiteralKind::Heredoc)
}
