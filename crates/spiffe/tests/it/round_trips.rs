//! Properties that hold for all values, not only for the recorded ones.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use finial_spiffe::jwt::{self, JwtError, LEEWAY};
use finial_spiffe::key::{KeyKind, PrivateKey, PublicKey, PublicKeyKind, Signature};
use finial_spiffe::x509::{
    Attribute, Certificate, Csr, CsrTemplate, Issuer, Name, Role, Serial, Validity, X509Template, assemble,
    verify_svid,
};
use finial_spiffe::{Bundle, IdError, JwtAuthority, Selector, SelectorSet, SpiffeId, TrustDomain, UnixSecs};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const NOW: UnixSecs = UnixSecs(1_800_000_000);

/// The grammar of SPIFFE-ID, section 2, said in another way than the parser says it.
fn is_id(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let mut parts = rest.split('/');
    let name = parts.next().unwrap_or_default();
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    let any = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !name.is_empty()
        && name.bytes().all(lower)
        && parts.all(|segment| !["", ".", ".."].contains(&segment) && segment.bytes().all(any))
}

fn ids() -> impl Strategy<Value = String> {
    let segment = "[A-Za-z0-9._-]{1,6}".prop_filter("dots", |text| text != "." && text != "..");
    // Names with empty labels are ids, but cannot stand in certificates.
    ("[a-z0-9_-]{1,5}(\\.[a-z0-9_-]{1,4}){0,2}", vec(segment, 0..4)).prop_map(|(name, path)| {
        std::iter::once(format!("spiffe://{name}")).chain(path).collect::<Vec<_>>().join("/")
    })
}

fn selectors() -> impl Strategy<Value = BTreeSet<(String, String)>> {
    btree_set(("[ab]", "[a-c]{1,2}"), 0..8)
}

fn set(pairs: &BTreeSet<(String, String)>) -> SelectorSet {
    pairs.iter().rev().map(|(kind, value)| Selector::new(kind, value)).collect()
}

fn keys() -> &'static [PrivateKey; 3] {
    static KEYS: OnceLock<[PrivateKey; 3]> = OnceLock::new();
    KEYS.get_or_init(|| {
        [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048].map(|kind| PrivateKey::generate(kind).unwrap())
    })
}

