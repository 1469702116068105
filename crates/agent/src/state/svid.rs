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
    /// The same cut apart.
    pub certificates: Vec<Bytes>,
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

        let whole = Bytes::from(chain.concat());
        let mut rest = whole.clone();
        let certificates = chain.iter().map(|der| rest.split_to(der.len())).collect();
        Ok(Self {
            id,
            chain: whole,
            certificates,
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
            certificates: Vec::new(),
            not_before: UnixSecs(0),
            expires_at: UnixSecs(i64::MAX),
            renew_at,
            revision: entry.revision_number,
            entry_created_at: entry.created_at,
            authority,
            key: Zeroizing::new(Vec::new()),
        }
    }

    /// The private key as DER PKCS#8.
    #[must_use]
    pub fn secret_pkcs8(&self) -> &[u8] {
        &self.key
    }
}
