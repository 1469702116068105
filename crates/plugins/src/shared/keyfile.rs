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
use serde::{Deserialize, Deserializer};
use spiffe::key::PrivateKey;
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
        let key = PrivateKey::from_der(&der)
            .map_err(|error| failed(format!("unable to parse key {id:?}: {error}")))?;
        if key.kind().is_none() {
            let kind = key.public().kind();
            return Err(failed(format!("unable to make entry {id:?}: no key type for {kind:?}")));
        }
        Ok((KeyId::new(&id), key))
    };
    file.keys.into_iter().map(parse).collect()
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

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    keys: BTreeMap<String, Secret>,
}

struct Secret(Zeroizing<String>);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_missing_file_holds_no_keys() {
        let directory = tempfile::tempdir().unwrap();

        assert!(load(&directory.path().join("keys.json")).unwrap().is_empty());
    }
}
