//! JWT-SVIDs: handed out, and checked for others.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use client::WorkloadError;
use client::workload::ValidatedJwt;
use prost_types::value::Kind;
use serde_json::{Value, json};
use spiffe::key::PrivateKey;
use spiffe::x509::pem_blocks;
use spiffe::{Bundle, JwtAuthority, SpiffeId, TrustDomain, UnixSecs};
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::authority::{Authority, NOW};
use crate::workload::refusal;
use crate::world::{World, federated, hinted, own_entry};

fn audience(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn w17_tokens_of_all_identities_are_handed_out_or_of_the_one_asked_for() {
    let world = World::start().await;
    world.sync(&[own_entry("b", "/b"), hinted(own_entry("a", "/a"), "h", 1)], &[]).await;
    let client = world.client();

    let all = client.jwt_svids(&audience(&["x"]), None).await.unwrap();
    let one = client.jwt_svids(&audience(&["x"]), Some(&id("/b"))).await.unwrap();

    let told: Vec<(&str, &str)> = all.iter().map(|svid| (svid.id.path(), svid.hint.as_str())).collect();
    assert_eq!(told, [("/a", "h"), ("/b", "")]);
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].token, all[1].token);
    let denied = (Code::PermissionDenied, "no identity issued".to_owned());
    assert_eq!(refusal(client.jwt_svids(&audience(&["x"]), Some(&id("/c"))).await), denied);
}

#[tokio::test]
async fn a_token_is_made_once_whatever_the_order_of_its_audience() {
    let world = World::start().await;
    world.sync(&[own_entry("a", "/a")], &[]).await;
    let client = world.client();

    let first = client.jwt_svids(&audience(&["x", "y"]), None).await.unwrap();
    let second = client.jwt_svids(&audience(&["y", "x"]), None).await.unwrap();

    assert_eq!(first, second);
    assert_eq!(world.signer.count(), 1);
}

#[tokio::test]
async fn r08_an_identity_that_asks_for_ever_new_audiences_leaves_others_their_turn() {
    let world = World::start().await;
    world.sync(&[own_entry("a", "/a"), own_entry("b", "/b")], &[]).await;
    let (a, b) = (id("/a"), id("/b"));
    let signer = &world.signer;
    signer.room.forget_permits(Semaphore::MAX_PERMITS);
    let clients: Vec<_> = (0..3).map(|_| world.client()).collect();
    let greedy = clients.iter().enumerate().flat_map(|(of, client)| {
        let a = &a;
        (0..60)
            .map(move |n| async move { client.jwt_svids(&audience(&[&format!("{of}-{n}")]), Some(a)).await })
    });
    let asked = || signer.entries.lock().unwrap().clone();
    let until = async |wanted: &dyn Fn(&[String]) -> bool| {
        while !wanted(&asked()) {
            tokio::task::yield_now().await;
        }
    };
    let modest = world.client();
    let modest = async {
        until(&|asked| asked.len() == 64).await;
        modest.jwt_svids(&audience(&["x"]), Some(&b)).await
    };

    let signing = async {
        until(&|asked| asked.len() == 64).await;
        // Until `modest` is known to wait, one more may be answered now and then.
        let mut answered = 64;
        while !asked().contains(&"b".to_owned()) {
            signer.room.add_permits(1);
            answered += 1;
            until(&|asked| asked.len() >= answered).await;
        }
        signer.room.add_permits(1000);
        asked().len()
    };
    let (tokens, token, before) = tokio::join!(futures::future::join_all(greedy), modest, signing);

    assert!(tokens.iter().all(Result::is_ok) && token.is_ok());
    assert!(before < 100, "{before}");
    assert_eq!(signer.count(), 181);
}

#[tokio::test]
async fn what_the_server_says_is_passed_on() {
    let world = World::start().await;
    world.sync(&[own_entry("a", "/a")], &[]).await;

    for (status, code) in [
        (Status::invalid_argument("no such audience"), "InvalidArgument"),
        (Status::internal("no such audience"), "Internal"),
    ] {
        world.signer.refuse(status);
        let refused = refusal(world.client().jwt_svids(&audience(&["x"]), None).await);

        let text = format!(
            "could not fetch JWT-SVID: failed to fetch JWT SVID: rpc error: code = {code} desc = no such audience"
        );
        assert_eq!(refused, (Code::Unavailable, text));
    }
}

#[tokio::test]
async fn a_hint_hides_also_from_who_asks_by_id() {
    let world = World::start().await;
    world.sync(&[hinted(own_entry("a", "/a"), "h", 1), hinted(own_entry("b", "/b"), "h", 2)], &[]).await;

    let denied = (Code::PermissionDenied, "no identity issued".to_owned());
    assert_eq!(refusal(world.client().jwt_svids(&audience(&["x"]), Some(&id("/b"))).await), denied);
}

