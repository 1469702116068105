//! What SPIFFE certificates must be (X509-SVID, sections 2 to 4), as an issuer checks it before it signs
//! and a server before it signs with what an upstream authority gave it. Paths are `verify`'s.

use super::parse::{BasicConstraints, KeyUsage, Purposes};
use super::{Certificate, Validity};
use crate::{SpiffeId, UnixSecs};

/// Why a certificate is none that an authority of the trust domain issues; the words are SPIRE's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// There are no basic constraints, or none that can be read.
    #[error("basic constraints are not valid")]
    NoConstraints,
    /// A CA that is none.
    #[error("cA constraint is not set")]
    NotCa,
    /// An SVID that is a CA.
    #[error("cA constraint must not be set")]
    IsCa,
    /// A CA that may not sign.
    #[error("keyCertSign key usage must be set")]
    NoCertSign,
    /// A CA with another usage.
    #[error("only keyCertSign, cRLSign, or digitalSignature key usage can be set")]
    CaUsage,
    /// An SVID that may not sign.
    #[error("digitalSignature key usage must be set")]
    NoDigitalSignature,
    /// An SVID with another usage.
    #[error("only digitalSignature, keyEncipherment, and keyAgreement key usage can be set")]
    SvidUsage,
    /// An SVID for servers or clients only.
    #[error("missing serverAuth or clientAuth extended key usage")]
    Purpose,
    /// No identity.
    #[error("missing URI SAN")]
    NoUri,
    /// Another identity, or several.
    #[error("expected URI SAN \"{wanted}\" but got {found:?}")]
    Uri {
        /// Whose it should be.
        wanted: SpiffeId,
        /// Whose it is.
        found: Vec<String>,
    },
    /// It begins later.
    #[error("not yet valid until {0}")]
    NotYet(UnixSecs),
    /// It has ended.
    #[error("already expired as of {0}")]
    Expired(UnixSecs),
}

/// What a certificate says of what the profile is about.
#[derive(Debug)]
pub(super) struct Stated<'a> {
    pub(super) constraints: Option<BasicConstraints>,
    pub(super) usage: Option<KeyUsage>,
    pub(super) purposes: Option<Purposes>,
    pub(super) uris: Vec<&'a str>,
    pub(super) validity: Validity,
}

impl<'a> Stated<'a> {
    pub(super) fn by(certificate: &'a Certificate) -> Self {
        Self {
            constraints: certificate.basic_constraints(),
            usage: certificate.key_usage(),
            purposes: certificate.purposes(),
            uris: certificate.uris().iter().map(String::as_str).collect(),
            validity: Validity { not_before: certificate.not_before(), not_after: certificate.not_after() },
        }
    }

    /// Whether it is a CA that signs for the trust domain `id` at `now`.
    pub(super) fn check_ca(&self, id: &SpiffeId, now: UnixSecs) -> Result<(), ProfileError> {
        let constraints = self.constraints.ok_or(ProfileError::NoConstraints)?;
        if !constraints.is_ca {
            return Err(ProfileError::NotCa);
        }
        let usage = self.usage.filter(|usage| usage.cert_sign).ok_or(ProfileError::NoCertSign)?;
        if usage.exchange || usage.others {
            return Err(ProfileError::CaUsage);
        }
        // A signing certificate should have an identity, but need not (X509-SVID, section 4.2).
        if !self.uris.is_empty() {
            self.check_uri(id)?;
        }
        self.check_time(now)
    }

    /// Whether it is an SVID of `id` at `now`.
    pub(super) fn check_svid(&self, id: &SpiffeId, now: UnixSecs) -> Result<(), ProfileError> {
        let constraints = self.constraints.ok_or(ProfileError::NoConstraints)?;
        if constraints.is_ca {
            return Err(ProfileError::IsCa);
        }
        let usage = self.usage.filter(|usage| usage.digital_signature);
        let usage = usage.ok_or(ProfileError::NoDigitalSignature)?;
        if usage.cert_sign || usage.crl_sign || usage.others {
            return Err(ProfileError::SvidUsage);
        }
        if self.purposes.is_some_and(|purposes| !purposes.server_auth || !purposes.client_auth) {
            return Err(ProfileError::Purpose);
        }
        if self.uris.is_empty() {
            return Err(ProfileError::NoUri);
        }
        self.check_uri(id)?;
        self.check_time(now)
    }

    fn check_uri(&self, id: &SpiffeId) -> Result<(), ProfileError> {
        match self.uris.as_slice() {
            [uri] if *uri == id.as_str() => Ok(()),
            found => {
                let found = found.iter().map(ToString::to_string).collect();
                Err(ProfileError::Uri { wanted: id.clone(), found })
            }
        }
    }

    fn check_time(&self, now: UnixSecs) -> Result<(), ProfileError> {
        let Validity { not_before, not_after } = self.validity;
        if now < not_before {
            return Err(ProfileError::NotYet(not_before));
        }
        if now > not_after {
            return Err(ProfileError::Expired(not_after));
        }
        Ok(())
    }
}

/// Whether `certificate` is a CA that signs for the trust domain `id` at `now`.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_ca(certificate: &Certificate, id: &SpiffeId, now: UnixSecs) -> Result<(), ProfileError> {
    Stated::by(certificate).check_ca(id, now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyKind, PrivateKey};
    use crate::x509::{Issuer, Name, Role, Serial, X509Template, assemble};

    const NOW: UnixSecs = UnixSecs(1_800_000_000);

    fn check_svid(certificate: &Certificate, id: &SpiffeId, now: UnixSecs) -> Result<(), ProfileError> {
        Stated::by(certificate).check_svid(id, now)
    }

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap()
    }

    fn certificate(id: SpiffeId, role: Role) -> Certificate {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let template = X509Template {
            serial: Serial::from_be_bytes(&[1]),
            subject: Name::new(&[]),
            validity: Validity { not_before: NOW, not_after: NOW.plus(60) },
            public_key: key.public().clone(),
            id,
            dns_names: Vec::new(),
            role,
        };
        let alg = key.sig_alg().unwrap();
        let tbs = template.tbs(&Issuer { name: Name::new(&[]), key_id: None }, alg);
        Certificate::parse(assemble(&tbs, &key.sign(alg, tbs.as_bytes()).unwrap()).as_bytes()).unwrap()
    }

    #[test]
    fn a_ca_is_no_svid_and_an_svid_no_ca() {
        let (ca, svid) = (certificate(id(""), Role::Ca), certificate(id("/web"), Role::Svid));

        assert_eq!(check_ca(&ca, &id(""), NOW), Ok(()));
        assert_eq!(check_svid(&svid, &id("/web"), NOW), Ok(()));
        assert_eq!(check_ca(&svid, &id("/web"), NOW), Err(ProfileError::NotCa));
        assert_eq!(check_svid(&ca, &id(""), NOW), Err(ProfileError::IsCa));
    }

    #[test]
    fn identity_and_time_must_be_the_expected_ones() {
        let svid = certificate(id("/web"), Role::Svid);

        let other = check_svid(&svid, &id("/db"), NOW).unwrap_err().to_string();
        assert_eq!(
            other,
            "expected URI SAN \"spiffe://example.org/db\" but got [\"spiffe://example.org/web\"]"
        );
        let early = NOW.plus(-1);
        assert_eq!(check_svid(&svid, &id("/web"), early), Err(ProfileError::NotYet(NOW)));
        assert_eq!(check_svid(&svid, &id("/web"), NOW.plus(61)), Err(ProfileError::Expired(NOW.plus(60))));
    }
}
