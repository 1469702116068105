//! Errors: `spire.api.types.Status` inside batches, details beside a gRPC status.

use bytes::Bytes;
use prost::{Message, Name};
use tonic::{Code, Status};

use crate::rpc;
use crate::spire::types;

impl types::Status {
    /// The status of an item that went well.
    #[must_use]
    pub fn ok() -> Self {
        Self { code: Code::Ok.into(), message: "OK".to_owned() }
    }
}

impl From<&Status> for types::Status {
    fn from(status: &Status) -> Self {
        Self { code: status.code().into(), message: status.message().to_owned() }
    }
}

/// A status that carries `detail` in `grpc-status-details-bin`.
#[must_use]
pub fn with_detail<M: Name>(code: Code, message: &str, detail: &M) -> Status {
    let detail = prost_types::Any { type_url: M::type_url(), value: detail.encode_to_vec() };
    let full = rpc::Status { code: code.into(), message: message.to_owned(), details: vec![detail] };
    Status::with_details(code, message, Bytes::from(full.encode_to_vec()))
}

/// The first detail of its type that `status` carries.
#[must_use]
pub fn detail<M: Name + Default>(status: &Status) -> Option<M> {
    let full = rpc::Status::decode(status.details()).ok()?;
    let url = M::type_url();
    let found = full.details.iter().find(|detail| detail.type_url == url)?;
    M::decode(found.value.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::PermissionDeniedDetails;
    use types::permission_denied_details::Reason;

    #[test]
    fn a_reason_arrives() {
        let sent = PermissionDeniedDetails { reason: Reason::AgentBanned.into() };

        let status = with_detail(Code::PermissionDenied, "no", &sent);

        assert_eq!(detail::<PermissionDeniedDetails>(&status), Some(sent));
        assert_eq!(detail::<rpc::ErrorInfo>(&status), None);
        assert_eq!(detail::<PermissionDeniedDetails>(&Status::permission_denied("no")), None);
    }
}
