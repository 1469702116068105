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

/// The certificates of a file that holds nothing else, at least one. The words are those of SPIRE's
/// upstream authorities.
pub(crate) fn only_certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let blocks = only(path, &["CERTIFICATE"])?;
    let parse = |(number, (label, der)): (usize, &Block)| {
        Certificate::parse(der)
            .map_err(|error| format!("unable to parse \"{label}\" PEM block {}: {error}", number + 1))
    };
    blocks.iter().enumerate().map(parse).collect()
}

/// The private key of a file that holds nothing else, in the same words.
pub(crate) fn only_private_key(path: &Path) -> Result<PrivateKey, String> {
    let blocks = only(path, &["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"])?;
    match blocks.as_slice() {
        [(label, der)] => PrivateKey::from_der(der)
            .map_err(|error| format!("unable to parse \"{label}\" PEM block 1: {error}")),
        several => Err(format!("expected 1 PEM blocks; got {}", several.len())),
    }
}

/// Label and contents of a block.
type Block = (String, Zeroizing<Vec<u8>>);

/// All blocks of a file, each with one of the labels wanted.
fn only(path: &Path, wanted: &[&str]) -> Result<Vec<Block>, String> {
    const BEGIN: &str = "-----BEGIN ";

    let bytes = std::fs::read(path).map(Zeroizing::new).map_err(|error| opening(path, &error))?;
    let text = str::from_utf8(&bytes).map_err(|_| "no PEM blocks".to_owned())?;
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        rest = rest.get(at..).unwrap_or_default();
        let label = rest.get(BEGIN.len()..).and_then(|rest| rest.split_once("-----"));
        let (label, _) = label.ok_or_else(|| "no PEM blocks".to_owned())?;
        if !wanted.contains(&label) {
            let wanted = match wanted {
                [one] => format!("{one:?}"),
                several => {
                    let quoted: Vec<_> = several.iter().map(|one| format!("{one:?}")).collect();
                    format!("[{}]", quoted.join(" "))
                }
            };
            return Err(format!("expected block type {wanted}; got {label:?}"));
        }
        let end = format!("-----END {label}-----");
        let stop = rest.find(&end).ok_or_else(|| "no PEM blocks".to_owned())? + end.len();
        let block = rest.get(..stop).unwrap_or_default();
        let der = pem_blocks(block.as_bytes(), label)?.into_iter().next().unwrap_or_default();
        blocks.push((label.to_owned(), Zeroizing::new(der)));
        rest = rest.get(stop..).unwrap_or_default();
    }
    if blocks.is_empty() { Err("no PEM blocks".to_owned()) } else { Ok(blocks) }
}

fn opening(path: &Path, error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    let text: String = chars.next().into_iter().flat_map(char::to_lowercase).chain(chars).collect();
    format!("open {}: {text}", path.display())
}
