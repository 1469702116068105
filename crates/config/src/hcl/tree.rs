//! What was written: items of keys and values, with their places.
#![expect(clippy::wildcard_enum_match_arm, reason = "literals are strings unless said otherwise")]

use super::error::{HclError, Position};
use super::quote;
use super::token::{Kind, Token};

/// A file, or what stands between the braces of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    pub(crate) items: Vec<Item>,
}

/// Keys and their value: `key = value`, `key { .. }` or `key "label" { .. }`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    pub(crate) keys: Vec<Key>,
    /// Whether an `=` stands between key and value.
    pub(crate) assigned: bool,
    pub(crate) value: Node,
}

/// A key or a label.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) name: String,
    /// As written, quotes included.
    pub(crate) written: String,
    pub(crate) at: Option<Position>,
    /// Whether the key is reported where nobody knows it. Quoted keys of HCL are not.
    pub(crate) noticed: bool,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Object { at: Option<Position>, body: Body },
    List { at: Option<Position>, nodes: Vec<Self> },
    Literal(Literal),
}

/// A value that holds no others.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Literal {
    pub(crate) kind: LiteralKind,
    /// What it stands for; of numbers and truth values, as written.
    pub(crate) value: String,
    /// As written, quotes included.
    pub(crate) written: String,
    pub(crate) at: Option<Position>,
}

/// What a literal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LiteralKind {
    Number,
    Float,
    Bool,
    Text,
    Heredoc,
}

impl Key {
    /// A key; the error is what cannot be unquoted, and the key then stands for nothing.
    pub(super) fn from_hcl(token: Token) -> (Self, Option<HclError>) {
        let Token { kind, at, text } = token;
        let noticed = kind == Kind::Word;
        let (name, error) =
            if noticed { (text.clone(), None) } else { unquoted(&text, quote::unquote, Some(at)) };
        (Self { name, written: text, at: Some(at), noticed }, error)
    }

    /// As [`Key::from_hcl`].
    pub(super) fn from_json(token: Token) -> (Self, Option<HclError>) {
        let (name, error) = unquoted(&token.text, quote::unquote_json, None);
        (Self { name, written: token.text, at: None, noticed: true }, error)
    }
}

impl Literal {
    /// A literal; the error is what cannot be unquoted, and the literal then stands for nothing.
    pub(super) fn from_hcl(token: Token) -> (Self, Option<HclError>) {
        let Token { kind, at, text } = token;
        let at = Some(at);
        let (kind, (value, error)) = match kind {
            Kind::Number => (LiteralKind::Number, (text.clone(), None)),
            Kind::Float => (LiteralKind::Float, (text.clone(), None)),
            Kind::Bool => (LiteralKind::Bool, (text.clone(), None)),
            Kind::Heredoc => (LiteralKind::Heredoc, unquoted(&text, quote::heredoc, at)),
            _ => (LiteralKind::Text, unquoted(&text, quote::unquote, at)),
        };
        (Self { kind, value, written: text, at }, error)
    }

    /// As [`Literal::from_hcl`].
    pub(super) fn from_json(token: Token) -> (Self, Option<HclError>) {
        let Token { kind, text, .. } = token;
        let (kind, (value, error), written) = match kind {
            Kind::Number => (LiteralKind::Number, (text.clone(), None), text),
            Kind::Float => (LiteralKind::Float, (text.clone(), None), text),
            Kind::Bool => (LiteralKind::Bool, (text.clone(), None), text),
            // Without a value, as the library hands it on to a plugin, for which it is an error.
            Kind::Null => (LiteralKind::Text, (String::new(), None), String::new()),
            _ => (LiteralKind::Text, unquoted(&text, quote::unquote_json, None), text),
        };
        (Self { kind, value, written, at: None }, error)
    }
}

fn unquoted(
    written: &str,
    rule: fn(&str) -> Option<String>,
    at: Option<Position>,
) -> (String, Option<HclError>) {
    match rule(written) {
        Some(text) => (text, None),
        None => {
            let text = format_args!("cannot unquote {written}: invalid syntax").to_string();
            (String::new(), Some(HclError::at(at, text)))
        }
    }
}
