//! Keys, requests and certificates of those who call the product: made here, so that a suite can also
//! be somebody whom the product must refuse.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use time::{Duration, OffsetDateTime};

use crate::der;

const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";

/// A P-256 key.
pub(crate) struct Key {
    pair: EcdsaKeyPair,
}

impl Key {
    /// A new key.
    pub(crate) fn generate() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key can be made");
        Self { pair }
    }

    /// The private key as PKCS #8.
    pub(crate) fn pkcs8(&self) -> Vec<u8> {
        self.pair.to_pkcs8v1().expect("a key can be written").as_ref().to_vec()
    }

    /// A request for a certificate that names `uri`.
    pub(crate) fn request(&self, uri: &str) -> Vec<u8> {
        self.request_with(uri, &[])
    }

    /// The same with DNS names.
    pub(crate) fn request_with(&self, uri: &str, dns: &[String]) -> Vec<u8> {
        let mut names = vec![der::write(0x86, &[uri.as_bytes()])];
        names.extend(dns.iter().map(|name| der::write(0x82, &[name.as_bytes()])));
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        let names = extension("2.5.29.17", false, &der::sequence(&names));
        let wanted = der::sequence(&[
            &der::oid("1.2.840.113549.1.9.14"),
            &der::write(0x31, &[&der::sequence(&[&names])]),
        ]);
        let body = der::sequence(&[
            &[0x02, 1, 0],
            &der::sequence(&[]),
            &self.public_key_info(),
            &der::write(0xa0, &[&wanted]),
        ]);
        self.signed(&body)
    }

    fn public_key_info(&self) -> Vec<u8> {
        let algorithm = der::sequence(&[&der::oid("1.2.840.10045.2.1"), &der::oid("1.2.840.10045.3.1.7")]);
        der::sequence(&[&algorithm, &bits(self.pair.public_key().as_ref())])
    }

    fn signed(&self, body: &[u8]) -> Vec<u8> {
        let signature = self.pair.sign(&SystemRandom::new(), body).expect("a key signs");
        der::sequence(&[body, &der::sequence(&[&der::oid(ECDSA_SHA256)]), &bits(signature.as_ref())])
    }
}

/// A self-signed authority of some trust domain.
pub(crate) struct Authority {
    key: Key,
    /// Its certificate.
    pub(crate) certificate: Vec<u8>,
}

impl Authority {
    /// A new authority of `trust_domain`, good for a day.
    pub(crate) fn of(trust_domain: &str) -> Self {
        let key = Key::generate();
        let certificate = certificate(&key, &key, &format!("spiffe://{trust_domain}"), Kind::Authority);
        Self { key, certificate }
    }

    /// A certificate of `key` for the identity `uri`.
    pub(crate) fn certify(&self, key: &Key, uri: &str) -> Vec<u8> {
        certificate(&self.key, key, uri, Kind::Leaf)
    }

    /// A certificate of `key` for web servers on 127.0.0.1.
    pub(crate) fn certify_web(&self, key: &Key) -> Vec<u8> {
        certificate(&self.key, key, "", Kind::Web)
    }
}

/// What a database server on 127.0.0.1 and its clients need to speak TLS, in PEM.
#[derive(Clone, Debug)]
pub struct DatabaseSecrets {
    /// The authority of both.
    pub root: String,
    /// An authority of neither.
    pub stranger: String,
    /// Certificate and key of the server.
    pub server: [String; 2],
    /// Certificate and key of a client.
    pub client: [String; 2],
}

impl DatabaseSecrets {
    /// New ones.
    #[must_use]
    pub fn new() -> Self {
        let authority = Authority::of("database.test");
        let (server, client) = (Key::generate(), Key::generate());
        let pair = |der: &[u8], key: &Key| [pem("CERTIFICATE", der), pem("PRIVATE KEY", &key.pkcs8())];
        Self {
            root: pem("CERTIFICATE", &authority.certificate),
            stranger: pem("CERTIFICATE", &Authority::of("stranger.test").certificate),
            server: pair(&authority.certify_web(&server), &server),
            client: pair(&authority.certify(&client, "spiffe://database.test/client"), &client),
        }
    }
}

