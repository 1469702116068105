//! `keys.json`: the file of the `disk` key managers, in SPIRE's form.
//!
//! `{"keys": {"<key id>": "<base64 of PKCS#8 DER>"}}`, keys in order, indented by tabs, mode 0600. A
//! file that cannot be read or understood is an error that names it: starting without its keys would
//! quietly make a new authority.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use plugin::{KeyId, PluginError};
use runtime::json;
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer};
use spiffe::key::{Pkcs8Error, PrivateKey, UnusedKind};
use zeroize::Zeroizing;

/// Far more than any server keeps.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Reads the keys of `path`; a missing file holds none.
pub(crate) fn load(path: &Path) -> Result<Vec<(KeyId, PrivateKey)>, PluginError> {
    let failed = |reason: String| {
        PluginError::internal(format!(
            "{reason}; restore {} from a backup, or move it away to start with new keys",
            path.display()
        ))
    };
    let contents = match read(path) {
        Ok(contents) => contents,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let path = path.display();
            return Err(PluginError::internal(format!("unable to read keys from {path}: {error}")));
        }
    };
    let file: File = serde_json::from_slice(&contents)
        .map_err(|error| failed(format!("unable to decode keys JSON: {}", place(&error))))?;
    let parse = |(id, text): (String, Secret)| {
        let der = BASE64_STANDARD.decode(text.0.as_bytes()).map(Zeroizing::new);
        let der = der.map_err(|_| failed(format!("unable to decode key {id:?}: not base64")))?;
        let key = PrivateKey::from_pkcs8(&der).map_err(|error| failed(refusal(&id, &error)))?;
        Ok((KeyId::new(&id), key))
    };
    file.keys.into_iter().map(parse).collect()
}

/// What is wrong with a key, in SPIRE's words.
fn refusal(id: &str, error: &Pkcs8Error) -> String {
    let unparsed = |reason: &str| format!("unable to parse key {id:?}: {reason}");
    let other_form = |reader: &str| {
        unparsed(&format!("x509: failed to parse private key (use {reader} instead for this key format)"))
    };
    let unused = |reason: &str| format!("unable to make entry {id:?}: {reason}");
    let no_type = |what: &str| unused(&format!("unable to make key entry for key {id:?}: no {what}"));
    let other_type = |name: &str| unused(&format!("unexpected private key type {name} for key {id:?}"));
    match error {
        Pkcs8Error::Malformed => unparsed("malformed key"),
        Pkcs8Error::BareEc => other_form("ParseECPrivateKey"),
        Pkcs8Error::BareRsa => other_form("ParsePKCS1PrivateKey"),
        Pkcs8Error::Algorithm(oid) => {
            unparsed(&format!("x509: PKCS#8 wrapping contained private key with unknown algorithm: {oid}"))
        }
        Pkcs8Error::Curve => {
            unparsed("x509: failed to parse EC private key embedded in PKCS#8: x509: unknown elliptic curve")
        }
        Pkcs8Error::Kind(UnusedKind::Ec(curve)) => no_type(&format!("EC key type for EC curve: {curve}")),
        Pkcs8Error::Kind(UnusedKind::Rsa(bits)) => {
            no_type(&format!("RSA key type for key bit length: {bits}"))
        }
        Pkcs8Error::Kind(UnusedKind::Ed25519) => other_type("ed25519.PrivateKey"),
        Pkcs8Error::Kind(UnusedKind::X25519) => other_type("*ecdh.PrivateKey"),
    }
}

/// Replaces `path` by a file with these keys.
pub(crate) fn store<'a>(
    path: &Path,
    keys: impl Iterator<Item = (&'a KeyId, &'a PrivateKey)>,
) -> Result<(), PluginError> {
    // Grown beforehand, so that no copy of a key is left behind by moving.
    let mut text = Zeroizing::new(String::with_capacity(64 * 1024));
    text.push_str("{\n\t\"keys\": {");
    let mut is_first = true;
    for (id, key) in keys {
        let der = key.to_pkcs8().map_err(|error| {
            PluginError::internal(format!("unable to marshal key {:?}: {error}", id.as_str()))
        })?;
        let encoded = Zeroizing::new(BASE64_STANDARD.encode(&*der));
        let id = serde_json::Value::from(id.as_str());
        let comma = if is_first { "" } else { "," };
        is_first = false;
        write!(text, "{comma}\n\t\t{id}: \"{}\"", *encoded)
            .map_err(|error| PluginError::internal(format!("unable to marshal entries: {error}")))?;
    }
    text.push_str(if is_first { "}\n}" } else { "\n\t}\n}" });
    runtime::files::replace(path, text.as_bytes(), 0o600).map_err(|error| {
        PluginError::internal(format!("unable to write entries to {}: {error}", path.display()))
    })
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let length = std::fs::metadata(path)?.len();
    if length > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "file is too large"));
    }
    std::fs::read(path).map(Zeroizing::new)
}

/// Where the JSON is wrong. The error itself may quote what it found, which may be part of a key.
fn place(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "the file ends too early",
        serde_json::error::Category::Data => "unexpected type",
        serde_json::error::Category::Io | serde_json::error::Category::Syntax => "syntax error",
    };
    format!("{what} in line {}, column {}", error.line(), error.column())
}

