//! Refusals with the reasons of the specification (SPIFFE Broker API, section 4.8), for programs.

use prost::{Message, Name};
use proto::rpc::{self, ErrorInfo};
use tonic::Status;

/// The reference is none.
pub(super) fn invalid(status: &Status) -> Status {
    with_reason(status, "WORKLOAD_REFERENCE_INVALID")
}

/// Nothing is what the reference names.
pub(super) fn not_found(status: &Status) -> Status {
    with_reason(status, "WORKLOAD_NOT_FOUND")
}

/// The workload has no identity.
pub(super) fn not_entitled(status: &Status) -> Status {
    with_reason(status, "WORKLOAD_NOT_ENTITLED")
}

fn with_reason(status: &Status, reason: &str) -> Status {
    let info = ErrorInfo {
        reason: reason.to_owned(),
        domain: "spiffe.io".to_owned(),
        metadata: std::collections::BTreeMap::new(),
    };
    let details = rpc::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: vec![prost_types::Any { type_url: ErrorInfo::type_url(), value: info.encode_to_vec() }],
    };
    Status::with_details(status.code(), status.message(), details.encode_to_vec().into())
}
