//! Failed calls and instants in the words of SPIRE's logs, which operators search for.

use spiffe::UnixSecs;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::Status;

use crate::connection::is_unknown_authority;

/// `rpc error: code = .. desc = ..`; of a connection that failed, with the reason. The transport wraps
/// one reason several times over: each is told once.
pub(crate) fn refusal(status: &Status) -> String {
    let mut text = format!("rpc error: code = {:?} desc = {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    let mut text = runtime::in_system_words(&text);
    if is_unknown_authority(status) {
        text.push_str(": x509: certificate signed by unknown authority");
    }
    text
}

/// The instant as RFC 3339 has it, in UTC.
pub(crate) fn instant(at: UnixSecs) -> String {
    let written = OffsetDateTime::from_unix_timestamp(at.0).ok().and_then(|at| at.format(&Rfc3339).ok());
    written.unwrap_or_else(|| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_and_instants_are_told_as_spire_tells_them() {
        let refused = Status::permission_denied("no");

        let refused_there = Status::unavailable(std::io::Error::from_raw_os_error(111).to_string());
        assert_eq!(refusal(&refused_there), "rpc error: code = Unavailable desc = connection refused");

        let broken = Status::from_error(Box::new(std::io::Error::other("no route")));
        let name = rustls::CertificateError::UnknownIssuer;
        let unknown = std::io::Error::other(rustls::Error::InvalidCertificate(name));

        assert_eq!(refusal(&refused), "rpc error: code = PermissionDenied desc = no");
        assert_eq!(refusal(&broken), "rpc error: code = Unknown desc = no route");
        let unknown = refusal(&Status::from_error(Box::new(unknown)));
        assert!(unknown.ends_with(": x509: certificate signed by unknown authority"), "{unknown}");
        assert_eq!(instant(UnixSecs(1_795_782_466)), "2026-11-27T12:27:46Z");
        assert_eq!(instant(UnixSecs(i64::MAX)), i64::MAX.to_string());
    }
}
