//! Secrets as Envoy reads them: certificates with their keys, and bundles to validate peers by.
//!
//! A secret is its name and its content. Contents are written once per update, whoever asks for them
//! and under whatever name; a response points at them. What holds a private key lies in memory that is
//! wiped, and is not copied on its way out.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes};
use prost::encoding::{encode_varint, encoded_len_varint};
use prost::{Message, Name};
use proto::sds::core::data_source::Specifier;
use proto::sds::core::{DataSource, TypedExtensionConfig};
use proto::sds::tls::secret::Type;
use proto::sds::tls::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate,
    spiffe_cert_validator_config,
};
use spiffe::{Bundle, TrustDomain};
use zeroize::{Zeroize, Zeroizing};

use crate::state::X509Svid;
use crate::subscribe::Update;

/// How an Envoy is told whom to trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validation {
    /// By its extension for SPIFFE, which checks each peer by the bundle of the peer's trust domain.
    Spiffe,
    /// By a list of certificate authorities, as Envoys up to 1.17 need it.
    Plain,
}

/// The contents of an update's secrets, once somebody asked for them.
#[derive(Default)]
pub(crate) struct Contents {
    certificates: OnceLock<Vec<Bytes>>,
    spiffe: OnceLock<BTreeMap<TrustDomain, Bytes>>,
    plain: OnceLock<BTreeMap<TrustDomain, Bytes>>,
    all: OnceLock<Bytes>,
}

impl Contents {
    /// The certificates with their keys, in the order of the identities.
    pub(super) fn certificates(&self, update: &Update) -> &[Bytes] {
        self.certificates.get_or_init(|| update.identities().map(|(_, svid)| certificate(svid)).collect())
    }

    /// The validation context of each trust domain.
    pub(super) fn contexts(&self, update: &Update, how: Validation) -> &BTreeMap<TrustDomain, Bytes> {
        let (kept, written): (_, fn(&Bundle) -> Bytes) = match how {
            Validation::Spiffe => (&self.spiffe, |bundle| spiffe_context([bundle])),
            Validation::Plain => (&self.plain, plain_context),
        };
        kept.get_or_init(|| {
            bundles(update).map(|bundle| (bundle.trust_domain.clone(), written(bundle))).collect()
        })
    }

    /// One context of all trust domains.
    pub(super) fn all(&self, update: &Update) -> Bytes {
        self.all.get_or_init(|| spiffe_context(bundles(update))).clone()
    }
}

/// A secret under the name that was asked for.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Resource {
    /// The name.
    pub(super) name: String,
    /// The content: the field of `Secret` that holds it.
    pub(super) content: Bytes,
}

impl Resource {
    /// What stands before the content in a response: the tags and lengths of a `DiscoveryResponse`'s
    /// `resources` (2), of an `Any`'s `type_url` (1) and `value` (2), and a `Secret`'s `name` (1).
    pub(super) fn head(&self) -> Bytes {
        let kind = Secret::type_url();
        let secret = field_length(self.name.len()) + self.content.len();
        let any = field_length(kind.len()) + 1 + encoded_len_varint(secret as u64) + secret;
        let mut head = Vec::with_capacity(field_length(any) - self.content.len());
        put_head(&mut head, 2, any);
        put_head(&mut head, 1, kind.len());
        head.put_slice(kind.as_bytes());
        put_head(&mut head, 2, secret);
        put_head(&mut head, 1, self.name.len());
        head.put_slice(self.name.as_bytes());
        head.into()
    }
}

/// The length of a field with so many bytes, if its number is below 16.
fn field_length(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn put_head(buffer: &mut Vec<u8>, number: u8, length: usize) {
    buffer.put_u8(number << 3 | 2);
    encode_varint(length as u64, buffer);
}

/// The bundles of an update by the names of their trust domains.
fn bundles(update: &Update) -> impl Iterator<Item = &Bundle> {
    let own = &*update.own;
    let foreign = || update.federated.values().map(|bundle| &**bundle);
    let before = foreign().filter(|bundle| bundle.trust_domain < own.trust_domain);
    let after = foreign().filter(|bundle| bundle.trust_domain > own.trust_domain);
    before.chain([own]).chain(after)
}

fn certificate(svid: &X509Svid) -> Bytes {
    let mut chain = Vec::new();
    svid.certificates().for_each(|der| put_pem(&mut chain, "CERTIFICATE", &der));
    let key = svid.secret_pkcs8();
    let mut pem = Zeroizing::new(Vec::with_capacity(pem_length("PRIVATE KEY", key.len())));
    put_pem(&mut pem, "PRIVATE KEY", &key);
    content(Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(chain.into())),
        private_key: Some(inline(Bytes::from_owner(pem))),
    }))
}

