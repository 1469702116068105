//! The X.509-SVID of a workload: judged before it is held, and held small.
//!
//! An agent may hold many thousands. What those of one authority have in common is held once
//! ([`Issuers`]), and of a private key what its certificate does not say already.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use spiffe::key::{KeyError, PrivateKey};
use spiffe::x509::{Certificate, CertificateError, SvidError, find_path, leaf_id};
use spiffe::{Entry, SpiffeId, UnixSecs};
use zeroize::Zeroizing;

use super::packed::{pack, unpack};
use crate::rotation::RotationRule;

/// An X.509-SVID with its key, as workloads get it. Its memory is wiped; it has no `Debug`.
pub struct X509Svid {
    /// Whom it names.
    pub id: SpiffeId,
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
    issuer: Arc<Issuer>,
    /// The leaf as its difference to others of its issuer, then the key as its difference to the leaf.
    packed: Zeroizing<Box<[u8]>>,
    /// Where in it the key begins.
    key_at: u32,
}

/// What X.509-SVIDs of one authority have in common.
struct Issuer {
    /// The key id of the authority that stands behind them.
    authority: [u8; 20],
    /// A leaf, as others are.
    leaf: Bytes,
    /// The certificates behind the leaf. Most have none.
    further: Box<[Bytes]>,
}

/// Issuers that X.509-SVIDs were accepted of, so that their successors share them.
#[derive(Default)]
pub struct Issuers(Vec<Arc<Issuer>>);

impl Issuers {
    /// The issuer of `chain`, whose leaf is first. Those that have no X.509-SVID any more are forgotten.
    fn of(&mut self, authority: [u8; 20], chain: &[Bytes]) -> Option<Arc<Issuer>> {
        let (leaf, further) = chain.split_first()?;
        let is_same = |known: &&Arc<Issuer>| known.authority == authority && *known.further == *further;
        if let Some(known) = self.0.iter().find(is_same) {
            return Some(Arc::clone(known));
        }
        self.0.retain(|known| Arc::strong_count(known) > 1);
        // Copied: what came with an answer holds on to all of it.
        let copied = |der: &Bytes| Bytes::copy_from_slice(der);
        let further = further.iter().map(copied).collect();
        let issuer = Arc::new(Issuer { authority, leaf: copied(leaf), further });
        self.0.push(Arc::clone(&issuer));
        Some(issuer)
    }
}

/// How private keys in PKCS#8 begin where workloads have the usual ones: ECDSA on P-256.
const USUAL_KEY: &[u8] = &[
    0x30, 0x81, 0x87, 2, 1, 0, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48,
    0xce, 0x3d, 3, 1, 7, 4, 0x6d, 0x30, 0x6b, 2, 1, 1, 4, 0x20,
];

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
    /// to one of `anchors`. What it has in common with those accepted with the same `issuers` is held once.
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
        issuers: &mut Issuers,
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

        let issuer = issuers.of(authority, chain).ok_or(RefusedSvid::Empty)?;
        let (packed, key_at) = packed(leaf.der(), &key.to_pkcs8()?, &issuer, &entry.spiffe_id);
        Ok(Self {
            // The entry's, whose text is held once.
            id: entry.spiffe_id.clone(),
            not_before: leaf.not_before(),
            expires_at: leaf.not_after(),
            renew_at: rule.x509(leaf.not_before(), leaf.not_after()),
            revision: entry.revision_number,
            entry_created_at: entry.created_at,
            issuer,
            packed,
            key_at,
        })
    }

    /// One that was judged before, for tests of what is done with it.
    #[cfg(test)]
    pub(crate) fn assumed(entry: &Entry, renew_at: SystemTime, authority: [u8; 20]) -> Self {
        Self {
            id: entry.spiffe_id.clone(),
            not_before: UnixSecs(0),
            expires_at: UnixSecs(i64::MAX),
            renew_at,
            revision: entry.revision_number,
            entry_created_at: entry.created_at,
            issuer: Arc::new(Issuer { authority, leaf: Bytes::new(), further: Box::default() }),
            packed: Zeroizing::default(),
            key_at: 0,
        }
    }

    /// The key id of the authority that stands behind it.
    #[must_use]
    pub fn authority(&self) -> &[u8; 20] {
        &self.issuer.authority
    }

    /// The certificates, leaf first.
    pub fn certificates(&self) -> impl Iterator<Item = Bytes> {
        let leaf = Some(self.leaf()).filter(|leaf| !leaf.is_empty()).map(Bytes::from);
        leaf.into_iter().chain(self.issuer.further.iter().cloned())
    }

    /// The chain as concatenated DER, leaf first.
    #[must_use]
    pub fn chain(&self) -> Vec<u8> {
        let mut chain = self.leaf();
        self.issuer.further.iter().for_each(|der| chain.extend_from_slice(der));
        chain
    }

    /// The private key as DER PKCS#8.
    #[must_use]
    pub fn secret_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let (_, key) = self.parts();
        Zeroizing::new(unpack(key, [&self.leaf(), USUAL_KEY]))
    }

    fn leaf(&self) -> Vec<u8> {
        let (leaf, _) = self.parts();
        unpack(leaf, [&self.issuer.leaf, self.id.as_str().as_bytes()])
    }

    /// Leaf and key, packed.
    fn parts(&self) -> (&[u8], &[u8]) {
        self.packed.split_at_checked(self.key_at as usize).unwrap_or_default()
    }
}

