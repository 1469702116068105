//! The SQL datastore on SPIRE's schema.
//!
//! [`Store`] is a concrete type over a closed set of databases (`SQLite`, `PostgreSQL`, MySQL) with one
//! typed method per operation. Every mutating method commits the change, SPIRE's event row included, in one
//! transaction that is on disk before the method returns, and hands back a [`Committed`] with the
//! changes and their place in the commit order. The same changes go, in commit order and whether
//! or not the caller still waits, to the channel of [`Options::changes`].
//!
//! Invariants: the schema and the version row stay exactly SPIRE's; rows are read column by
//! column and as leniently as SPIRE reads them; a row that cannot be understood is logged and left
//! out of lists, never a reason to fail them. This crate must never decide who may do what, sign
//! anything, or hold a cache of rows. No other crate names a table.
//!
//! Writes are queued to one thread, which commits all that wait in one transaction (group commit);
//! reads run beside it on threads of their own. Dropping the future of a write does not take it back.

mod bundles;
mod change;
mod dialect;
mod entries;
mod error;
mod events;
mod federation;
pub mod feed;
mod journal;
mod list;
mod migrate;
mod news;
mod nodes;
mod schema;
mod stamp;
mod store;
mod tokens;

pub use bundles::{BundleMask, BundlePage, DeleteMode};
pub use change::{Change, Changes, Committed};
pub use entries::{CreatedEntry, EntryFilter, EntryMask, EntryPage, NewEntry, StoredEntry, as_written};
pub use error::StoreError;
pub use events::{Event, EventIds};
pub use federation::{FederationMask, FederationRelationship, FederationRelationshipPage};
pub use journal::CaJournal;
pub use list::{FederatesWithFilter, Match, Page, SelectorFilter};
pub use news::News;
pub use nodes::{
    Agent, AgentCondition, AgentFilter, AgentPage, AgentUpdate, Attestation, Attested, Reattest,
};
pub use store::{DatabaseType, Now, Options, Store, TlsFiles};
pub use tokens::JoinToken;
