//! Node attestors, the agent's half.

pub mod join_token;
