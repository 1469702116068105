//! What loading a configuration has to say.

use crate::LogConfig;

/// How much a [`Note`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteLevel {
    /// Something is wrong; loading fails after the note.
    Error,
    /// Something should be changed.
    Warning,
    /// Something to know.
    Info,
}

/// A line for the log, in SPIRE's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How much it matters.
    pub level: NoteLevel,
    /// The message.
    pub message: String,
    /// Fields and their values. The names are those of [`Note::FIELDS`].
    pub fields: Vec<(&'static str, String)>,
}

impl Note {
    /// Every field that a note can have.
    pub const FIELDS: [&str; 5] = ["alert", "alert_type", "keys", "section", "trust_domain"];

    /// The value of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn warning(message: impl Into<String>) -> Self {
        Self { level: NoteLevel::Warning, message: message.into(), fields: Vec::new() }
    }

    pub(crate) fn info(message: impl Into<String>) -> Self {
        Self { level: NoteLevel::Info, message: message.into(), fields: Vec::new() }
    }

    pub(crate) fn deprecated(message: impl Into<String>) -> Self {
        let fields = vec![("alert", "true".to_owned()), ("alert_type", "deprecated_config".to_owned())];
        Self { level: NoteLevel::Warning, message: message.into(), fields }
    }

    pub(crate) fn unknown_keys(section: impl Into<String>, keys: &[String]) -> Self {
        let fields = vec![("keys", keys.join(",")), ("section", section.into())];
        let message = "Unknown configuration detected".to_owned();
        Self { level: NoteLevel::Error, message, fields }
    }
}

/// A configuration and what there is to say about it.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub config: T,
    /// Lines for the log, in order.
    pub notes: Vec<Note>,
    /// What is set and known, but not part of this version: see [`Unbuilt`].
    pub unbuilt: Vec<Unbuilt>,
}

/// A setting that SPIRE has and this version has not. A configuration that holds one can be validated;
/// no program starts with it, for it would not do what it is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is not part of this version: {advice}")]
pub struct Unbuilt {
    /// The key, with the sections it is in.
    pub key: String,
    /// What to do.
    pub advice: &'static str,
}

/// Why a configuration was refused. The text is SPIRE's where SPIRE refuses it too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ConfigError {
    pub(crate) text: String,
    /// Lines for the log that come before the error, in order.
    pub notes: Vec<Note>,
    /// Where to log them; `None` where the configuration was refused before that was known.
    pub log: Option<Box<LogConfig>>,
}

impl ConfigError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), notes: Vec::new(), log: None }
    }
}

impl From<String> for ConfigError {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for ConfigError {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}
