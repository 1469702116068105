//! Every parser on its corpus and on damaged copies: nothing panics, what is read can be written and
//! read again, and damage does not get past a signature.

use std::collections::BTreeSet;
use std::fs;
use std::hint::black_box;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use finial_spiffe::jwk::Jwk;
use finial_spiffe::jwt::{self, verify_wit};
use finial_spiffe::key::{KeyForm, KeyKind, PrivateKey, PublicKey, SigAlg, Signature, private_key_of_pem};
use finial_spiffe::x509::{
    Certificate, Csr, CsrTemplate, Name, leaf_id, pem_blocks, to_pem, verify_path, verify_svid,
};
use finial_spiffe::{Bundle, DnsName, JwtAuthority, SpiffeId, TrustDomain, UnixSecs, X509Authority};
use serde_json::{Value, json};
use testkit::fuzz::drive;

/// The day the documents were recorded.
const NOW: UnixSecs = UnixSecs(1_795_500_000);

fn documents(name: &str) -> Vec<Value> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/documents");
    let text = fs::read_to_string(home.join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn world() -> Value {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/documents");
    serde_json::from_str(&fs::read_to_string(home.join("world.json")).unwrap()).unwrap()
}

fn bytes(encoded: &Value) -> Vec<u8> {
    STANDARD.decode(encoded.as_str().unwrap()).unwrap()
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

/// Texts that are not UTF-8 do not reach parsers of text.
fn text(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok()
}

#[test]
fn fuzz_spiffe_ids() {
    let corpus: Vec<Vec<u8>> =
        documents("id.jsonl").iter().map(|case| case["doc"].as_str().unwrap().into()).collect();
    let pieces: [&[u8]; 8] =
        [b"spiffe://", b"://", b"/", b"//", b"/./", b"/..", b"%2f", "\u{131}".as_bytes()];

    drive("spiffe_ids", &corpus, &pieces, 50_000, |input| {
        let Some(input) = text(input) else { return };
        if let Ok(id) = SpiffeId::parse(input) {
            assert_eq!(id.as_str(), input);
            assert_eq!(id.trust_domain().id_with_path(id.path()).as_ref(), Ok(&id));
            assert_eq!(TrustDomain::parse(input), Ok(id.trust_domain()));
            assert!(input.is_ascii());
        }
        if let Ok(name) = TrustDomain::parse(input) {
            assert_eq!(TrustDomain::parse(name.as_str()).as_ref(), Ok(&name));
            assert_eq!(SpiffeId::parse(name.id().as_str()), Ok(name.id()));
        }
        if let Ok(id) = trust_domain().id_with_path(input) {
            assert_eq!(id.path(), input);
        }
    });
}

#[test]
fn fuzz_dns_names() {
    let corpus = [
        "a.b",
        "*.a",
        "a_b.c",
        "ab--c.d",
        "xn--bcher-kva.example",
        "xn--e1afmkfd.xn--p1ai",
        "xn--ls8h.la",
        "xn--zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
        "-a.b-",
    ]
    .map(|name| name.as_bytes().to_vec());
    let pieces: [&[u8]; 7] = [b"xn--", b"*.", b".", b"-", b"--", b"99999999", b" "];

    drive("dns_names", &corpus, &pieces, 50_000, |input| {
        let Some(input) = text(input) else { return };
        if let Ok(name) = DnsName::parse(input) {
            assert_eq!(name.as_str(), input);
            assert!(input.is_ascii() && input.len() < 300 && !input.ends_with('.'));
        }
    });
}

/// All certificates of the recorded chains, and the anchors of the recorded world.
fn certificates() -> (Vec<Vec<u8>>, Vec<Certificate>) {
    let chains = documents("chain.jsonl");
    let pem = chains.iter().map(|case| case["doc"]["chain"].as_str().unwrap());
    let ders: BTreeSet<Vec<u8>> = pem.flat_map(|pem| pem_blocks(pem.as_bytes(), "CERTIFICATE")).collect();
    let anchors = world()["own"]["x509_authorities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|authority| Certificate::parse(&bytes(&authority["asn1"])).unwrap())
        .collect();
    (ders.into_iter().collect(), anchors)
}

/// Tags and lengths of DER, and what extensions hold.
const DER_PIECES: [&[u8]; 14] = [
    &[0x30, 0x80],
    &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
    &[0x30, 0x82],
    &[0x02, 0x01, 0x00],
    &[0x05, 0x00],
    &[0x01, 0x01, 0xff],
    &[0x04, 0x00],
    &[0x03, 0x02, 0x07, 0x80],
    &[0x55, 0x1d, 0x11],
    &[0x55, 0x1d, 0x1e],
    &[0x86, 0x00],
    b"spiffe://example.org/a",
    b"20500101000000Z",
    &[0xa3, 0x03, 0x30, 0x01, 0x00],
];

#[test]
fn fuzz_certificates() {
    let (corpus, anchors) = certificates();
    let genuine: Vec<Certificate> = corpus.iter().filter_map(|der| Certificate::parse(der).ok()).collect();

    drive("certificates", &corpus, &DER_PIECES, 8_000, |input| {
        if let Ok(all) = Certificate::parse_all(input) {
            let again: Vec<u8> = all.iter().flat_map(|certificate| certificate.der().to_vec()).collect();
            assert_eq!(again, input);
        }
        black_box(X509Authority::parse(input).is_ok());
        let Ok(certificate) = Certificate::parse(input) else { return };
        assert_eq!(certificate.der(), input);
        black_box(leaf_id(&certificate).is_ok());
        // As an intermediate and as an anchor it must not bring anybody down.
        black_box(verify_path(&genuine[0], std::slice::from_ref(&certificate), &anchors, NOW).is_ok());
        black_box(verify_path(&certificate, &genuine[..2], std::slice::from_ref(&certificate), NOW).is_ok());
        if let Ok(id) = verify_svid(std::slice::from_ref(&certificate), &anchors, NOW) {
            let known = genuine.iter().any(|other| leaf_id(other).as_ref() == Ok(&id));
            assert!(known, "{id} is nobody's");
        }
    });
}

#[test]
fn fuzz_pem() {
    let chains = documents("chain.jsonl");
    let corpus: Vec<Vec<u8>> =
        chains.iter().take(20).map(|case| case["doc"]["chain"].as_str().unwrap().into()).collect();
    let pieces: [&[u8]; 6] =
        [b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----", b"-----", b"\n", b"==", b"\r\n"];

    drive("pem", &corpus, &pieces, 4_000, |input| {
        let blocks = pem_blocks(input, "CERTIFICATE");
        let written: String = blocks.iter().map(|der| to_pem("CERTIFICATE", der)).collect();
        assert_eq!(pem_blocks(written.as_bytes(), "CERTIFICATE"), blocks);
        if let Ok(bundle) = Bundle::from_pem(trust_domain(), input) {
            assert_eq!(Bundle::from_pem(trust_domain(), bundle.to_pem().as_bytes()).as_ref(), Ok(&bundle));
        }
    });
}

#[test]
fn x05_fuzz_certificate_requests() {
    let request = |kind: KeyKind, id: Option<&str>, dns_names: &[&str]| {
        let template = CsrTemplate {
            subject: Name::new(&[]),
            id: id.map(|id| SpiffeId::parse(id).unwrap()),
            dns_names: dns_names.iter().map(|name| (*name).to_owned()).collect(),
        };
        template.sign(&PrivateKey::generate(kind).unwrap()).unwrap()
    };
    let corpus = [
        request(KeyKind::EcP256, Some("spiffe://example.org/web"), &["a.b", "*.c"]),
        request(KeyKind::EcP384, None, &[]),
        request(KeyKind::Rsa2048, Some("spiffe://example.org/db"), &[]),
    ];
    let genuine: Vec<Csr> = corpus.iter().map(|der| Csr::verify(der).unwrap()).collect();

    drive("certificate_requests", &corpus, &DER_PIECES, 8_000, |input| {
        black_box(Csr::parse(input).is_ok());
        let Ok(read) = Csr::verify(input) else { return };
        let same = |other: &Csr| {
            (&read.public_key, &read.uris, &read.dns_names)
                == (&other.public_key, &other.uris, &other.dns_names)
        };
        assert!(genuine.iter().any(same), "damage holds: {read:?}");
    });
}

#[test]
fn fuzz_tokens() {
    let world = world();
    let mut authorities: Vec<JwtAuthority> = world["own"]["jwt_authorities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|wire| JwtAuthority {
            key_id: wire["key_id"].as_str().unwrap().to_owned(),
            public_key: bytes(&wire["public_key"]).into(),
            expires_at: UnixSecs(0),
            tainted: false,
        })
        .collect();
    let mut corpus: Vec<Vec<u8>> = documents("jwt.jsonl")
        .iter()
        .filter_map(|case| case["doc"].as_str().map(|token| token.as_bytes().to_vec()))
        .filter(|token| token.len() < 8192)
        .collect();
    // One that holds, of a key of our own.
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let claims = r#"{"sub":"spiffe://example.org/web","aud":["a"],"exp":1795500300,"iat":1795500000}"#;
    let own = token(&key, r#"{"alg":"ES256","kid":"own","typ":"JWT"}"#, claims);
    corpus.push(own.clone().into_bytes());
    authorities.push(JwtAuthority::parse("own", key.public().spki(), UnixSecs(0)).unwrap());
    let known = |name: &TrustDomain| (*name == trust_domain()).then_some(authorities.as_slice());
    assert!(jwt::verify(&own, "a", NOW, known).is_ok());
    let good: BTreeSet<String> = corpus
        .iter()
        .filter_map(|token| text(token))
        .filter(|token| jwt::verify(token, "a", NOW, known).is_ok())
        .map(|token| token.rsplit_once('.').unwrap().0.to_owned())
        .collect();
    let pieces: [&[u8]; 6] = [b".", b"..", b"=", b"\n", b"eyJhbGciOiJub25lIn0", b"e30"];

    drive("tokens", &corpus, &pieces, 12_000, |input| {
        let Some(input) = text(input) else { return };
        if jwt::verify(input, "a", NOW, known).is_ok() {
            let signed = input.rsplit_once('.').unwrap().0;
            assert!(good.contains(signed), "damage holds: {input}");
        }
    });
}

#[test]
fn x04_fuzz_wit_svids() {
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let authorities = [JwtAuthority::parse("own", key.public().spki(), UnixSecs(0)).unwrap()];
    let known = |name: &TrustDomain| (*name == trust_domain()).then_some(&authorities[..]);
    let kinds = [(KeyKind::EcP256, "ES256"), (KeyKind::EcP384, "ES384"), (KeyKind::Rsa2048, "PS256")];
    let corpus = kinds.map(|(kind, algorithm)| {
        let holder = PrivateKey::generate(kind).unwrap();
        let mut jwk = Jwk::write("", "", holder.public(), None).unwrap();
        jwk.insert("alg".to_owned(), algorithm.into());
        let claims = json!({
            "sub": "spiffe://example.org/web",
            "cnf": {"jwk": jwk},
            "exp": NOW.0 + 300,
            "iat": NOW.0,
        });
        claims.to_string().into_bytes()
    });
    let header = r#"{"alg":"ES256","kid":"own","typ":"wit+jwt"}"#;
    let pieces: [&[u8]; 12] = [
        br#""jwk":{}"#,
        br#""jku":"https://x/","#,
        br#""d":"AA","#,
        br#""alg":"none""#,
        br#""alg":"ES512""#,
        br#""kty":"RSA""#,
        br#""kty":"oct","#,
        br#""aud":"a","#,
        br#""nbf":1e300,"#,
        b"null",
        b"{",
        b"}",
    ];

    // Claims of any content, under a signature that holds.
    drive("wit_svids", &corpus, &pieces, 6_000, |input| {
        let Some(claims) = text(input) else { return };
        let Ok(verified) = verify_wit(&token(&key, header, claims), NOW, known) else { return };
        let jwk = &verified.claims["cnf"]["jwk"];
        assert_eq!(jwk["alg"], verified.algorithm.as_str());
        assert!(verified.key.check_usable().is_ok());
        assert!(["d", "p", "q", "k"].iter().all(|name| jwk.get(name).is_none()));
        assert!(verified.claims.get("aud").is_none() && verified.claims["sub"] == verified.id.as_str());
    });
    let whole = token(&key, header, text(&corpus[0]).unwrap());
    let pieces: [&[u8]; 4] = [b".", b"=", b"eyJhbGciOiJub25lIn0", b"e30"];
    drive("wit_svids_as_written", &[whole.clone().into_bytes()], &pieces, 6_000, |input| {
        let Some(input) = text(input) else { return };
        if verify_wit(input, NOW, known).is_ok() {
            assert_eq!(input.rsplit_once('.').unwrap().0, whole.rsplit_once('.').unwrap().0);
        }
    });
}

fn token(key: &PrivateKey, header: &str, claims: &str) -> String {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = key.sign(SigAlg::EcdsaP256Sha256, input.as_bytes()).unwrap().to_fixed(32).unwrap();
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn fuzz_bundle_documents() {
    let corpus: Vec<Vec<u8>> = documents("bundle.jsonl")
        .iter()
        .filter(|case| case["cli"] == true)
        .map(|case| case["doc"].as_str().unwrap().into())
        .filter(|document: &Vec<u8>| document.len() < 16_384)
        .collect();
    let pieces: [&[u8]; 16] = [
        b"\"keys\":[",
        b"\"KEYS\":",
        b"\"use\":\"x509-svid\"",
        b"\"use\":\"jwt-svid\"",
        b"\"kid\":\"\"",
        b"\"kty\":\"EC\"",
        b"\"crv\":\"P-521\"",
        b"\"d\":\"AA\"",
        b"\"x5c\":[]",
        b"\"spiffe_sequence\":18446744073709551615",
        b"\"spiffe_refresh_hint\":-1",
        b"{",
        b"}",
        b",",
        b"null",
        b"1e999",
    ];

    drive("bundle_documents", &corpus, &pieces, 6_000, |input| {
        if let Ok(served) = Bundle::from_endpoint(trust_domain(), input) {
            let written = served.to_spiffe_json();
            assert_eq!(Bundle::from_endpoint(trust_domain(), written.as_bytes()).as_ref(), Ok(&served));
            assert!(served.x509_authorities.iter().all(|known| X509Authority::parse(&known.der).is_ok()));
        }
        let Ok(bundle) = Bundle::from_spiffe_json(trust_domain(), input) else { return };
        let written = bundle.to_spiffe_json();
        let again = Bundle::from_spiffe_json(trust_domain(), written.as_bytes());
        assert_eq!(again.as_ref(), Ok(&bundle), "{written}");
        serde_json::from_str::<Value>(&bundle.to_jwt_jwks()).unwrap();
    });
}

#[test]
fn fuzz_keys() {
    let kinds = [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048];
    let keys = kinds.map(|kind| PrivateKey::generate(kind).unwrap());
    let private = keys.iter().map(|key| key.to_pkcs8().unwrap().to_vec());
    let public = keys.iter().map(|key| key.public().spki().to_vec());
    let corpus: Vec<Vec<u8>> = private.chain(public).collect();

    drive("keys", &corpus, &DER_PIECES, 3_000, |input| {
        if let Ok(key) = PublicKey::from_spki(input) {
            assert_eq!(key.spki(), input);
            black_box(key.check_usable().is_ok());
        }
        if let Ok(key) = PrivateKey::from_der(input) {
            let again = PrivateKey::from_der(&key.to_pkcs8().unwrap()).unwrap();
            assert!(again.public() == key.public());
        }
        if let Ok(key) = PrivateKey::from_pkcs8(input) {
            let again = PrivateKey::from_der(input).unwrap();
            assert!(again.public() == key.public() && key.kind().is_some());
        }
        for form in [KeyForm::Pkcs8, KeyForm::Pkcs1, KeyForm::Sec1] {
            if let Ok(key) = PrivateKey::from_form(form, input) {
                let again = PrivateKey::from_any_form(input).unwrap();
                assert!(again.public() == key.public());
            }
        }
        black_box(private_key_of_pem(input).is_some());
    });
}

#[test]
fn fuzz_ecdsa_signatures() {
    let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let corpus: Vec<Vec<u8>> = (0..4_u8)
        .map(|message| key.sign(SigAlg::EcdsaP256Sha256, &[message]).unwrap().as_bytes().to_vec())
        .collect();

    drive("ecdsa_signatures", &corpus, &DER_PIECES, 50_000, |input| {
        let signature = Signature::new(input.to_vec());
        let Some(fixed) = signature.to_fixed(32) else { return };
        let (r, s) = fixed.split_at(32);
        let again = Signature::from_ecdsa_parts(r, s);
        assert_eq!(again.to_fixed(32), Some(fixed));
    });
}
