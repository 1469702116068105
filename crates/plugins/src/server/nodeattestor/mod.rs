//! Node attestors, the server's half.

pub mod join_token;
pub mod x509pop;
