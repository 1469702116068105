//! WIT-SVIDs of `example.org`, most of which the standard forbids.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use finial_spiffe::jwk::Jwk;
use finial_spiffe::jwt::{self, JwtError, VerifiedWit, WitError, verify_wit};
use finial_spiffe::key::{KeyKind, PrivateKey};
use finial_spiffe::{JwtAuthority, TrustDomain, UnixSecs};
use serde_json::{Value, json};

const NOW: UnixSecs = UnixSecs(1_795_500_000);

/// Issuers of each kind, and the keys of workloads.
struct World {
    issuers: Vec<(&'static str, &'static str, PrivateKey)>,
    authorities: Vec<JwtAuthority>,
    holder: Value,
}

impl World {
    fn new() -> Self {
        let kinds = [
            ("ec", "ES256", KeyKind::EcP256),
            ("p384", "ES384", KeyKind::EcP384),
            ("rsa", "RS256", KeyKind::Rsa2048),
        ];
        let issuers = kinds.map(|(id, name, kind)| (id, name, PrivateKey::generate(kind).unwrap()));
        let authorities = issuers
            .iter()
            .map(|(id, _, key)| JwtAuthority::parse(id, key.public().spki(), UnixSecs(0)).unwrap())
            .collect();
        let holder = jwk(&PrivateKey::generate(KeyKind::EcP256).unwrap(), "ES256");
        Self { issuers: issuers.into(), authorities, holder }
    }

    fn header(&self) -> Value {
        json!({"alg": "ES256", "kid": "ec", "typ": "wit+jwt"})
    }

    fn claims(&self) -> Value {
        json!({
            "sub": "spiffe://example.org/w",
            "cnf": {"jwk": self.holder},
            "exp": NOW.0 + 60,
            "iat": NOW.0,
        })
    }

