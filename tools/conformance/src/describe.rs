//! Certificates, tokens and keys, described by their fields as the recordings have them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use x509_parser::extensions::{GeneralName, KeyUsage, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

use crate::der;

/// A certificate in base64 as an object of its fields.
pub(crate) fn certificate(base64: &str) -> Option<Value> {
    let der = STANDARD.decode(base64).ok()?;
    let (rest, certificate) = X509Certificate::from_der(&der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let signature = match certificate.signature_algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.10045.4.3.2" | "1.2.840.113549.1.1.11" => json!("sha256"),
        "1.2.840.10045.4.3.3" | "1.2.840.113549.1.1.12" => json!("sha384"),
        "1.2.840.10045.4.3.4" | "1.2.840.113549.1.1.13" => json!("sha512"),
        "1.3.101.112" => Value::Null,
        other => json!(other),
    };
    let mut extensions = Map::new();
    for extension in certificate.extensions() {
        let (name, value) =
            describe_extension(&extension.oid.to_id_string(), extension.parsed_extension(), extension.value);
        let mark = if extension.critical { "!" } else { "" };
        extensions.insert(format!("{name}{mark}"), value);
    }
    Some(json!({
        "serial": certificate.tbs_certificate.serial.to_string(),
        "key": key_of(certificate.public_key()),
        "sig": signature,
        "subject": distinguished_name(certificate.subject()),
        "issuer": distinguished_name(certificate.issuer()),
        "not_before": certificate.validity().not_before.timestamp(),
        "not_after": certificate.validity().not_after.timestamp(),
        "ext": extensions,
    }))
}

/// A token as `header` and `claims`.
pub(crate) fn token(compact: &str) -> Option<Value> {
    let mut parts = compact.split('.');
    let mut part =
        || -> Option<Value> { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts.next()?).ok()?).ok() };
    Some(json!({"header": part()?, "claims": part()?}))
}

/// The kind of a public key in base64 PKIX form: `EC secp256r1`, `RSA 2048`, ..
pub(crate) fn public_key(base64: &str) -> Option<String> {
    let der = STANDARD.decode(base64).ok()?;
    let (_, info) = SubjectPublicKeyInfo::from_der(&der).ok()?;
    Some(key_of(&info))
}

fn key_of(info: &SubjectPublicKeyInfo<'_>) -> String {
    match (info.algorithm.algorithm.to_id_string().as_str(), info.parsed()) {
        ("1.3.101.112", _) => "Ed25519PublicKey".to_owned(),
        (_, Ok(PublicKey::RSA(key))) => format!("RSA {}", key.key_size()),
        (_, Ok(PublicKey::EC(_))) => {
            let parameters = info.algorithm.parameters.as_ref();
            let curve = parameters.map_or_else(String::new, |any| der::dotted(any.data));
            let curve = match curve.as_str() {
                "1.3.132.0.33" => "secp224r1",
                "1.2.840.10045.3.1.7" => "secp256r1",
                "1.3.132.0.34" => "secp384r1",
                "1.3.132.0.35" => "secp521r1",
                other => other,
            };
            format!("EC {curve}")
        }
        (other, _) => other.to_owned(),
    }
}

/// RFC 4514: the last part first, attributes without a short name by their numbers.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = name
        .iter()
        .map(|part| {
            let attributes: Vec<String> = part
                .iter()
                .map(|attribute| {
                    let oid = attribute.attr_type().to_id_string();
                    let short = match oid.as_str() {
                        "2.5.4.3" => "CN",
                        "2.5.4.6" => "C",
                        "2.5.4.7" => "L",
                        "2.5.4.8" => "ST",
                        "2.5.4.9" => "STREET",
                        "2.5.4.10" => "O",
                        "2.5.4.11" => "OU",
                        other => other,
                    };
                    format!("{short}={}", attribute.as_str().unwrap_or("?"))
                })
                .collect();
            attributes.join("+")
        })
        .collect();
    parts.reverse();
    parts.join(",")
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum with many more kinds")]
fn describe_extension(oid: &str, parsed: &ParsedExtension<'_>, value: &[u8]) -> (String, Value) {
    match parsed {
        ParsedExtension::KeyUsage(usage) => ("ku".to_owned(), json!(usages(usage))),
        ParsedExtension::ExtendedKeyUsage(_) => {
            let purposes = der::read(value).map_or_else(Vec::new, |sequence| der::elements(sequence.content));
            ("eku".to_owned(), json!(purposes.into_iter().map(der::dotted).collect::<Vec<_>>()))
        }
        ParsedExtension::BasicConstraints(constraints) => {
            ("bc".to_owned(), json!({"ca": constraints.ca, "path": constraints.path_len_constraint}))
        }
        ParsedExtension::SubjectKeyIdentifier(id) => ("ski".to_owned(), json!(hex(id.0))),
        ParsedExtension::AuthorityKeyIdentifier(id) => {
            ("aki".to_owned(), json!(id.key_identifier.as_ref().map(|id| hex(id.0))))
        }
        ParsedExtension::SubjectAlternativeName(names) => {
            ("san".to_owned(), json!(names.general_names.iter().map(general_name).collect::<Vec<_>>()))
        }
        _ => (oid.to_owned(), json!(STANDARD.encode(value))),
    }
}

fn usages(usage: &KeyUsage) -> Vec<&'static str> {
    let all = [
        ("content_commitment", usage.non_repudiation()),
        ("crl_sign", usage.crl_sign()),
        ("data_encipherment", usage.data_encipherment()),
        ("decipher_only", usage.decipher_only()),
        ("digital_signature", usage.digital_signature()),
        ("encipher_only", usage.encipher_only()),
        ("key_agreement", usage.key_agreement()),
        ("key_cert_sign", usage.key_cert_sign()),
        ("key_encipherment", usage.key_encipherment()),
    ];
    all.into_iter().filter_map(|(name, set)| set.then_some(name)).collect()
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum with many more kinds")]
fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::URI(uri) => format!("UniformResourceIdentifier:{uri}"),
        GeneralName::DNSName(name) => format!("DNSName:{name}"),
        GeneralName::RFC822Name(name) => format!("RFC822Name:{name}"),
        GeneralName::IPAddress(bytes) => format!("IPAddress:{}", hex(bytes)),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
