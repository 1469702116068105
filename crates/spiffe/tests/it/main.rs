//! Recorded verdicts, replayed on the crate's public API.

#[cfg(test)]
mod bundle;
#[cfg(test)]
mod chain;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod handshake;
#[cfg(test)]
mod id;
#[cfg(test)]
mod jwt;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod round_trips;
#[cfg(test)]
mod wit;