fn token(key: &PrivateKey, claims: &Value) -> String {
    let (alg, width) = match key.public().kind() {
        PublicKeyKind::EcP256 => ("ES256", 32),
        PublicKeyKind::EcP384 => ("ES384", 48),
        PublicKeyKind::EcP521 | PublicKeyKind::Rsa(_) | PublicKeyKind::Ed25519 | PublicKeyKind::Other => {
            ("RS256", 0)
        }
    };
    let header = json!({"alg": alg, "kid": "key", "typ": "JWT"});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let input = format!("{}.{}", part(&header), part(claims));
    let signature = key.sign(key.sig_alg().unwrap(), input.as_bytes()).unwrap();
    let signature = match width {
        0 => signature.as_bytes().to_vec(),
        width => signature.to_fixed(width).unwrap(),
    };
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A certificate of these contents, signed by a key under the name of its owner.
fn certificate(template: &X509Template, key: &PrivateKey) -> Vec<u8> {
    let name = Name::new(&[(Attribute::Organization, "authority")]);
    let key_id = (template.role == Role::Svid).then(|| key.public().key_id().to_vec());
    let tbs = template.tbs(&Issuer { name, key_id }, key.sig_alg().unwrap());
    assemble(&tbs, &key.sign(tbs.alg(), tbs.as_bytes()).unwrap()).as_bytes().to_vec()
}

fn authority(key: &PublicKey, key_id: &str) -> JwtAuthority {
    JwtAuthority::parse(key_id, key.spki(), UnixSecs(0)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn valid_ids_are_read_as_they_are(text in ids()) {
        let id = SpiffeId::parse(&text).unwrap();
        prop_assert!(is_id(&text));
        prop_assert_eq!(id.as_str(), &text);
        prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain_name(), id.path()), text);
        prop_assert!(id.is_member_of(&id.trust_domain()));
    }

    #[test]
    fn texts_near_ids_are_judged_by_the_grammar(text in "(spiffe|Spiffe|spif)?(:|://|:/)[a-zA.%_/ -]{0,6}(/[a-zA%._-]{0,3}){0,3}/?") {
        prop_assert_eq!(SpiffeId::parse(&text).is_ok(), is_id(&text));
    }

    #[test]
    fn any_text_is_judged_by_the_grammar(text in any::<String>()) {
        prop_assert_eq!(SpiffeId::parse(&text).is_ok(), is_id(&text));
        prop_assert_eq!(SpiffeId::parse(&text) == Err(IdError::Empty), text.is_empty());
    }

    #[test]
    fn sets_of_selectors_are_sets(some in selectors(), others in selectors()) {
        prop_assert_eq!(set(&some).is_subset(&set(&others)), some.is_subset(&others));
        prop_assert_eq!(set(&some) == set(&others), some == others);
        prop_assert_eq!(set(&some).len(), some.len());
        let twice: SelectorSet = set(&some).iter().chain(set(&some).iter()).cloned().collect();
        prop_assert_eq!(twice, set(&some));
    }

    #[test]
    fn numbers_of_a_signature_survive_der(r in vec(any::<u8>(), 32..=32), s in vec(any::<u8>(), 32..=32)) {
        let signature = Signature::from_ecdsa_parts(&r, &s);
        prop_assert_eq!(signature.to_fixed(32), Some([r, s].concat()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tokens_that_are_made_are_read(
        id in ids().prop_filter("a workload", |text| text[9..].contains('/')),
        audience in vec("[a-z ]{1,5}", 1..4),
        lifetime in -200..400_i64,
        issued in -400..200_i64,
        more in proptest::collection::btree_map("x_[a-z]{1,4}", any::<i32>(), 0..4),
        key in 0..3_usize,
        damage in proptest::option::of((0..400_usize, 1..=255_u8)),
    ) {
        let key = &keys()[key];
        let mut claims: Map<String, Value> = more.into_iter().map(|(name, value)| (name, value.into())).collect();
        claims.insert("sub".to_owned(), json!(id));
        claims.insert("aud".to_owned(), json!(audience));
        claims.insert("exp".to_owned(), json!(NOW.0 + lifetime));
        claims.insert("iat".to_owned(), json!(NOW.0 + issued));
        let mut text = token(key, &Value::Object(claims.clone()));
        if let Some((at, change)) = damage {
            let mut bytes = text.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= change;
            match String::from_utf8(bytes) {
                Ok(damaged) => text = damaged,
                Err(_) => return Ok(()),
            }
        }
        let authorities = [authority(key.public(), "key")];
        let wanted = SpiffeId::parse(&id).unwrap().trust_domain();

        let verified = jwt::verify(&text, &audience[0], NOW, |name| (*name == wanted).then_some(&authorities[..]));

        if damage.is_some() {
            prop_assert!(verified.is_err(), "{} holds", text);
        } else if lifetime < -LEEWAY {
            prop_assert_eq!(verified, Err(JwtError::Expired));
        } else if issued > LEEWAY {
            prop_assert_eq!(verified, Err(JwtError::IssuedInFuture));
        } else {
            let verified = verified.unwrap();
            prop_assert_eq!(verified.id.as_str(), &id);
            prop_assert_eq!(verified.audience, audience);
            prop_assert_eq!(verified.expires_at, NOW.plus(lifetime));
            prop_assert_eq!(verified.claims, claims);
        }
    }

    #[test]
    fn certificates_that_are_made_are_read(
        id in ids().prop_filter("a workload", |text| text[9..].contains('/')),
        dns_names in vec("[a-z]{1,8}(\\.[a-z]{1,8}){0,2}", 0..4),
        organization in "[a-zA-Z0-9 äöü@*'()+,./:=?-]{0,20}",
        serial in vec(any::<u8>(), 1..=16).prop_filter("positive", |bytes| bytes.iter().any(|byte| *byte > 0)),
        before in 0..4_000_000_000_i64,
        lifetime in 0..4_000_000_000_i64,
        (key, signer) in (0..3_usize, 0..3_usize),
        damage in proptest::option::of((any::<usize>(), 0..8_u32)),
    ) {
        let (key, signer) = (&keys()[key], &keys()[signer]);
        let id = SpiffeId::parse(&id).unwrap();
        let ca = X509Template {
            serial: Serial::from_be_bytes(&[1]),
            subject: Name::new(&[(Attribute::Organization, "authority")]),
            validity: Validity { not_before: UnixSecs(0), not_after: UnixSecs(200_000_000_000) },
            public_key: signer.public().clone(),
            id: id.trust_domain().id(),
            dns_names: Vec::new(),
            role: Role::Ca,
        };
        let anchor = Certificate::parse(&certificate(&ca, signer)).unwrap();
        let (not_before, not_after) = (UnixSecs(before), UnixSecs(before + lifetime));
        let template = X509Template {
            serial: Serial::from_be_bytes(&serial),
            subject: Name::new(&[(Attribute::Organization, &organization)]),
            validity: Validity { not_before, not_after },
            public_key: key.public().clone(),
            id: id.clone(),
            dns_names: dns_names.clone(),
            role: Role::Svid,
        };
        let mut der = certificate(&template, signer);
        if let Some((at, bit)) = damage {
            let at = at % der.len();
            der[at] ^= 1 << bit;
        }

        let read = Certificate::parse(&der);
        prop_assert!(read.is_ok() || damage.is_some(), "{:?}", read);
        let Ok(read) = read else { return Ok(()) };
        let verified = verify_svid(std::slice::from_ref(&read), &[anchor], not_before.plus(lifetime / 2));

        if damage.is_some() && verified.is_err() {
            return Ok(());
        }
        prop_assert_eq!(verified.as_ref(), Ok(&id));
        prop_assert_eq!(read.der(), &der);
        prop_assert_eq!(read.uris(), [id.to_string()]);
        prop_assert_eq!(read.dns_names(), dns_names);
        prop_assert_eq!(read.serial(), &template.serial);
        prop_assert_eq!(read.subject(), &template.subject);
        prop_assert_eq!((read.not_before(), read.not_after()), (not_before, not_after));
        prop_assert_eq!(read.public_key(), key.public());
        prop_assert_eq!(read.authority_key_id(), Some(&signer.public().key_id()[..]));
        prop_assert!(!read.is_ca());
    }

    #[test]
    fn requests_that_are_made_are_read(
        id in proptest::option::of(ids()),
        dns_names in vec("[a-z]{1,8}(\\.[a-z]{1,8}){0,2}", 0..4),
        key in 0..3_usize,
        damage in proptest::option::of((any::<usize>(), 0..8_u32)),
    ) {
        let key = &keys()[key];
        let template = CsrTemplate {
            subject: Name::new(&[]),
            id: id.as_ref().map(|id| SpiffeId::parse(id).unwrap()),
            dns_names: dns_names.clone(),
        };
        let mut der = template.sign(key).unwrap();
        if let Some((at, bit)) = damage {
            let at = at % der.len();
            der[at] ^= 1 << bit;
        }

        let read = Csr::verify(&der);

        prop_assert!(read.is_ok() || damage.is_some());
        // What is not signed, such as the outermost tag, may be damaged; what is said may not.
        if let Ok(read) = read {
            prop_assert_eq!(&read.public_key, key.public());
            prop_assert_eq!(read.uris, id.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(read.dns_names, dns_names);
        }
    }

    #[test]
    fn bundles_that_are_written_are_read(
        jwt in proptest::sample::subsequence(vec![0, 1, 2], 0..=3),
        wit in proptest::sample::subsequence(vec![0, 1, 2], 0..=3),
        refresh_hint in 0..100_000_i64,
        sequence_number in any::<u64>(),
    ) {
        let authorities = |chosen: &[usize]| -> Vec<JwtAuthority> {
            chosen.iter().map(|key| authority(keys()[*key].public(), &format!("key {key}"))).collect()
        };
        let bundle = Bundle {
            jwt_authorities: authorities(&jwt),
            wit_authorities: authorities(&wit),
            refresh_hint,
            sequence_number,
            ..Bundle::empty(TrustDomain::parse("example.org").unwrap())
        };

        let read = Bundle::from_spiffe_json(bundle.trust_domain.clone(), bundle.to_spiffe_json().as_bytes());

        prop_assert_eq!(read, Ok(bundle));
    }
}
