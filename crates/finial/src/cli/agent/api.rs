//! `api fetch`, `validate`, `watch`: the Workload API as a workload sees it.

mod jwt;
mod x509;

use std::time::Instant;

use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use super::public_flags;
use crate::cli::flags::{Flag, Flags, Kind, Output, flag, flag_or};
use crate::cli::rpc::{self, Dialed, output_flag};
use crate::cli::{Command, Failure, FlagError};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    let command = |name, about, flags: &[Flag], action| Command {
        name,
        about,
        flags: public_flags(flags),
        on_flag_error: FlagError::Twice(""),
        action,
    };
    let timeout = flag_or("timeout", Kind::Timeout, "5s", "Time to wait for a response");
    let x509_flags = [
        flag("silent", Kind::Bool, "Suppress stdout"),
        flag(
            "write",
            Kind::Text,
            "Write SVID data to the specified path (optional; only available for pretty output format)",
        ),
        timeout,
        output_flag(),
    ];
    let jwt_flags = [
        flag("audience", Kind::Value, "Comma separated list of audience values"),
        flag("spiffeID", Kind::Text, "SPIFFE ID subject (optional)"),
        flag_or("format", Kind::Output, "pretty", "Deprecated; use -output"),
        timeout,
        output_flag(),
    ];
    let validate_flags = [
        flag("audience", Kind::Text, "Expected audience value"),
        flag("svid", Kind::Text, "JWT SVID"),
        timeout,
        output_flag(),
    ];
    vec![
        command("api fetch", "Fetches X509 SVIDs from the Workload API", &x509_flags, x509::fetch),
        command("api fetch x509", "Fetches X509 SVIDs from the Workload API", &x509_flags, x509::fetch),
        command("api fetch jwt", "Fetches a JWT SVID from the Workload API", &jwt_flags, jwt::fetch),
        command("api validate jwt", "Validates a JWT SVID", &validate_flags, jwt::validate),
        command("api watch", "Prints X509 SVIDs of the Workload API whenever they change", &[], x509::watch),
    ]
}

/// A channel to the Workload API.
fn dial(flags: &Flags) -> Result<Dialed, Failure> {
    let socket = rpc::agent_socket(flags).map_err(Failure::Bare)?;
    Ok(rpc::dial_public(&socket))
}

/// A request with the header that the Workload API demands, and the command's time limit.
fn request<T>(flags: &Flags, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    if flags.nanos("timeout") > 0 {
        request.set_timeout(flags.duration("timeout"));
    }
    request
}

/// What a call answers within the command's time limit. The timer that ends it counts milliseconds, so
/// for shorter limits the clock has the last word.
async fn within<T>(flags: &Flags, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let started = now();
    let answer = call.await?;
    let limit = flags.duration("timeout");
    if !limit.is_zero() && started.elapsed() > limit {
        return Err(Status::deadline_exceeded("context deadline exceeded"));
    }
    Ok(answer)
}

#[expect(clippy::disallowed_methods, reason = "how long a call takes is limited and printed")]
fn now() -> Instant {
    Instant::now()
}

/// A failed call. That the command's own time limit ended it is told as SPIRE's commands tell it.
fn failed(dialed: &Dialed, status: &Status) -> Failure {
    Failure::Bare(text(dialed, status))
}

fn text(dialed: &Dialed, status: &Status) -> String {
    if status.code() == Code::Cancelled && status.message() == "Timeout expired" {
        return rpc::rpc_error(&Status::deadline_exceeded("context deadline exceeded"));
    }
    dialed.failed(status)
}

fn is_json(flags: &Flags) -> bool {
    flags.output() == Output::Json
}
