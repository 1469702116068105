//! The answers, encoded.
//!
//! What holds a private key or a token is encoded into one buffer that is wiped when the last caller
//! has been sent it.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::broker::FetchJwtsvidResponse;
use proto::raw::Encoded;
use proto::workload::{JwtBundlesResponse, JwtsvidResponse, X509BundlesResponse, X509svid, X509svidResponse};
use spiffe::{Bundle, Entry, TrustDomain};
use zeroize::{Zeroize, Zeroizing};

use super::hints::hidden;
use crate::subscribe::Update;

/// The answer of `FetchX509SVID`.
pub(super) fn x509_svids(update: &Update) -> Encoded {
    x509_svids_of(update, |_| true)
}

/// The same with those entries alone that `is_shown`: the broker API's messages are the same.
pub(in crate::api) fn x509_svids_of(update: &Update, is_shown: impl Fn(&Entry) -> bool) -> Encoded {
    let identities = || update.identities().filter(|(held, _)| is_shown(&held.entry));
    let hidden = hidden(identities().map(|(held, _)| &*held.entry));
    let bundle = certificates(&update.own);
    let svids =
        identities().filter(|(held, _)| !hidden.contains(&&held.entry.id)).map(|(held, svid)| X509svid {
            spiffe_id: svid.id.to_string(),
            x509_svid: svid.chain().into(),
            x509_svid_key: Bytes::from_owner(svid.secret_pkcs8()),
            bundle: bundle.clone(),
            hint: held.entry.hint.clone(),
        });
    let federated_bundles = federated(update, certificates);
    let answer = X509svidResponse { svids: svids.collect(), crl: Vec::new(), federated_bundles };
    Encoded::prefixed(&answer, wiped)
}

/// The answer of `FetchX509Bundles`.
pub(in crate::api) fn x509_bundles(update: &Update) -> Encoded {
    let answer = X509BundlesResponse { crl: Vec::new(), bundles: all(update, certificates) };
    Encoded::prefixed(&answer, Bytes::from)
}

/// The answer of `FetchJWTBundles`: JWT keys alone, also where a bundle has WIT keys.
pub(in crate::api) fn jwt_bundles(update: &Update) -> Encoded {
    let answer = JwtBundlesResponse { bundles: all(update, |bundle| bundle.to_jwt_jwks().into()) };
    Encoded::prefixed(&answer, Bytes::from)
}

/// The answer of `FetchJWTSVID`.
pub(super) fn jwt_svids(mut answer: JwtsvidResponse) -> Encoded {
    let encoded = Encoded::prefixed(&answer, wiped);
    answer.svids.iter_mut().for_each(|svid| svid.svid.zeroize());
    encoded
}

/// The answer of the broker API's `FetchJWTSVID`.
pub(in crate::api) fn brokered_jwt_svids(mut answer: FetchJwtsvidResponse) -> Encoded {
    let encoded = Encoded::prefixed(&answer, wiped);
    answer.svids.iter_mut().for_each(|svid| svid.svid.zeroize());
    encoded
}

fn wiped(secret: Vec<u8>) -> Bytes {
    Bytes::from_owner(Zeroizing::new(secret))
}

fn all(update: &Update, encode: impl Fn(&Bundle) -> Bytes) -> BTreeMap<String, Bytes> {
    let own = (id(&update.own.trust_domain), encode(&update.own));
    let mut bundles = federated(update, encode);
    bundles.extend([own]);
    bundles
}

fn federated(update: &Update, encode: impl Fn(&Bundle) -> Bytes) -> BTreeMap<String, Bytes> {
    update.federated.iter().map(|(name, bundle)| (id(name), encode(bundle))).collect()
}

fn id(name: &TrustDomain) -> String {
    format!("spiffe://{name}")
}

/// The X.509 authorities one behind the other.
fn certificates(bundle: &Bundle) -> Bytes {
    bundle.x509_authorities.iter().map(|authority| &*authority.der).collect::<Vec<_>>().concat().into()
}
