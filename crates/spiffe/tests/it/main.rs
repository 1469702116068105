//! Recorded verdicts, replayed on the crate's public API.

#[cfg(test)]
mod bundle;
#[cfg(test)]
mod chain;
#[cfg(test)]
mod handshake;
#[cfg(test)]
mod jwt;
