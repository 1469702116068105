//! Tokens presented to `ValidateJWTSVID` by a workload of `example.org` that federates with `fed.test`.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use finial_spiffe::jwt::{self, JwtError, VerifiedJwt};
use finial_spiffe::key::PrivateKey;
use finial_spiffe::x509::pem_blocks;
use finial_spiffe::{JwtAuthority, TrustDomain, UnixSecs};
use serde_json::{Value, json};

/// The day of recording.
const NOW: UnixSecs = UnixSecs(1_795_500_000);

fn document(name: &str) -> String {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/documents");
    fs::read_to_string(home.join(name)).unwrap()
}

struct World {
    own: Vec<JwtAuthority>,
    federated: Vec<JwtAuthority>,
    signing_key: PrivateKey,
}

impl World {
    fn read() -> Self {
        let world: Value = serde_json::from_str(&document("world.json")).unwrap();
        let key = |wire: &Value| JwtAuthority {
            key_id: wire["key_id"].as_str().unwrap().to_owned(),
            public_key: STANDARD.decode(wire["public_key"].as_str().unwrap()).unwrap().into(),
            expires_at: UnixSecs(wire["expires_at"].as_str().unwrap().parse().unwrap()),
            tainted: false,
        };
        let keys = |bundle: &Value| bundle["jwt_authorities"].as_array().unwrap().iter().map(key).collect();
        let fed = world["federated"].as_array().unwrap();
        let fed = fed.iter().find(|bundle| bundle["trust_domain"] == "fed.test").unwrap();
        let pem = world["signing_key"].as_str().unwrap();
        let der = pem_blocks(pem.as_bytes(), "PRIVATE KEY");
        Self {
            own: keys(&world["own"]),
            federated: keys(fed),
            signing_key: PrivateKey::from_der(&der[0]).unwrap(),
        }
    }

    fn verify(&self, token: &str, audience: &str) -> Result<VerifiedJwt, JwtError> {
        let known = |name: &TrustDomain| match name.as_str() {
            "example.org" => Some(self.own.as_slice()),
            "fed.test" => Some(self.federated.as_slice()),
            _ => None,
        };
        let mut verified = jwt::verify(token, audience, NOW, known)?;
        if verified.id.trust_domain_name() != "example.org" {
            verified.drop_foreign_claims(&[]);
        }
        Ok(verified)
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", part(header), part(claims));
        let signature = self.signing_key.sign(self.signing_key.sig_alg().unwrap(), input.as_bytes()).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature.to_fixed(32).unwrap()))
    }

    /// The token of a case; `"now+5"` in one that is to be signed is a time.
    fn token(&self, document: &Value) -> String {
        if let Some(token) = document.as_str() {
            return token.to_owned();
        }
        let mut claims = document["claims"].clone();
        for claim in claims.as_object_mut().unwrap().values_mut() {
            if let Some(offset) = claim.as_str().and_then(|text| text.strip_prefix("now")) {
                *claim = json!(NOW.0 + offset.trim_start_matches('+').parse::<i64>().unwrap_or(0));
            }
        }
        self.sign(&document["header"], &claims)
    }
}

