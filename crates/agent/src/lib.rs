//! The agent program: attestation, sync, SVID cache, Workload API.
