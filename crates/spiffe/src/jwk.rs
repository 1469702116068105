//! JSON Web Keys (RFC 7517, RFC 7518): the public keys of bundles, and the algorithms of tokens.
//!
//! Keys are read strictly: coordinates of exactly the curve's width, points on the curve, RSA keys that
//! can sign an SVID. A key with private members is refused: somebody published what should be secret.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use crate::key::{PublicKey, PublicKeyKind};
use crate::url::Url;
use crate::x509::Certificate;

/// The longest modulus, in bytes, that is looked at.
const MAX_MODULUS: usize = 1024;
/// The longest key id that is kept.
const MAX_KEY_ID: usize = 1024;

/// One key of a JWK set.
#[derive(Clone, Debug)]
pub struct Jwk {
    /// `use`; empty if absent.
    pub usage: String,
    /// `kid`; empty if absent.
    pub key_id: String,
    /// The key.
    pub key: PublicKey,
    /// `x5c`.
    pub certificates: Vec<Certificate>,
}

impl Jwk {
    /// Reads one key.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn read(value: &Value) -> Result<Self, String> {
        let members = value.as_object().ok_or("a key must be an object")?;
        let text = |name: &str| match members.get(name) {
            None | Some(Value::Null) => Ok(""),
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(_) => Err(format!("{name} must be a string")),
        };
        // Members of other key types must be well-formed too.
        for name in ["alg", "crv"] {
            text(name)?;
        }
        for name in ["x", "y", "n", "e", "dp", "dq", "qi"] {
            decode(name, text(name)?)?;
        }
        Url::parse(text("x5u")?).map_err(|why| format!("x5u is no URL: {why}"))?;
        if text("kid")?.len() > MAX_KEY_ID {
            return Err("kid is too long".to_owned());
        }
        if ["d", "p", "q", "k"].iter().any(|name| members.contains_key(*name)) {
            return Err("key has private members".to_owned());
        }
        let spki = match text("kty")? {
            "EC" => ec_spki(text("crv")?, text("x")?, text("y")?)?,
            "RSA" => rsa_spki(text("n")?, text("e")?)?,
            other => return Err(format!("unknown key type {other:?}")),
        };
        let key = PublicKey::from_spki(&spki).map_err(|_| "malformed public key")?;
        key.check_usable().map_err(|why| why.to_string())?;
        let certificates = match members.get("x5c") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items.iter().map(certificate).collect::<Result<_, _>>()?,
            Some(_) => return Err("x5c must be an array".to_owned()),
        };
        if certificates.first().is_some_and(|first: &Certificate| *first.public_key() != key) {
            return Err("public keys in key and x5c do not match".to_owned());
        }
        for (name, algorithm) in [("x5t", &digest::SHA1_FOR_LEGACY_USE_ONLY), ("x5t#S256", &digest::SHA256)] {
            check_thumbprint(name, text(name)?, algorithm, certificates.first())?;
        }
        Ok(Self { usage: text("use")?.to_owned(), key_id: text("kid")?.to_owned(), key, certificates })
    }

    /// The members of a key in the order in which SPIRE writes them.
    ///
    /// # Errors
    /// If the key is of a kind that has no JWK here.
    pub fn write(
        usage: &str,
        key_id: &str,
        key: &PublicKey,
        certificate: Option<&[u8]>,
    ) -> Result<Map<String, Value>, String> {
        let mut members = Map::new();
        let mut add = |name: &str, value: String| {
            members.insert(name.to_owned(), Value::String(value));
        };
        if !usage.is_empty() {
            add("use", usage.to_owned());
        }
        let is_rsa = matches!(key.kind(), PublicKeyKind::Rsa(_));
        add("kty", if is_rsa { "RSA" } else { "EC" }.to_owned());
        if !key_id.is_empty() {
            add("kid", key_id.to_owned());
        }
        let curve = match key.kind() {
            PublicKeyKind::EcP256 => Some(("P-256", 32)),
            PublicKeyKind::EcP384 => Some(("P-384", 48)),
            PublicKeyKind::EcP521 => Some(("P-521", 66)),
            PublicKeyKind::Rsa(_) => None,
            PublicKeyKind::Ed25519 | PublicKeyKind::Other => return Err("key has no JWK".to_owned()),
        };
        if let Some((name, width)) = curve {
            let point = key.raw().strip_prefix(&[4]).ok_or("point is compressed")?;
            let (x, y) = point.split_at_checked(width).ok_or("point is too short")?;
            add("crv", name.to_owned());
            add("x", URL_SAFE_NO_PAD.encode(x));
            add("y", URL_SAFE_NO_PAD.encode(y));
        } else {
            let (modulus, exponent) = rsa_parts(key.raw()).ok_or("malformed RSA key")?;
            add("n", URL_SAFE_NO_PAD.encode(modulus));
            add("e", URL_SAFE_NO_PAD.encode(exponent));
        }
        if let Some(der) = certificate {
            members.insert("x5c".to_owned(), Value::Array(vec![Value::String(STANDARD.encode(der))]));
        }
        Ok(members)
    }
}

