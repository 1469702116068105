//! Certificates, read once into what the rest works on.

use std::sync::Arc;

use x509_parser::asn1_rs::Tag;
use x509_parser::certificate::{TbsCertificate, X509Certificate};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::form::{self, Frame};
use super::names::Constraints;
use super::verify::SignatureAlgorithm;
use super::{Name, Serial, Validity};
use crate::UnixSecs;
use crate::key::PublicKey;
use crate::quote::quoted;
use crate::url::Url;

/// The longest certificate that is looked at.
pub(super) const MAX_CERTIFICATE: usize = 64 * 1024;
/// So many extensions are compared with each other.
const FEW_EXTENSIONS: usize = 24;
/// The most alternative names of a certificate that are looked at.
pub(super) const MAX_NAMES: usize = 1000;

/// A certificate that was read. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Certificate(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    der: Arc<[u8]>,
    tbs: Vec<u8>,
    signature: Vec<u8>,
    algorithm: SignatureAlgorithm,
    serial: Serial,
    subject: Name,
    issuer: Name,
    not_before: UnixSecs,
    not_after: UnixSecs,
    public_key: PublicKey,
    subject_key_id: Option<Vec<u8>>,
    authority_key_id: Option<Vec<u8>>,
    basic_constraints: Option<BasicConstraints>,
    key_usage: Option<KeyUsage>,
    purposes: Option<Purposes>,
    names: AltNames,
    constraints: Option<Constraints>,
    unknown_critical: bool,
    is_v3: bool,
}

/// Basic constraints (RFC 5280, 4.2.1.9).
#[derive(Clone, Copy, Debug)]
pub(super) struct BasicConstraints {
    pub(super) is_ca: bool,
    pub(super) path_len: Option<u32>,
}

/// Key usage (RFC 5280, 4.2.1.3).
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyUsage {
    pub(super) critical: bool,
    pub(super) digital_signature: bool,
    pub(super) cert_sign: bool,
    pub(super) crl_sign: bool,
    /// Key encipherment or key agreement.
    pub(super) exchange: bool,
    /// Any other.
    pub(super) others: bool,
}

/// Extended key usage (RFC 5280, 4.2.1.12).
#[derive(Clone, Copy, Debug)]
pub(super) struct Purposes {
    pub(super) any: bool,
    pub(super) server_auth: bool,
    pub(super) client_auth: bool,
}

/// Subject alternative names (RFC 5280, 4.2.1.6).
#[derive(Clone, Debug, Default)]
pub(super) struct AltNames {
    pub(super) uris: Vec<String>,
    pub(super) dns: Vec<String>,
    pub(super) emails: Vec<String>,
    pub(super) ips: Vec<Vec<u8>>,
    /// Whether the extension is critical and holds nothing of the above.
    pub(super) critical_and_unknown: bool,
}

/// Why bytes are no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Longer than is looked at.
    #[error("certificate is longer than {MAX_CERTIFICATE} bytes")]
    TooLong,
    /// Not DER of a certificate.
    #[error("malformed certificate: {0}")]
    Malformed(String),
    /// Something follows the certificate.
    #[error("malformed certificate: trailing data")]
    TrailingData,
    /// An extension stands twice.
    #[error("malformed certificate: duplicate extensions")]
    DuplicateExtension,
}

