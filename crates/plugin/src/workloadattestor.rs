//! Workload attestation: what is the process at the other end of a socket?

use async_trait::async_trait;
use runtime::peer::Process;
use spiffe::Selector;

use crate::reconfigure::Slot;
use crate::{Plugin, PluginError, PluginInfo};

/// Finds out what a process is.
#[async_trait]
pub trait WorkloadAttestor: Plugin {
    /// The selectors of `caller`, in the plugin's order. A process that is none of the plugin's
    /// business has none; that is no error.
    async fn attest(&self, caller: &Process) -> Result<Vec<Selector>, PluginError>;
}

/// Marks a plugin's errors with its type and name.
pub(crate) struct Marked(pub(crate) Slot<dyn WorkloadAttestor>);

impl Plugin for Marked {
    fn info(&self) -> &PluginInfo {
        self.0.info()
    }
}

#[async_trait]
impl WorkloadAttestor for Marked {
    async fn attest(&self, caller: &Process) -> Result<Vec<Selector>, PluginError> {
        self.0.now().attest(caller).await.map_err(|error| self.info().mark(error))
    }
}
