//! X.509: certificates and requests, read and written (X509-SVID; RFC 5280; RFC 2986).
//!
//! `parse` reads a certificate once into a [`Certificate`], which is what everything else works on;
//! `build` writes certificates in two steps, so that the signing key may be elsewhere; `csr` reads and
//! writes requests; `form` is about what certificates may look like; `unsigned` reads what is about to be
//! signed, and `profile` judges it; `verify` builds and judges paths;
//! `anchor` says what may stand in a bundle; `pem` reads and writes texts of blocks. Nothing here trusts a
//! length or a count from outside before it is capped.

mod anchor;
mod build;
mod csr;
pub(crate) mod der;
mod form;
mod name;
mod names;
mod parse;
mod pem;
mod profile;
mod unsigned;
mod verify;

pub use anchor::AnchorError;
pub use build::{CertDer, Issuer, Role, Serial, Tbs, Validity, X509Template, assemble};
pub(crate) use build::{algorithm_der, rsa_public_key_der, spki_der};
pub use csr::{Csr, CsrError, CsrTemplate};
pub(crate) use form::is_public_key;
pub use name::{Attribute, Name};
pub use parse::{Certificate, CertificateError};
pub use pem::{PemBlock, pem, pem_blocks, to_pem};
pub use profile::{ProfileError, check_ca};
pub use unsigned::UnsignedError;
pub(crate) use verify::check;
pub use verify::{PathError, SvidError, find_path, leaf_id, verify_path, verify_svid};
