//! Registration entries: which workload, below which parent, gets which identity.

use std::fmt;
use std::sync::Arc;

use crate::{Selector, SelectorSet, SpiffeId, TrustDomain, UnixSecs};

/// The id of an entry: a UUID unless a client chose it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(Arc<str>);

impl EntryId {
    /// The id as a row holds it, taken as it is (requests are checked where they come in).
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for EntryId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A registration entry as the datastore holds it. Immutable; shared as `Arc<Entry>`.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// The identity it gives. Kept as text in rows, so parsed leniently there.
    pub spiffe_id: SpiffeId,
    /// Whose it is: an agent, an alias entry, or the server.
    pub parent_id: SpiffeId,
    /// In row order, as replies show them.
    pub selectors: Arc<[Selector]>,
    /// The same selectors as a set, for matching.
    pub selector_set: SelectorSet,
    /// Lifetime of X.509-SVIDs in seconds; 0 = the server's default.
    pub x509_svid_ttl: i32,
    /// Lifetime of JWT-SVIDs in seconds; 0 = the server's default.
    pub jwt_svid_ttl: i32,
    /// Foreign trust domains whose bundles the workload gets, in row order.
    pub federates_with: Arc<[TrustDomain]>,
    /// May call the server API as an administrator.
    pub admin: bool,
    /// May ask for a downstream CA.
    pub downstream: bool,
    /// When the entry stops to hold; 0 = never.
    pub expires_at: UnixSecs,
    /// DNS SANs of X.509-SVIDs, in order; the first is also the common name.
    pub dns_names: Arc<[String]>,
    /// Raised by one at each update.
    pub revision_number: i64,
    /// Whether the SVID is pushed to an SVID store instead of the Workload API.
    pub store_svid: bool,
    /// Tells a workload with several identities what this one is for; may be empty.
    pub hint: String,
    /// When it was made.
    pub created_at: UnixSecs,
    /// Present only if the client set it.
    pub additional_attributes: Option<AdditionalAttributes>,
}

/// Rare switches of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdditionalAttributes {
    /// The agent makes the X.509-SVID only when a workload asks for it.
    pub disable_x509_svid_prefetch: bool,
    /// JWT-SVIDs carry a `jti` claim (and are not cached).
    pub jwt_svid_include_jti: bool,
}
