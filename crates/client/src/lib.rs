//! Client side of the Workload API and the server API.
//!
//! [`dial`] turns addresses into channels; [`server`] and [`workload`] are the typed calls over
//! them; [`source`] keeps the last good answer of the streaming ones.
//!
//! Every call has a deadline and every answer a size limit. This crate must never decide whom to
//! trust (that is in the TLS configuration it is given) and never print a key or a token.

pub mod dial;
pub mod server;
pub mod source;
pub mod workload;

pub use dial::{Address, DialError, Dialer};
pub use server::ServerClients;
pub use source::{BundleSource, JwtSource, X509Source};
pub use workload::{WorkloadApi, WorkloadError};
