//! The X.509-SVID of a workload: judged before it is held.

use std::time::SystemTime;

use bytes::Bytes;
use spiffe::key::{KeyError, PrivateKey};
use spiffe::x509::{Certificate, CertificateError, SvidError, find_path, leaf_id};
use spiffe::{Entry, SpiffeId, UnixSecs};
use zeroize::Zeroizing;

use crate::rotation::RotationRule;

/// An X.509-SVID with its key, as workloads get it. Its memory is wiped; it has no `Debug`.
pub struct X509Svid {
    /// Whom it names.
    pub id: SpiffeId,
    /// The chain as concatenated DER, leaf first.
    pub chain: Bytes,
    /// Where in it the certificates behind the leaf begin. Most have none.
    further: Box<[u32]>,
    /// The first second in which it holds.
    pub not_before: UnixSecs,
    /// The last.
    pub expires_at: UnixSecs,
    /// When it is to be replaced.
    pub renew_at: SystemTime,
    /// The revision of the entry that it was made for.
    pub revision: i64,
    /// When that entry was made.
    pub entry_created_at: UnixSecs,
    /// The key id of the authority that stands behind it.
    pub authority: [u8; 20],
    key: Zeroizing<Vec<u8>>,
}

/// Why what the server signed is not handed to workloads.
#[derive(Debug, thiserror::Error)]
pub enum RefusedSvid {
    /// There is no certificate.
    #[error("the chain is empty")]
    Empty,
    /// A certificate is none.
    #[error("cannot parse the chain")]
    Malformed(#[from] CertificateError),
    /// It is for another key than was asked for.
    #[error("it is for another key")]
    OtherKey,
    /// It names somebody else.
    #[error("it is for {found} instead of {wanted}")]
    OtherId {
        /// Whom it should name.
        wanted: SpiffeId,
        /// Whom it names.
        found: SpiffeId,
    },
    /// It is no X.509-SVID, or does not lead to the agent's bundle.
    #[error(transparent)]
    Invalid(#[from] SvidError),
    /// The key cannot be encoded.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl X509Svid {
    /// Judges the `chain` that the server signed for `entry` and `key`: it must be for both, and lead
    /// to one of `anchors`.
    ///
    /// # Errors
    /// It is not what was asked for.
    pub fn accept(
        chain: &[Bytes],
        key: &PrivateKey,
        entry: &Entry,
        anchors: &[Certificate],
        now: SystemTime,
        rule: &mut RotationRule,
    ) -> Result<Self, RefusedSvid> {
        let parsed: Vec<Certificate> =
            chain.iter().map(|der| Certificate::parse(der)).collect::<Result<_, _>>()?;
        let (leaf, intermediates) = parsed.split_first().ok_or(RefusedSvid::Empty)?;
        if leaf.public_key() != key.public() {
            return Err(RefusedSvid::OtherKey);
        }
        let id = leaf_id(leaf)?;
        if id != entry.spiffe_id {
            return Err(RefusedSvid::OtherId { wanted: entry.spiffe_id.clone(), found: id });
        }
        // A server whose clock is a little ahead is no reason to refuse.
        let judged_at = UnixSecs::from(now).max(leaf.not_before());
        let path = find_path(leaf, intermediates, anchors, judged_at).map_err(SvidError::from)?;
        let authority = path.last().map(|anchor| anchor.public_key().key_id()).unwrap_or_default();

        let ends = chain.iter().scan(0, |end, der| {
            *end += u32::try_from(der.len()).ok()?;
            Some(*end)
        });
        let further = ends.take(chain.len() - 1).collect();
        Ok(Self {
            // The entry's, whose text is held once.
            id: entry.spiffe_id.clone(),
            chain: chain.concat().into(),
            further,
            not_before: leaf.not_before(),
            expires_at: leaf.not_after(),
            renew_at: rule.x509(leaf.not_before(), leaf.not_after()),
            revision: entry.revision_number,
            entry_created_at: entry.created_at,
            authority,
            key: key.to_pkcs8()?,
        })
    }

    /// One that was judged before, for tests of what is done with it.
    #[cfg(test)]
    pub(crate) fn assumed(entry: &Entry, renew_at: SystemTime, authority: [u8; 20]) -> Self {
        Self {
            id: entry.spiffe_id.clone(),
            chain: Bytes::new(),
            further: Box::default(),
            not_before: UnixSecs(0),
            expires_at: UnixSecs(i64::MAX),
            renew_at,
            revision: entry.revision_number,
            entry_created_at: entry.created_at,
            authority,
            key: Zeroizing::new(Vec::new()),
        }
    }

    /// The chain cut apart, leaf first.
    pub fn certificates(&self) -> impl Iterator<Item = Bytes> {
        let whole = (!self.chain.is_empty()).then_some(0);
        let begins = whole.into_iter().chain(self.further.iter().map(|begin| *begin as usize));
        let ends = self.further.iter().map(|end| *end as usize).chain([self.chain.len()]);
        begins.zip(ends).map(|(begin, end)| self.chain.slice(begin..end))
    }

    /// The private key as DER PKCS#8.
    #[must_use]
    pub fn secret_pkcs8(&self) -> &[u8] {
        &self.key
    }
}
