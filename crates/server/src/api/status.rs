//! Statuses in SPIRE's words: what was attempted, then the reason. Clients and scripts match these
//! texts, so every service makes its refusals here.

use std::error::Error;
use std::fmt::Display;

use proto::spire::types;
use store::StoreError;
use tonic::{Code, Status};

/// The request is wrong: `what: why`.
pub(super) fn invalid(what: &str, why: impl Display) -> Status {
    Status::invalid_argument(format!("{what}: {why}"))
}

/// The server could not do it, for a reason that is none of the client's: `what: why`.
pub(super) fn failed(what: &str, why: impl Display) -> Status {
    Status::internal(format!("{what}: {why}"))
}

/// As [`failed`], with the causes of `why` too.
pub(super) fn failed_because(what: &str, why: &(dyn Error + 'static)) -> Status {
    failed(what, runtime::chain(why))
}

/// A limit held the call back: `what`, then the limiter's own words.
pub(super) fn limited(what: &str, refusal: &Status) -> Status {
    Status::new(refusal.code(), format!("{what}: {}", refusal.message()))
}

/// What a refused operation of the datastore is to a client: the datastore's own code, `Internal` where
/// it has none.
pub(super) fn stored(what: &str, why: &StoreError) -> Status {
    let code = code(why);
    // Who is told that nothing was found needs no reason.
    if code == Code::NotFound {
        return Status::not_found(what);
    }
    if code == Code::Unknown { failed(what, why) } else { Status::new(code, format!("{what}: {why}")) }
}

/// As [`failed`], but where the datastore says `code`, that is all the client is told, as `text`.
pub(super) fn refused_as(code: Code, text: &str, what: &str, why: &StoreError) -> Status {
    if self::code(why) == code { Status::new(code, text) } else { failed(what, why) }
}

/// The code by which the datastore refuses.
pub(crate) const fn code(why: &StoreError) -> Code {
    match why {
        StoreError::NotFound(_) => Code::NotFound,
        StoreError::AlreadyExists(_) => Code::AlreadyExists,
        StoreError::InvalidArgument(_) => Code::InvalidArgument,
        StoreError::FailedPrecondition(_) => Code::FailedPrecondition,
        StoreError::Internal(_) => Code::Internal,
        StoreError::Unavailable(_) => Code::Unavailable,
        StoreError::Database(_) | StoreError::Open(_) | StoreError::Corrupt { .. } | StoreError::Closed => {
            Code::Unknown
        }
    }
}

/// An item of a batch: its status and, if it went well, what came of it.
pub(super) fn item<T>(outcome: Result<T, Status>) -> (Option<types::Status>, Option<T>) {
    match outcome {
        Ok(value) => (Some(types::Status::ok()), Some(value)),
        Err(status) => (Some((&status).into()), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_datastores_code_goes_through_and_unknown_is_internal() {
        let status = |why| {
            let status = stored("failed to update entry", &why);
            (status.code(), status.message().to_owned())
        };

        assert_eq!(
            status(StoreError::NotFound("datastore-sql: record not found".into())),
            (Code::NotFound, "failed to update entry".into())
        );
        assert_eq!(
            status(StoreError::AlreadyExists("datastore-sql: taken".into())),
            (Code::AlreadyExists, "failed to update entry: datastore-sql: taken".into())
        );
        assert_eq!(
            status(StoreError::Database("datastore-sql: disk full".into())),
            (Code::Internal, "failed to update entry: datastore-sql: disk full".into())
        );
    }

    #[test]
    fn items_say_ok_or_why_not() {
        let (status, value) = item(Ok(1));
        assert_eq!((status, value), (Some(types::Status::ok()), Some(1)));

        let (status, value) = item::<i32>(Err(invalid("malformed", "why")));
        assert_eq!(status.map(|status| (status.code, status.message)), Some((3, "malformed: why".into())));
        assert_eq!(value, None);
    }
}
