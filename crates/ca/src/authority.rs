//! Authorities that can sign: a key in a key manager, and what it signs as.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use plugin::Key;
use spiffe::key::{PublicKeyKind, SigAlg};
use spiffe::x509::{CertDer, Certificate, CertificateError, Issuer, Name, verify_path};
use spiffe::{UnixSecs, key::PublicKey};

use crate::journal::{KeyEntry, X509Entry};
use crate::slots::Facts;

/// The authorities that sign right now. Published whole: what was loaded once stays consistent.
#[derive(Clone, Default)]
pub struct ActiveAuthorities {
    /// Signs certificates.
    pub x509: Option<Arc<X509Signer>>,
    /// Signs JWT-SVIDs.
    pub jwt: Option<Arc<TokenSigner>>,
    /// Signs WIT-SVIDs.
    pub wit: Option<Arc<TokenSigner>>,
}

/// A CA certificate and its key.
pub struct X509Signer {
    pub(crate) key: Arc<dyn Key>,
    pub(crate) alg: SigAlg,
    pub(crate) issuer: Issuer,
    certificate: Certificate,
    upstream_chain: Vec<CertDer>,
    ends_at: UnixSecs,
}

/// A key that signs tokens.
pub struct TokenSigner {
    pub(crate) key: Arc<dyn Key>,
    pub(crate) alg: SigAlg,
    key_id: String,
    not_after: UnixSecs,
}

/// Why something cannot be an authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate cannot be read.
    #[error("cannot parse CA certificate")]
    Certificate(#[from] CertificateError),
    /// The key of the certificate is not the key in the key manager.
    #[error("public key does not match key manager key")]
    KeyMismatch,
    /// The key is of a kind that does not sign.
    #[error("CA key type is not supported")]
    KeyKind,
    /// The certificate is not one of a CA.
    #[error("certificate is not a CA")]
    NotCa,
    /// The certificate has no subject key identifier, so nothing could refer to it.
    #[error("CA certificate has no subject key identifier")]
    NoKeyId,
}

impl X509Signer {
    /// The authority of `certificate`, whose key is `key`. `upstream_chain` is empty for a
    /// self-signed one; else it starts with the certificate itself.
    ///
    /// # Errors
    /// Any of [`AuthorityError`].
    pub fn new(
        key: Arc<dyn Key>,
        certificate: &[u8],
        upstream_chain: Vec<CertDer>,
    ) -> Result<Self, AuthorityError> {
        let certificate = Certificate::parse(certificate)?;
        if certificate.public_key().spki() != key.public().spki() {
            return Err(AuthorityError::KeyMismatch);
        }
        if !certificate.is_ca() {
            return Err(AuthorityError::NotCa);
        }
        let key_id = certificate.subject_key_id().ok_or(AuthorityError::NoKeyId)?.to_vec();
        let issuer = Issuer { name: certificate.subject().clone(), key_id: Some(key_id) };
        let alg = sig_alg(key.public())?;
        let mut ends_at = certificate.not_after();
        for above in upstream_chain.iter().skip(1) {
            ends_at = ends_at.min(Certificate::parse(above.as_bytes())?.not_after());
        }
        Ok(Self { key, alg, issuer, certificate, upstream_chain, ends_at })
    }

    /// Its id: the subject key identifier in hex.
    #[must_use]
    pub fn authority_id(&self) -> String {
        hex(self.issuer.key_id.as_deref().unwrap_or_default())
    }

    /// The id of the upstream authority that signed it; empty for a self-signed one.
    #[must_use]
    pub fn upstream_authority_id(&self) -> String {
        hex(self.certificate.authority_key_id().unwrap_or_default())
    }

    /// The CA certificate.
    #[must_use]
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// For one signed upstream: itself and the certificates up to the upstream root.
    #[must_use]
    pub fn upstream_chain(&self) -> &[CertDer] {
        &self.upstream_chain
    }

    /// Its subject.
    #[must_use]
    pub const fn subject(&self) -> &Name {
        &self.issuer.name
    }

    /// The last second in which it holds.
    #[must_use]
    pub fn not_after(&self) -> UnixSecs {
        self.certificate.not_after()
    }

    /// The last second in which it and all above it hold: what it signs ends then at the latest.
    pub(crate) const fn ends_at(&self) -> UnixSecs {
        self.ends_at
    }

    /// Whether one of `roots` vouches for it at `now`.
    #[must_use]
    pub fn is_below(&self, roots: &[Certificate], now: UnixSecs) -> bool {
        let above: Vec<_> = self
            .upstream_chain
            .iter()
            .skip(1)
            .filter_map(|der| Certificate::parse(der.as_bytes()).ok())
            .collect();
        verify_path(&self.certificate, &above, roots, now).is_ok()
    }

    /// What the slots keep of it.
    #[must_use]
    pub fn facts(&self, issued_at: UnixSecs) -> Facts {
        Facts {
            id: self.authority_id(),
            issued_at,
            not_after: self.not_after(),
            upstream_authority_id: self.upstream_authority_id(),
        }
    }

    /// How many certificates lead from what it signs to the root, itself included.
    pub(crate) fn chain_length(&self) -> usize {
        self.upstream_chain.len().max(1)
    }
}