impl Certificate {
    /// Reads one certificate in DER with nothing behind it.
    ///
    /// # Errors
    /// Any of [`CertificateError`].
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let (certificate, rest) = Self::parse_first(der)?;
        if rest.is_empty() { Ok(certificate) } else { Err(CertificateError::TrailingData) }
    }

    /// Reads concatenated certificates in DER; none is an empty list.
    ///
    /// # Errors
    /// Any of [`CertificateError`].
    pub fn parse_all(mut der: &[u8]) -> Result<Vec<Self>, CertificateError> {
        let mut certificates = Vec::new();
        while !der.is_empty() {
            let (certificate, rest) = Self::parse_first(der)?;
            certificates.push(certificate);
            der = rest;
        }
        Ok(certificates)
    }

    fn parse_first(der: &[u8]) -> Result<(Self, &[u8]), CertificateError> {
        let malformed = |what: &dyn std::fmt::Display| CertificateError::Malformed(what.to_string());
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| malformed(&"cannot be read"))?;
        let length = der.len() - rest.len();
        if length > MAX_CERTIFICATE {
            return Err(CertificateError::TooLong);
        }
        let own = der.get(..length).unwrap_or_default();
        let tbs = &parsed.tbs_certificate;
        if has_twice(tbs) {
            return Err(CertificateError::DuplicateExtension);
        }
        if tbs.version.0 > 2 || (tbs.version.0 != 2 && !tbs.extensions().is_empty()) {
            return Err(malformed(&"version does not fit"));
        }
        let frame = Frame::of_certificate(own).map_err(|what| malformed(&what))?;
        let Some(Validity { not_before, not_after }) = frame.validity() else {
            return Err(malformed(&"validity is not in a form of RFC 5280"));
        };
        let public_key = PublicKey::from_info(&tbs.subject_pki).map_err(|error| malformed(&error))?;
        frame.check(&public_key).map_err(|what| malformed(&what))?;
        let mut parts = Parts {
            der: own.into(),
            tbs: tbs.as_ref().to_vec(),
            signature: parsed.signature_value.data.to_vec(),
            algorithm: SignatureAlgorithm::read(&parsed.signature_algorithm),
            serial: Serial::from_be_bytes(tbs.raw_serial()),
            subject: Name::from_der(tbs.subject.as_raw()),
            issuer: Name::from_der(tbs.issuer.as_raw()),
            not_before,
            not_after,
            public_key,
            subject_key_id: None,
            authority_key_id: None,
            basic_constraints: None,
            key_usage: None,
            purposes: None,
            names: AltNames::default(),
            constraints: None,
            unknown_critical: false,
            is_v3: tbs.version.0 == 2,
        };
        for extension in tbs.extensions() {
            // Whatever it holds, an extension that nothing hangs on only matters if it is critical.
            let (id, parsed) = (extension.oid.as_bytes(), extension.parsed_extension());
            let is_broken = matches!(parsed, ParsedExtension::ParseError { .. });
            if form::is_needed(id) || (form::is_understood(id) && !is_broken) {
                parts.take(parsed, extension.critical)?;
            } else {
                parts.unknown_critical |= extension.critical;
            }
        }
        Ok((Self(Arc::new(parts)), rest))
    }

    /// The DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }

    /// The DER, shared.
    #[must_use]
    pub fn to_shared(&self) -> Arc<[u8]> {
        Arc::clone(&self.0.der)
    }

    /// The serial number.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        &self.0.serial
    }

    /// The subject.
    #[must_use]
    pub fn subject(&self) -> &Name {
        &self.0.subject
    }

    /// The issuer.
    #[must_use]
    pub fn issuer(&self) -> &Name {
        &self.0.issuer
    }

    /// The first second in which it holds.
    #[must_use]
    pub fn not_before(&self) -> UnixSecs {
        self.0.not_before
    }

    /// The last second in which it holds.
    #[must_use]
    pub fn not_after(&self) -> UnixSecs {
        self.0.not_after
    }

    /// Whose key it is about.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    /// The subject key identifier.
    #[must_use]
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.0.subject_key_id.as_deref()
    }

    /// The authority key identifier.
    #[must_use]
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.0.authority_key_id.as_deref()
    }

    /// Whether it may sign certificates: basic constraints say so.
    #[must_use]
    pub fn is_ca(&self) -> bool {
        self.0.basic_constraints.is_some_and(|constraints| constraints.is_ca)
    }

    /// The URIs among its alternative names.
    #[must_use]
    pub fn uris(&self) -> &[String] {
        &self.0.names.uris
    }

    /// The DNS names among its alternative names.
    #[must_use]
    pub fn dns_names(&self) -> &[String] {
        &self.0.names.dns
    }

    /// The IP addresses among its alternative names: 4 or 16 bytes each, if they are well-formed.
    #[must_use]
    pub fn ip_addresses(&self) -> &[Vec<u8>] {
        &self.0.names.ips
    }

    /// Whether key usage allows digital signatures; `None` if it says nothing.
    #[must_use]
    pub fn allows_digital_signature(&self) -> Option<bool> {
        self.0.key_usage.map(|usage| usage.digital_signature)
    }

    /// Whether it may be a TLS server's by its extended key usage; `None` if that says nothing.
    #[must_use]
    pub fn allows_server_authentication(&self) -> Option<bool> {
        self.0.purposes.map(|purposes| purposes.any || purposes.server_auth)
    }

    pub(super) fn basic_constraints(&self) -> Option<BasicConstraints> {
        self.0.basic_constraints
    }

    pub(super) fn key_usage(&self) -> Option<KeyUsage> {
        self.0.key_usage
    }

    pub(super) fn purposes(&self) -> Option<Purposes> {
        self.0.purposes
    }

    pub(super) fn names(&self) -> &AltNames {
        &self.0.names
    }

    pub(super) fn constraints(&self) -> Option<&Constraints> {
        self.0.constraints.as_ref()
    }

    pub(super) fn has_unknown_critical(&self) -> bool {
        self.0.unknown_critical || self.0.names.critical_and_unknown
    }

    pub(super) fn is_v3(&self) -> bool {
        self.0.is_v3
    }

    pub(super) fn signed_part(&self) -> (&[u8], SignatureAlgorithm, &[u8]) {
        (&self.0.tbs, self.0.algorithm, &self.0.signature)
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.0.der == other.0.der
    }
}

