//! Failed calls in the words of gRPC's other libraries, which operators search for.

use runtime::chain;
use tonic::Status;

/// `rpc error: code = .. desc = ..`; of a connection that failed, with the reason.
pub(crate) fn text(status: &Status) -> String {
    let cause = std::error::Error::source(status).map(|cause| format!(": {}", chain(cause)));
    let cause = cause.unwrap_or_default();
    format!("rpc error: code = {:?} desc = {}{cause}", status.code(), status.message())
}
