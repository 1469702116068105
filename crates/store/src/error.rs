//! What can go wrong in the datastore, split by what a caller can do about it.

use std::path::PathBuf;

/// The prefix of SPIRE's datastore errors.
const SQL: &str = "datastore-sql";

/// A failed datastore operation. The texts are those that SPIRE's APIs show.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such row (gRPC `NotFound`).
    #[error("{0}")]
    NotFound(String),
    /// A row with this key exists (gRPC `AlreadyExists`).
    #[error("{0}")]
    AlreadyExists(String),
    /// The request makes no sense (gRPC `InvalidArgument`).
    #[error("{0}")]
    InvalidArgument(String),
    /// The state of the datastore forbids it (gRPC `FailedPrecondition`).
    #[error("{0}")]
    FailedPrecondition(String),
    /// Stored data contradicts itself (gRPC `Internal`).
    #[error("{0}")]
    Internal(String),
    /// The database refused or failed (gRPC `Unknown`).
    #[error("{0}")]
    Database(String),
    /// The database is away; it is looked for, and the same may go well a little later (gRPC
    /// `Unavailable`).
    #[error("datastore-sql: {0}")]
    Unavailable(String),
    /// The datastore cannot be opened; the text is one line for the operator.
    #[error("{0}")]
    Open(String),
    /// The file is no usable database.
    #[error("datastore file {} is not a valid SQLite database: {reason}; restore it from a backup or move it away", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// In the database's words.
        reason: String,
    },
    /// The store was closed, or its writer died.
    #[error("datastore-sql: database is closed")]
    Closed,
}

impl StoreError {
    /// The error of a row that must be there and is not.
    pub(crate) fn not_found() -> Self {
        Self::NotFound(format!("{SQL}: record not found"))
    }

    /// A validation error in SPIRE's form.
    pub(crate) fn validation(text: &str) -> Self {
        Self::InvalidArgument(format!("datastore-validation: {text}"))
    }

    /// A failure with SPIRE's prefix.
    pub(crate) fn sql(text: &str) -> Self {
        Self::Database(format!("{SQL}: {text}"))
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        if matches!(error, rusqlite::Error::QueryReturnedNoRows) {
            return Self::not_found();
        }
        let rusqlite::Error::SqliteFailure(failure, message) = &error else {
            return Self::sql(&error.to_string());
        };
        let text = message.clone().unwrap_or_else(|| failure.to_string());
        if failure.code == rusqlite::ErrorCode::ConstraintViolation {
            return Self::AlreadyExists(format!("{SQL}: {text}"));
        }
        Self::sql(&text)
    }
}
