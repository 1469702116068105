//! Paging and matching, as the list operations share them.

use spiffe::{Selector, TrustDomain};

use crate::StoreError;

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// At most so many rows; 0 is refused as SPIRE refuses it.
    pub size: u32,
    /// Where the last page ended: empty for the first page.
    pub token: String,
}

impl Page {
    /// The first page.
    #[must_use]
    pub const fn first(size: u32) -> Self {
        Self { size, token: String::new() }
    }

    /// The row id after which the page starts.
    ///
    /// # Errors
    /// `InvalidArgument` for a page of no size or a token that is none.
    pub fn after(&self) -> Result<i64, StoreError> {
        if self.size == 0 {
            return Err(StoreError::InvalidArgument("cannot paginate with pagesize = 0".to_owned()));
        }
        if self.token.is_empty() {
            return Ok(i64::MIN);
        }
        // Digits only, at most 32 bits: a sign is no number here.
        let digits = self.token.bytes().all(|byte| byte.is_ascii_digit());
        match self.token.parse::<u32>() {
            Ok(id) if digits => Ok(i64::from(id)),
            _ => Err(StoreError::InvalidArgument(format!("could not parse token '{}'", self.token))),
        }
    }
}

/// How a set in a request relates to the set of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// The sets are equal.
    Exact,
    /// The item's set lies within the request's, and they meet.
    Subset,
    /// The item's set contains the request's.
    Superset,
    /// The sets meet.
    Any,
}

/// Selects by selectors.
#[derive(Clone, Debug)]
pub struct SelectorFilter {
    /// The request's set; empty is refused.
    pub selectors: Vec<Selector>,
    /// How it must relate to the item's.
    pub matching: Match,
}

/// Selects by federated trust domains.
#[derive(Clone, Debug)]
pub struct FederatesWithFilter {
    /// The request's set; empty = no filter.
    pub trust_domains: Vec<TrustDomain>,
    /// How it must relate to the item's.
    pub matching: Match,
}

/// The token of a page whose last row is `last`.
pub(crate) fn token(last: Option<i64>) -> String {
    last.map(|id| id.to_string()).unwrap_or_default()
}