fn spiffe_context<'a>(bundles: impl IntoIterator<Item = &'a Bundle>) -> Bytes {
    let trust_domain = |bundle: &Bundle| spiffe_cert_validator_config::TrustDomain {
        name: bundle.trust_domain.as_str().to_owned(),
        trust_bundle: Some(inline(authorities(bundle))),
    };
    let config = SpiffeCertValidatorConfig { trust_domains: bundles.into_iter().map(trust_domain).collect() };
    let typed_config =
        prost_types::Any { type_url: SpiffeCertValidatorConfig::type_url(), value: config.encode_to_vec() };
    content(Type::ValidationContext(CertificateValidationContext {
        trusted_ca: None,
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(typed_config),
        }),
    }))
}

fn plain_context(bundle: &Bundle) -> Bytes {
    content(Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(inline(authorities(bundle))),
        custom_validator_config: None,
    }))
}

/// A `Secret` without a name is the field of its content alone.
fn content(of: Type) -> Bytes {
    let secret = Secret { name: String::new(), r#type: Some(of) };
    Bytes::from_owner(Zeroizing::new(secret.encode_to_vec()))
}

fn inline(bytes: Bytes) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)) }
}

/// The X.509 authorities of a bundle, PEM.
fn authorities(bundle: &Bundle) -> Bytes {
    let mut pem = Vec::new();
    bundle.x509_authorities.iter().for_each(|authority| put_pem(&mut pem, "CERTIFICATE", &authority.der));
    pem.into()
}

/// How many bytes stand in a line.
const LINE: usize = 48;

/// Writes a block with lines of 64 characters. Nothing of it is left elsewhere.
fn put_pem(out: &mut Vec<u8>, label: &str, der: &[u8]) {
    let mut line = [0; LINE / 3 * 4];
    out.put_slice(format!("-----BEGIN {label}-----\n").as_bytes());
    for part in der.chunks(LINE) {
        // A line always has room for a part.
        let length = BASE64_STANDARD.encode_slice(part, &mut line).unwrap_or_default();
        out.put_slice(line.get(..length).unwrap_or_default());
        out.put_u8(b'\n');
    }
    out.put_slice(format!("-----END {label}-----\n").as_bytes());
    line.zeroize();
}

/// How long a block is, so that a buffer need not grow and leave a copy behind.
const fn pem_length(label: &str, length: usize) -> usize {
    const MARKS: usize = "-----BEGIN -----\n".len() + "-----END -----\n".len();
    MARKS + 2 * label.len() + length.div_ceil(3) * 4 + length.div_ceil(LINE)
}

#[cfg(test)]
mod tests {
    use proto::sds::discovery::DiscoveryResponse;
    use spiffe::x509::to_pem;

    use super::*;

    #[test]
    fn pem_is_what_others_write() {
        for length in [0, 1, 2, 3, 47, 48, 49, 96, 200] {
            let der = vec![0xa5; length];
            let mut pem = Vec::new();

            put_pem(&mut pem, "PRIVATE KEY", &der);

            assert_eq!(pem.len(), pem_length("PRIVATE KEY", length));
            // An empty block has an empty line there, and none here.
            if length > 0 {
                assert_eq!(String::from_utf8(pem).unwrap(), to_pem("PRIVATE KEY", &der));
            }
        }
    }

    #[test]
    fn head_and_content_are_one_resource() {
        for (name, length) in [("", 0), ("default", 5), ("spiffe://example.org/web", 200), ("x", 70_000)] {
            let certificate = TlsCertificate {
                certificate_chain: Some(inline(vec![b'c'; length].into())),
                private_key: None,
            };
            let kind = Some(Type::TlsCertificate(certificate.clone()));
            let resource =
                Resource { name: name.to_owned(), content: content(Type::TlsCertificate(certificate)) };

            let bytes = [resource.head(), resource.content.clone()].concat();

            let secret = Secret { name: name.to_owned(), r#type: kind };
            let read = DiscoveryResponse::decode(bytes.as_slice()).unwrap();
            assert_eq!(read.resources.len(), 1);
            assert_eq!(read.resources[0].type_url, Secret::type_url());
            assert_eq!(Secret::decode(read.resources[0].value.as_slice()).unwrap(), secret);
        }
    }
}
