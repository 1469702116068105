//! The bundles of all trust domains: each parsed and encoded once, however often it is asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use graph::Token;
use prost::Message;
use proto::spire::types;
use runtime::snapshot::Snapshot;
use spiffe::tls::Anchors;
use spiffe::x509::Certificate;
use spiffe::{Bundle, TrustDomain};
use store::Change;

/// All bundles that are stored, by trust domain. Immutable; what did not change is shared with the
/// next version.
#[derive(Clone, Debug, Default)]
pub(crate) struct BundleSet(BTreeMap<TrustDomain, Arc<KnownBundle>>);

/// A bundle and what is made of it.
pub(crate) struct KnownBundle {
    /// As it is stored.
    pub(crate) bundle: Arc<Bundle>,
    /// Its X.509 authorities.
    pub(crate) anchors: Arc<[Certificate]>,
    encoded: OnceLock<Bytes>,
    digest: OnceLock<Token>,
}

impl BundleSet {
    /// The set of these bundles.
    pub(crate) fn new(bundles: impl IntoIterator<Item = Arc<Bundle>>) -> Self {
        let known = bundles.into_iter().map(|bundle| (bundle.trust_domain.clone(), KnownBundle::new(bundle)));
        Self(known.collect())
    }

    /// The bundle of a trust domain.
    pub(crate) fn get(&self, trust_domain: &TrustDomain) -> Option<&Arc<KnownBundle>> {
        self.0.get(trust_domain)
    }

    /// The trust domains whose bundle is another than in `older`, or in one of the two only.
    pub(crate) fn differing<'a>(&'a self, older: &'a Self) -> impl Iterator<Item = &'a TrustDomain> {
        let differs = |name: &TrustDomain| match (self.0.get(name), older.0.get(name)) {
            (Some(new), Some(old)) => !Arc::ptr_eq(new, old),
            _ => true,
        };
        let gone = older.0.keys().filter(|name| !self.0.contains_key(*name));
        self.0.keys().chain(gone).filter(move |name| differs(name))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The set after `change`; `None` if that is not about bundles.
    pub(crate) fn after(&self, change: &Change) -> Option<Self> {
        let mut next = match change {
            Change::BundleSet(_) | Change::BundleDeleted(_) => self.clone(),
            Change::EntrySet { .. }
            | Change::EntryDeleted { .. }
            | Change::AgentSet(_)
            | Change::AgentDeleted(_)
            | Change::FederationSet(_)
            | Change::FederationDeleted(_) => return None,
        };
        if let Change::BundleSet(bundle) = change {
            next.0.insert(bundle.trust_domain.clone(), KnownBundle::new(Arc::clone(bundle)));
        } else if let Change::BundleDeleted(trust_domain) = change {
            next.0.remove(trust_domain);
        }
        Some(next)
    }

    /// Takes the bundle of a trust domain over from another set, or its absence.
    pub(crate) fn take_over(&mut self, trust_domain: &TrustDomain, from: &Self) {
        match from.0.get(trust_domain) {
            Some(known) => _ = self.0.insert(trust_domain.clone(), Arc::clone(known)),
            None => _ = self.0.remove(trust_domain),
        }
    }

    /// This set, with the parts of `older` that are the same.
    pub(crate) fn sharing(mut self, older: &Self) -> Self {
        for (trust_domain, known) in &mut self.0 {
            if let Some(before) = older.0.get(trust_domain)
                && before.bundle == known.bundle
            {
                *known = Arc::clone(before);
            }
        }
        self
    }
}

impl KnownBundle {
    fn new(bundle: Arc<Bundle>) -> Arc<Self> {
        let mut anchors = Vec::with_capacity(bundle.x509_authorities.len());
        for authority in &bundle.x509_authorities {
            // Old rows hold several certificates in one item.
            match Certificate::parse_all(&authority.der) {
                Ok(certificates) => anchors.extend(certificates),
                Err(error) => tracing::warn!(
                    trust_domain_id = %bundle.trust_domain.id(),
                    %error,
                    "An X.509 authority of a stored bundle cannot be read and is not trusted"
                ),
            }
        }
        Arc::new(Self { bundle, anchors: anchors.into(), encoded: OnceLock::new(), digest: OnceLock::new() })
    }

    /// The whole bundle as `spire.api.types.Bundle`.
    pub(crate) fn encoded(&self) -> &Bytes {
        self.encoded.get_or_init(|| types::Bundle::from(&*self.bundle).encode_to_vec().into())
    }

    /// Names the contents.
    pub(crate) fn digest(&self) -> Token {
        *self.digest.get_or_init(|| Token::naming(self.encoded()))
    }
}

impl fmt::Debug for KnownBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bundle.fmt(f)
    }
}

/// The trust anchors of TLS clients: whatever is stored at the time of the handshake.
#[derive(Clone)]
pub(crate) struct StoredAnchors(pub(crate) Snapshot<BundleSet>);

impl Anchors for StoredAnchors {
    fn anchors(&self, trust_domain: &str) -> Option<Arc<[Certificate]>> {
        let trust_domain = TrustDomain::parse(trust_domain).ok()?;
        self.0.load().get(&trust_domain).map(|known| Arc::clone(&known.anchors))
    }
}

impl fmt::Debug for StoredAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredAnchors")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(name: &str, sequence_number: u64) -> Arc<Bundle> {
        let mut bundle = Bundle::empty(TrustDomain::parse(name).unwrap());
        bundle.sequence_number = sequence_number;
        Arc::new(bundle)
    }

    #[test]
    fn what_did_not_change_is_shared() {
        let (a, b) = (TrustDomain::parse("a.test").unwrap(), TrustDomain::parse("b.test").unwrap());
        let old = BundleSet::new([bundle("a.test", 1), bundle("b.test", 1)]);

        let changed = old.after(&Change::BundleSet(bundle("b.test", 2))).unwrap();
        let reloaded = BundleSet::new([bundle("a.test", 1), bundle("b.test", 3)]).sharing(&changed);
        let smaller = reloaded.after(&Change::BundleDeleted(b.clone())).unwrap();

        assert!(Arc::ptr_eq(old.get(&a).unwrap(), smaller.get(&a).unwrap()));
        assert_eq!(changed.get(&b).unwrap().bundle.sequence_number, 2);
        assert_eq!(reloaded.get(&b).unwrap().bundle.sequence_number, 3);
        assert!(smaller.get(&b).is_none());
    }

    #[test]
    fn a_bundle_is_encoded_once() {
        let set = BundleSet::new([bundle("a.test", 7)]);
        let known = set.get(&TrustDomain::parse("a.test").unwrap()).unwrap();

        let first = known.encoded().as_ptr();

        assert_eq!(known.encoded().as_ptr(), first);
        let decoded = types::Bundle::decode(known.encoded().clone()).unwrap();
        assert_eq!((decoded.trust_domain.as_str(), decoded.sequence_number), ("a.test", 7));
        assert_eq!(set.len(), 1);
    }
}
