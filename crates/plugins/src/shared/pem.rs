//! Certificates and keys in PEM files, with error texts that name the file.

use std::io;
use std::path::Path;

use spiffe::key::PrivateKey;
use spiffe::x509::{Certificate, pem_blocks};
use zeroize::Zeroizing;

/// The certificates of a file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let text = std::fs::read(path).map_err(|error| opening(path, &error))?;
    let blocks = pem_blocks(&text, "CERTIFICATE")?;
    if blocks.is_empty() {
        return Err("no certificates found in file".to_owned());
    }
    let parse = |(number, der): (usize, &Vec<u8>)| {
        Certificate::parse(der)
            .map_err(|error| format!("unable to parse certificate in block {number}: {error}"))
    };
    blocks.iter().enumerate().map(parse).collect()
}

/// The private key of a file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKey, String> {
    let text = std::fs::read(path).map(Zeroizing::new).map_err(|error| opening(path, &error))?;
    for label in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"] {
        if let Some(der) = pem_blocks(&text, label)?.into_iter().next().map(Zeroizing::new) {
            return PrivateKey::from_der(&der)
                .map_err(|error| format!("cannot parse private key in {}: {error}", path.display()));
        }
    }
    Err(format!("failed to find any PEM data in key input {}", path.display()))
}

fn opening(path: &Path, error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    let text: String = chars.next().into_iter().flat_map(char::to_lowercase).chain(chars).collect();
    format!("open {}: {text}", path.display())
}
