//! Which plugin it is: type and name.

use std::fmt;
use std::sync::Arc;

use crate::PluginError;

/// What every plugin can say of itself.
pub trait Plugin: Send + Sync {
    /// Its type and name.
    fn info(&self) -> &PluginInfo;
}

/// The types of plugins, as configurations write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PluginKind {
    /// Publishes the trust bundle elsewhere.
    BundlePublisher,
    /// Changes what is in issued credentials.
    CredentialComposer,
    /// Holds the server's rows.
    DataStore,
    /// Holds private keys.
    KeyManager,
    /// Proves, or checks, which node an agent runs on.
    NodeAttestor,
    /// Is told of bundle changes.
    Notifier,
    /// Pushes SVIDs to a store.
    SvidStore,
    /// Signs the server's CA.
    UpstreamAuthority,
    /// Finds out what a process is.
    WorkloadAttestor,
}

impl PluginKind {
    const ALL: [Self; 9] = [
        Self::BundlePublisher,
        Self::CredentialComposer,
        Self::DataStore,
        Self::KeyManager,
        Self::NodeAttestor,
        Self::Notifier,
        Self::SvidStore,
        Self::UpstreamAuthority,
        Self::WorkloadAttestor,
    ];

    /// The kind that configurations call `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// The name in configurations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BundlePublisher => "BundlePublisher",
            Self::CredentialComposer => "CredentialComposer",
            Self::DataStore => "DataStore",
            Self::KeyManager => "KeyManager",
            Self::NodeAttestor => "NodeAttestor",
            Self::Notifier => "Notifier",
            Self::SvidStore => "SVIDStore",
            Self::UpstreamAuthority => "UpstreamAuthority",
            Self::WorkloadAttestor => "WorkloadAttestor",
        }
    }
}

impl fmt::Display for PluginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Type and name of one plugin, and the prefix that its errors carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginInfo {
    kind: PluginKind,
    name: Arc<str>,
    prefix: Arc<str>,
}

impl PluginInfo {
    /// The plugin `name` of this kind.
    #[must_use]
    pub fn new(kind: PluginKind, name: &str) -> Self {
        let prefix = format!("{}({name}): ", kind.as_str().to_ascii_lowercase());
        Self { kind, name: name.into(), prefix: prefix.into() }
    }

    /// The type.
    #[must_use]
    pub const fn kind(&self) -> PluginKind {
        self.kind
    }

    /// The name, which is also the type of the selectors it finds.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `error` with `type(name): ` before its text, once.
    #[must_use]
    pub fn mark(&self, error: PluginError) -> PluginError {
        if error.message.starts_with(&*self.prefix) { error } else { error.prefixed(&self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_marked_once() {
        let info = PluginInfo::new(PluginKind::NodeAttestor, "x509pop");

        let once = info.mark(PluginError::invalid_argument("no certificate to attest"));
        let twice = info.mark(once.clone());

        assert_eq!(once.message, "nodeattestor(x509pop): no certificate to attest");
        assert_eq!(twice, once);
    }

    #[test]
    fn kinds_are_named_as_in_configurations() {
        assert_eq!(PluginKind::parse("SVIDStore"), Some(PluginKind::SvidStore));
        assert_eq!(PluginKind::parse("svidstore"), None);
        for kind in PluginKind::ALL {
            assert_eq!(PluginKind::parse(kind.as_str()), Some(kind));
        }
    }
}
