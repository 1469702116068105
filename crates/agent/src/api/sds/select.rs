//! Which secrets a request is answered with.
//!
//! Pure. The names are SPIRE's: trust domains and identities by their SPIFFE ids, and three that the
//! configuration chooses, for the own bundle, for all bundles and for the first identity. A bundle or an
//! identity is answered under one name a request: a second name of it counts as unknown.

use std::collections::BTreeSet;

use config::SdsConfig;
use prost_types::value::Kind;
use proto::sds::core::Node;
use proto::sds::core::node::UserAgentVersionType;
use spiffe::TrustDomain;
use spiffe::quote::quoted_all;
use tonic::Status;

use super::secrets::{Resource, Validation};
use crate::subscribe::Update;

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names(BTreeSet<String>);

/// What there is for a request.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Selected {
    /// The secrets.
    Ready(Vec<Resource>),
    /// Some of it is being made.
    Pending,
}

/// Why a request cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// Nothing of these names is for the workload.
    #[error("workload is not authorized for the requested identities [{}]", listed(.0))]
    Unauthorized(BTreeSet<String>),
    /// All bundles were asked for, which only the extension can tell apart.
    #[error("unable to use \"SPIFFE validator\" on Envoy below 1.17")]
    NeedsExtension,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match &refusal {
            Refusal::Unauthorized(_) => Self::invalid_argument(refusal.to_string()),
            Refusal::NeedsExtension => Self::internal(refusal.to_string()),
        }
    }
}

impl Names {
    /// These; empty ones are none.
    pub(super) fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().filter(|name| !name.is_empty()).collect())
    }

    /// Whether everything is asked for.
    pub(super) fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the answer depends on which of the identities that are being made are there.
    pub(super) fn depends_on_all(&self, config: &SdsConfig) -> bool {
        self.is_everything() || self.0.contains(&config.svid_name)
    }
}

/// The secrets of `update` that go by these names.
///
/// # Errors
/// [`Refusal`].
pub(super) fn select(
    update: &Update,
    config: &SdsConfig,
    names: &Names,
    how: Validation,
) -> Result<Selected, Refusal> {
    let mut selection =
        Selection { left: names.0.clone(), is_everything: names.is_everything(), chosen: Vec::new() };
    let contents = &update.secrets;

    let own = id(&update.own.trust_domain);
    let context = |name: &TrustDomain| contents.contexts(update, how).get(name).cloned().unwrap_or_default();
    if selection.takes(&own) {
        selection.choose(own, context(&update.own.trust_domain));
    } else if selection.is_asked(&config.bundle_name) {
        selection.choose(config.bundle_name.clone(), context(&update.own.trust_domain));
    } else if selection.is_asked(&config.all_bundles_name) {
        if how == Validation::Plain {
            return Err(Refusal::NeedsExtension);
        }
        selection.choose(config.all_bundles_name.clone(), contents.all(update));
    }
    for name in update.federated.keys() {
        if selection.takes(&id(name)) {
            selection.choose(id(name), context(name));
        }
    }
    for (number, (held, _)) in update.identities().enumerate() {
        let certificate = || contents.certificates(update).get(number).cloned().unwrap_or_default();
        let id = held.entry.spiffe_id.as_str();
        if selection.takes(id) {
            selection.choose(id.to_owned(), certificate());
        } else if number == 0 && selection.is_asked(&config.svid_name) {
            selection.choose(config.svid_name.clone(), certificate());
        }
    }

    let Selection { left, chosen, is_everything } = selection;
    let has_identity = update.identities().next().is_some();
    if is_everything && !has_identity && update.is_pending() {
        return Ok(Selected::Pending);
    }
    let is_coming = |name: &String| {
        let mut pending = update.entries.iter().filter(|held| held.is_pending());
        let is_first = *name == config.svid_name && !has_identity;
        pending.any(|held| is_first || held.entry.spiffe_id.as_str() == name)
    };
    match left.is_empty() {
        true => Ok(Selected::Ready(chosen)),
        false if left.iter().all(is_coming) => Ok(Selected::Pending),
        false => Err(Refusal::Unauthorized(left)),
    }
}

struct Selection {
    /// The names that nothing was found for yet.
    left: BTreeSet<String>,
    is_everything: bool,
    chosen: Vec<Resource>,
}

impl Selection {
    fn takes(&self, name: &str) -> bool {
        self.is_everything || self.is_asked(name)
    }

    fn is_asked(&self, name: &str) -> bool {
        self.left.contains(name)
    }

    fn choose(&mut self, name: String, content: bytes::Bytes) {
        self.left.remove(&name);
        self.chosen.push(Resource { name, content });
    }
}

/// How the Envoy that says this of itself is told whom to trust.
pub(super) fn validation(config: &SdsConfig, node: Option<&Node>) -> Validation {
    let is_off = node.and_then(switched_off).unwrap_or(config.disable_spiffe_validation);
    if is_off || node.is_some_and(is_old) { Validation::Plain } else { Validation::Spiffe }
}

/// What the node's metadata says of the extension; what is no truth value says nothing.
fn switched_off(node: &Node) -> Option<bool> {
    match node.metadata.as_ref()?.fields.get("disable_spiffe_cert_validation")?.kind.as_ref()? {
        Kind::BoolValue(value) => Some(*value),
        // As Go reads truth values.
        Kind::StringValue(text) => match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        },
        Kind::NullValue(_) | Kind::NumberValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}

/// Whether an Envoy says that it has not the extension: it came after 1.17.
fn is_old(node: &Node) -> bool {
    let Some(UserAgentVersionType::UserAgentBuildVersion(build)) = &node.user_agent_version_type else {
        return false;
    };
    build.version.as_ref().is_some_and(|version| (version.major_number, version.minor_number) <= (1, 17))
}

fn id(name: &TrustDomain) -> String {
    format!("spiffe://{name}")
}

/// The names as SPIRE lists them. What a client made up need not come back whole.
fn listed(names: &BTreeSet<String>) -> String {
    let mut room = MOST_LISTED;
    let shown = names.iter().take_while(|name| {
        let fits = name.len() <= room;
        room = room.saturating_sub(name.len());
        fits
    });
    let shown: Vec<&String> = shown.collect();
    let rest = if shown.len() < names.len() { " .." } else { "" };
    quoted_all(&shown) + rest
}

/// How many bytes of names a refusal repeats.
const MOST_LISTED: usize = 4096;

#[cfg(test)]
pub(super) mod tests;
