//! References to workloads: which a broker may use, and the process that one names.

use std::collections::HashMap;

use config::Broker;
use prost::{Message, Name};
use prost_types::Any;
use proto::broker::WorkloadPidReference;
use spiffe::SpiffeId;
use spiffe::quote::quoted;
use tonic::Status;

/// What a broker may refer to workloads by, and whether over TCP too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    /// Whatever can be attested.
    any: Option<OverTcp>,
    types: HashMap<String, OverTcp>,
}

type OverTcp = bool;

/// Why a reference names no process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReferenceError {
    /// Nothing here can attest what goes by this type.
    #[error("no workload attestor handled reference")]
    Unknown,
    /// It is not what its type says.
    #[error("workload reference cannot be read")]
    Malformed,
    /// There is no such process.
    #[error("workload reference has no process id")]
    NoPid,
}

impl Scope {
    /// That of a broker.
    pub(super) fn of(broker: &Broker) -> Self {
        let any = broker.allowed_reference_types.iter().find(|(name, _)| name == "*");
        Self {
            any: any.map(|(_, over_tcp)| *over_tcp),
            types: broker.allowed_reference_types.iter().cloned().collect(),
        }
    }

    /// Refuses a type that is not the broker's to use, or not over TCP.
    pub(super) fn check(&self, broker: &SpiffeId, kind: &str, is_local: bool) -> Result<(), Status> {
        let (shown, kind_shown) = (quoted(broker.as_str()), quoted(kind));
        let Some(over_tcp) = self.any.or_else(|| self.types.get(kind).copied()) else {
            return Err(Status::permission_denied(format!(
                "broker {shown} is not allowed to use reference type {kind_shown}"
            )));
        };
        if is_local || over_tcp {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "reference type {kind_shown} is not allowed over TCP for broker {shown}"
        )))
    }
}

/// The process that a reference names.
pub(super) fn pid(reference: &Any) -> Result<i32, ReferenceError> {
    if reference.type_url != WorkloadPidReference::type_url() {
        return Err(ReferenceError::Unknown);
    }
    let named = WorkloadPidReference::decode(reference.value.as_slice());
    match named.map_err(|_| ReferenceError::Malformed)?.pid {
        pid if pid > 0 => Ok(pid),
        _ => Err(ReferenceError::NoPid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(types: &[(&str, bool)]) -> Scope {
        Scope::of(&Broker {
            id: broker(),
            allowed_reference_types: types.iter().map(|(name, tcp)| ((*name).to_owned(), *tcp)).collect(),
        })
    }

    fn broker() -> SpiffeId {
        SpiffeId::parse("spiffe://a.test/b").unwrap()
    }

    #[test]
    fn a_broker_uses_the_types_of_its_scope() {
        let refused = |scope: &Scope, kind: &str, is_local| {
            scope.check(&broker(), kind, is_local).err().map(|status| status.message().to_owned())
        };
        let unknown =
            Some("broker \"spiffe://a.test/b\" is not allowed to use reference type \"z\"".to_owned());
        let local =
            Some("reference type \"x\" is not allowed over TCP for broker \"spiffe://a.test/b\"".to_owned());

        let two = scope(&[("x", false), ("y", true)]);
        assert_eq!((refused(&two, "x", true), refused(&two, "y", false)), (None, None));
        assert_eq!((refused(&two, "x", false), refused(&two, "z", true)), (local.clone(), unknown.clone()));
        assert_eq!(
            (refused(&scope(&[("*", false)]), "x", true), refused(&scope(&[("*", true)]), "x", false)),
            (None, None)
        );
        assert_eq!(refused(&scope(&[("*", false)]), "x", false), local);
        assert_eq!(refused(&Scope::default(), "z", true), unknown);
    }

    #[test]
    fn a_reference_names_a_process() {
        let of = |pid| Any {
            type_url: "type.googleapis.com/spiffe.broker.WorkloadPIDReference".to_owned(),
            value: WorkloadPidReference { pid }.encode_to_vec(),
        };

        assert_eq!(pid(&of(7)), Ok(7));
        assert_eq!((pid(&of(0)), pid(&of(-1))), (Err(ReferenceError::NoPid), Err(ReferenceError::NoPid)));
        let other = Any { type_url: "type.googleapis.com/other".to_owned(), ..of(7) };
        assert_eq!(pid(&other), Err(ReferenceError::Unknown));
        let broken = Any { value: vec![0xff], ..of(7) };
        assert_eq!(pid(&broken), Err(ReferenceError::Malformed));
    }
}
