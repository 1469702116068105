//! Where something is in a text, and what is wrong there.

use std::fmt;

/// A place in a text: line and column count from one, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Why a text was refused, in the words that SPIRE's users know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct HclError {
    text: String,
    position: Option<Position>,
}

impl HclError {
    /// An error whose text says nothing of a place.
    pub(crate) fn bare(text: impl Into<String>) -> Self {
        Self { text: text.into(), position: None }
    }

    /// An error at a place; the text names it, or `-` where there is none.
    pub(crate) fn at(position: Option<Position>, text: impl fmt::Display) -> Self {
        let text = match position {
            Some(place) => format!("At {place}: {text}"),
            None => format!("At -: {text}"),
        };
        Self { text, position }
    }

    /// An error at a place in JSON, which the text names differently.
    pub(crate) fn in_json(position: Position, text: impl fmt::Display) -> Self {
        Self { text: format!("{position}: {text}"), position: Some(position) }
    }

    /// Where it is, when that is known.
    #[must_use]
    pub const fn position(&self) -> Option<Position> {
        self.position
    }
}

impl serde::de::Error for HclError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::bare(text.to_string())
    }
}
