//! The suites, one module each. They need the program: `cargo xtask test conformance` builds it first.

#[cfg(test)]
mod api;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod brokers;
#[cfg(test)]
mod callers;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod config;
#[cfg(test)]
mod databases;
#[cfg(test)]
mod delegated;
#[cfg(test)]
mod dev;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod exchanges;
#[cfg(test)]
mod explain;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod federation;
#[cfg(test)]
mod ha;
#[cfg(test)]
mod hardship;
#[cfg(test)]
mod health;
#[cfg(test)]
mod lint;
#[cfg(test)]
mod live;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod nested;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod packed;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod profiles;
#[cfg(test)]
mod reconfigure;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod sds;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod service;
#[cfg(test)]
mod takeover;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod unrest;
