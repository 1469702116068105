//! What workloads get, kept across restarts: entries, bundles, X.509-SVIDs with their keys and cached
//! JWT-SVIDs, encrypted in the data directory.
//!
//! An agent whose own SVID and key are good and whose vault opens serves workloads before it has
//! reached a server, under the same keys. A vault that is truncated, stale, copied from elsewhere or
//! tampered with is refused with one line in the log and made anew; what it holds is judged as if a
//! server had just sent it. `seal` says what it is bound to, `record` what it holds, `keep` when it is
//! written. It goes with the agent's SVID: when the agent is banned or evicted, or bootstraps anew.
//!
//! It does not guard against root on this machine, who can read the key file and put both files back.

mod keep;
mod record;
mod seal;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use runtime::blocking::{Blocking, Interrupted};
use runtime::chain;
use spiffe::{Bundle, UnixSecs};
use tracing::{info, warn};

use crate::rotation::RotationRule;
use crate::state::{AgentIdentity, AgentState};
use record::{Contents, Judge, Unusable};
use seal::{Binding, Refused, Seal};

pub(crate) use keep::Keeping;
pub(crate) use record::{Kept, Token};
pub(crate) use seal::{FILE, SealError};

/// The vault of a data directory. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(crate) struct Vault(Arc<Shared>);

struct Shared {
    /// Nothing where no vault is wanted, or once it was given up.
    seal: Mutex<Option<Seal>>,
    machine_id: String,
    directory: PathBuf,
    blocking: Blocking,
}

/// Why a vault was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("cannot write the vault")]
    Interrupted(#[from] Interrupted),
}

/// Why a vault is not used.
#[derive(Debug, thiserror::Error)]
enum NotUsed {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

impl Vault {
    /// The vault in `directory`, which exists. Where none is wanted, one that is there is removed.
    ///
    /// # Errors
    /// The directory cannot be found, or the service manager's credential not be read.
    pub(crate) fn new(directory: &Path, is_wanted: bool) -> io::Result<Self> {
        let directory = std::fs::canonicalize(directory)?;
        let seal = if is_wanted {
            let credential = seal::credential().map_err(|error| io::Error::other(error.to_string()))?;
            Some(Seal::new(&directory, credential))
        } else {
            if let Err(error) = Seal::new(&directory, None).destroy() {
                warn!(error = chain(&error), "Could not remove the vault");
            }
            None
        };
        let shared = Shared {
            seal: Mutex::new(seal),
            machine_id: seal::machine_id(),
            directory,
            blocking: Blocking::new(1),
        };
        Ok(Self(Arc::new(shared)))
    }

    /// The vault in `directory`, only to be read.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn look(directory: &Path) -> io::Result<Self> {
        Self::new(directory, true)
    }

    /// Whether there is one.
    #[must_use]
    pub(crate) fn is_on(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Opens the vault for the agent whose SVID and bundle are stored. A vault that cannot be used is
    /// told of once, and written anew when there is something to write.
    #[must_use]
    pub(crate) fn open(
        &self,
        agent: &AgentIdentity,
        stored: &Bundle,
        now: SystemTime,
        rule: &RotationRule,
    ) -> Option<Kept> {
        let kept = self.0.open(agent, stored, now, rule);
        match kept {
            Ok(kept) => kept,
            Err(error) => {
                warn!(error = chain(&error), "The vault is not used, and will be made anew");
                None
            }
        }
    }

    /// Writes what the agent knows. Dropped earlier, it may or may not be written.
    ///
    /// # Errors
    /// It cannot be written; the vault is then as it was.
    pub(crate) async fn write(
        &self,
        state: Arc<AgentState>,
        tokens: Vec<Token>,
        now: UnixSecs,
    ) -> Result<usize, KeepError> {
        let shared = Arc::clone(&self.0);
        Ok(self.0.blocking.run(move || shared.write(&state, &tokens, now)).await??)
    }

    /// Removes what is written; the next write makes it anew.
    pub(crate) fn discard(&self) {
        if let Some(Err(error)) = self.0.lock().as_mut().map(Seal::destroy) {
            warn!(error = chain(&error), "Could not remove the vault");
        }
    }

    /// Removes the vault for good: nothing is written any more.
    pub(crate) fn give_up(&self) {
        let Some(mut seal) = self.0.lock().take() else { return };
        match seal.destroy() {
            Ok(()) => info!("The vault was removed"),
            Err(error) => warn!(error = chain(&error), "Could not remove the vault"),
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Seal>> {
        self.seal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn binding(&self, agent: &AgentIdentity) -> Binding {
        Binding {
            agent_id: agent.id.to_string(),
            machine_id: self.machine_id.clone(),
            directory: self.directory.clone(),
        }
    }

    fn open(
        &self,
        agent: &AgentIdentity,
        stored: &Bundle,
        now: SystemTime,
        rule: &RotationRule,
    ) -> Result<Option<Kept>, NotUsed> {
        let mut seal = self.lock();
        let Some(seal) = seal.as_mut() else { return Ok(None) };
        let Some(contents) = seal.open(&self.binding(agent))? else { return Ok(None) };
        let contents = Contents::parse(&contents)?;
        Ok(Some(contents.judge(&Judge { agent, stored, now, rule })?))
    }

    fn write(&self, state: &AgentState, tokens: &[Token], now: UnixSecs) -> Result<usize, SealError> {
        let contents = Contents::of(state, tokens, now).to_bytes();
        let mut seal = self.lock();
        match seal.as_mut() {
            Some(seal) => seal.write(contents, &self.binding(&state.agent)),
            None => Ok(0),
        }
    }
}
