//! What is about to be signed, read back from its bytes and judged before it is.
//!
//! Of all that certificates may hold, only what an authority issues passes, so that reading is short:
//! that of any [`Certificate`](super::Certificate) takes several times as long.

use super::form::{CE, Extension, Frame};
use super::parse::{BasicConstraints, KeyUsage, MAX_CERTIFICATE, MAX_NAMES, Purposes};
use super::profile::Stated;
use super::{CertificateError, ProfileError, Role, Tbs, X509Template, build, der};
use crate::UnixSecs;

/// What a signature adds to the part that is signed, at most.
const MAX_SIGNATURE: usize = 1024;

/// Why something must not be signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsignedError {
    /// Nobody could read it.
    #[error(transparent)]
    Unreadable(#[from] CertificateError),
    /// It would be no certificate of this trust domain.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

impl X509Template {
    /// Reads `tbs`, which was made of this, as everybody will read it, and judges what that says at `now`.
    ///
    /// # Errors
    /// [`UnsignedError`] for what readers would refuse, for whatever an authority does not issue, and
    /// for another key or identity than this one's.
    pub fn check(&self, tbs: &Tbs, now: UnixSecs) -> Result<(), UnsignedError> {
        if tbs.as_bytes().len() > MAX_CERTIFICATE - MAX_SIGNATURE {
            return Err(CertificateError::TooLong.into());
        }
        let frame = Frame::of_signed_part(tbs.as_bytes()).map_err(malformed)?;
        if frame.version() != Some(&[2]) {
            return Err(malformed("version does not fit").into());
        }
        let is = |der: &[u8], part| der::elements(der).next() == Some((der::SEQUENCE, part));
        if !is(&build::algorithm(tbs.alg()), frame.algorithm()) {
            return Err(malformed("another algorithm").into());
        }
        if !is(self.public_key.spki(), frame.key()) {
            return Err(malformed("another public key").into());
        }
        frame.check(&self.public_key).map_err(malformed)?;
        let stated = read(&frame)?;
        match self.role {
            Role::Svid => stated.check_svid(&self.id, now)?,
            Role::Ca => stated.check_ca(&self.id, now)?,
        }
        Ok(())
    }
}

fn malformed(what: &str) -> CertificateError {
    CertificateError::Malformed(what.to_owned())
}

/// What the certificate will say of what the profile is about.
fn read<'a>(frame: &Frame<'a>) -> Result<Stated<'a>, CertificateError> {
    let validity = frame.validity().ok_or_else(|| malformed("validity is not in a form of RFC 5280"))?;
    let mut stated =
        Stated { constraints: None, usage: None, purposes: None, uris: Vec::with_capacity(1), validity };
    let mut seen = 0_u64;
    for Extension { id, is_critical, value } in frame.extensions() {
        let Some(&[kind @ 0..64]) = id.strip_prefix(&CE) else { return Err(malformed(UNKNOWN)) };
        if seen & 1 << kind != 0 {
            return Err(CertificateError::DuplicateExtension);
        }
        seen |= 1 << kind;
        match (id, is_critical) {
            // RFC 5280 4.2.1.1, 4.2.1.2: never critical.
            (build::SUBJECT_KEY_ID, false) => {}
            (build::AUTHORITY_KEY_ID, false) if is_one_key_id(value) => {}
            (build::KEY_USAGE, _) => stated.usage = Some(key_usage(value, is_critical)?),
            (build::EXTENDED_KEY_USAGE, _) => stated.purposes = Some(purposes(value)),
            (build::BASIC_CONSTRAINTS, _) => stated.constraints = Some(constraints(value)?),
            (build::SUBJECT_ALT_NAME, _) => stated.uris = uris(value)?,
            _ => return Err(malformed(UNKNOWN)),
        }
    }
    Ok(stated)
}

const UNKNOWN: &str = "extension that no authority issues";

fn key_usage(value: &[u8], critical: bool) -> Result<KeyUsage, CertificateError> {
    // No zeros behind the last bit that is set (X.690, 11.2.2).
    let is_named =
        |unused: u8, bits: &[u8]| bits.last().is_some_and(|last| last.trailing_zeros() == u32::from(unused));
    let bits = match der::elements(value).next() {
        Some((_, [unused, bits @ ..])) if is_named(*unused, bits) => bits,
        _ => return Err(malformed("key usage that no authority issues")),
    };
    let bit = |n: usize| bits.get(n / 8).is_some_and(|byte| byte & 0x80 >> (n % 8) != 0);
    Ok(KeyUsage {
        critical,
        digital_signature: bit(0),
        cert_sign: bit(5),
        crl_sign: bit(6),
        // Key encipherment, key agreement.
        exchange: bit(2) || bit(4),
        // What else there is: commitment to contents, encipherment of data, and of one of two directions.
        others: bit(1) || bit(3) || bit(7) || bit(8),
    })
}

