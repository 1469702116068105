//! The words of both syntaxes.

use std::fmt;

use super::error::Position;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Illegal,
    End,
    Comment,
    Word,
    Number,
    Float,
    Bool,
    Text,
    Heredoc,
    Null,
    ListStart,
    ListEnd,
    ObjectStart,
    ObjectEnd,
    Comma,
    Point,
    Colon,
    Assign,
    Plus,
    Minus,
}

/// The names that error texts have.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Illegal => "ILLEGAL",
            Self::End => "EOF",
            Self::Comment => "COMMENT",
            Self::Word => "IDENT",
            Self::Number => "NUMBER",
            Self::Float => "FLOAT",
            Self::Bool => "BOOL",
            Self::Text => "STRING",
            Self::Heredoc => "HEREDOC",
            Self::Null => "NULL",
            Self::ListStart => "LBRACK",
            Self::ListEnd => "RBRACK",
            Self::ObjectStart => "LBRACE",
            Self::ObjectEnd => "RBRACE",
            Self::Comma => "COMMA",
            Self::Point => "PERIOD",
            Self::Colon => "COLON",
            Self::Assign => "ASSIGN",
            Self::Plus => "ADD",
            Self::Minus => "SUB",
        })
    }
}

/// A word of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) at: Position,
    /// As written, quotes included.
    pub(super) text: String,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.at, self.kind, self.text)
    }
}
