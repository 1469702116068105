//! The levels of logrus, and the one in force.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// How much an event matters; the least is the gravest. Nothing is logged at the first two, but they
/// may be set, and then nothing is logged at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// `panic`.
    Panic,
    /// `fatal`.
    Fatal,
    /// `error`.
    Error,
    /// `warning`.
    Warning,
    /// `info`.
    Info,
    /// `debug`.
    Debug,
    /// `trace`.
    Trace,
}

/// A text that names no level.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid logrus Level: {0:?}")]
pub struct UnknownLevel(pub String);

impl Level {
    /// Reads a name in any case; `warn` is one too.
    ///
    /// # Errors
    /// With SPIRE's text.
    pub fn parse(text: &str) -> Result<Self, UnknownLevel> {
        let lower = text.to_lowercase();
        let found = ALL.into_iter().find(|level| level.name() == lower);
        match found {
            Some(level) => Ok(level),
            None if lower == "warn" => Ok(Self::Warning),
            None => Err(UnknownLevel(text.to_owned())),
        }
    }

    /// The name that lines show.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Fatal => "fatal",
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl From<tracing::Level> for Level {
    fn from(level: tracing::Level) -> Self {
        match level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warning,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }
}

/// The level in force. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub struct LogLevel {
    current: Arc<AtomicU8>,
    launch: Level,
}

impl LogLevel {
    pub(super) fn new(launch: Level) -> Self {
        Self { current: Arc::new(AtomicU8::new(launch as u8)), launch }
    }

    /// The level in force.
    #[must_use]
    pub fn current(&self) -> Level {
        let number = usize::from(self.current.load(Ordering::Relaxed));
        ALL.get(number).copied().unwrap_or(self.launch)
    }

    /// The level the program was started with.
    #[must_use]
    pub const fn launch(&self) -> Level {
        self.launch
    }

    /// Changes the level, for events from now on.
    pub fn set(&self, level: Level) {
        self.current.store(level as u8, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Goes back to the level the program was started with.
    pub fn reset(&self) {
        self.set(self.launch);
    }
}

/// In the order of their numbers.
const ALL: [Level; 7] =
    [Level::Panic, Level::Fatal, Level::Error, Level::Warning, Level::Info, Level::Debug, Level::Trace];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case() {
        for level in ALL {
            assert_eq!(Level::parse(&level.name().to_uppercase()), Ok(level));
        }
        assert_eq!(Level::parse("Warn"), Ok(Level::Warning));
        let refused = Level::parse("loud").unwrap_err();
        assert_eq!(refused.to_string(), "not a valid logrus Level: \"loud\"");
    }
}
