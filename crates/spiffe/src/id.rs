//! SPIFFE IDs and trust domains (SPIFFE-ID section 2).
//!
//! The grammar and the error texts are those that clients of SPIRE's API see. A value of these types
//! is valid by construction; there is no unchecked way in.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
/// The longest SPIFFE ID that may be issued (SPIFFE-ID, section 2.3).
const MAX_ID: usize = 2048;
/// The longest trust domain (SPIFFE-ID, section 2.1).
const MAX_TRUST_DOMAIN: usize = 255;

/// The name of a trust domain: valid and lower case by construction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a trust domain name, or a whole SPIFFE ID whose path is dropped.
    ///
    /// # Errors
    /// The reason in the words of [`IdError`].
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::MissingTrustDomain);
        }
        if text.contains(":/") {
            return SpiffeId::parse(text).map(|id| id.trust_domain());
        }
        check_trust_domain(text)?;
        Ok(Self(text.into()))
    }

    /// The bare name, such as `example.org`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether its length is one that the standard allows. Longer ones can be read, since SPIRE
    /// stores them, but nothing new is made of them.
    ///
    /// # Errors
    /// [`IdError::TrustDomainTooLong`].
    pub fn check_length(&self) -> Result<(), IdError> {
        if self.0.len() > MAX_TRUST_DOMAIN { Err(IdError::TrustDomainTooLong) } else { Ok(()) }
    }

    /// The SPIFFE ID of the trust domain itself, without a path.
    #[must_use]
    pub fn id(&self) -> SpiffeId {
        SpiffeId { text: format!("{SCHEME}{}", self.0).into(), path_at: SCHEME.len() + self.0.len() }
    }

    /// The SPIFFE ID with this trust domain and `path`, which is empty or starts with a slash.
    ///
    /// # Errors
    /// The reason in the words of [`IdError`].
    pub fn id_with_path(&self, path: &str) -> Result<SpiffeId, IdError> {
        check_path(path)?;
        Ok(SpiffeId {
            text: format!("{SCHEME}{}{path}", self.0).into(),
            path_at: SCHEME.len() + self.0.len(),
        })
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A SPIFFE ID: `spiffe://<trust domain>[/<path>]`, one shared string and the offset of its path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    path_at: usize,
}

impl SpiffeId {
    /// Parses the whole text of a SPIFFE ID.
    ///
    /// # Errors
    /// The reason in the words of [`IdError`].
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return Err(IdError::WrongScheme);
        };
        let name_end = rest.find('/').unwrap_or(rest.len());
        let (name, path) = rest.split_at(name_end);
        check_trust_domain(name)?;
        check_path(path)?;
        Ok(Self { text: text.into(), path_at: SCHEME.len() + name_end })
    }

    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The whole text, shared.
    pub(crate) fn text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// The path with its leading slash; empty for a trust domain's own id.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get(self.path_at..).unwrap_or_default()
    }

    /// The name of the trust domain.
    #[must_use]
    pub fn trust_domain_name(&self) -> &str {
        self.text.get(SCHEME.len()..self.path_at).unwrap_or_default()
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_name().into())
    }

    /// Whether its length is one that the standard allows. Longer ones can be read, since SPIRE
    /// stores them, but nothing new is made of them.
    ///
    /// # Errors
    /// [`IdError::TooLong`].
    pub fn check_length(&self) -> Result<(), IdError> {
        if self.text.len() > MAX_ID { Err(IdError::TooLong) } else { Ok(()) }
    }

    /// Whether this id belongs to `trust_domain`.
    #[must_use]
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain_name() == trust_domain.as_str()
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Why a text is no SPIFFE ID or trust domain. Clients of SPIRE see these words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("cannot be empty")]
    Empty,
    /// The trust domain is empty.
    #[error("trust domain is missing")]
    MissingTrustDomain,
    /// The text does not start with `spiffe://`.
    #[error("scheme is missing or invalid")]
    WrongScheme,
    /// The trust domain holds a character outside `[a-z0-9._-]`.
    #[error(
        "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
    )]
    BadTrustDomainChar,
    /// A path segment holds a character outside `[A-Za-z0-9._-]`.
    #[error("path segment characters are limited to letters, numbers, dots, dashes, and underscores")]
    BadPathSegmentChar,
    /// A path segment is `.` or `..`.
    #[error("path cannot contain dot segments")]
    DotSegment,
    /// A path segment is empty.
    #[error("path cannot contain empty segments")]
    EmptySegment,
    /// The path ends with a slash.
    #[error("path cannot have a trailing slash")]
    TrailingSlash,
    /// The path does not start with a slash.
    #[error("path must have a leading slash")]
    NoLeadingSlash,
    /// The whole is longer than may be issued.
    #[error("SPIFFE ID cannot be longer than {MAX_ID} bytes")]
    TooLong,
    /// The trust domain is longer than may be.
    #[error("trust domain cannot be longer than {MAX_TRUST_DOMAIN} bytes")]
    TrustDomainTooLong,
}

