//! Bundles as lists of PEM certificates.

use super::{Bundle, X509Authority};
use crate::TrustDomain;
use crate::quote::quoted;
use crate::x509::{Certificate, pem_blocks, to_pem};

impl Bundle {
    /// Reads the X.509 authorities of `trust_domain` from PEM.
    ///
    /// # Errors
    /// Says what is wrong with the first block that cannot be read, or that there is none.
    pub fn from_pem(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, String> {
        if let Some(other) = other_label(&String::from_utf8_lossy(text)) {
            return Err(format!("expected block type \"CERTIFICATE\"; got {}", quoted(other)));
        }
        let mut bundle = Self::empty(trust_domain);
        for der in pem_blocks(text, "CERTIFICATE")? {
            for certificate in Certificate::parse_all(&der).map_err(|why| why.to_string())? {
                bundle.x509_authorities.push(X509Authority { der: certificate.to_shared(), tainted: false });
            }
        }
        if bundle.x509_authorities.is_empty() {
            return Err("no PEM blocks".to_owned());
        }
        Ok(bundle)
    }

    /// The X.509 authorities as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.x509_authorities.iter().map(|authority| to_pem("CERTIFICATE", &authority.der)).collect()
    }
}

/// What the first block is called that is no certificate: a key does not belong here.
fn other_label(text: &str) -> Option<&str> {
    let labels = text.split("-----BEGIN ").skip(1).filter_map(|block| {
        let (label, body) = block.split_once("-----")?;
        body.contains(&format!("-----END {label}-----")).then_some(label)
    });
    labels.into_iter().find(|label| *label != "CERTIFICATE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_no_authority() {
        let text = b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n";

        let refused = Bundle::from_pem(TrustDomain::parse("example.org").unwrap(), text).unwrap_err();

        assert_eq!(refused, "expected block type \"CERTIFICATE\"; got \"PRIVATE KEY\"");
    }
}
