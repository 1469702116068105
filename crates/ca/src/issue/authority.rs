//! The server's own CA: signed by itself, or by an upstream authority whose answer is not believed before
//! it is tried out.

use std::sync::Arc;

use plugin::Key;
use spiffe::x509::{
    CertDer, Certificate, CsrTemplate, Issuer, Name, Role, X509Template, assemble, check_ca, verify_svid,
};
use spiffe::{UnixSecs, X509Authority};

use super::x509::CA;
use super::{IssueError, sign};
use crate::authority::{AuthorityError, X509Signer, sig_alg};
use crate::profile::{self, Profile};

/// The most certificates of a chain, and of roots, that are looked at.
const MAX_CHAIN: usize = 16;
const MAX_ROOTS: usize = 1000;

/// Makes the certificate of an authority that vouches for itself.
///
/// # Errors
/// [`IssueError`] when the key is of a kind that does not sign, or did not sign.
pub async fn self_signed_ca(
    profile: &Profile,
    key: Arc<dyn Key>,
    now: UnixSecs,
) -> Result<X509Signer, IssueError> {
    let serial = profile::new_serial();
    let subject = composed(profile, profile.ca_name(&serial)).await?;
    let template = X509Template {
        serial,
        subject: subject.clone(),
        validity: profile::validity(now, profile.ca_ttl, None),
        public_key: key.public().clone(),
        id: profile.trust_domain.id(),
        dns_names: Vec::new(),
        role: Role::Ca,
    };
    let tbs = template.tbs(&Issuer { name: subject, key_id: None }, sig_alg(key.public())?);
    template.check(&tbs, now).map_err(|reason| IssueError::Profile { what: CA, reason })?;
    let signature = sign(&*key, tbs.alg(), tbs.as_bytes(), CA).await?;
    Ok(X509Signer::new(key, assemble(&tbs, &signature).as_bytes(), Vec::new())?)
}

/// Makes the request that an upstream authority signs.
///
/// # Errors
/// As [`self_signed_ca`].
pub async fn upstream_csr(profile: &Profile, key: &dyn Key) -> Result<Vec<u8>, IssueError> {
    let template = CsrTemplate {
        subject: composed(profile, profile.ca_name(&profile::new_serial())).await?,
        id: Some(profile.trust_domain.id()),
        dns_names: Vec::new(),
    };
    let alg = sig_alg(key.public())?;
    let tbs = template.tbs(key.public());
    let signature = sign(key, alg, &tbs, CA).await?;
    Ok(CsrTemplate::assemble(&tbs, alg, &signature))
}

/// The authority that an upstream authority signed: `chain` starts with its certificate, and `roots` are
/// what verifies it. It is taken only if an SVID that it signs is verified by those roots.
///
/// # Errors
/// Any of [`IssueError`] that is about upstream authorities.
pub async fn upstream_ca(
    profile: &Profile,
    key: Arc<dyn Key>,
    chain: Vec<CertDer>,
    roots: &[X509Authority],
    now: UnixSecs,
) -> Result<X509Signer, IssueError> {
    if chain.len() > MAX_CHAIN || roots.len() > MAX_ROOTS {
        return Err(IssueError::TooMany);
    }
    if roots.is_empty() {
        return Err(IssueError::NoRoots);
    }
    let first = chain.first().ok_or(IssueError::NoChain)?.clone();
    let certificate = Certificate::parse(first.as_bytes()).map_err(AuthorityError::from)?;
    check_ca(&certificate, &profile.trust_domain.id(), now).map_err(IssueError::UpstreamCa)?;
    let signer = X509Signer::new(key, first.as_bytes(), chain)?;
    let roots: Vec<_> = roots
        .iter()
        .map(|root| Certificate::parse(&root.der))
        .collect::<Result<_, _>>()
        .map_err(AuthorityError::from)?;
    try_out(profile, &signer, &roots, now).await?;
    Ok(signer)
}

/// Signs an SVID that nobody gets, and verifies it.
async fn try_out(
    profile: &Profile,
    signer: &X509Signer,
    roots: &[Certificate],
    now: UnixSecs,
) -> Result<(), IssueError> {
    let id = profile.trust_domain.id_with_path("/spire/throwaway");
    let id = id.map_err(|error| IssueError::UpstreamChain(error.into()))?;
    let template = X509Template {
        serial: profile::new_serial(),
        subject: profile::svid_name(None, &[]),
        validity: profile::validity(now, profile.x509_svid_ttl, Some(signer.ends_at())),
        // Whose key it is does not matter.
        public_key: signer.key.public().clone(),
        id,
        dns_names: Vec::new(),
        role: Role::Svid,
    };
    let tbs = template.tbs(&signer.issuer, signer.alg);
    let signature = sign(&*signer.key, tbs.alg(), tbs.as_bytes(), CA).await?;
    let mut chain = Vec::with_capacity(1 + signer.upstream_chain().len());
    chain.push(assemble(&tbs, &signature));
    chain.extend_from_slice(signer.upstream_chain());
    let chain: Vec<_> = chain
        .iter()
        .map(|der| Certificate::parse(der.as_bytes()))
        .collect::<Result<_, _>>()
        .map_err(AuthorityError::from)?;
    verify_svid(&chain, roots, now).map(drop).map_err(IssueError::UpstreamChain)
}

async fn composed(profile: &Profile, mut subject: Name) -> Result<Name, IssueError> {
    for composer in profile.composers.iter() {
        subject =
            composer.server_ca(subject).await.map_err(|error| IssueError::Compose { what: CA, error })?;
    }
    Ok(subject)
}