impl Eq for Certificate {}

impl Parts {
    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever is not understood is treated alike")]
    fn take(&mut self, extension: &ParsedExtension<'_>, critical: bool) -> Result<(), CertificateError> {
        match extension {
            // RFC 5280 4.2.1.1, 4.2.1.2, 4.2.2.1: never critical, and refused by SPIRE's library if so.
            ParsedExtension::SubjectKeyIdentifier(_)
            | ParsedExtension::AuthorityKeyIdentifier(_)
            | ParsedExtension::AuthorityInfoAccess(_)
                if critical =>
            {
                return Err(CertificateError::Malformed("extension is marked critical".to_owned()));
            }
            ParsedExtension::SubjectKeyIdentifier(id) => self.subject_key_id = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                self.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            ParsedExtension::BasicConstraints(constraints) => {
                self.basic_constraints = Some(BasicConstraints {
                    is_ca: constraints.ca,
                    path_len: constraints.path_len_constraint,
                });
            }
            ParsedExtension::KeyUsage(usage) => {
                self.key_usage = Some(KeyUsage {
                    critical,
                    digital_signature: usage.digital_signature(),
                    cert_sign: usage.key_cert_sign(),
                    crl_sign: usage.crl_sign(),
                    exchange: usage.key_encipherment() || usage.key_agreement(),
                    others: usage.non_repudiation()
                        || usage.data_encipherment()
                        || usage.encipher_only()
                        || usage.decipher_only(),
                });
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                self.purposes = Some(Purposes {
                    any: usage.any,
                    server_auth: usage.server_auth,
                    client_auth: usage.client_auth,
                });
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                self.take_names(&names.general_names, critical)?;
            }
            ParsedExtension::NameConstraints(constraints) => {
                let read = Constraints::read(constraints);
                self.unknown_critical |= critical && read.is_partial();
                self.constraints = Some(read);
            }
            ParsedExtension::ParseError { .. } => {
                return Err(CertificateError::Malformed("extension cannot be read".to_owned()));
            }
            // Neither revocation lists nor policies are evaluated: no deployment of SPIFFE uses them. Who
            // requires a policy asks for what is not understood.
            ParsedExtension::PolicyConstraints(constraints) => {
                self.unknown_critical |= constraints.require_explicit_policy.is_some();
            }
            ParsedExtension::CRLDistributionPoints(_)
            | ParsedExtension::CertificatePolicies(_)
            | ParsedExtension::PolicyMappings(_)
            | ParsedExtension::InhibitAnyPolicy(_) => {}
            _ => self.unknown_critical |= critical,
        }
        Ok(())
    }

