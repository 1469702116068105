//! Between messages and domain types, one file per domain type.
//!
//! Reading a message names what is wrong with it in the words clients of SPIRE's API see. Writing
//! one cannot fail.

pub mod bundle;
pub mod entry;
pub mod federation;
pub mod field;
pub mod id;
pub mod selector;
pub mod status;