    /// Signs by the key that the header names, or the first.
    fn sign(&self, header: &Value, claims: &Value) -> String {
        let named = self.issuers.iter().find(|(id, ..)| header["kid"] == *id);
        let (_, _, key) = named.unwrap_or(&self.issuers[0]);
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", part(header), part(claims));
        let algorithm = key.sig_alg().unwrap();
        let signature = key.sign(algorithm, input.as_bytes()).unwrap();
        let width = match key.public().raw().len() {
            65 => Some(32),
            97 => Some(48),
            _ => None,
        };
        let signature =
            width.map_or_else(|| signature.as_bytes().to_vec(), |width| signature.to_fixed(width).unwrap());
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn verify(&self, token: &str) -> Result<VerifiedWit, WitError> {
        let known = |name: &TrustDomain| match name.as_str() {
            "example.org" => Some(self.authorities.as_slice()),
            "other.test" => Some(&[][..]),
            _ => None,
        };
        verify_wit(token, NOW, known)
    }

    fn refused(&self, header: &Value, claims: &Value) -> String {
        match self.verify(&self.sign(header, claims)) {
            Ok(verified) => panic!("holds: {header} {claims} {verified:?}"),
            Err(why) => why.to_string(),
        }
    }
}

fn jwk(key: &PrivateKey, algorithm: &str) -> Value {
    let mut members = Jwk::write("", "", key.public(), None).unwrap();
    members.insert("alg".to_owned(), algorithm.into());
    members.into()
}

fn with(object: &Value, name: &str, value: Value) -> Value {
    let mut object = object.clone();
    object[name] = value;
    object
}

fn without(object: &Value, name: &str) -> Value {
    let mut object = object.clone();
    object.as_object_mut().unwrap().remove(name);
    object
}

#[test]
fn x04_a_token_tells_whose_it_is_and_by_which_key_they_are_known() {
    let world = World::new();
    for (id, name, _) in &world.issuers {
        let header = json!({"alg": name, "kid": id, "typ": "wit+jwt"});

        let verified = world.verify(&world.sign(&header, &world.claims())).unwrap();

        assert_eq!(verified.id.as_str(), "spiffe://example.org/w");
        assert_eq!(verified.expires_at, NOW.plus(60));
        assert_eq!(verified.algorithm, "ES256");
        assert_eq!(verified.key, Jwk::read(&world.holder).unwrap().key);
        assert_eq!(Value::Object(verified.claims), world.claims());
    }
}

#[test]
fn x04_the_claims_of_the_standards_example_hold_while_they_last() {
    let world = World::new();
    let claims = json!({
        "cnf": {"jwk": {
            "alg": "ES256",
            "crv": "P-256",
            "kty": "EC",
            "x": "rzP7mLCKAHWmsM6X0EwVISC_hI3ujcu95ffUkyeDGGo",
            "y": "uOrfDljtX9m3jY-hsyhLJYaxtGkzDv5e5kmCe58Z97g",
        }},
        "exp": 1_765_456_503,
        "iat": 1_765_452_903,
        "jti": "1yj19V4McOAzMcFi7qvsg_AgCxlrY5E_x509wlKKQtc",
        "sub": "spiffe://example.com/my-workload",
    });
    let token = world.sign(&world.header(), &claims);
    let at = |now: i64| verify_wit(&token, UnixSecs(now), |_| Some(world.authorities.as_slice()));

    assert!(at(1_765_452_903).is_ok());
    assert!(at(1_765_456_503 + jwt::LEEWAY).is_ok());
    assert_eq!(at(1_765_456_504 + jwt::LEEWAY), Err(WitError::Token(JwtError::Expired)));
}

#[test]
fn x04_tokens_of_another_form_are_refused() {
    let world = World::new();
    let good = world.sign(&world.header(), &world.claims());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let refused = |token: &str| world.verify(token).unwrap_err().to_string();

    assert_eq!(refused(""), "svid must be specified");
    let parts = "unable to parse JWT token: go-jose/go-jose: compact JWS format must have three parts";
    for token in [signed, &format!("{good}.e30"), "{\"payload\":\"\",\"signatures\":[]}"] {
        assert_eq!(refused(token), parts, "{token}");
    }
    assert!(refused(&format!("{good}=")).contains("illegal base64"));
    assert!(
        refused(&format!("{signed}.{}\n{}", &signature[..9], &signature[9..])).contains("illegal base64")
    );
    let long = world.sign(&world.header(), &with(&world.claims(), "x", json!("x".repeat(jwt::MAX_TOKEN))));
    assert!(refused(&long).contains("token is longer than"));
    let twice = |header: &str, claims: &str| {
        format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
    };
    assert!(refused(&twice(r#"{"alg":"ES256","alg":"ES256"}"#, "{}")).contains("duplicate member"));
    let header = world.header().to_string();
    assert!(refused(&twice(&header, r#"{"cnf":{"jwk":{},"jwk":{}}}"#)).contains("duplicate member"));
}

#[test]
fn x04_headers_that_no_such_token_has_are_refused() {
    let world = World::new();
    let (header, claims) = (world.header(), world.claims());

    for typ in
        [json!("JWT"), json!("JOSE"), json!("WIT+JWT"), json!("application/wit+jwt"), json!(1), json!(null)]
    {
        assert_eq!(world.refused(&with(&header, "typ", typ), &claims), "typ is not \"wit+jwt\"");
    }
    assert_eq!(world.refused(&without(&header, "typ"), &claims), "typ is not \"wit+jwt\"");
    for algorithm in ["none", "HS256", "EdDSA", "ES256K", "es256", ""] {
        let text = world.refused(&with(&header, "alg", json!(algorithm)), &claims);
        assert!(text.contains("unexpected signature algorithm"), "{text}");
    }
    for key_id in [json!(""), json!(null)] {
        assert_eq!(world.refused(&with(&header, "kid", key_id), &claims), "token header missing key id");
    }
    assert_eq!(world.refused(&without(&header, "kid"), &claims), "token header missing key id");
    for critical in [json!(["exp"]), json!([]), json!("x"), json!(null)] {
        let text = world.refused(&with(&header, "crit", critical), &claims);
        assert_eq!(text, "header has critical parameters");
    }
}

#[test]
fn x04_keys_in_a_header_are_passed_over() {
    let world = World::new();
    let (header, claims) = (world.header(), world.claims());
    let attacker = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let forged = World { issuers: vec![("ec", "ES256", attacker)], ..World::new() };
    let own = jwk(&forged.issuers[0].2, "ES256");

    for (name, value) in
        [("jwk", own), ("jku", json!("https://x/")), ("x5u", json!("https://x/")), ("x5c", json!([]))]
    {
        let header = with(&header, name, value);
        assert!(world.verify(&world.sign(&header, &claims)).is_ok(), "{name}");
        assert_eq!(
            world.verify(&forged.sign(&header, &claims)),
            Err(JwtError::BadSignature.into()),
            "{name}"
        );
    }
}

#[test]
fn x04_only_the_named_key_of_the_subjects_own_trust_domain_counts() {
    let world = World::new();
    let (header, claims) = (world.header(), world.claims());
    let of = |id: &str| with(&claims, "sub", json!(id));

    assert!(world.refused(&with(&header, "kid", json!("EC")), &claims).contains("not found in trust domain"));
    assert!(world.refused(&header, &of("spiffe://other.test/w")).contains("not found in trust domain"));
    assert!(world.refused(&header, &of("spiffe://unknown.test/w")).starts_with("no keys found"));
    for (algorithm, key_id) in [("ES256", "p384"), ("RS256", "ec"), ("ES256", "rsa"), ("PS256", "rsa")] {
        let header = json!({"alg": algorithm, "kid": key_id, "typ": "wit+jwt"});
        assert_eq!(world.verify(&world.sign(&header, &claims)), Err(JwtError::BadSignature.into()));
    }
}

#[test]
fn x04_claims_that_do_not_hold_are_refused() {
    let world = World::new();
    let (header, claims) = (world.header(), world.claims());
    let refused = |name: &str, value: Value| world.refused(&header, &with(&claims, name, value));
    let holds = |name: &str, value: Value| {
        let token = world.sign(&header, &with(&claims, name, value));
        world.verify(&token).unwrap_or_else(|why| panic!("{name}: {why}"))
    };

    assert_eq!(world.refused(&header, &without(&claims, "sub")), "token missing subject claim");
    for id in ["w", "https://example.org/w", "spiffe://example.org/w/", "spiffe://Example.org/w"] {
        assert!(refused("sub", json!(id)).starts_with("token has in invalid subject claim"), "{id}");
    }
    assert!(refused("sub", json!("spiffe://example.org")).contains("path is empty"));
    assert_eq!(world.refused(&header, &without(&claims, "exp")), "token missing exp claim");
    assert!(refused("exp", json!("1795500060")).contains("exp is not a number"));
    assert_eq!(refused("exp", json!(NOW.0 - jwt::LEEWAY - 1)), "token has expired");
    assert_eq!(refused("exp", json!(1e300)), "token has expired");
    assert!(refused("nbf", json!(NOW.0 + jwt::LEEWAY + 1)).contains("not valid yet"));
    for audience in [json!("a"), json!(["a"]), json!([])] {
        assert_eq!(refused("aud", audience), "token has an audience claim");
    }
    // When it was made says nothing about when it holds.
    holds("iat", json!(NOW.0 + 10_000));
    holds("nbf", json!(NOW.0));
    holds("iss", json!("anybody"));
    holds("x", json!({"y": [1]}));
    let token = world.sign(&header, &without(&claims, "iat"));
    assert!(world.verify(&token).is_ok());
}

#[test]
fn x04_a_token_is_bound_to_one_public_key_with_its_algorithm() {
    let world = World::new();
    let (header, claims) = (world.header(), world.claims());
    let bound = |confirmation: Value| world.refused(&header, &with(&claims, "cnf", confirmation));
    let to = |jwk: Value| bound(json!({"jwk": jwk}));
    let holder = &world.holder;

    assert_eq!(world.refused(&header, &without(&claims, "cnf")), "token missing cnf claim with a jwk");
    for none in [json!(null), json!("x"), json!([]), json!({}), json!({"kid": "x"}), json!([{"jwk": holder}])]
    {
        assert_eq!(bound(none), "token missing cnf claim with a jwk");
    }
    for other in ["jwe", "jku", "kid", "jkt", "x5t#S256"] {
        let text = bound(json!({"jwk": holder, other: "x"}));
        assert_eq!(text, format!("cnf claim has {other:?} beside jwk"));
    }
    for key in [json!(null), json!("x"), json!([holder])] {
        assert_eq!(to(key), "invalid jwk in cnf claim: not an object");
    }
    for private in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
        let text = to(with(holder, private, json!("AA")));
        assert_eq!(text, "invalid jwk in cnf claim: key has private members", "{private}");
    }
    for algorithm in [json!("none"), json!("HS256"), json!("EdDSA"), json!("es256"), json!(1), json!(null)] {
        let text = to(with(holder, "alg", algorithm.clone()));
        assert!(text.contains("unexpected signature algorithm") || text.contains("alg must be"), "{text}");
    }
    assert!(to(without(holder, "alg")).contains("unexpected signature algorithm \"\""));
    for algorithm in ["ES384", "ES512", "RS256", "PS512"] {
        let text = to(with(holder, "alg", json!(algorithm)));
        assert_eq!(
            text,
            format!("invalid jwk in cnf claim: key is of another kind than signs by {algorithm}")
        );
    }
    for (name, value) in [
        ("kty", "oct"),
        ("kty", "OKP"),
        ("kty", ""),
        ("crv", "secp256k1"),
        ("crv", "P-384"),
        ("x", ""),
        ("y", "AAAA"),
        ("x", "!"),
    ] {
        assert!(
            to(with(holder, name, json!(value))).starts_with("invalid jwk in cnf claim: "),
            "{name} {value}"
        );
    }
    let off_curve = with(holder, "x", holder["y"].clone());
    assert!(to(off_curve).contains("not on curve"));
    let rsa = jwk(&world.issuers[2].2, "PS384");
    for name in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        let claims = with(&claims, "cnf", json!({"jwk": with(&rsa, "alg", json!(name))}));
        assert_eq!(world.verify(&world.sign(&header, &claims)).unwrap().algorithm, name);
    }
    assert!(to(with(&rsa, "n", json!(URL_SAFE_NO_PAD.encode([0xc5; 128])))).starts_with("invalid jwk"));
    // What nobody knows is passed over.
    let claims = with(&claims, "cnf", json!({"jwk": with(holder, "x-more", json!(1)), "more": 1}));
    assert!(world.verify(&world.sign(&header, &claims)).is_ok());
}

#[test]
fn x04_the_two_kinds_of_tokens_never_pass_for_each_other() {
    let world = World::new();
    let claims = with(&world.claims(), "aud", json!(["a"]));
    let known = |_: &TrustDomain| Some(world.authorities.as_slice());

    for (typ, header) in [("wit+jwt", world.header()), ("JWT", with(&world.header(), "typ", json!("JWT")))] {
        let as_jwt = jwt::verify(&world.sign(&header, &claims), "a", NOW, known);
        let as_wit = world.verify(&world.sign(&header, &world.claims()));
        assert_eq!((as_jwt.is_ok(), as_wit.is_ok()), (typ == "JWT", typ == "wit+jwt"), "{typ}");
    }
}

#[test]
fn x04_no_byte_of_a_token_can_be_changed() {
    let world = World::new();
    let good = world.sign(&world.header(), &world.claims());

    for at in 0..good.len() {
        for change in [1_u8, 2, 0x20] {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= change;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            assert!(world.verify(&changed).is_err(), "{changed}");
        }
    }
}
