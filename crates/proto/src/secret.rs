//! `Debug` of messages that carry secrets: their name and nothing else.

use std::fmt;

macro_rules! silent {
    ($($message:ty),+ $(,)?) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let path = stringify!($message);
                f.debug_struct(path.rsplit("::").next().unwrap_or(path).trim()).finish_non_exhaustive()
            }
        }
    )+};
}

silent!(
    crate::workload::X509svid,
    crate::workload::Witsvid,
    crate::workload::Jwtsvid,
    crate::workload::ValidateJwtsvidRequest,
    crate::broker::X509svid,
    crate::broker::Jwtsvid,
    crate::spire::agent::delegatedidentity::X509svidWithKey,
    crate::spire::types::Jwtsvid,
    crate::spire::types::Witsvid,
    crate::spire::types::JoinToken,
    crate::spire::types::AttestationData,
    crate::spire::server::agent::CreateJoinTokenRequest,
    crate::spire::common::AttestationData,
    crate::plugin::agent::svidstore::X509svid,
    crate::plugin::host::identityprovider::X509Identity,
    crate::plugin::config::ConfigureRequest,
    crate::plugin::config::ValidateRequest,
    crate::sds::core::DataSource,
    crate::plugin::go::StdioData,
);

#[cfg(test)]
mod tests {
    use crate::spire::types;

    #[test]
    fn a_token_is_not_printed() {
        let token = types::JoinToken { value: "topsecret".into(), expires_at: 1 };

        assert_eq!(format!("{token:?}"), "JoinToken { .. }");
    }
}