fn check_trust_domain(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::MissingTrustDomain);
    }
    let fits = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
    if name.bytes().all(fits) { Ok(()) } else { Err(IdError::BadTrustDomainChar) }
}

/// Checks a path, which is empty or starts with a slash; the first offence from the left is named.
pub(crate) fn check_path(path: &str) -> Result<(), IdError> {
    if path.is_empty() {
        return Ok(());
    }
    let Some(segments) = path.strip_prefix('/') else {
        return Err(IdError::NoLeadingSlash);
    };
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        let fits = |b: u8| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_');
        match segment {
            _ if !segment.bytes().all(fits) => return Err(IdError::BadPathSegmentChar),
            "" if segments.peek().is_none() => return Err(IdError::TrailingSlash),
            "" => return Err(IdError::EmptySegment),
            "." | ".." => return Err(IdError::DotSegment),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(text: &str) {
        assert_eq!(SpiffeId::parse(text).map(|id| id.to_string()), Ok(text.to_owned()));
    }

    fn bad(text: &str, why: IdError) {
        assert_eq!(SpiffeId::parse(text), Err(why), "{text}");
    }

    #[test]
    fn id_rules() {
        ok("spiffe://example.org/web");
        ok("spiffe://example.org");
        ok("spiffe://1.2.3.4/a");
        ok("spiffe://a_b-c.d/.../x");
        bad("", IdError::Empty);
        bad("spiffe:/td/a", IdError::WrongScheme);
        bad("SPIFFE://td/a", IdError::WrongScheme);
        bad("spiffe:///a", IdError::MissingTrustDomain);
        bad("spiffe://TD/a", IdError::BadTrustDomainChar);
        bad("spiffe://td:80/a", IdError::BadTrustDomainChar);
        bad("spiffe://td/", IdError::TrailingSlash);
        bad("spiffe://td//a", IdError::EmptySegment);
        bad("spiffe://td/./a", IdError::DotSegment);
        bad("spiffe://td/a b", IdError::BadPathSegmentChar);
    }

    #[test]
    fn lengths_are_bounded_where_ids_are_made() {
        let id =
            |length: usize| SpiffeId::parse(&format!("spiffe://td/{}", "a".repeat(length - 12))).unwrap();
        let name = |length| TrustDomain::parse(&"a".repeat(length)).unwrap();

        assert_eq!(id(2048).check_length(), Ok(()));
        assert_eq!(id(2049).check_length(), Err(IdError::TooLong));
        assert_eq!(name(255).check_length(), Ok(()));
        assert_eq!(name(256).check_length(), Err(IdError::TrustDomainTooLong));
    }

    #[test]
    fn an_id_knows_its_parts() {
        let id = SpiffeId::parse("spiffe://example.org/a/b").unwrap();

        assert_eq!(id.path(), "/a/b");
        assert_eq!(id.trust_domain(), TrustDomain::parse("example.org").unwrap());
        assert_eq!(id.trust_domain().id_with_path("/a/b"), Ok(id));
    }
}
