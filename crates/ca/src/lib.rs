//! Issuing and authority slots: the only code that can mint a credential.
//!
//! [`slots`] says which authority signs and when the next one is made, [`journal`] keeps that in
//! SPIRE's form, [`upstream`] compares it with what the servers above trust, [`profile`] decides what
//! goes into a credential, and [`issue`] signs: nothing gets a signature that was not checked against the
//! profile, and nothing gets two. All of it is pure but
//! for the signature itself, which a key manager makes.
//!
//! This crate must never touch the network or a database, nor read the time by itself.

pub mod authority;
pub mod issue;
pub mod journal;
pub mod profile;
pub mod slots;
pub mod upstream;