/// As a message of floats would carry it.
fn as_floats(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64().unwrap()),
        Value::Array(items) => items.iter().map(as_floats).collect(),
        Value::Object(members) => {
            members.iter().map(|(name, value)| (name.clone(), as_floats(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::String(_) => value.clone(),
    }
}

fn fits(verdict: &Result<VerifiedJwt, JwtError>, expect: &Value) -> bool {
    match verdict {
        Ok(verified) => {
            let claims = as_floats(&Value::Object(verified.claims.clone()));
            // Only claims that do not depend on the time were recorded.
            let recorded = expect["claims"].as_object();
            expect["code"] == "OK"
                && expect.get("spiffe_id").is_none_or(|id| id == verified.id.as_str())
                && recorded.is_none_or(|all| all.iter().all(|(name, value)| claims[name] == *value))
        }
        Err(why) => {
            let starts = expect["message_starts"].as_str();
            expect["code"] == "INVALID_ARGUMENT"
                && (expect["message"] == why.to_string()
                    || starts.is_some_and(|start| why.to_string().starts_with(start)))
        }
    }
}

#[test]
fn x03_tokens_are_judged_as_recorded() {
    let world = World::read();
    let (mut run, mut passed, mut wrong) = (0, 0, Vec::new());

    for line in document("jwt.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        run += 1;
        let verdict = world.verify(&world.token(&case["doc"]), case["audience"].as_str().unwrap());
        if fits(&verdict, &case["expect"]) || (verdict.is_err() && case["stricter_allowed"].is_string()) {
            passed += 1;
        } else {
            wrong.push(format!("{}: {verdict:?}, expected {}", case["id"], case["expect"]));
        }
    }

    println!("jwt.jsonl: {run} cases run, {passed} passed, {} open", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(run >= 222, "cases were lost: {run}");
}

#[test]
fn what_the_standard_forbids_is_refused() {
    let world = World::read();
    let header = json!({"alg": "ES256", "kid": "ec", "typ": "JWT"});
    let claims = json!({"sub": "spiffe://example.org/w", "aud": ["aud"], "exp": NOW.0 + 60});
    let refused = |token: &str| world.verify(token, "aud").unwrap_err().to_string();
    let with = |object: &Value, name: &str, value: Value| {
        let mut object = object.clone();
        object[name] = value;
        object
    };
    let good = world.sign(&header, &claims);
    assert!(world.verify(&good, "aud").is_ok());

    for name in ["crit", "jku", "jwk", "x5u", "x5c", "b64", "cty"] {
        let token = world.sign(&with(&header, name, json!([])), &claims);
        assert!(refused(&token).contains("unexpected header parameter"), "{name}");
    }
    for typ in ["wit+jwt", "at+jwt", "jwt", ""] {
        assert!(refused(&world.sign(&with(&header, "typ", json!(typ)), &claims)).contains("typ"), "{typ}");
    }
    let bare = world.sign(&header, &with(&claims, "sub", json!("spiffe://example.org")));
    assert!(refused(&bare).contains("invalid subject"));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    assert!(
        refused(&format!("{signed}.{}\n{}", &signature[..9], &signature[9..]))
            .contains("illegal base64 data at input byte 9")
    );
    let long = world.sign(&header, &with(&claims, "x", json!("x".repeat(jwt::MAX_TOKEN))));
    assert!(refused(&long).contains("token is longer than"));
}

#[test]
fn what_spire_refuses_too_is_told_first() {
    let world = World::read();
    let claims = json!({"sub": "spiffe://example.org/w", "aud": ["aud"], "exp": NOW.0 + 60});
    let refused = |header: Value, claims: &Value| {
        world.verify(&world.sign(&header, claims), "aud").unwrap_err().to_string()
    };

    let without_key = json!({"alg": "ES256", "typ": "x", "jku": "https://x/"});
    assert_eq!(refused(without_key, &claims), "token header missing key id");
    let odd = json!({"alg": "ES256", "kid": "ec", "jku": "https://x/"});
    let expired = json!({"sub": "spiffe://example.org/w", "aud": ["aud"], "exp": 1});
    assert_eq!(refused(odd, &expired), "token has expired");
    let bare = json!({"sub": "spiffe://unknown.test", "aud": ["aud"], "exp": NOW.0 + 60});
    assert!(refused(json!({"alg": "ES256", "kid": "ec"}), &bare).starts_with("no keys found"));
}

#[test]
fn reasons_are_told_in_known_words() {
    let world = World::read();
    let header = json!({"alg": "ES256", "kid": "ec"});
    let claims = json!({"sub": "spiffe://example.org/w", "aud": "a", "exp": NOW.0 + 300});
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        world.sign(&header, &claims)
    };
    let token = world.sign(&header, &claims);
    let (signed, _) = token.rsplit_once('.').unwrap();
    let told = |token: &str| world.verify(token, "a").unwrap_err().to_string();

    assert_eq!(told(&format!("{signed}.AAAA")), "go-jose/go-jose: error in cryptographic primitive");
    assert_eq!(
        told(&with("nbf", json!(NOW.0 + 100))),
        "go-jose/go-jose/jwt: validation failed, token not valid yet (nbf)"
    );
    assert_eq!(
        told(&with("iat", json!(NOW.0 + 100))),
        "go-jose/go-jose/jwt: validation field, token issued in the future (iat)"
    );
    assert!(told("..").starts_with("unable to parse JWT token: unexpected signature algorithm \"\"; "));
}

#[test]
fn no_byte_of_a_token_can_be_changed() {
    let world = World::read();
    let header = json!({"alg": "ES256", "kid": "ec", "typ": "JWT"});
    let claims = json!({"sub": "spiffe://example.org/w", "aud": ["aud"], "exp": NOW.0 + 60});
    let good = world.sign(&header, &claims);

    for at in 0..good.len() {
        for change in [1_u8, 2, 0x20] {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= change;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            assert!(world.verify(&changed, "aud").is_err(), "{changed}");
        }
    }
}
