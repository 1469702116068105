//! Clock, tasks, logs, health, listeners, peer credentials: everything operational that is not about identity.

pub mod clock;
pub mod files;
pub mod peer;
pub mod snapshot;
