//! Bundles as lists of PEM certificates.

use super::{Bundle, X509Authority};
use crate::TrustDomain;
use crate::x509::{Certificate, pem_blocks, to_pem};

impl Bundle {
    /// Reads the X.509 authorities of `trust_domain` from PEM.
    ///
    /// # Errors
    /// Says what is wrong with the first block that cannot be read, or that there is none.
    pub fn from_pem(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, String> {
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
