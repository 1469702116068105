//! Certificates and keys in PEM files, with error texts that name the file.

use std::io;
use std::path::Path;

use spiffe::key::{KeyForm, PrivateKey};
use spiffe::x509::{Certificate, PemBlock, pem};
use zeroize::Zeroizing;

/// The certificates of a file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let text = std::fs::read(path).map_err(|error| opening(path, &error))?;
    let mut certificates = Vec::new();
    // All blocks count in the number of one that is damaged.
    for (number, block) in pem(&text).iter().enumerate() {
        if block.label == "CERTIFICATE" {
            let certificate = Certificate::parse(&block.contents)
                .map_err(|error| format!("unable to parse certificate in block {number}: {error}"))?;
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() { Err("no certificates found in file".to_owned()) } else { Ok(certificates) }
}

/// The private key of a file: the first block that calls itself one.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKey, String> {
    let text = std::fs::read(path).map(Zeroizing::new).map_err(|error| opening(path, &error))?;
    let is_key = |block: &PemBlock| block.label == "PRIVATE KEY" || block.label.ends_with(" PRIVATE KEY");
    let Some(block) = pem(&text).into_iter().find(is_key) else {
        return Err(format!("failed to find any PEM data in key input {}", path.display()));
    };
    PrivateKey::from_any_form(&block.contents)
        .map_err(|error| format!("cannot parse private key in {}: {error}", path.display()))
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
    let mut keys = Vec::new();
    for (number, (label, der)) in blocks.iter().enumerate() {
        let form = KeyForm::of_label(label).unwrap_or(KeyForm::Pkcs8);
        let key = PrivateKey::from_form(form, der)
            .map_err(|error| format!("unable to parse \"{label}\" PEM block {}: {error}", number + 1))?;
        keys.push(key);
    }
    match keys.as_slice() {
        [key] => Ok(key.clone()),
        several => Err(format!("expected 1 PEM blocks; got {}", several.len())),
    }
}

/// Label and contents of a block.
type Block = (String, Zeroizing<Vec<u8>>);

/// All blocks of a file, each with one of the labels wanted.
fn only(path: &Path, wanted: &[&str]) -> Result<Vec<Block>, String> {
    let text = std::fs::read(path).map(Zeroizing::new).map_err(|error| opening(path, &error))?;
    let mut blocks = Vec::new();
    for block in pem(&text) {
        let PemBlock { label, contents } = block;
        if !wanted.contains(&label.as_str()) {
            let wanted = match wanted {
                [one] => format!("{one:?}"),
                several => {
                    let quoted: Vec<_> = several.iter().map(|one| format!("{one:?}")).collect();
                    format!("[{}]", quoted.join(" "))
                }
            };
            return Err(format!("expected block type {wanted}; got {label:?}"));
        }
        blocks.push((label, contents));
    }
    if blocks.is_empty() { Err("no PEM blocks".to_owned()) } else { Ok(blocks) }
}

fn opening(path: &Path, error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    let text: String = chars.next().into_iter().flat_map(char::to_lowercase).chain(chars).collect();
    let step = if error.kind() == io::ErrorKind::IsADirectory { "read" } else { "open" };
    format!("{step} {}: {text}", path.display())
}
