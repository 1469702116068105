//! Which method a call is for, and the refusals of those that are for none.

use tonic::Status;

/// A service of a socket and its methods.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) methods: &'static [&'static str],
}

/// The service and the method of a path such as `/grpc.health.v1.Health/Check`, if one of `services`
/// has it.
///
/// # Errors
/// [`tonic::Code::Unimplemented`] in the words of SPIRE's library.
pub(super) fn find<'a>(path: &'a str, services: &[Service]) -> Result<(&'static str, &'a str), Box<Status>> {
    let stripped = path.strip_prefix('/').unwrap_or(path);
    let Some((service, method)) = stripped.rsplit_once('/') else {
        return Err(unimplemented(format!("malformed method name: {path:?}")));
    };
    let Some(found) = services.iter().find(|one| one.name == service) else {
        return Err(unimplemented(format!("unknown service {service}")));
    };
    if !found.methods.contains(&method) {
        return Err(unimplemented(format!("unknown method {method} for service {service}")));
    }
    Ok((found.name, method))
}

fn unimplemented(text: String) -> Box<Status> {
    Box::new(Status::unimplemented(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: &[Service] = &[Service { name: "a.B", methods: &["C"] }];

    fn refused(path: &str) -> String {
        let status = find(path, SERVICES).unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unimplemented);
        status.message().to_owned()
    }

    #[test]
    fn unknown_methods_are_refused_as_spire_refuses_them() {
        assert_eq!(find("/a.B/C", SERVICES).unwrap(), ("a.B", "C"));
        assert_eq!(refused("/x"), "malformed method name: \"/x\"");
        assert_eq!(refused("/"), "malformed method name: \"/\"");
        assert_eq!(refused("/a/B/C"), "unknown service a/B");
        assert_eq!(refused("/other.Service/Do"), "unknown service other.Service");
        assert_eq!(refused("/a.B/C?d=e"), "unknown method C?d=e for service a.B");
        assert_eq!(refused("/a.B/c"), "unknown method c for service a.B");
    }
}
