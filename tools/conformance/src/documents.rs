//! Identifiers, bundles, certificate chains and tokens, judged through the doors of a running plane.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::runtime::Runtime;

use crate::outcome::Outcome;
use crate::plane::{Plane, PlaneConfig, Product};
use crate::wire::{Caller, Messages, Shown};
use crate::workload::Workload;

const APPEND: &str = "/spire.api.server.bundle.v1.Bundle/AppendBundle";
const SET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle";
const GET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle";
const CREATE_ENTRY: &str = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
const COUNT: &str = "/spire.api.server.entry.v1.Entry/CountEntries";
const CREATE_RELATIONSHIP: &str =
    "/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship";
const UPDATE_RELATIONSHIP: &str =
    "/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship";

/// The trust domain that bundles are set for.
const DOCUMENTED: &str = "doc.test";

/// Claims with a longer text are not recorded.
const LONGEST_TEXT: usize = 100;

/// The recorded documents.
#[derive(Debug)]
pub struct Documents {
    folder: PathBuf,
    messages: Messages,
    world: World,
}

#[derive(Debug, Deserialize)]
struct World {
    own: Value,
    federated: Value,
    signing_key: String,
}

#[derive(Debug, Deserialize)]
struct Case {
    id: String,
    doc: Value,
    #[serde(default)]
    audience: String,
    #[serde(default)]
    cli: bool,
    stricter_allowed: Option<String>,
    expect: Expected,
}

#[derive(Debug, Deserialize)]
struct Expected {
    code: Value,
    #[serde(default)]
    message: String,
    message_starts: Option<String>,
    stored: Option<Value>,
    spiffe_id: Option<String>,
    claims: Option<Value>,
}

/// What was said to one document.
struct Said {
    code: Value,
    message: String,
}

impl Said {
    fn new(code: impl Into<Value>, message: &str) -> Self {
        Self { code: code.into(), message: message.to_owned() }
    }

    fn is_refusal(&self) -> bool {
        self.code != json!(0) && self.code != json!("OK")
    }
}

impl Documents {
    /// Reads the documents in `folder`; the API's descriptors are in `descriptors`.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    pub fn load(folder: &Path, descriptors: &Path) -> Self {
        let world = fs::read_to_string(folder.join("world.json")).expect("the world can be read");
        Self {
            folder: folder.to_owned(),
            messages: Messages::load(descriptors),
            world: serde_json::from_str(&world).expect("the world"),
        }
    }

    /// Plays the file `name` (`id`, `bundle`, `chain` or `jwt`) on a plane of `product`.
    ///
    /// # Panics
    /// If the plane does not start.
    #[must_use]
    pub fn play(&self, product: &Product, name: &str) -> Outcome {
        let text = fs::read_to_string(self.folder.join(format!("{name}.jsonl"))).expect("a recorded file");
        let cases: Vec<Case> =
            text.lines().map(|line| serde_json::from_str(line).expect("a recorded case")).collect();
        let runtime = Runtime::new().expect("a runtime");
        let stage = Stage::set(product, self, name == "jwt", &runtime);
        let mut outcome = Outcome::default();
        for case in &cases {
            let judged = match &stage {
                Ok(stage) => stage.play(name, case, &runtime),
                Err(why) => Err(why.clone()),
            };
            outcome.add(&case.id, judged);
        }
        outcome
    }
}

struct Stage<'a> {
    documents: &'a Documents,
    local: Caller,
    signing_key: EcdsaKeyPair,
    plane: Plane,
}

