//! Node attestors, the agent's half.

pub mod join_token;
pub mod x509pop;
