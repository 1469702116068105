//! Clock, tasks, logs, health, listeners, peer credentials: everything operational that is not about identity.

pub mod peer;