#[tokio::test]
async fn w17_own_tokens_are_checked_for_anybody_and_foreign_ones_for_who_federates() {
    let world = World::configured(|config| config.allowed_foreign_jwt_claims = vec!["team".to_owned()]).await;
    let other = Authority::new("other.org");
    let claims =
        |subject: &str| json!({"sub": subject, "aud": "x", "exp": NOW.0 + 60, "team": "t", "secret": 1});
    let (own, foreign) =
        (world.own.token(&claims("spiffe://example.org/w")), other.token(&claims("spiffe://other.org/w")));
    let client = world.client();

    // Nobody's entry is known yet: own tokens can be checked all the same.
    let checked = client.validate_jwt(&own, "x").await.unwrap();
    assert_eq!(names(&checked), ["aud", "exp", "secret", "sub", "team"]);
    let unknown = refusal(client.validate_jwt(&foreign, "x").await);
    assert_eq!(unknown, (Code::InvalidArgument, "no keys found for trust domain \"other.org\"".to_owned()));

    world.sync(&[own_entry("a", "/a")], &[other.bundle()]).await;
    assert_eq!(refusal(client.validate_jwt(&foreign, "x").await), unknown);

    world.sync(&[federated(own_entry("a", "/a"), &[&other])], &[other.bundle()]).await;
    let checked = client.validate_jwt(&foreign, "x").await.unwrap();
    assert_eq!(names(&checked), ["aud", "exp", "sub", "team"]);
    assert_eq!(checked.id.to_string(), "spiffe://other.org/w");
    let audience = &checked.claims.fields["aud"].kind;
    assert!(matches!(audience, Some(Kind::ListValue(list)) if list.values.len() == 1), "{audience:?}");
}

#[tokio::test]
async fn tokens_are_judged_as_recorded() {
    let recorded: Value = serde_json::from_str(&document("world.json")).unwrap();
    let bundle = |wire: &Value| Bundle {
        jwt_authorities: wire["jwt_authorities"].as_array().unwrap().iter().map(authority).collect(),
        ..Bundle::empty(TrustDomain::parse(wire["trust_domain"].as_str().unwrap()).unwrap())
    };
    let own = Bundle {
        trust_domain: TrustDomain::parse("example.org").unwrap(),
        ..bundle(&with_name(&recorded["own"]))
    };
    let foreign = recorded["federated"].as_array().unwrap();
    let foreign = bundle(foreign.iter().find(|one| one["trust_domain"] == "fed.test").unwrap());
    let pem = pem_blocks(recorded["signing_key"].as_str().unwrap().as_bytes(), "PRIVATE KEY");
    let signing_key = PrivateKey::from_der(&pem[0]).unwrap();
    let world = World::start().await;
    let mut entry = own_entry("a", "/a");
    entry.federates_with = Arc::from([foreign.trust_domain.clone()]);
    world.sync_with(&[entry], own, &[foreign]).await;
    let client = world.client();

    let (mut run, mut wrong) = (0, Vec::new());
    for line in document("jwt.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let token = token(&case["doc"], &signing_key);
        let verdict = client.validate_jwt(&token, case["audience"].as_str().unwrap()).await;
        run += 1;
        if !fits(&verdict, &case) {
            wrong.push(format!("{}: {verdict:?}, expected {}", case["id"], case["expect"]));
        }
    }

    println!(
        "jwt.jsonl over the Workload API: {run} cases run, {} passed, {} open",
        run - wrong.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(run >= 222, "cases were lost: {run}");
}

fn fits(verdict: &Result<ValidatedJwt, WorkloadError>, case: &Value) -> bool {
    let expect = &case["expect"];
    match verdict {
        Ok(checked) => {
            let recorded = expect["claims"].as_object();
            expect["code"] == "OK"
                && expect.get("spiffe_id").is_none_or(|id| *id == checked.id.to_string())
                && recorded.is_none_or(|all| {
                    all.iter().all(|(name, value)| {
                        checked.claims.fields.get(name).is_some_and(|found| json_of(found) == *value)
                    })
                })
        }
        // It was answered; this client does not read claims that deep.
        Err(WorkloadError::Refused(status)) if status.message().ends_with("recursion limit reached") => {
            expect["code"] == "OK"
        }
        Err(WorkloadError::Refused(status)) => {
            let text = status.message();
            let starts = expect["message_starts"].as_str();
            status.code() == Code::InvalidArgument
                && (case["stricter_allowed"].is_string()
                    || expect["code"] == "INVALID_ARGUMENT"
                        && (expect["message"] == text || starts.is_some_and(|start| text.starts_with(start))))
        }
        Err(_) => false,
    }
}

fn json_of(value: &prost_types::Value) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(truth)) => json!(truth),
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::ListValue(list)) => list.values.iter().map(json_of).collect(),
        Some(Kind::StructValue(members)) => {
            members.fields.iter().map(|(name, value)| (name.clone(), json_of(value))).collect()
        }
    }
}

fn document(name: &str) -> String {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/documents");
    fs::read_to_string(home.join(name)).unwrap()
}

fn with_name(bundle: &Value) -> Value {
    let mut bundle = bundle.clone();
    bundle["trust_domain"] = json!("example.org");
    bundle
}

fn authority(wire: &Value) -> JwtAuthority {
    JwtAuthority {
        key_id: wire["key_id"].as_str().unwrap().to_owned(),
        public_key: STANDARD.decode(wire["public_key"].as_str().unwrap()).unwrap().into(),
        expires_at: UnixSecs(wire["expires_at"].as_str().unwrap().parse().unwrap()),
        tainted: false,
    }
}

/// The token of a case; `"now+5"` in one that is to be signed is a time.
fn token(document: &Value, key: &PrivateKey) -> String {
    if let Some(token) = document.as_str() {
        return token.to_owned();
    }
    let mut claims = document["claims"].clone();
    for claim in claims.as_object_mut().unwrap().values_mut() {
        if let Some(offset) = claim.as_str().and_then(|text| text.strip_prefix("now")) {
            *claim = json!(NOW.0 + offset.trim_start_matches('+').parse::<i64>().unwrap_or(0));
        }
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&document["header"]), part(&claims));
    let signature = key.sign(key.sig_alg().unwrap(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_fixed(32).unwrap()))
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap()
}

fn names(checked: &ValidatedJwt) -> Vec<&str> {
    checked.claims.fields.keys().map(String::as_str).collect()
}