/// A leaf and its key, and where the key begins.
fn packed(leaf: &[u8], key: &[u8], issuer: &Issuer, id: &SpiffeId) -> (Zeroizing<Box<[u8]>>, u32) {
    let key = Zeroizing::new(pack(key, [leaf, USUAL_KEY]));
    let leaf = pack(leaf, [&issuer.leaf, id.as_str().as_bytes()]);
    let packed = [&*leaf, &*key].concat();
    (Zeroizing::new(packed.into()), u32::try_from(leaf.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use runtime::clock::{Clock, SystemClock};
    use spiffe::key::KeyKind;

    use super::*;
    use crate::fixtures::entry;
    use crate::fixtures::server::Authority;

    /// What an authority signed for a path: the chain, the key in PKCS#8, and what the agent makes of both.
    fn accepted(
        authority: &Authority,
        path: &str,
        kind: KeyKind,
        issuers: &mut Issuers,
    ) -> (Vec<Bytes>, Zeroizing<Vec<u8>>, X509Svid) {
        let entry = entry("a", path, &["uid:1"]);
        let key = PrivateKey::generate(kind).unwrap();
        let leaf = authority.sign(&entry.spiffe_id, key.public(), 600);
        let root = Bytes::copy_from_slice(authority.certificate.der());
        let chain = vec![Bytes::copy_from_slice(leaf.as_bytes()), root];
        let (anchors, now) = ([authority.certificate.clone()], SystemClock.now());
        let mut rule = RotationRule::new(None);
        let svid = X509Svid::accept(&chain, &key, &entry, &anchors, now, &mut rule, issuers).unwrap();
        (chain, key.to_pkcs8().unwrap(), svid)
    }

    #[test]
    fn what_is_held_small_is_served_as_it_came() {
        let authority = Authority::new();
        let mut issuers = Issuers::default();
        let kinds = [KeyKind::EcP256, KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048];
        for (number, kind) in kinds.into_iter().enumerate() {
            let path = format!("/workload/{number}");
            let (chain, key, svid) = accepted(&authority, &path, kind, &mut issuers);

            assert_eq!(svid.certificates().collect::<Vec<_>>(), chain);
            assert_eq!(svid.chain(), chain.concat());
            assert_eq!(svid.secret_pkcs8(), key);
        }
    }

    #[test]
    fn of_many_on_p256_each_takes_less_than_half() {
        let authority = Authority::new();
        let mut issuers = Issuers::default();
        let held: Vec<X509Svid> = (0..100)
            .map(|number| accepted(&authority, &format!("/w/{number}"), KeyKind::EcP256, &mut issuers).2)
            .collect();

        let most = held.iter().map(|svid| svid.packed.len()).max().unwrap();
        let whole = held[0].leaf().len() + held[0].secret_pkcs8().len();
        assert!(most * 2 < whole, "{most} of {whole}");
        assert!(most <= 256, "{most}: the next larger block has 320");
        assert_eq!(issuers.0.len(), 1);
    }

    #[test]
    fn issuers_are_forgotten_with_their_last_svid() {
        let [first, second] = [Authority::new(), Authority::new()];
        let mut issuers = Issuers::default();
        let (.., old) = accepted(&first, "/a", KeyKind::EcP256, &mut issuers);
        let (.., new) = accepted(&second, "/a", KeyKind::EcP256, &mut issuers);
        assert_eq!(issuers.0.len(), 2);
        drop((old, new));

        let (.., held) = accepted(&Authority::new(), "/a", KeyKind::EcP256, &mut issuers);

        assert_eq!(issuers.0.len(), 1);
        assert_eq!(*held.authority(), issuers.0[0].authority);
    }
}