    fn take_names(&mut self, names: &[GeneralName<'_>], critical: bool) -> Result<(), CertificateError> {
        if names.len() > MAX_NAMES {
            return Err(CertificateError::Malformed("too many alternative names".to_owned()));
        }
        let mut known = false;
        for name in names {
            known |= matches!(
                name,
                GeneralName::URI(_)
                    | GeneralName::DNSName(_)
                    | GeneralName::RFC822Name(_)
                    | GeneralName::IPAddress(_)
            );
            if let GeneralName::URI(uri) = name {
                if !is_readable(uri) {
                    return Err(CertificateError::Malformed(format!("cannot parse URI {}", quoted(uri))));
                }
                self.names.uris.push((*uri).to_owned());
            } else if let GeneralName::DNSName(dns) = name {
                self.names.dns.push((*dns).to_owned());
            } else if let GeneralName::RFC822Name(email) = name {
                self.names.emails.push((*email).to_owned());
            } else if let GeneralName::IPAddress(address) = name {
                self.names.ips.push(address.to_vec());
            } else if let GeneralName::Invalid(Tag(1 | 2 | 6 | 7), _) = name {
                return Err(CertificateError::Malformed("alternative name cannot be read".to_owned()));
            }
        }
        self.names.critical_and_unknown = critical && !known;
        Ok(())
    }
}

/// Whether an extension stands twice. The few of any real certificate are compared with each other: a map
/// costs more.
fn has_twice(tbs: &TbsCertificate<'_>) -> bool {
    let extensions = tbs.extensions();
    if extensions.len() > FEW_EXTENSIONS {
        return tbs.extensions_map().is_err();
    }
    extensions
        .iter()
        .enumerate()
        .any(|(n, one)| extensions.iter().skip(n + 1).any(|other| one.oid == other.oid))
}

/// Whether a URI is one that SPIRE's library reads; a certificate or request with another is none.
pub(super) fn is_readable(uri: &str) -> bool {
    uri.is_ascii() && Url::parse(uri).is_ok_and(|url| url.has_plain_host())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    const GOOD: &str = "MIIBijCCAS+gAwIBAgIUGJef+YKViN9sfpW47+PuoE8jUfMwCgYIKoZIzj0EAwIwHTEMMAoGA1UECgwDT3Jn \
         MQ0wCwYDVQQDDARyb290MB4XDTI2MTEyODAwNTA0NVoXDTI2MTIyODAxNTA0NVowHTEMMAoGA1UECgwDT3Jn \
         MQ0wCwYDVQQDDARsZWFmMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEzx+smxBFAowE7KjRZOqYoYOerW3Q \
         y5cySGfnxbzyss4XkFwOmWgI/NME2oLaoDCCp9JQFGz5ATvSxtoj9S97eaNNMEswDAYDVR0TAQH/BAIwADAO \
         BgNVHQ8BAf8EBAMCB4AwKwYDVR0RBCQwIoYgc3BpZmZlOi8vZXhhbXBsZS5vcmcvd29ybGQvYWRtaW4wCgYI \
         KoZIzj0EAwIDSQAwRgIhAOAkBdSAj53zaB4l6SPf5rf8mmqozags4dpUelFnrpYSAiEA/YRT+XTUn20/O1hG \
         zT4/ZBgC/EQHjSls9UZqAmFD/gI=";
    const CRITICAL_KEY_ID: &str = "MIIBqjCCAVGgAwIBAgIUMpcDyMEa0cENa6TWMB2Yt6sBcrowCgYIKoZIzj0EAwIwHTEMMAoGA1UECgwDT3Jn \
         MQ0wCwYDVQQDDARyb290MB4XDTI2MTEyODAwNTA0NVoXDTI2MTIyODAxNTA0NVowHTEMMAoGA1UECgwDT3Jn \
         MQ0wCwYDVQQDDARsZWFmMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEzx+smxBFAowE7KjRZOqYoYOerW3Q \
         y5cySGfnxbzyss4XkFwOmWgI/NME2oLaoDCCp9JQFGz5ATvSxtoj9S97eaNvMG0wDAYDVR0TAQH/BAIwADAO \
         BgNVHQ8BAf8EBAMCB4AwKwYDVR0RBCQwIoYgc3BpZmZlOi8vZXhhbXBsZS5vcmcvd29ybGQvYWRtaW4wIAYD \
         VR0OAQH/BBYEFHh4eHh4eHh4eHh4eHh4eHh4eHh4MAoGCCqGSM49BAMCA0cAMEQCIHeQjLXYezZ72iQRnPSj \
         +ezaJNC4DLIGNNFZ2kNbxLrDAiBzF9ucqTyzOemlkCEN+L0Fl0gn2Uh8s3KN0zBHCoO7xA==";
    const POLICY_REQUIRED: &str = "MIIBmTCCAUCgAwIBAgIUb84zP2PThnjzrujgq3StQ3r4e0MwCgYIKoZIzj0EAwIwHTEMMAoGA1UECgwDT3Jn \
         MQ0wCwYDVQQDDARyb290MB4XDTI2MTEyODAwNTA0NVoXDTI2MTIyODAxNTA0NVowHTEMMAoGA1UECgwDT3Jn \
         MQ0wCwYDVQQDDARsZWFmMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEzx+smxBFAowE7KjRZOqYoYOerW3Q \
         y5cySGfnxbzyss4XkFwOmWgI/NME2oLaoDCCp9JQFGz5ATvSxtoj9S97eaNeMFwwDAYDVR0TAQH/BAIwADAO \
         BgNVHQ8BAf8EBAMCB4AwKwYDVR0RBCQwIoYgc3BpZmZlOi8vZXhhbXBsZS5vcmcvd29ybGQvYWRtaW4wDwYD \
         VR0kAQH/BAUwA4ABADAKBggqhkjOPQQDAgNHADBEAiBBWxogfGuh4YXWNY90LaiWn3WYItotKgInpau9Jevn \
         EQIgHRRE3K9AHYYkwLxSzn3nGsWqN8tXa88FG/OZSz9o618=";

    fn der(base64: &str) -> Vec<u8> {
        STANDARD.decode(base64.replace(' ', "")).unwrap()
    }

    #[test]
    fn a_key_identifier_is_never_critical() {
        assert!(Certificate::parse(&der(GOOD)).is_ok());
        assert!(matches!(Certificate::parse(&der(CRITICAL_KEY_ID)), Err(CertificateError::Malformed(_))));
    }

    #[test]
    fn a_required_policy_is_not_understood() {
        assert!(!Certificate::parse(&der(GOOD)).unwrap().has_unknown_critical());
        assert!(Certificate::parse(&der(POLICY_REQUIRED)).unwrap().has_unknown_critical());
    }

    #[test]
    fn a_uri_that_cannot_be_read_makes_no_certificate() {
        let mut changed = der(GOOD);
        let at = changed.windows(8).position(|window| window == b"example.").unwrap();

        changed[at] = b' ';

        assert!(matches!(Certificate::parse(&changed), Err(CertificateError::Malformed(_))));
    }
}