impl<'a> Stage<'a> {
    fn set(
        product: &Product,
        documents: &'a Documents,
        has_agent: bool,
        runtime: &Runtime,
    ) -> Result<Self, String> {
        let config = PlaneConfig {
            server_extra: "admin_ids = [\"spiffe://foreign.test/admin\"]\n  \
                           experimental { cache_reload_interval = \"1s\" }"
                .to_owned(),
            agent: has_agent,
            ..PlaneConfig::default()
        };
        let plane = Plane::start(product, &config, &BTreeMap::new());
        let key = PrivatePkcs8KeyDer::from_pem_slice(documents.world.signing_key.as_bytes());
        let key = key.expect("the signing key is PEM");
        let stage = Self {
            documents,
            local: runtime.block_on(async { Caller::local(&documents.messages, plane.word("sock")) }),
            signing_key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der())
                .expect("the signing key is P-256"),
            plane,
        };
        runtime.block_on(stage.furnish())?;
        if has_agent {
            runtime.block_on(stage.await_agent())?;
        }
        Ok(stage)
    }

    async fn furnish(&self) -> Result<(), String> {
        let world = &self.documents.world;
        self.local.ask(APPEND, world.own.clone()).await?;
        self.local.ask(SET_BUNDLE, json!({"bundle": world.federated})).await?;
        let id = |path: &str| json!({"trust_domain": "example.org", "path": path});
        let entries = json!({"entries": [
            {
                "parent_id": id("/world"),
                "spiffe_id": id("/world/admin"),
                "selectors": [{"type": "world", "value": "admin"}],
                "admin": true,
            },
            {
                "parent_id": id("/node"),
                "spiffe_id": id("/w"),
                "selectors": [{"type": "unix", "value": format!("uid:{}", self.plane.word("uid"))}],
                "federates_with": ["fed.test"],
            },
        ]});
        self.local.ask(CREATE_ENTRY, entries).await?;
        let relationship = json!({"federation_relationships": [{
            "trust_domain": DOCUMENTED,
            "bundle_endpoint_url": "https://127.0.0.1:1/",
            "https_web": {},
        }]});
        self.local.ask(CREATE_RELATIONSHIP, relationship).await?;
        Ok(())
    }

    /// Waits until the agent knows the keys of its own and of the federated trust domain.
    async fn await_agent(&self) -> Result<(), String> {
        let workload = Workload::at(self.plane.word("asock"));
        let deadline = Instant::now() + Duration::from_secs(60);
        let own = self.sign(&json!({"alg": "ES256", "kid": "ec"}), &self.good_claims());
        loop {
            let validated = workload.validate("aud", &own).await;
            let bundles = workload.jwt_bundles().await;
            let knows = |bundles: &Vec<String>| bundles.iter().any(|id| id.contains("fed.test"));
            if validated.is_ok() && bundles.as_ref().is_ok_and(knows) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("the agent does not learn its keys: {validated:?} {bundles:?}"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn good_claims(&self) -> Value {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        json!({"aud": ["aud"], "exp": now + 600, "sub": format!("spiffe://{}/w", self.plane.word("td"))})
    }

    fn play(&self, name: &str, case: &Case, runtime: &Runtime) -> Result<(), String> {
        let judged = match name {
            "id" => runtime.block_on(self.identifier(case)),
            "bundle" if case.cli => self.bundle_by_command(case, runtime),
            "bundle" => runtime.block_on(self.bundle(case)),
            "chain" => runtime.block_on(self.chain(case)),
            "jwt" => runtime.block_on(self.token(case)),
            other => Err(format!("there is no door for {other}")),
        };
        judged.map_err(|why| format!("{why}; document {}", short(&case.doc)))
    }

    async fn identifier(&self, case: &Case) -> Result<(), String> {
        let request = json!({"federation_relationships": [{
            "trust_domain": DOCUMENTED,
            "bundle_endpoint_url": "https://127.0.0.1:1/",
            "https_spiffe": {"endpoint_spiffe_id": case.doc},
        }]});
        let said = batch_status(&self.local.ask(UPDATE_RELATIONSHIP, request).await?);
        judge(case, &said).map(drop)
    }

    async fn bundle(&self, case: &Case) -> Result<(), String> {
        let said = batch_status(&self.local.ask(SET_BUNDLE, json!({"bundle": [case.doc]})).await?);
        self.judge_stored(case, &said).await
    }

    fn bundle_by_command(&self, case: &Case, runtime: &Runtime) -> Result<(), String> {
        let id = format!("spiffe://{DOCUMENTED}");
        let args = ["bundle", "set", "-id", &id, "-format", "spiffe", "-socketPath", "{sock}"];
        let mut child = self
            .plane
            .command("server", &args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start the command: {error}"))?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let text = case.doc.as_str().unwrap_or_default();
        if let Err(error) = stdin.write_all(text.as_bytes()) {
            return Err(format!("cannot write to the command: {error}"));
        }
        drop(stdin);
        let output = child.wait_with_output().map_err(|error| format!("the command is lost: {error}"))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let said = Said::new(output.status.code().unwrap_or(-1), stderr.trim_end());
        runtime.block_on(self.judge_stored(case, &said))
    }

    /// Judges what was said, and what is kept where the document was taken.
    async fn judge_stored(&self, case: &Case, said: &Said) -> Result<(), String> {
        let Verdict::AsRecorded = judge(case, said)? else { return Ok(()) };
        let Some(wanted) = &case.expect.stored else { return Ok(()) };
        let kept = self.local.ask(GET_BUNDLE, json!({"trust_domain": DOCUMENTED})).await?;
        let each = |list: &str| kept[list].as_array().cloned().unwrap_or_default();
        let number = |name: &str| kept[name].as_str().unwrap_or("0").to_owned();
        let kept = json!({
            "x509": each("x509_authorities").iter().map(|one| digest_of(&one["asn1"])).collect::<Vec<_>>(),
            "jwt": each("jwt_authorities")
                .iter()
                .map(|one| json!([start_of(&one["key_id"]), digest_of(&one["public_key"])]))
                .collect::<Vec<_>>(),
            "refresh_hint": number("refresh_hint"),
            "sequence_number": number("sequence_number"),
        });
        if kept == *wanted { Ok(()) } else { Err(format!("kept {kept} instead of {wanted}")) }
    }

    async fn chain(&self, case: &Case) -> Result<(), String> {
        let text = |name: &str| case.doc[name].as_str().unwrap_or_default().as_bytes();
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text("chain")).collect();
        let chain = chain.map_err(|error| format!("the chain is no PEM: {error}"))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(text("key"))
            .map_err(|error| format!("the key is no PEM: {error}"))?;
        let shown = Shown {
            chain: chain.iter().map(|der| der.to_vec()).collect(),
            key: key.secret_pkcs8_der().to_vec(),
        };
        let caller = Caller::tls(&self.documents.messages, self.plane.word("port"), Some(&shown));
        let reply = caller.call(COUNT, &[json!({})], &[]).await?;
        let message = if reply.code == "CONNECTION" { "" } else { &reply.message };
        judge(case, &Said::new(reply.code.clone(), message)).map(drop)
    }

    async fn token(&self, case: &Case) -> Result<(), String> {
        let ready = case.doc.as_str().map(str::to_owned);
        let token = ready.unwrap_or_else(|| self.sign(&case.doc["header"], &case.doc["claims"]));
        let workload = Workload::at(self.plane.word("asock"));
        let validated = match workload.validate(&case.audience, &token).await {
            Ok(validated) => validated,
            Err((code, message)) => return judge(case, &Said::new(code, &message)).map(drop),
        };
        judge(case, &Said::new("OK", ""))?;
        if case.expect.spiffe_id.as_ref().is_some_and(|wanted| *wanted != validated.spiffe_id) {
            return Err(format!("spiffe_id is {:?}", validated.spiffe_id));
        }
        let mut claims = validated.claims;
        if let Some(members) = claims.as_object_mut() {
            // Not recorded: instants of tokens signed on the spot, and texts without end.
            members.retain(|_, value| {
                let is_instant = value.is_number() && case.doc.is_object();
                !is_instant && value.as_str().is_none_or(|text| text.len() <= LONGEST_TEXT)
            });
        }
        match &case.expect.claims {
            Some(wanted) if !is_same(wanted, &claims) => {
                Err(format!("claims are {claims} instead of {wanted}"))
            }
            _ => Ok(()),
        }
    }

    /// A token of `header` and `claims`; `now-30` among the claims is that instant.
    fn sign(&self, header: &Value, claims: &Value) -> String {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut claims = claims.clone();
        for value in claims.as_object_mut().into_iter().flat_map(|members| members.values_mut()) {
            let offset = value.as_str().and_then(|text| text.strip_prefix("now"));
            if let Some(offset) = offset {
                let offset: i64 = if offset.is_empty() { 0 } else { offset.parse().expect("an offset") };
                *value = json!(now + offset);
            }
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(&claims));
        let signature = self.signing_key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.expect("a key signs");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// How a document that passes came out.
enum Verdict {
    AsRecorded,
    Stricter,
}

fn judge(case: &Case, said: &Said) -> Result<Verdict, String> {
    let expected = &case.expect;
    let is_message_right = match &expected.message_starts {
        Some(start) => said.message.starts_with(start),
        None => said.message == expected.message || (case.cli && !said.is_refusal()),
    };
    if said.code == expected.code && is_message_right {
        return Ok(Verdict::AsRecorded);
    }
    if case.stricter_allowed.is_some() && said.is_refusal() {
        return Ok(Verdict::Stricter);
    }
    let wanted = expected.message_starts.as_ref().unwrap_or(&expected.message);
    Err(format!("{} {:?} instead of {} {wanted:?}", said.code, said.message, expected.code))
}

/// The status of the only item of a batch.
fn batch_status(answer: &Value) -> Said {
    let status = &answer["results"][0]["status"];
    let message = status["message"].as_str().unwrap_or_default();
    Said::new(status["code"].as_i64().unwrap_or(0), message)
}

/// The first half of the SHA-256 of a base64 text, as the recording has it.
fn digest_of(base64: &Value) -> String {
    let digest = digest::digest(&digest::SHA256, base64.as_str().unwrap_or_default().as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// As much of a key id as the recording has of it.
fn start_of(key_id: &Value) -> String {
    key_id.as_str().unwrap_or_default().chars().take(40).collect()
}

/// Equal, where 1 and 1.0 are.
fn is_same(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Number(wanted), Value::Number(found)) => wanted.as_f64() == found.as_f64(),
        (Value::Array(wanted), Value::Array(found)) => {
            wanted.len() == found.len()
                && wanted.iter().zip(found).all(|(wanted, found)| is_same(wanted, found))
        }
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.len() == found.len()
                && wanted
                    .iter()
                    .all(|(name, wanted)| found.get(name).is_some_and(|found| is_same(wanted, found)))
        }
        _ => wanted == found,
    }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(160).collect()
}