impl Default for DatabaseSecrets {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Authority,
    Leaf,
    Web,
}

fn certificate(issuer: &Key, subject: &Key, uri: &str, kind: Kind) -> Vec<u8> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).expect("random numbers");
    serial[0] = (serial[0] & 0x7f) | 0x40;
    let now = OffsetDateTime::now_utc();
    let validity = der::sequence(&[&instant(now - Duration::minutes(1)), &instant(now + Duration::days(1))]);
    let is_authority = kind == Kind::Authority;
    let usage: &[u8] = if is_authority { &[0x03, 2, 1, 0x06] } else { &[0x03, 2, 3, 0xa8] };
    let authority: &[u8] = if is_authority { &[0x01, 1, 0xff] } else { &[] };
    let mut extensions = vec![
        extension("2.5.29.15", true, usage),
        extension("2.5.29.19", true, &der::sequence(&[authority])),
        extension("2.5.29.17", false, &if kind == Kind::Web { loopback() } else { uri_name(uri) }),
    ];
    if !is_authority {
        let uses = der::sequence(&[&der::oid("1.3.6.1.5.5.7.3.1"), &der::oid("1.3.6.1.5.5.7.3.2")]);
        extensions.push(extension("2.5.29.37", false, &uses));
    }
    let extensions: Vec<&[u8]> = extensions.iter().map(Vec::as_slice).collect();
    let body = der::sequence(&[
        &[0xa0, 3, 0x02, 1, 2],
        &der::write(0x02, &[&serial]),
        &der::sequence(&[&der::oid(ECDSA_SHA256)]),
        &name("authority"),
        &validity,
        &name(if is_authority { "authority" } else { "caller" }),
        &subject.public_key_info(),
        &der::write(0xa3, &[&der::sequence(&extensions)]),
    ]);
    issuer.signed(&body)
}

fn name(organization: &str) -> Vec<u8> {
    let attribute = der::sequence(&[&der::oid("2.5.4.10"), &der::write(0x0c, &[organization.as_bytes()])]);
    der::sequence(&[&der::write(0x31, &[&attribute])])
}

fn instant(at: OffsetDateTime) -> Vec<u8> {
    let text = format!(
        "{:02}{:02}{:02}{:02}{:02}{:02}Z",
        at.year() % 100,
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    );
    der::write(0x17, &[text.as_bytes()])
}

fn uri_name(uri: &str) -> Vec<u8> {
    der::sequence(&[&der::write(0x86, &[uri.as_bytes()])])
}

fn loopback() -> Vec<u8> {
    der::sequence(&[&der::write(0x87, &[&[127, 0, 0, 1]])])
}

/// Bytes in PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn extension(oid: &str, critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[0x01, 1, 0xff] } else { &[] };
    der::sequence(&[&der::oid(oid), critical, &der::write(0x04, &[value])])
}

fn bits(bytes: &[u8]) -> Vec<u8> {
    der::write(0x03, &[&[0], bytes])
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer as _, X509Certificate, X509CertificationRequest};

    use super::*;

    #[test]
    fn certificates_are_read_and_verified_by_others() {
        let authority = Authority::of("foreign.test");
        let leaf = authority.certify(&Key::generate(), "spiffe://foreign.test/caller");

        let (_, root) = X509Certificate::from_der(&authority.certificate).unwrap();
        let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();

        leaf.verify_signature(Some(root.public_key())).unwrap();
        assert!(root.is_ca() && !leaf.is_ca());
        assert!(leaf.validity().is_valid());
    }

    #[test]
    fn requests_are_read_and_verified_by_others() {
        let request = Key::generate().request("spiffe://example.org/x");

        let (_, parsed) = X509CertificationRequest::from_der(&request).unwrap();

        parsed.verify_signature().unwrap();
    }
}
