//! The server program: APIs, authorisation, keepers, CA driver, pruning.
//!
//! [`Server::build`] opens, loads and binds everything that can fail; [`Server::run`] serves until told
//! to stop. The datastore and the key manager are the only state that outlives the process: what is
//! in memory are snapshots of it (`keep`), replaced by one task each and read without locks. No call of
//! a known agent reads the datastore.

#![expect(dead_code, unused_imports, reason = "the parts are joined by `Server`, which is not here yet")]

mod api;
mod authz;
mod caller;
mod context;
mod keep;
mod limits;
