//! What a plugin answers when it fails: a status code and a text, as the plugin said them.

use std::fmt;

/// A status code, with the numbers of gRPC; success is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    /// The caller gave up.
    Cancelled = 1,
    /// Nothing is known of the reason.
    Unknown = 2,
    /// The input can never be accepted.
    InvalidArgument = 3,
    /// It took too long.
    DeadlineExceeded = 4,
    /// There is no such thing.
    NotFound = 5,
    /// It is there already.
    AlreadyExists = 6,
    /// The caller may not.
    PermissionDenied = 7,
    /// A limit is reached.
    ResourceExhausted = 8,
    /// The state does not allow it.
    FailedPrecondition = 9,
    /// Another operation came between.
    Aborted = 10,
    /// Beyond the end.
    OutOfRange = 11,
    /// Not offered by this plugin.
    Unimplemented = 12,
    /// A fault of the plugin.
    Internal = 13,
    /// Try again later.
    Unavailable = 14,
    /// Data is lost.
    DataLoss = 15,
    /// The caller is unknown.
    Unauthenticated = 16,
}

impl Code {
    /// The code with this gRPC number; unknown numbers, and 0, are [`Code::Unknown`].
    #[must_use]
    pub const fn from_number(number: i32) -> Self {
        match number {
            1 => Self::Cancelled,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            10 => Self::Aborted,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            15 => Self::DataLoss,
            16 => Self::Unauthenticated,
            _ => Self::Unknown,
        }
    }

    /// The gRPC number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }
}

/// The name that gRPC libraries print, such as `InvalidArgument`.
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a plugin refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PluginError {
    /// The kind of failure.
    pub code: Code,
    /// The text; never holds a secret.
    pub message: String,
}

impl PluginError {
    /// An error with this code and text.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The input can never be accepted.
    #[must_use]
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// A fault of the plugin or of what it runs on.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// The proof does not hold.
    #[must_use]
    pub fn permission_denied(message: impl Into<String>) -> Self {
        Self::new(Code::PermissionDenied, message)
    }

    /// The plugin does not offer this call.
    #[must_use]
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    /// The same error with `prefix` before its text.
    #[must_use]
    pub fn prefixed(self, prefix: &str) -> Self {
        Self { code: self.code, message: format!("{prefix}{}", self.message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_numbers() {
        for number in 1..=16 {
            assert_eq!(Code::from_number(number).number(), number);
        }
        assert_eq!(Code::from_number(0), Code::Unknown);
        assert_eq!(Code::from_number(99), Code::Unknown);
        assert_eq!(Code::FailedPrecondition.to_string(), "FailedPrecondition");
    }
}
