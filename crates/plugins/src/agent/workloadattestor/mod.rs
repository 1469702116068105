//! Workload attestors.

pub mod unix;