fn ec_spki(curve: &str, x: &str, y: &str) -> Result<Vec<u8>, String> {
    let (oid, width): (&[u8], usize) = match curve {
        "P-256" => (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7], 32),
        "P-384" => (&[0x2b, 0x81, 4, 0, 0x22], 48),
        "P-521" => (&[0x2b, 0x81, 4, 0, 0x23], 66),
        other => return Err(format!("unknown curve {other:?}")),
    };
    let (x, y) = (decode("x", x)?, decode("y", y)?);
    if x.len() != width || y.len() != width {
        return Err("coordinates have the wrong length".to_owned());
    }
    let algorithm = crate::x509::algorithm_der(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1], Some(oid));
    Ok(crate::x509::spki_der(&algorithm, &[&[4][..], &x, &y].concat()))
}

fn rsa_spki(modulus: &str, exponent: &str) -> Result<Vec<u8>, String> {
    let (modulus, exponent) = (decode("n", modulus)?, decode("e", exponent)?);
    if modulus.is_empty() || exponent.is_empty() || modulus.len() > MAX_MODULUS || exponent.len() > 8 {
        return Err("RSA key of a size that is not used".to_owned());
    }
    let algorithm = crate::x509::algorithm_der(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1], None);
    Ok(crate::x509::spki_der(&algorithm, &crate::x509::rsa_public_key_der(&modulus, &exponent)))
}

/// A digest of the certificate, in bytes or their hexadecimal digits.
fn check_thumbprint(
    name: &str,
    text: &str,
    algorithm: &'static digest::Algorithm,
    certificate: Option<&Certificate>,
) -> Result<(), String> {
    let given = decode(name, text)?;
    if given.is_empty() {
        return Ok(());
    }
    let hexadecimal = |digest: &[u8]| -> String { digest.iter().map(|byte| format!("{byte:02x}")).collect() };
    let is_of = |digest: &[u8]| given == digest || given.eq_ignore_ascii_case(hexadecimal(digest).as_bytes());
    let length = algorithm.output_len();
    if given.len() != length && (given.len() != 2 * length || !given.iter().all(u8::is_ascii_hexdigit)) {
        return Err(format!("{name} is of the wrong length"));
    }
    match certificate {
        Some(certificate) if !is_of(digest::digest(algorithm, certificate.der()).as_ref()) => {
            Err(format!("{name} is not the digest of the certificate in x5c"))
        }
        _ => Ok(()),
    }
}

/// Modulus and exponent of an `RSAPublicKey`, without leading zeros.
fn rsa_parts(der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    use x509_parser::prelude::FromDer;
    let (_, key) = x509_parser::public_key::RSAPublicKey::from_der(der).ok()?;
    let trimmed = |bytes: &[u8]| bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
    Some((trimmed(key.modulus), trimmed(key.exponent)))
}

fn decode(name: &str, text: &str) -> Result<Vec<u8>, String> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("{name} is not base64url"))
}

fn certificate(value: &Value) -> Result<Certificate, String> {
    let text = value.as_str().ok_or("x5c must hold strings")?;
    // Lines may be broken as in PEM: SPIRE's reader passes over their ends.
    let text = text.replace(['\r', '\n'], "");
    let der = STANDARD.decode(text).map_err(|_| "x5c is not base64")?;
    Certificate::parse(&der).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyKind, PrivateKey};

    #[test]
    fn members_that_are_not_used_must_be_well_formed() {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let members = Jwk::write("jwt-svid", "one", key.public(), None).unwrap();
        let read = |name: &str, value: Value| {
            let mut members = members.clone();
            members.insert(name.to_owned(), value);
            Jwk::read(&Value::Object(members)).map(|_| ())
        };

        for (name, value) in [("n", ""), ("e", "AQAB"), ("qi", "AA"), ("x5u", "https://x/"), ("x5t", "")] {
            assert_eq!(read(name, value.into()), Ok(()), "{name}");
        }
        assert_eq!(read("n", Value::Null), Ok(()));
        for name in ["n", "e", "dp", "dq", "qi", "x5u", "x5t", "x5t#S256"] {
            assert!(read(name, 1.into()).is_err(), "{name}");
            assert!(read(name, ":".into()).is_err(), "{name}");
        }
    }

    #[test]
    fn thumbprints_have_the_length_of_their_digest_and_are_of_the_certificate() {
        let check = |name, text: &str, algorithm| check_thumbprint(name, text, algorithm, None);
        let sha1 = &digest::SHA1_FOR_LEGACY_USE_ONLY;
        let digits = URL_SAFE_NO_PAD.encode("0f".repeat(20));

        assert_eq!(check("x5t", &"A".repeat(27), sha1), Ok(()));
        assert_eq!(check("x5t", &digits, sha1), Ok(()));
        assert!(check("x5t", &URL_SAFE_NO_PAD.encode("0g".repeat(20)), sha1).is_err());
        assert!(check("x5t", "AAAA", sha1).is_err());
        assert_eq!(check("x5t#S256", &"A".repeat(43), &digest::SHA256), Ok(()));
        assert!(check("x5t#S256", &digits, &digest::SHA256).is_err());
    }
}