fn purposes(value: &[u8]) -> Purposes {
    let mut found = Purposes { any: false, server_auth: false, client_auth: false };
    for (_, purpose) in der::items(value) {
        found.server_auth |= purpose == build::SERVER_AUTH;
        found.client_auth |= purpose == build::CLIENT_AUTH;
    }
    found
}

/// Basic constraints, which do not say how many may follow.
fn constraints(value: &[u8]) -> Result<BasicConstraints, CertificateError> {
    let mut parts = der::items(value);
    let is_ca = match (parts.next(), parts.next()) {
        (None, _) => false,
        (Some((der::BOOLEAN, is_ca)), None) => is_ca == [0xff],
        _ => return Err(malformed("basic constraints that no authority issues")),
    };
    Ok(BasicConstraints { is_ca, path_len: None })
}

fn is_one_key_id(value: &[u8]) -> bool {
    let mut parts = der::items(value);
    matches!((parts.next(), parts.next()), (Some((0x80, _)), None))
}

/// The URIs among alternative names, which are DNS names and URIs.
fn uris(value: &[u8]) -> Result<Vec<&str>, CertificateError> {
    let mut uris = Vec::with_capacity(1);
    for (n, name) in der::items(value).enumerate() {
        match name {
            _ if n == MAX_NAMES => return Err(malformed("too many alternative names")),
            (0x82, _) => {}
            (0x86, uri) => {
                uris.push(
                    std::str::from_utf8(uri).map_err(|_| malformed("alternative name cannot be read"))?,
                );
            }
            _ => return Err(malformed("alternative name that no authority issues")),
        }
    }
    Ok(uris)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyKind, PrivateKey, Signature};
    use crate::x509::{Attribute, Certificate, Issuer, Name, Serial, Validity, assemble};
    use crate::{SpiffeId, x509::build::extension};

    const NOW: UnixSecs = UnixSecs(1_800_000_000);

    fn template(kind: KeyKind, role: Role) -> X509Template {
        let id = if role == Role::Ca { "spiffe://example.org" } else { "spiffe://example.org/web" };
        X509Template {
            serial: Serial::from_be_bytes(&[0x80; 16]),
            subject: Name::new(&[(Attribute::Country, "US"), (Attribute::Organization, "SPIRE")]),
            validity: Validity { not_before: NOW, not_after: NOW.plus(60) },
            public_key: PrivateKey::generate(kind).unwrap().public().clone(),
            id: SpiffeId::parse(id).unwrap(),
            dns_names: Vec::new(),
            role,
        }
    }

    fn issuer() -> Issuer {
        Issuer { name: Name::new(&[(Attribute::CommonName, "ca")]), key_id: Some(vec![7; 20]) }
    }

    fn tbs(template: &X509Template) -> Tbs {
        template.tbs(&issuer(), crate::key::SigAlg::EcdsaP256Sha256)
    }

    /// What the reader of any certificate makes of it.
    fn as_certificate(tbs: &Tbs) -> Result<Certificate, CertificateError> {
        Certificate::parse(assemble(tbs, &Signature::new(vec![0x30, 0])).as_bytes())
    }

    fn frame(tbs: &Tbs) -> Frame<'_> {
        Frame::of_signed_part(tbs.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_read_is_what_the_reader_of_any_certificate_reads() {
        for kind in [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048] {
            for role in [Role::Svid, Role::Ca] {
                for dns_names in [vec![], vec!["a.test".to_owned(), "b.test".to_owned()]] {
                    for subject in [Name::new(&[]), template(kind, role).subject] {
                        for (start, end) in
                            [(NOW, NOW.plus(60)), (UnixSecs(2_524_607_999), UnixSecs(2_524_608_000))]
                        {
                            let validity = Validity { not_before: start, not_after: end };
                            let (dns_names, subject) = (dns_names.clone(), subject.clone());
                            let template =
                                X509Template { dns_names, subject, validity, ..template(kind, role) };
                            let tbs = tbs(&template);

                            assert_eq!(template.check(&tbs, start), Ok(()));
                            let certificate = as_certificate(&tbs).unwrap();
                            let stated = read(&frame(&tbs)).unwrap();
                            assert_eq!(format!("{stated:?}"), format!("{:?}", Stated::by(&certificate)));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn both_readers_refuse_what_nobody_should_read() {
        let names = ["\u{e9}.test".to_owned()];
        let cases = [
            X509Template { dns_names: names.to_vec(), ..template(KeyKind::EcP256, Role::Svid) },
            X509Template {
                dns_names: (0..1001).map(|n| format!("{n}.test")).collect(),
                ..template(KeyKind::EcP256, Role::Svid)
            },
            X509Template {
                subject: Name::from_der(&[0x30, 4, 0x31, 2, 0x05, 0]),
                ..template(KeyKind::EcP256, Role::Svid)
            },
            X509Template { subject: Name::from_der(&[]), ..template(KeyKind::EcP256, Role::Svid) },
            X509Template {
                validity: Validity { not_before: NOW, not_after: UnixSecs(253_402_300_800) },
                ..template(KeyKind::EcP256, Role::Svid)
            },
            X509Template { dns_names: vec!["a".repeat(64 * 1024)], ..template(KeyKind::EcP256, Role::Svid) },
        ];
        for template in cases {
            let tbs = tbs(&template);

            assert!(as_certificate(&tbs).is_err(), "{template:?}");
            assert!(matches!(template.check(&tbs, NOW), Err(UnsignedError::Unreadable(_))), "{template:?}");
        }
    }

    #[test]
    fn no_byte_of_what_is_signed_can_be_another_without_notice() {
        let svid = template(KeyKind::EcP256, Role::Svid);
        let whole = tbs(&svid);
        let mut harmless = 0;
        for at in 0..whole.as_bytes().len() {
            for bit in 0..8 {
                let mut bytes = whole.as_bytes().to_vec();
                bytes[at] ^= 1 << bit;
                let changed = Tbs::of(bytes, whole.alg());

                let ours = svid.check(&changed, NOW);
                // Nothing passes here that other readers refuse, or that is another identity's.
                if ours.is_ok() {
                    harmless += 1;
                    let certificate = as_certificate(&changed).unwrap();
                    assert_eq!(certificate.uris(), [svid.id.as_str()]);
                    assert_eq!(certificate.public_key(), &svid.public_key);
                    assert!(Stated::by(&certificate).check_svid(&svid.id, NOW).is_ok());
                }
            }
        }
        // Serial number, names, key identifiers, and ends of the validity may be others.
        assert!(harmless > 0);
    }

    #[test]
    fn only_what_an_authority_issues_passes() {
        let svid = template(KeyKind::EcP256, Role::Svid);
        let whole = tbs(&svid);
        let with = |changed: Vec<u8>| {
            let parts: Vec<_> = der::items(whole.as_bytes()).map(|(tag, part)| der::tlv(tag, part)).collect();
            let (last, parts) = parts.split_last().unwrap();
            let (_, extensions) = der::items(last).next().unwrap();
            let list = der::cat(der::SEQUENCE, &[extensions, &changed]);
            let bytes = der::cat(der::SEQUENCE, &[&parts.concat(), &der::explicit(3, &list)]);
            svid.check(&Tbs::of(bytes, whole.alg()), NOW).map_err(|error| error.to_string())
        };

        assert_eq!(with(Vec::new()), Ok(()));
        let unknown = Err("malformed certificate: extension that no authority issues".to_owned());
        let policies = der::tlv(der::SEQUENCE, &der::tlv(der::SEQUENCE, &der::oid(&[0x2a, 3])));
        assert_eq!(with(extension(&[0x55, 0x1d, 32], false, &policies)), unknown);
        assert_eq!(with(extension(&[0x2a, 3], false, &[])), unknown);
        let again = extension(build::SUBJECT_KEY_ID, false, &der::octets(&[7]));
        assert_eq!(with(again), Err("malformed certificate: duplicate extensions".to_owned()));
        let other =
            X509Template { public_key: template(KeyKind::EcP256, Role::Svid).public_key, ..svid.clone() };
        assert_eq!(
            other.check(&whole, NOW).unwrap_err().to_string(),
            "malformed certificate: another public key"
        );
        let other = X509Template { role: Role::Ca, ..svid.clone() };
        assert_eq!(other.check(&whole, NOW), Err(ProfileError::NotCa.into()));
    }

    #[test]
    fn key_identifiers_are_never_critical() {
        let svid = template(KeyKind::EcP256, Role::Svid);
        let whole = tbs(&svid);
        for id in [build::SUBJECT_KEY_ID, build::AUTHORITY_KEY_ID] {
            for is_critical in [false, true] {
                let written = |held: Extension<'_>| {
                    extension(held.id, held.is_critical || (is_critical && held.id == id), held.value)
                };
                let extensions: Vec<_> = frame(&whole).extensions().map(written).collect();
                let parts: Vec<_> =
                    der::items(whole.as_bytes()).map(|(tag, part)| der::tlv(tag, part)).collect();
                let (_, parts) = parts.split_last().unwrap();
                let list = der::explicit(3, &der::tlv(der::SEQUENCE, &extensions.concat()));
                let changed = Tbs::of(der::cat(der::SEQUENCE, &[&parts.concat(), &list]), whole.alg());

                assert_eq!(svid.check(&changed, NOW).is_ok(), !is_critical, "{id:02x?}");
                assert_eq!(as_certificate(&changed).is_ok(), !is_critical, "{id:02x?}");
            }
        }
    }
}
