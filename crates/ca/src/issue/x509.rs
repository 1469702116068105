//! Certificates: X.509-SVIDs and CAs.

use std::sync::Arc;

use plugin::Key;
use spiffe::key::PublicKey;
use spiffe::x509::{CertDer, CsrTemplate, Issuer, Name, Role, Serial, Tbs, X509Template, assemble};
use spiffe::{SpiffeId, UnixSecs};

use super::{IssueError, check_member, sign};
use crate::authority::{X509Signer, sig_alg};
use crate::profile::{self, Profile};

const SVID: &str = "X509-SVID";
const CA: &str = "X509 CA";

/// What certificate is asked for.
#[derive(Clone, Debug)]
pub enum X509Request {
    /// An SVID of a workload.
    Workload {
        /// Its identity.
        id: SpiffeId,
        /// Its key.
        public_key: PublicKey,
        /// DNS names beside the identity.
        dns_names: Vec<String>,
        /// Its lifetime in seconds; the default if not above 0.
        ttl: i64,
        /// The subject asked for; an empty one is none.
        subject: Option<Name>,
    },
    /// An SVID of an agent.
    Agent {
        /// Its identity.
        id: SpiffeId,
        /// Its key.
        public_key: PublicKey,
    },
    /// The SVID of the server itself.
    Server {
        /// Its key.
        public_key: PublicKey,
    },
    /// The CA of a server below this one.
    DownstreamCa {
        /// Its key.
        public_key: PublicKey,
        /// Its lifetime in seconds; the default if not above 0.
        ttl: i64,
    },
}

/// A certificate that is ready to be signed.
#[derive(Debug)]
pub struct PreparedX509 {
    signer: Arc<X509Signer>,
    tbs: Tbs,
    id: SpiffeId,
    serial: Serial,
    not_before: UnixSecs,
    not_after: UnixSecs,
    what: &'static str,
}

/// A signed certificate with the chain that leads to the root, without it.
#[derive(Clone, Debug)]
pub struct X509Svid {
    /// The identity; of a CA its trust domain.
    pub id: SpiffeId,
    /// The certificate and those above it.
    pub chain: Vec<CertDer>,
    /// The serial number.
    pub serial: Serial,
    /// The first second in which it holds.
    pub not_before: UnixSecs,
    /// The last second in which it holds.
    pub not_after: UnixSecs,
}

impl PreparedX509 {
    /// Signs it.
    ///
    /// # Errors
    /// [`IssueError::Sign`] or [`IssueError::BadSignature`].
    pub async fn sign(self) -> Result<X509Svid, IssueError> {
        let signature = sign(&*self.signer.key, self.tbs.alg(), self.tbs.as_bytes(), self.what).await?;
        let mut chain = Vec::with_capacity(1 + self.signer.upstream_chain().len());
        chain.push(assemble(&self.tbs, &signature));
        chain.extend_from_slice(self.signer.upstream_chain());
        Ok(X509Svid {
            id: self.id,
            chain,
            serial: self.serial,
            not_before: self.not_before,
            not_after: self.not_after,
        })
    }
}

pub(super) fn prepare(
    profile: &Profile,
    signer: Arc<X509Signer>,
    request: X509Request,
    now: UnixSecs,
) -> Result<PreparedX509, IssueError> {
    let serial = profile::new_serial();
    let cap = Some(signer.not_after());
    let svid = |id, public_key, dns_names, subject, ttl| X509Template {
        serial: serial.clone(),
        subject,
        validity: profile::validity(now, ttl, cap),
        public_key,
        id,
        dns_names,
        role: Role::Svid,
    };
    let (template, what) = match request {
        X509Request::Workload { id, public_key, dns_names, ttl, subject } => {
            check_member(SVID, &id, &profile.trust_domain)?;
            let subject = profile::svid_name(subject.as_ref(), &dns_names);
            let ttl = profile::lifetime(ttl, profile.x509_svid_ttl);
            (svid(id, public_key, dns_names, subject, ttl), SVID)
        }
        X509Request::Agent { id, public_key } => {
            check_member(SVID, &id, &profile.trust_domain)?;
            let subject = profile::svid_name(None, &[]);
            (svid(id, public_key, Vec::new(), subject, profile.agent_ttl), SVID)
        }
        X509Request::Server { public_key } => {
            let subject = profile::svid_name(None, &[]);
            let id = profile.server_id().clone();
            (svid(id, public_key, Vec::new(), subject, profile.x509_svid_ttl), SVID)
        }
        X509Request::DownstreamCa { public_key, ttl } => {
            let template = X509Template {
                serial: serial.clone(),
                subject: profile::downstream_name(signer.subject(), signer.chain_length()),
                validity: profile::validity(now, profile::lifetime(ttl, profile.ca_ttl), cap),
                public_key,
                id: profile.trust_domain.id(),
                dns_names: Vec::new(),
                role: Role::Ca,
            };
            (template, CA)
        }
    };
    let validity = template.validity;
    if validity.not_after < now {
        return Err(IssueError::Expired { what, at: validity.not_after });
    }
    let tbs = template.tbs(&signer.issuer, signer.alg);
    let X509Template { id, .. } = template;
    let (not_before, not_after) = (validity.not_before, validity.not_after);
    Ok(PreparedX509 { signer, tbs, id, serial, not_before, not_after, what })
}

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
    let subject = profile.ca_name(&serial);
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
    let signature = sign(&*key, tbs.alg(), tbs.as_bytes(), CA).await?;
    Ok(X509Signer::new(key, assemble(&tbs, &signature).as_bytes(), Vec::new())?)
}

/// Makes the request that an upstream authority signs.
///
/// # Errors
/// As [`self_signed_ca`].
pub async fn upstream_csr(profile: &Profile, key: &dyn Key) -> Result<Vec<u8>, IssueError> {
    let template = CsrTemplate {
        subject: profile.ca_name(&profile::new_serial()),
        id: Some(profile.trust_domain.id()),
        dns_names: Vec::new(),
    };
    let alg = sig_alg(key.public())?;
    let tbs = template.tbs(key.public());
    let signature = sign(key, alg, &tbs, CA).await?;
    Ok(CsrTemplate::assemble(&tbs, alg, &signature))
}