impl TokenSigner {
    /// The authority `key_id`, whose key is `key`.
    ///
    /// # Errors
    /// [`AuthorityError::KeyKind`].
    pub fn new(key: Arc<dyn Key>, key_id: String, not_after: UnixSecs) -> Result<Self, AuthorityError> {
        let alg = sig_alg(key.public())?;
        Ok(Self { key, alg, key_id, not_after })
    }

    /// A new authority with a random id.
    ///
    /// # Errors
    /// [`AuthorityError::KeyKind`].
    pub fn with_new_id(key: Arc<dyn Key>, not_after: UnixSecs) -> Result<Self, AuthorityError> {
        Self::new(key, new_key_id(), not_after)
    }

    /// Its id, which tokens name as `kid`.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The key that verifies what it signs.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        self.key.public()
    }

    /// When it ends.
    #[must_use]
    pub const fn not_after(&self) -> UnixSecs {
        self.not_after
    }

    /// What the slots keep of it.
    #[must_use]
    pub fn facts(&self, issued_at: UnixSecs) -> Facts {
        Facts {
            id: self.key_id.clone(),
            issued_at,
            not_after: self.not_after,
            upstream_authority_id: String::new(),
        }
    }
}

impl X509Entry {
    /// The authority of this entry, or why it cannot be used: the key manager must still have its
    /// key, and it must not have expired.
    ///
    /// # Errors
    /// Any of [`Unusable`].
    pub fn signer(&self, key: Option<Arc<dyn Key>>, now: UnixSecs) -> Result<X509Signer, Unusable> {
        let key = usable(&self.facts, key, now)?;
        let chain = self.upstream_chain.iter().map(|der| CertDer::new(der)).collect();
        X509Signer::new(key, &self.certificate, chain).map_err(Unusable::from)
    }
}

impl KeyEntry {
    /// As [`X509Entry::signer`].
    ///
    /// # Errors
    /// Any of [`Unusable`].
    pub fn signer(&self, key: Option<Arc<dyn Key>>, now: UnixSecs) -> Result<TokenSigner, Unusable> {
        let key = usable(&self.facts, key, now)?;
        if key.public().spki() != &*self.public_key {
            return Err(Unusable::KeyMismatch);
        }
        TokenSigner::new(key, self.facts.id.clone(), self.facts.not_after).map_err(Unusable::from)
    }
}

/// Why an entry of the journal is passed over.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It has ended.
    #[error("slot expired")]
    Expired,
    /// Its key is gone.
    #[error("no key manager key")]
    NoKey,
    /// Its key was replaced.
    #[error("public key does not match key manager key")]
    KeyMismatch,
    /// What the entry holds cannot be used. SPIRE does not start then.
    #[error(transparent)]
    Authority(AuthorityError),
}

impl From<AuthorityError> for Unusable {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::KeyMismatch => Self::KeyMismatch,
            AuthorityError::Certificate(_)
            | AuthorityError::KeyKind
            | AuthorityError::NotCa
            | AuthorityError::NoKeyId => Self::Authority(error),
        }
    }
}

impl fmt::Debug for X509Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "X509Signer({})", self.authority_id())
    }
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSigner({})", self.key_id)
    }
}

impl fmt::Debug for ActiveAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActiveAuthorities")
            .field("x509", &self.x509)
            .field("jwt", &self.jwt)
            .field("wit", &self.wit)
            .finish()
    }
}

fn usable(facts: &Facts, key: Option<Arc<dyn Key>>, now: UnixSecs) -> Result<Arc<dyn Key>, Unusable> {
    if facts.not_after < now {
        return Err(Unusable::Expired);
    }
    key.ok_or(Unusable::NoKey)
}

pub(crate) const fn sig_alg(key: &PublicKey) -> Result<SigAlg, AuthorityError> {
    match key.kind() {
        PublicKeyKind::EcP256 => Ok(SigAlg::EcdsaP256Sha256),
        PublicKeyKind::EcP384 => Ok(SigAlg::EcdsaP384Sha384),
        PublicKeyKind::Rsa(2048..) => Ok(SigAlg::RsaPkcs1Sha256),
        PublicKeyKind::Rsa(_) | PublicKeyKind::EcP521 | PublicKeyKind::Ed25519 | PublicKeyKind::Other => {
            Err(AuthorityError::KeyKind)
        }
    }
}

/// Lower-case hex, as authority ids are written.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().map_or('0', char::from);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Random bytes. The system's generator does not fail once it has worked; if it never does, what is
/// asked for here must not be made up, so the process cannot go on.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    assert!(filled.is_ok(), "the system's random generator works");
    bytes
}

/// 32 letters and digits, as SPIRE's key ids are.
fn new_key_id() -> String {
    const LETTERS: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let letter = |byte: u8| LETTERS.get(usize::from(byte) % LETTERS.len()).copied().map_or('a', char::from);
    random::<32>().into_iter().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_ids_are_letters_and_digits() {
        let (one, other) = (new_key_id(), new_key_id());

        assert_eq!(one.len(), 32);
        assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_ne!(one, other);
        assert_eq!(hex(&[0x0f, 0xa0]), "0fa0");
    }
}
