//! A CA of a trust domain and what it issues.

use std::time::SystemTime;

use agent::rotation::RotationRule;
use agent::state::{Issuers, X509Svid};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::{Attribute, Certificate, Issuer, Name, Role, Serial, Validity, X509Template, assemble};
use spiffe::{Bundle, Entry, JwtAuthority, SpiffeId, TrustDomain, UnixSecs, X509Authority};

/// The day on which the tests run.
pub(crate) const NOW: UnixSecs = UnixSecs(1_795_500_000);
/// TLS goes by the clock of the machine.
const ALWAYS: Validity = Validity { not_before: UnixSecs(0), not_after: UnixSecs(4_102_444_800) };
const HOLDS: Validity = Validity { not_before: UnixSecs(NOW.0 - 10), not_after: UnixSecs(NOW.0 + 3600) };

/// Keys to sign certificates and tokens with.
pub(crate) struct Authority {
    pub(crate) trust_domain: TrustDomain,
    key: PrivateKey,
    pub(crate) certificate: Certificate,
    jwt_key: PrivateKey,
}

impl Authority {
    pub(crate) fn new(trust_domain: &str) -> Self {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let subject = Name::new(&[(Attribute::Country, "US"), (Attribute::Organization, "SPIFFE")]);
        let template = template(&format!("spiffe://{trust_domain}"), &key, Role::Ca, &subject, ALWAYS);
        let tbs = template.tbs(&Issuer { name: subject, key_id: None }, key.sig_alg().unwrap());
        let der = assemble(&tbs, &key.sign(tbs.alg(), tbs.as_bytes()).unwrap());
        Self {
            trust_domain: TrustDomain::parse(trust_domain).unwrap(),
            key,
            certificate: Certificate::parse(der.as_bytes()).unwrap(),
            jwt_key: PrivateKey::generate(KeyKind::EcP256).unwrap(),
        }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle {
            x509_authorities: vec![X509Authority { der: self.certificate.to_shared(), tainted: false }],
            jwt_authorities: vec![JwtAuthority {
                key_id: "key".to_owned(),
                public_key: self.jwt_key.public().spki().into(),
                expires_at: HOLDS.not_after,
                tainted: false,
            }],
            ..Bundle::empty(self.trust_domain.clone())
        }
    }

    /// A certificate for this id and key, for an hour of the tests' day.
    pub(crate) fn issue(&self, id: &str, key: &PrivateKey) -> Certificate {
        self.sign(id, key, HOLDS)
    }

    /// One that always holds.
    pub(crate) fn issue_for_ever(&self, id: &str, key: &PrivateKey) -> Certificate {
        self.sign(id, key, ALWAYS)
    }

    fn sign(&self, id: &str, key: &PrivateKey, validity: Validity) -> Certificate {
        let subject = Name::new(&[(Attribute::Country, "US"), (Attribute::Organization, "SPIRE")]);
        let issuer = Issuer {
            name: self.certificate.subject().clone(),
            key_id: self.certificate.subject_key_id().map(<[u8]>::to_vec),
        };
        let tbs = template(id, key, Role::Svid, &subject, validity).tbs(&issuer, self.key.sig_alg().unwrap());
        let der = assemble(&tbs, &self.key.sign(tbs.alg(), tbs.as_bytes()).unwrap());
        Certificate::parse(der.as_bytes()).unwrap()
    }

    /// An X.509-SVID of `entry`, as the agent takes it from the server.
    pub(crate) fn svid(&self, entry: &Entry) -> X509Svid {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let chain = [Bytes::copy_from_slice(self.issue(entry.spiffe_id.as_ref(), &key).der())];
        let (anchors, now) = ([self.certificate.clone()], now());
        let (mut rule, mut issuers) = (RotationRule::new(None), Issuers::default());
        X509Svid::accept(&chain, &key, entry, &anchors, now, &mut rule, &mut issuers).unwrap()
    }

    /// A token of the given claims, as JSON.
    pub(crate) fn token(&self, claims: &serde_json::Value) -> String {
        let header = serde_json::json!({"alg": "ES256", "kid": "key", "typ": "JWT"});
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = self.jwt_key.sign(self.jwt_key.sig_alg().unwrap(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_fixed(32).unwrap()))
    }
}

pub(crate) fn now() -> SystemTime {
    NOW.to_system_time()
}

fn template(id: &str, key: &PrivateKey, role: Role, subject: &Name, validity: Validity) -> X509Template {
    X509Template {
        serial: Serial::from_be_bytes(&[7]),
        subject: subject.clone(),
        validity,
        public_key: key.public().clone(),
        id: SpiffeId::parse(id).unwrap(),
        dns_names: Vec::new(),
        role,
    }
}
