//! Bundles as lists of PEM certificates.

use super::{Bundle, X509Authority};
use crate::TrustDomain;
use crate::quote::quoted;
use crate::x509::{Certificate, pem, to_pem};

impl Bundle {
    /// Reads the X.509 authorities of `trust_domain` from PEM.
    ///
    /// # Errors
    /// Says what is wrong with the first block that cannot be read, or that there is none.
    pub fn from_pem(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, String> {
        let mut bundle = Self::empty(trust_domain);
        for (number, block) in (1..).zip(pem(text)) {
            if block.label != LABEL {
                return Err(format!("expected block type \"{LABEL}\"; got {}", quoted(&block.label)));
            }
            let certificate = Certificate::parse(&block.contents)
                .map_err(|why| format!("unable to parse \"{LABEL}\" PEM block {number}: {why}"))?;
            bundle.x509_authorities.push(X509Authority { der: certificate.to_shared(), tainted: false });
        }
        if bundle.x509_authorities.is_empty() {
            return Err("no PEM blocks".to_owned());
        }
        Ok(bundle)
    }

    /// The X.509 authorities as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.x509_authorities.iter().map(|authority| to_pem(LABEL, &authority.der)).collect()
    }
}

/// What a certificate's block is called. A key does not belong here.
const LABEL: &str = "CERTIFICATE";

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
