//! Bundles in SPIFFE format, as `bundle set` takes them.

use std::fs;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use finial_spiffe::x509::Certificate;
use finial_spiffe::{Bundle, JwtAuthority, TrustDomain, UnixSecs, X509Authority};
use serde_json::{Value, json};

fn short_hash(der: &[u8]) -> String {
    let digest = digest(&SHA256, STANDARD.encode(der).as_bytes());
    digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn described(bundle: &Bundle) -> Value {
    let x509: Vec<String> =
        bundle.x509_authorities.iter().map(|authority| short_hash(&authority.der)).collect();
    let jwt: Vec<Value> = bundle
        .jwt_authorities
        .iter()
        .map(|authority| json!([authority.key_id, short_hash(&authority.public_key)]))
        .collect();
    json!({
        "x509": x509,
        "jwt": jwt,
        "refresh_hint": bundle.refresh_hint.to_string(),
        "sequence_number": bundle.sequence_number.to_string(),
    })
}

#[test]
fn documents_are_judged_as_recorded() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/documents/bundle.jsonl");
    let cases = fs::read_to_string(path).unwrap();
    let (mut run, mut passed, mut wrong) = (0, 0, Vec::new());

    for case in cases.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        if case["cli"] != true {
            continue;
        }
        run += 1;
        let trust_domain = TrustDomain::parse("doc.test").unwrap();
        let read = Bundle::from_spiffe_json(trust_domain, case["doc"].as_str().unwrap().as_bytes());
        let said = read
            .as_ref()
            .map(described)
            .map_err(|why| format!("Error: unable to parse to spiffe bundle: spiffebundle: {why}"));
        let expect = &case["expect"];
        let fits = match (&said, expect["code"].as_u64()) {
            (Ok(stored), Some(0)) => *stored == expect["stored"],
            (Err(text), Some(1)) => {
                expect["message"] == text.as_str()
                    || expect["message_starts"].as_str().is_some_and(|start| text.starts_with(start))
            }
            _ => false,
        };
        if fits || (said.is_err() && case["stricter_allowed"].is_string()) {
            passed += 1;
        } else {
            wrong.push(format!("{}: {said:?}, expected {expect}", case["id"]));
        }
    }

    println!("bundle.jsonl, documents: {run} cases run, {passed} passed, {} open", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(run >= 109, "cases were lost: {run}");
}

#[test]
fn authorities_are_judged_as_recorded() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/documents/bundle.jsonl");
    let cases = fs::read_to_string(path).unwrap();
    let bytes = |value: &Value| STANDARD.decode(value.as_str().unwrap_or_default()).unwrap();
    let (mut run, mut passed, mut wrong) = (0, 0, Vec::new());

    for case in cases.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let document = &case["doc"];
        if !document.is_object() {
            continue;
        }
        run += 1;
        let list = |name: &str| document[name].as_array().cloned().unwrap_or_default();
        let x509 = list("x509_authorities").iter().find_map(|item| {
            let refusal = X509Authority::parse(&bytes(&item["asn1"])).err()?;
            Some(format!("failed to convert bundle: unable to parse X.509 authority: {refusal}"))
        });
        let jwt = list("jwt_authorities").iter().find_map(|item| {
            let id = item["key_id"].as_str().unwrap_or_default();
            let refusal = JwtAuthority::parse(id, &bytes(&item["public_key"]), UnixSecs(0)).err()?;
            Some(format!("failed to convert bundle: unable to parse JWT authority: {refusal}"))
        });
        let refusal = x509.or(jwt);
        let fits = match (&refusal, case["expect"]["message_starts"].as_str()) {
            (None, None) => true,
            (Some(_), _) if case["stricter_allowed"].is_string() => true,
            (Some(text), Some(start)) => text.starts_with(start),
            _ => false,
        };
        if fits { passed += 1 } else { wrong.push(format!("{}: {refusal:?}", case["id"])) }
    }

    println!("bundle.jsonl, authorities: {run} cases run, {passed} passed, {} open", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(run >= 38, "cases were lost: {run}");
}

#[test]
fn a_refused_certificate_is_refused_for_what_is_wrong_with_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/documents/bundle.jsonl");
    let cases = fs::read_to_string(path).unwrap();
    let small = cases.lines().find(|line| line.contains("\"bundle.x509.key-rsa1024\"")).unwrap();
    let small: Value = serde_json::from_str(small).unwrap();
    let small = STANDARD.decode(small["doc"]["x509_authorities"][0]["asn1"].as_str().unwrap()).unwrap();
    let refusal = |der: &[u8]| X509Authority::parse(der).unwrap_err().to_string();
    let key = Certificate::parse(&small).unwrap().public_key().spki().to_vec();

    assert_eq!(refusal(&small), "RSA key must have 2048 to 8192 bits");
    let refused = JwtAuthority::parse("small", &key, UnixSecs(0)).unwrap_err();
    assert_eq!(refused.to_string(), "RSA key must have 2048 to 8192 bits");
    assert_eq!(refusal(&small[..small.len() - 1]), "malformed certificate: cannot be read");
    assert_eq!(refusal(b"zz"), "malformed certificate: cannot be read");
}

#[test]
fn a_bundle_survives_its_own_format() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/documents/bundle.jsonl");
    let cases = fs::read_to_string(path).unwrap();
    let trust_domain = || TrustDomain::parse("doc.test").unwrap();

    for case in cases.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let Some(text) = case["doc"].as_str() else { continue };
        let Ok(bundle) = Bundle::from_spiffe_json(trust_domain(), text.as_bytes()) else { continue };

        let again = Bundle::from_spiffe_json(trust_domain(), bundle.to_spiffe_json().as_bytes());

        assert_eq!(again, Ok(bundle), "{}", case["id"]);
    }
}

#[test]
fn certificates_may_be_broken_into_lines() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/documents/world.json");
    let world: Value = serde_json::from_str(&fs::read_to_string(home).unwrap()).unwrap();
    let der = world["own"]["x509_authorities"][0]["asn1"].as_str().unwrap();
    let trust_domain = TrustDomain::parse("doc.test").unwrap();
    let der_bytes = STANDARD.decode(der).unwrap().into();
    let bundle = Bundle {
        x509_authorities: vec![X509Authority { der: der_bytes, tainted: false }],
        ..Bundle::empty(trust_domain.clone())
    };

    let document = bundle.to_spiffe_json().replace(der, &format!("{}\\r\\n{}", &der[..64], &der[64..]));

    assert!(document.contains("\\r\\n"));
    assert_eq!(Bundle::from_spiffe_json(trust_domain, document.as_bytes()), Ok(bundle));
}
