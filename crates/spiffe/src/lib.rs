//! SPIFFE documents: ids, selectors, entries, bundles, X.509- and JWT-SVIDs, keys, CSRs, TLS verifiers.
//!
//! Everything here is synchronous and pure: bytes in, typed values out, and back. The time is an
//! argument, never read. This crate must never do I/O, know of tokio, or hand out a private key in
//! any form that can be printed.

pub mod bundle;
pub mod dns;
pub mod entry;
pub mod id;
mod json;
pub mod jwk;
pub mod jwt;
pub mod key;
pub mod nearest;
pub mod quote;
pub mod selector;
pub mod texts;
pub mod time;
pub mod tls;
pub mod url;
pub mod x509;

pub use bundle::{Bundle, JwtAuthority, X509Authority};
pub use dns::{DnsName, DnsNameError};
pub use entry::{Entry, EntryId};
pub use id::{IdError, SpiffeId, TrustDomain};
pub use selector::{Selector, SelectorSet};
pub use texts::Texts;
pub use time::UnixSecs;