/// What the file holds, read as SPIRE reads it: nothing and `null` are no keys, names of members may be in
/// any case, and of members called alike the later adds to the earlier.
#[derive(Default)]
struct File {
    keys: BTreeMap<String, Secret>,
}

impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        json::object(deserializer)
    }
}

impl json::Object for File {
    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error> {
        if name != "keys" {
            return json::pass_over(members);
        }
        match members.next_value::<Option<BTreeMap<String, Secret>>>()? {
            Some(keys) => self.keys.extend(keys),
            None => self.keys.clear(),
        }
        Ok(())
    }
}

/// A key in base64, without the line breaks that may be in it.
struct Secret(Zeroizing<String>);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut text = Zeroizing::new(Option::<String>::deserialize(deserializer)?.unwrap_or_default());
        text.retain(|character| !matches!(character, '\r' | '\n'));
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use spiffe::key::KeyKind;

    use super::*;

    const STORED: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/keys/server-keys.json"));

    fn check_refused(contents: &str, why: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        std::fs::write(&path, contents).unwrap();
        let error = load(&path).err().unwrap();
        assert!(error.message.starts_with(why), "{}", error.message);
        assert!(error.message.contains(path.to_str().unwrap()), "{}", error.message);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), contents);
    }

    #[test]
    fn a_stored_file_is_read_and_written_back_byte_by_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        std::fs::write(&path, STORED).unwrap();

        let keys = load(&path).unwrap();
        let ids: Vec<_> = keys.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["JWT-Signer-A", "JWT-Signer-B", "x509-CA-A", "x509-CA-B"]);

        store(&path, keys.iter().map(|(id, key)| (id, key))).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), STORED.trim_end());
    }

    #[test]
    fn a_damaged_file_is_refused_by_name_and_left_alone() {
        check_refused("", "unable to decode keys JSON: the file ends too early in line 1");
        check_refused("{\"keys\": {\"a\"", "unable to decode keys JSON: the file ends too early");
        check_refused("{\"keys\": {\"a\": 1}}", "unable to decode keys JSON: unexpected type");
        check_refused("{\"keys\": {\"a\": \"%%\"}}", "unable to decode key \"a\": not base64");
        check_refused("{\"keys\": {\"a\": \"AAAA\"}}", "unable to parse key \"a\": malformed key");
    }

    /// A file of one key.
    fn holding(der: &[u8]) -> String {
        format!("{{\"keys\": {{\"a\": \"{}\"}}}}", BASE64_STANDARD.encode(der))
    }

    #[test]
    fn keys_that_the_other_program_would_refuse_are_refused_in_its_words() {
        // What stands within PKCS#8: the form of EC and RSA keys of their own.
        let bare = |kind: KeyKind, at: usize| {
            let pkcs8 = PrivateKey::generate(kind).unwrap().to_pkcs8().unwrap();
            pkcs8[at..].to_vec()
        };
        let ec = bare(KeyKind::EcP256, 29);
        check_refused(
            &holding(&ec),
            "unable to parse key \"a\": x509: failed to parse private key (use ParseECPrivateKey instead for \
             this key format); restore",
        );
        check_refused(
            &holding(&bare(KeyKind::Rsa2048, 26)),
            "unable to parse key \"a\": x509: failed to parse private key (use ParsePKCS1PrivateKey instead \
             for this key format); restore",
        );
        let ed25519 =
            [&[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20], &[7; 32][..]];
        check_refused(
            &holding(&ed25519.concat()),
            "unable to make entry \"a\": unexpected private key type ed25519.PrivateKey for key \"a\"; restore",
        );
        let p521 = [
            &[0x30, 0x1a, 2, 1, 0, 0x30, 0x10, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5][..],
            &[0x2b, 0x81, 4, 0, 0x23, 4, 3, 1, 2, 3],
        ];
        check_refused(
            &holding(&p521.concat()),
            "unable to make entry \"a\": unable to make key entry for key \"a\": no EC key type for EC curve: \
             P-521; restore",
        );
    }

    #[test]
    fn what_other_tools_make_of_the_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        let key =
            BASE64_STANDARD.encode(&*PrivateKey::generate(KeyKind::EcP256).unwrap().to_pkcs8().unwrap());
        let (first, second) = key.split_at(20);
        for (contents, ids) in [
            ("null".to_owned(), ""),
            ("{}".to_owned(), ""),
            ("{\"keys\": null, \"later\": [1]}".to_owned(), ""),
            (format!("{{\"KEYS\": {{\"a\": \"{key}\"}}, \"keys\": {{\"b\": \"{key}\"}}}}"), "ab"),
            (format!("{{\"keys\": {{\"a\": \"{first}\\r\\n{second}\"}}}}\n"), "a"),
        ] {
            std::fs::write(&path, &contents).unwrap();

            let keys = load(&path).unwrap();

            let read: String = keys.iter().map(|(id, _)| id.as_str()).collect();
            assert_eq!(read, ids, "{contents}");
        }
        check_refused("[]", "unable to decode keys JSON: unexpected type");
        check_refused("{\"keys\": {\"a\": null}}", "unable to parse key \"a\": malformed key");
    }

    #[test]
    fn a_missing_file_holds_no_keys() {
        let directory = tempfile::tempdir().unwrap();

        assert!(load(&directory.path().join("keys.json")).unwrap().is_empty());
    }
}
