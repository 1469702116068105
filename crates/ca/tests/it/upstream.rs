//! Authorities that somebody above signed: taken only if what they sign would be verified.

use std::sync::Arc;

use ca::authority::{ActiveAuthorities, X509Signer};
use ca::issue::{IssueError, X509Request, self_signed_ca, upstream_ca};
use plugin::Key;
use spiffe::key::KeyKind;
use spiffe::x509::{CertDer, verify_svid};
use spiffe::{SpiffeId, X509Authority};

use crate::issue::{DAY, NOW, TestKey, id, issuer, parsed, profile, workload};

fn active(signer: X509Signer) -> ActiveAuthorities {
    ActiveAuthorities { x509: Some(Arc::new(signer)), ..ActiveAuthorities::default() }
}

fn root(signer: &X509Signer) -> X509Authority {
    X509Authority { der: signer.certificate().to_shared(), tainted: false }
}

/// The CA of `key` below `above`, for `ttl` seconds, with the chain up to the root.
async fn signed(above: X509Signer, key: &Arc<dyn Key>, ttl: i64) -> Vec<CertDer> {
    let request = X509Request::DownstreamCa { public_key: key.public().clone(), ttl };
    issuer(profile(), active(above)).prepare_x509(request, NOW).unwrap().sign().await.unwrap().chain
}

#[tokio::test]
async fn a_ca_signed_above_signs_svids_that_the_root_verifies() {
    let top = self_signed_ca(&profile(), TestKey::make(KeyKind::EcP256), NOW).await.unwrap();
    let (anchor, roots) = (top.certificate().clone(), [root(&top)]);
    let (middle, key) = (TestKey::make(KeyKind::EcP384), TestKey::make(KeyKind::EcP256));
    let chain = signed(top, &middle, 3600).await;
    let middle = upstream_ca(&profile(), middle, chain, &roots, NOW).await.unwrap();
    let middle_id = middle.authority_id();

    let chain = signed(middle, &key, DAY).await;
    let signer = upstream_ca(&profile(), key, chain, &roots, NOW).await.unwrap();

    assert_eq!(signer.upstream_authority_id(), middle_id);
    assert!(signer.is_below(std::slice::from_ref(&anchor), NOW));
    let other = self_signed_ca(&profile(), TestKey::make(KeyKind::EcP256), NOW).await.unwrap();
    assert!(!signer.is_below(&[other.certificate().clone()], NOW));
    let issuer = issuer(profile(), active(signer));
    let svid = issuer.prepare_x509(workload("/deep"), NOW).unwrap().sign().await.unwrap();
    let chain = parsed(&svid.chain);
    assert_eq!(chain.len(), 3);
    assert_eq!(verify_svid(&chain, &[anchor], NOW), Ok(id("/deep")));
}

#[tokio::test]
async fn what_is_signed_ends_with_the_first_of_all_above_it() {
    let top = self_signed_ca(&profile(), TestKey::make(KeyKind::EcP256), NOW).await.unwrap();
    let (middle, key) = (TestKey::make(KeyKind::EcP256), TestKey::make(KeyKind::EcP256));
    let short = signed(top, &middle, 600).await;
    // A CA that outlives the one above it, as some PKIs make them.
    let serial = self_signed_ca(&profile(), Arc::clone(&middle), NOW).await.unwrap();
    let long = signed(serial, &key, DAY).await;
    let chain = vec![long[0].clone(), short[0].clone()];

    let signer = X509Signer::new(key, chain[0].as_bytes(), chain.clone()).unwrap();

    assert_eq!(signer.not_after(), NOW.plus(DAY));
    let issuer = issuer(profile(), active(signer));
    let svid = issuer.prepare_x509(workload("/web"), NOW).unwrap().sign().await.unwrap();
    assert_eq!(svid.not_after, NOW.plus(600));
}

#[tokio::test]
async fn what_nobody_could_verify_is_not_taken() {
    let top = self_signed_ca(&profile(), TestKey::make(KeyKind::EcP256), NOW).await.unwrap();
    let stranger = self_signed_ca(&profile(), TestKey::make(KeyKind::EcP256), NOW).await.unwrap();
    let (roots, strange) = ([root(&top)], [root(&stranger)]);
    let key = TestKey::make(KeyKind::EcP256);
    let leaf = X509Request::Agent { id: id("/spire/agent/a"), public_key: key.public().clone() };
    let issuer = issuer(profile(), active(top));
    let svid = issuer.prepare_x509(leaf, NOW).unwrap().sign().await.unwrap().chain;
    let request = X509Request::DownstreamCa { public_key: key.public().clone(), ttl: 3600 };
    let good = issuer.prepare_x509(request, NOW).unwrap().sign().await.unwrap().chain;
    let attempt = async |chain: &[CertDer], roots: &[X509Authority]| {
        let taken = upstream_ca(&profile(), Arc::clone(&key), chain.to_vec(), roots, NOW).await;
        taken.map(drop).map_err(|why| why.to_string())
    };

    assert_eq!(attempt(&good, &roots).await, Ok(()));
    assert_eq!(
        attempt(&good, &strange).await.unwrap_err(),
        "X509 CA minted by upstream authority is invalid: X509 CA produced an invalid X509-SVID chain: \
         certificate signed by unknown authority"
    );
    assert_eq!(
        attempt(&svid, &roots).await.unwrap_err(),
        "X509 CA minted by upstream authority is invalid: invalid upstream-signed X509 CA: \
         invalid X509 CA: cA constraint is not set"
    );
    assert_eq!(attempt(&[], &roots).await.unwrap_err(), "plugin response missing X.509 CA chain");
    assert_eq!(attempt(&good, &[]).await.unwrap_err(), "plugin response missing upstream X.509 roots");
    let many = vec![good[0].clone(); 17];
    assert_eq!(attempt(&many, &roots).await.unwrap_err(), "plugin response has too many certificates");
    let other = TestKey::make(KeyKind::EcP256);
    let foreign = upstream_ca(&profile(), other, good, &roots, NOW).await;
    assert!(matches!(foreign, Err(IssueError::Authority(_))));
}

#[test]
fn the_throwaway_identity_is_reserved() {
    // Nobody may have an entry for it.
    let throwaway = SpiffeId::parse("spiffe://example.org/spire/throwaway").unwrap();

    assert!(throwaway.path().starts_with("/spire/"));
}
