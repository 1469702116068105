//! The answers, encoded. What holds a private key or a token is wiped when the last caller has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proto::raw::Encoded;
use proto::spire::agent::delegatedidentity::{
    FetchJwtsviDsResponse, SubscribeToJwtBundlesResponse, SubscribeToX509BundlesResponse,
    SubscribeToX509sviDsResponse, X509svidWithKey,
};
use proto::spire::types;
use spiffe::{Bundle, Entry};
use zeroize::{Zeroize, Zeroizing};

use crate::jwt::JwtSvid;
use crate::state::{Bundles, Held, X509Svid};
use crate::subscribe::Update;

/// Whether who asks for another may have the identity.
pub(in crate::api) const fn is_handed_on(entry: &Entry) -> bool {
    !entry.admin && !entry.downstream
}

/// The identities that are.
pub(in crate::api) fn handed_on(update: &Update) -> impl Iterator<Item = (&Held, &Arc<X509Svid>)> {
    update.identities().filter(|(held, _)| is_handed_on(&held.entry))
}

/// Whether one of them will come that is not there yet.
pub(in crate::api) fn is_coming(update: &Update) -> bool {
    update.entries.iter().any(|held| held.is_pending() && is_handed_on(&held.entry))
}

/// The answer of `SubscribeToX509SVIDs`.
pub(super) fn x509_svids(update: &Update) -> Encoded {
    let svid = |(held, svid): (&Held, &Arc<X509Svid>)| X509svidWithKey {
        x509_svid: Some(types::X509svid {
            cert_chain: svid.certificates().collect(),
            id: Some((&svid.id).into()),
            expires_at: svid.expires_at.0,
            hint: held.entry.hint.clone(),
        }),
        x509_svid_key: Bytes::from_owner(svid.secret_pkcs8()),
    };
    let x509_svids = handed_on(update).map(svid).collect();
    let federates_with = update.federated.keys().map(|name| format!("spiffe://{name}")).collect();
    Encoded::prefixed(&SubscribeToX509sviDsResponse { x509_svids, federates_with }, wiped)
}

/// The answer of `SubscribeToX509Bundles`.
pub(super) fn x509_bundles(bundles: &Bundles) -> Encoded {
    let certificates = |bundle: &Bundle| {
        bundle.x509_authorities.iter().map(|authority| &*authority.der).collect::<Vec<_>>().concat().into()
    };
    let answer = SubscribeToX509BundlesResponse { ca_certificates: all(bundles, certificates) };
    Encoded::prefixed(&answer, Bytes::from)
}

/// The answer of `SubscribeToJWTBundles`: JWT keys alone, also where a bundle has WIT keys.
pub(super) fn jwt_bundles(bundles: &Bundles) -> Encoded {
    let answer =
        SubscribeToJwtBundlesResponse { bundles: all(bundles, |bundle| bundle.to_jwt_jwks().into()) };
    Encoded::prefixed(&answer, Bytes::from)
}

/// The answer of `FetchJWTSVIDs`.
pub(super) fn jwt_svids(tokens: &[(&Entry, Arc<JwtSvid>)]) -> Encoded {
    let svid = |(entry, svid): &(&Entry, Arc<JwtSvid>)| types::Jwtsvid {
        token: svid.token.to_string(),
        id: Some((&entry.spiffe_id).into()),
        expires_at: svid.expires_at.0,
        issued_at: svid.issued_at.0,
        hint: entry.hint.clone(),
    };
    let mut answer = FetchJwtsviDsResponse { svids: tokens.iter().map(svid).collect() };
    let encoded = Encoded::prefixed(&answer, wiped);
    answer.svids.iter_mut().for_each(|svid| svid.token.zeroize());
    encoded
}

fn all(bundles: &Bundles, encode: impl Fn(&Bundle) -> Bytes) -> BTreeMap<String, Bytes> {
    let known = bundles.federated.values().chain([&bundles.own]);
    known.map(|bundle| (format!("spiffe://{}", bundle.trust_domain), encode(bundle))).collect()
}

fn wiped(secret: Vec<u8>) -> Bytes {
    Bytes::from_owner(Zeroizing::new(secret))
}
