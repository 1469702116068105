//! Private keys as JWK (RFC 7518, 6.2.2 and 6.3.2), for those who ask for a key in that form.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::{KeyError, PrivateKey};
use crate::jwk::Jwk;

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

impl PrivateKey {
    /// The key as a JWK, both halves.
    ///
    /// # Errors
    /// [`KeyError::Failed`].
    pub fn to_jwk(&self) -> Result<Zeroizing<String>, KeyError> {
        let public = Jwk::write("", "", self.public(), None).map_err(|_| KeyError::Unsupported)?;
        let pkcs8 = self.to_pkcs8()?;
        // Private-Key-Info (RFC 5958): version, algorithm, key.
        let (inner, _) = element(&pkcs8, SEQUENCE)?;
        let (_, inner) = element(inner, INTEGER)?;
        let (_, inner) = element(inner, SEQUENCE)?;
        let (key, _) = element(inner, OCTETS)?;
        let (mut rest, _) = element(key, SEQUENCE)?;
        let mut text = Zeroizing::new(String::with_capacity(4096));
        text.push('{');
        let mut add = |name: &str, value: &str| {
            for part in [if text.len() > 1 { ",\"" } else { "\"" }, name, "\":\"", value, "\""] {
                text.push_str(part);
            }
        };
        // The order of members that other tools print.
        for name in ["kty", "crv", "x", "y", "n", "e"] {
            if let Some(value) = public.get(name).and_then(serde_json::Value::as_str) {
                add(name, value);
            }
        }
        (_, rest) = element(rest, INTEGER)?;
        if public.contains_key("crv") {
            // ECPrivateKey (RFC 5915): version, key, and what is known already.
            let (secret, _) = element(rest, OCTETS)?;
            add("d", &Zeroizing::new(URL_SAFE_NO_PAD.encode(secret)));
        } else {
            // RSAPrivateKey (RFC 8017): version, n, e, and these.
            (_, rest) = element(rest, INTEGER)?;
            (_, rest) = element(rest, INTEGER)?;
            for name in ["d", "p", "q", "dp", "dq", "qi"] {
                let number;
                (number, rest) = element(rest, INTEGER)?;
                let number = number.strip_prefix(&[0]).unwrap_or(number);
                add(name, &Zeroizing::new(URL_SAFE_NO_PAD.encode(number)));
            }
        }
        text.push('}');
        Ok(text)
    }
}

/// The contents of the first element, which must be of this kind, and what comes after it.
fn element(der: &[u8], tag: u8) -> Result<(&[u8], &[u8]), KeyError> {
    let (found, rest) = der.split_first().ok_or(KeyError::Malformed)?;
    let (first, mut rest) = rest.split_first().ok_or(KeyError::Malformed)?;
    if *found != tag {
        return Err(KeyError::Malformed);
    }
    let mut length = usize::from(*first);
    if length > 0x80 {
        let (bytes, after) = rest.split_at_checked(length & 0x7f).ok_or(KeyError::Malformed)?;
        if bytes.len() > 3 {
            return Err(KeyError::Malformed);
        }
        length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = after;
    }
    rest.split_at_checked(length).ok_or(KeyError::Malformed)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::key::KeyKind;

    #[test]
    fn both_halves_are_written() {
        for (kind, members) in [
            (KeyKind::EcP256, ["kty", "crv", "x", "y", "d"].as_slice()),
            (KeyKind::EcP384, ["kty", "crv", "x", "y", "d"].as_slice()),
            (KeyKind::Rsa2048, ["kty", "n", "e", "d", "p", "q", "dp", "dq", "qi"].as_slice()),
        ] {
            let key = PrivateKey::generate(kind).unwrap();

            let text = key.to_jwk().unwrap();

            let jwk: Value = serde_json::from_str(&text).unwrap();
            let mut wanted = members.to_vec();
            let mut written: Vec<_> = jwk.as_object().unwrap().keys().map(String::as_str).collect();
            wanted.sort_unstable();
            written.sort_unstable();
            assert_eq!(written, wanted);
            let places: Vec<_> = members.iter().map(|name| text.find(&format!("\"{name}\":"))).collect();
            assert!(places.is_sorted());
            let width = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap().len();
            match kind {
                KeyKind::EcP256 => assert_eq!(width("d"), 32),
                KeyKind::EcP384 => assert_eq!(width("d"), 48),
                KeyKind::Rsa2048 | KeyKind::Rsa4096 => assert_eq!((width("n"), width("p")), (256, 128)),
            }
        }
    }
}
