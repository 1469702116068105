//! Digests of what a view holds, whatever the order.

use std::fmt;

use aws_lc_rs::digest;
use spiffe::Entry;
use spiffe::entry::AdditionalAttributes;

/// Names the contents of a view: equal on every server with equal rows, different (but for one chance
/// in 2^128) where any field of any entry differs.
///
/// It is the sum of the digests of the entries, so it needs no order, and a change adjusts it without
/// a look at the rest. Clients keep it as an opaque name: the way it is computed may change between
/// releases.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Token([u64; 2]);

impl Token {
    /// The digest of one entry.
    pub(crate) fn of(entry: &Entry) -> Self {
        Digests::default().of(entry)
    }

    /// The digest of something else, such as a bundle.
    #[must_use]
    pub fn naming(bytes: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, bytes);
        Self::from_bytes(digest.as_ref().first_chunk().copied().unwrap_or_default())
    }

    /// As bytes, for the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.as_u128().to_be_bytes()
    }

    /// From the bytes that [`Self::to_bytes`] gave.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the halves of the number")]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let value = u128::from_be_bytes(bytes);
        Self([(value >> 64) as u64, value as u64])
    }

    /// With another one added.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self::from_u128(self.as_u128().wrapping_add(other.as_u128()))
    }

    /// With another one taken out.
    pub(crate) fn minus(self, other: Self) -> Self {
        Self::from_u128(self.as_u128().wrapping_sub(other.as_u128()))
    }

    fn as_u128(self) -> u128 {
        let [high, low] = self.0;
        (u128::from(high) << 64) | u128::from(low)
    }

    const fn from_u128(value: u128) -> Self {
        Self::from_bytes(value.to_be_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.as_u128())
    }
}

/// What makes digests of many entries.
pub(crate) struct Digests(Text);

impl Default for Digests {
    fn default() -> Self {
        Self(Text(Vec::with_capacity(512)))
    }
}

impl Digests {
    /// The digest of one entry. The order of its federated trust domains does not count: some
    /// databases do not keep it.
    pub(crate) fn of(&mut self, entry: &Entry) -> Token {
        let Entry {
            id,
            spiffe_id,
            parent_id,
            selectors,
            selector_set: _, // follows from the selectors
            x509_svid_ttl,
            jwt_svid_ttl,
            federates_with,
            admin,
            downstream,
            expires_at,
            dns_names,
            revision_number,
            store_svid,
            hint,
            created_at,
            additional_attributes,
        } = entry;
        let text = &mut self.0;
        text.0.clear();
        text.bytes(id.as_str());
        text.bytes(spiffe_id.as_str());
        text.bytes(parent_id.as_str());
        text.count(selectors.len());
        for selector in selectors.iter() {
            text.bytes(selector.kind());
            text.bytes(selector.value());
        }
        text.number(i64::from(*x509_svid_ttl));
        text.number(i64::from(*jwt_svid_ttl));
        let mut federated: Vec<&str> = federates_with.iter().map(AsRef::as_ref).collect();
        federated.sort_unstable();
        text.count(federated.len());
        for trust_domain in federated {
            text.bytes(trust_domain);
        }
        text.number(expires_at.0);
        text.count(dns_names.len());
        for name in dns_names.iter() {
            text.bytes(name);
        }
        text.number(*revision_number);
        text.bytes(hint);
        text.number(created_at.0);
        text.flags([*admin, *downstream, *store_svid, additional_attributes.is_some()]);
        if let Some(AdditionalAttributes { disable_x509_svid_prefetch, jwt_svid_include_jti }) =
            additional_attributes
        {
            text.flags([*disable_x509_svid_prefetch, *jwt_svid_include_jti]);
        }
        Token::naming(&text.0)
    }
}

/// Fields one after the other, such that no two lists of fields read the same.
struct Text(Vec<u8>);

impl Text {
    fn bytes(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn count(&mut self, count: usize) {
        self.0.extend_from_slice(&(count as u64).to_be_bytes());
    }

    fn number(&mut self, number: i64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn flags<const N: usize>(&mut self, flags: [bool; N]) {
        self.0.extend(flags.map(u8::from));
    }
}
