//! Certificates: X.509-SVIDs and CAs.

use std::sync::Arc;

use plugin::{CredentialComposer, SvidAttributes};
use runtime::metrics::Counter;
use spiffe::key::PublicKey;
use spiffe::x509::{CertDer, Name, Role, Serial, X509Template, assemble};
use spiffe::{SpiffeId, UnixSecs};

use super::{IssueError, check_member, sign};
use crate::authority::X509Signer;
use crate::profile::{self, Composers, Profile};

const SVID: &str = "X509-SVID";
pub(super) const CA: &str = "X509 CA";

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

/// A certificate that is ready to be composed, checked and signed.
#[derive(Debug)]
pub struct PreparedX509 {
    signer: Arc<X509Signer>,
    composers: Composers,
    template: X509Template,
    kind: Kind,
    now: UnixSecs,
    counter: Counter,
}

/// Whose certificate it is: composers are asked by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Workload,
    Agent,
    Server,
    DownstreamCa,
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
    /// Counted once it is signed.
    pub(super) fn counted_by(self, counter: &Counter) -> Self {
        Self { counter: counter.clone(), ..self }
    }

    /// Lets the composers have their say, checks what came of it, and signs it.
    ///
    /// # Errors
    /// [`IssueError::Compose`], [`IssueError::Profile`], [`IssueError::Sign`] or
    /// [`IssueError::BadSignature`].
    pub async fn sign(self) -> Result<X509Svid, IssueError> {
        let Self { signer, composers, mut template, kind, now, counter } = self;
        for composer in composers.iter() {
            compose(&**composer, &mut template, kind).await?;
        }
        let what = kind.what();
        let tbs = template.tbs(&signer.issuer, signer.alg);
        template.check(&tbs, now).map_err(|reason| IssueError::Profile { what, reason })?;
        let signature = sign(&*signer.key, tbs.alg(), tbs.as_bytes(), what).await?;
        let mut chain = Vec::with_capacity(1 + signer.upstream_chain().len());
        chain.push(assemble(&tbs, &signature));
        chain.extend_from_slice(signer.upstream_chain());
        counter.increment();
        let X509Template { id, serial, validity, .. } = template;
        let (not_before, not_after) = (validity.not_before, validity.not_after);
        Ok(X509Svid { id, chain, serial, not_before, not_after })
    }
}

impl Kind {
    const fn what(self) -> &'static str {
        match self {
            Self::Workload | Self::Agent | Self::Server => SVID,
            Self::DownstreamCa => CA,
        }
    }
}

async fn compose(
    composer: &dyn CredentialComposer,
    template: &mut X509Template,
    kind: Kind,
) -> Result<(), IssueError> {
    let attributes =
        SvidAttributes { subject: template.subject.clone(), dns_names: template.dns_names.clone() };
    let (id, public_key) = (&template.id, &template.public_key);
    let composed = match kind {
        Kind::Workload => composer.workload_svid(id, public_key, attributes).await,
        Kind::Agent => composer.agent_svid(id, public_key, attributes).await,
        Kind::Server => composer.server_svid(attributes).await,
        // The server below composes its own.
        Kind::DownstreamCa => return Ok(()),
    };
    let SvidAttributes { subject, dns_names } =
        composed.map_err(|error| IssueError::Compose { what: SVID, error })?;
    (template.subject, template.dns_names) = (subject, dns_names);
    Ok(())
}

pub(super) fn prepare(
    profile: &Profile,
    signer: Arc<X509Signer>,
    request: X509Request,
    now: UnixSecs,
) -> Result<PreparedX509, IssueError> {
    let serial = profile::new_serial();
    let cap = Some(signer.ends_at());
    let svid = |id, public_key, dns_names, subject, ttl| X509Template {
        serial: serial.clone(),
        subject,
        validity: profile::validity(now, ttl, cap),
        public_key,
        id,
        dns_names,
        role: Role::Svid,
    };
    let (template, kind) = match request {
        X509Request::Workload { id, public_key, dns_names, ttl, subject } => {
            check_member(SVID, &id, &profile.trust_domain)?;
            let subject = profile::svid_name(subject.as_ref(), &dns_names);
            let ttl = profile::lifetime(ttl, profile.x509_svid_ttl);
            (svid(id, public_key, dns_names, subject, ttl), Kind::Workload)
        }
        X509Request::Agent { id, public_key } => {
            check_member(SVID, &id, &profile.trust_domain)?;
            let subject = profile::svid_name(None, &[]);
            (svid(id, public_key, Vec::new(), subject, profile.agent_ttl), Kind::Agent)
        }
        X509Request::Server { public_key } => {
            let subject = profile::svid_name(None, &[]);
            let id = profile.server_id().clone();
            (svid(id, public_key, Vec::new(), subject, profile.x509_svid_ttl), Kind::Server)
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
            (template, Kind::DownstreamCa)
        }
    };
    let at = template.validity.not_after;
    if at < now {
        return Err(IssueError::Expired { what: kind.what(), at });
    }
    Ok(PreparedX509 {
        signer,
        composers: profile.composers.clone(),
        template,
        kind,
        now,
        counter: Counter::default(),
    })
}
