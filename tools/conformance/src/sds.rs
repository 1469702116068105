//! Envoy's secret discovery, as a proxy that is no Envoy asks for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message;
use prost_types::{Any, Struct, Value as Field, value::Kind};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::live::{REACH, Stage};
use crate::outcome::Outcome;
use crate::pki::Authority;
use crate::plane::{PlaneConfig, Product};
use crate::wire::{Connection, Messages, code_of};

const STREAM: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
const FETCH: &str = "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets";
const DELTA: &str = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets";
const SET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle";
const DELETE: &str = "/spire.api.server.entry.v1.Entry/BatchDeleteEntry";
const KIND: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

const WEB: &str = "spiffe://example.org/web";
const OTHER: &str = "spiffe://example.org/other";

#[derive(Clone, PartialEq, Message)]
struct DiscoveryRequest {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(message, optional, tag = "2")]
    node: Option<Node>,
    #[prost(string, repeated, tag = "3")]
    names: Vec<String>,
    #[prost(string, tag = "4")]
    kind: String,
    #[prost(string, tag = "5")]
    nonce: String,
    #[prost(message, optional, tag = "6")]
    error: Option<RpcStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(message, optional, tag = "3")]
    metadata: Option<Struct>,
    #[prost(message, optional, tag = "8")]
    build: Option<Build>,
}

#[derive(Clone, PartialEq, Message)]
struct Build {
    #[prost(message, optional, tag = "1")]
    version: Option<Version>,
}

#[derive(Clone, PartialEq, Message)]
struct Version {
    #[prost(uint32, tag = "1")]
    major: u32,
    #[prost(uint32, tag = "2")]
    minor: u32,
}

#[derive(Clone, PartialEq, Message)]
struct DiscoveryResponse {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(message, repeated, tag = "2")]
    resources: Vec<Any>,
    #[prost(string, tag = "4")]
    kind: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

#[derive(Clone, PartialEq, Message)]
struct Secret {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    certificate: Option<Certificate>,
    #[prost(message, optional, tag = "4")]
    context: Option<Context>,
}

#[derive(Clone, PartialEq, Message)]
struct Certificate {
    #[prost(message, optional, tag = "1")]
    chain: Option<Source>,
    #[prost(message, optional, tag = "2")]
    key: Option<Source>,
}

#[derive(Clone, PartialEq, Message)]
struct Context {
    #[prost(message, optional, tag = "1")]
    trusted: Option<Source>,
    #[prost(message, optional, tag = "12")]
    extension: Option<Extension>,
}

#[derive(Clone, PartialEq, Message)]
struct Extension {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    settings: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Settings {
    #[prost(message, repeated, tag = "1")]
    trust_domains: Vec<TrustDomain>,
}

#[derive(Clone, PartialEq, Message)]
struct TrustDomain {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    bundle: Option<Source>,
}

#[derive(Clone, PartialEq, Message)]
struct Source {
    #[prost(bytes = "vec", tag = "2")]
    inline: Vec<u8>,
}

/// How a call or a stream was refused: code and message.
type Refusal = (String, String);

/// What proxies are told.
#[derive(Debug)]
pub struct Discovery {
    messages: Messages,
    recorded: PathBuf,
}

impl Discovery {
    /// Knows the server's API by the descriptors below `recorded`, and the recorded exchanges there.
    #[must_use]
    pub fn load(recorded: &Path) -> Self {
        Self { messages: Messages::load(&recorded.join("api/api.fds")), recorded: recorded.to_owned() }
    }

    /// The requests that were made of SPIRE's agent, made again.
    ///
    /// # Errors
    /// The world cannot be set up.
    ///
    /// # Panics
    /// If nothing was recorded.
    pub fn recorded(&self, product: &Product) -> Result<Outcome, String> {
        let path = self.recorded.join("wire-exchanges/workload.json");
        let text = fs::read_to_string(path).expect("a recording can be read");
        let recording: Value = serde_json::from_str(&text).expect("a recording is JSON");
        let stage = self.stage(product, "")?;
        stage.run(async {
            self.furnish(&stage).await?;
            let mut outcome = Outcome::default();
            let calls = recording["calls"].as_array().into_iter().flatten();
            for call in calls.filter(|call| [STREAM, FETCH].contains(&call["method"].as_str().unwrap_or("")))
            {
                let name = format!("{} {}", call["method"], call["resource_names"]);
                outcome.add(&name, again(&proxy(&stage), call).await);
            }
            Ok(outcome)
        })
    }

    /// A stream is sent its SVID at once and at each renewal, and is asked no more than it answers.
    ///
    /// # Errors
    /// Says what was sent instead.
    pub fn renewals(&self, product: &Product) -> Result<(), String> {
        let stage = self.stage(product, "")?;
        stage.run(async {
            stage.create("short", "/short", json!({"x509_svid_ttl": 20})).await?;
            drop(stage.stream_with(&["/short"]).await?);
            let mut stream = proxy(&stage).open(&["default"]).await.map_err(told)?;
            let mut last = stream.next().await.map_err(told)?;
            let mut seen = Vec::new();
            for version in 1..=3 {
                is("the version", &last.version, &version.to_string())?;
                let secrets = secrets(&last)?;
                is("what is sent", &describe(&secrets), &json!(["default: certificate and key"]))?;
                let chain = secrets.into_iter().find_map(|secret| secret.certificate?.chain);
                if seen.contains(&chain) {
                    return Err("the same SVID comes twice".to_owned());
                }
                seen.push(chain);
                stream.accept(&last, &["default"]).await;
                last = stream.next().await.map_err(told)?;
            }
            Ok(())
        })
    }

    /// What a proxy may say on a stream, and what comes of it.
    ///
    /// # Errors
    /// Says what came instead.
    pub fn conversation(&self, product: &Product) -> Result<(), String> {
        let stage = self.stage(product, "")?;
        stage.run(async {
            self.furnish(&stage).await?;
            let proxy = proxy(&stage);
            let mut stream = proxy.open(&[WEB]).await.map_err(told)?;
            let first = stream.next().await.map_err(told)?;
            is("the first answer", &names(&first)?, &json!([WEB]))?;

            // Another set of names is answered, another order is not.
            stream.accept(&first, &[OTHER, "ROOTCA"]).await;
            let second = stream.next().await.map_err(told)?;
            is("another set", &names(&second)?, &json!(["ROOTCA", OTHER]))?;
            is("its version", &second.version, &first.version)?;
            if second.nonce == first.nonce || second.nonce.len() != 8 {
                return Err(format!("the nonce is {:?} after {:?}", second.nonce, first.nonce));
            }
            stream.accept(&second, &["ROOTCA", OTHER]).await;
            // Who answers what was sent before is not heard.
            stream.accept(&first, &[WEB]).await;
            // Who rejects is not sent the same again, and may ask for something else.
            let rejected = DiscoveryRequest {
                version: String::new(),
                error: Some(RpcStatus { code: 13, message: "no".to_owned() }),
                ..answer(&second, &["ROOTCA", OTHER])
            };
            stream.say(rejected.clone()).await;
            let names_too = DiscoveryRequest { names: vec!["ALL".to_owned()], ..rejected };
            stream.say(names_too).await;
            let third = stream.next().await.map_err(told)?;
            is("what is asked for with a rejection", &names(&third)?, &json!(["ALL"]))?;

            stream.accept(&third, &["default", "spiffe://example.org/nobody", "x"]).await;
            let left = "\"spiffe://example.org/nobody\" \"x\"";
            is("unknown names", &stream.refusal().await?, &unauthorized(left))?;

            let mut stream = proxy.open(&["default"]).await.map_err(told)?;
            stream.next().await.map_err(told)?;
            drop(stream.requests);
            match timeout(REACH, stream.responses.message()).await {
                Ok(Ok(None)) => {}
                other => return Err(format!("a stream that the proxy ends goes on with {other:?}")),
            }

            let mut stream = proxy.open(&[OTHER]).await.map_err(told)?;
            let shown = stream.next().await.map_err(told)?;
            stream.accept(&shown, &[OTHER]).await;
            stage.local.ask(DELETE, json!({"ids": ["other"]})).await?;
            is("a deleted entry", &stream.refusal().await?, &unauthorized(&format!("{OTHER:?}")))?;

            let refused = proxy.call(DELTA, &DiscoveryRequest::default()).await.err();
            is("DeltaSecrets", &refused, &Some(refusal("UNIMPLEMENTED", "Method is not implemented")))
        })
    }

    /// Identities that the server signs while a proxy asks for them are waited for, each by its name
    /// and all together.
    ///
    /// # Errors
    /// Says what was answered instead.
    pub fn fresh(&self, product: &Product) -> Result<(), String> {
        let stage = self.stage(product, "")?;
        stage.run(async {
            let proxy = proxy(&stage);
            for number in 0..5 {
                stage.create(&format!("e{number}"), &format!("/e{number}"), json!({})).await?;
            }
            // From the moment the last entry is known, all of them are answered.
            let deadline = Instant::now() + REACH;
            let last = "spiffe://example.org/e4";
            while let Err(why) = proxy.fetch(&[last]).await {
                let early = unauthorized(&format!("{last:?}"));
                if why != early || Instant::now() > deadline {
                    return Err(told(why));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let all = proxy.fetch(&[]).await.map_err(told)?;
            let wanted: Vec<String> = std::iter::once("spiffe://example.org".to_owned())
                .chain((0..5).map(|number| format!("spiffe://example.org/e{number}")))
                .collect();
            is("everything", &names(&all)?, &json!(wanted))
        })
    }

    /// Names and form are those of the configuration, and the form also those of the proxy.
    ///
    /// # Errors
    /// Says what came instead.
    pub fn forms(&self, product: &Product) -> Result<(), String> {
        let off = Some(Kind::BoolValue(true));
        let on = Some(Kind::StringValue("false".to_owned()));
        let (plain, extension) = ("plain: 1", "extension: example.org 1");
        let all = "extension: example.org 1, other.test 1";
        let stage = self.stage(product, "")?;
        stage.run(async {
            self.furnish(&stage).await?;
            let proxy = proxy(&stage);
            let form = async |name: &str, node: Option<Node>| proxy.form(name, node).await;
            is("the form", &form("ROOTCA", None).await?, &extension.to_owned())?;
            is("all", &form("ALL", None).await?, &all.to_owned())?;
            for node in [node(off.clone(), None), node(None, Some((1, 17)))] {
                is("the old form", &form("ROOTCA", node.clone()).await?, &plain.to_owned())?;
                let text = "INTERNAL unable to use \"SPIFFE validator\" on Envoy below 1.17";
                is("all in the old form", &form("ALL", node).await?, &text.to_owned())?;
            }
            is("a newer one", &form("ROOTCA", node(None, Some((1, 18)))).await?, &extension.to_owned())
        })?;
        let sds = "sds {\n default_svid_name = \"mine\"\n default_bundle_name = \"ours\"\n \
                   default_all_bundles_name = \"theirs\"\n disable_spiffe_cert_validation = true\n }";
        let stage = self.stage(product, sds)?;
        stage.run(async {
            self.furnish(&stage).await?;
            let proxy = proxy(&stage);
            is("the form", &proxy.form("ours", None).await?, &plain.to_owned())?;
            let on = node(on, Some((1, 40)));
            is("switched on", &proxy.form("ours", on.clone()).await?, &extension.to_owned())?;
            is("all", &proxy.form("theirs", on).await?, &all.to_owned())?;
            is("mine", &names(&proxy.fetch(&["mine"]).await.map_err(told)?)?, &json!(["mine"]))?;
            for name in ["default", "ROOTCA", "ALL"] {
                let refused = proxy.fetch(&[name]).await.err();
                is(name, &refused, &Some(unauthorized(&format!("{name:?}"))))?;
            }
            Ok(())
        })
    }

    /// Calls beyond the limit of their method are refused.
    ///
    /// # Errors
    /// Says what came instead.
    pub fn limits(&self, product: &Product) -> Result<(), String> {
        let limits = "experimental { ratelimit { stream_secrets = 1 fetch_secrets = 2 } }";
        let stage = self.stage(product, limits)?;
        stage.run(async {
            stage.create("web", "/web", json!({})).await?;
            drop(stage.stream_with(&["/web"]).await?);
            let proxy = proxy(&stage);
            let refused = |method: &str| refusal("UNAVAILABLE", &format!("rate limit exceeded for {method}"));
            let mut fetched = Vec::new();
            for _ in 0..20 {
                fetched.push(proxy.fetch(&["default"]).await.err());
            }
            let refusals: Vec<&Refusal> = fetched.iter().flatten().collect();
            if fetched[0].is_some()
                || refusals.len() < 10
                || refusals.iter().any(|why| **why != refused(FETCH))
            {
                return Err(format!("fetches: {fetched:?}"));
            }
            let mut streams = Vec::new();
            for _ in 0..10 {
                let opened = match proxy.open(&["default"]).await {
                    Ok(mut stream) => stream.next().await.map(drop),
                    Err(why) => Err(why),
                };
                streams.push(opened.err());
            }
            let refusals: Vec<&Refusal> = streams.iter().flatten().collect();
            if streams[0].is_some()
                || refusals.len() < 5
                || refusals.iter().any(|why| **why != refused(STREAM))
            {
                return Err(format!("streams: {streams:?}"));
            }
            Ok(())
        })
    }

    /// Switched off it is unknown.
    ///
    /// # Errors
    /// Says what came instead.
    pub fn switched_off(&self, product: &Product) -> Result<(), String> {
        let stage = self.stage(product, "disable_sds_api = true")?;
        stage.run(async {
            stage.create("web", "/web", json!({})).await?;
            drop(stage.stream_with(&["/web"]).await?);
            let unknown = "unknown service envoy.service.secret.v3.SecretDiscoveryService";
            let refused = proxy(&stage).fetch(&["default"]).await.err();
            is("SDS", &refused, &Some(refusal("UNIMPLEMENTED", unknown)))
        })
    }

    /// A plane whose agent has these lines in its configuration.
    fn stage(&self, product: &Product, agent: &str) -> Result<Stage, String> {
        let config = PlaneConfig { agent_extra: agent.to_owned(), ..PlaneConfig::default() };
        Stage::with(product, &self.messages, config)
    }

    /// The recorded world: two identities, of which the first federates with another trust domain.
    async fn furnish(&self, stage: &Stage) -> Result<(), String> {
        let asn1 = STANDARD.encode(Authority::of("other.test").certificate);
        let bundle = json!({"trust_domain": "other.test", "x509_authorities": [{"asn1": asn1}]});
        stage.local.ask(SET_BUNDLE, json!({"bundle": [bundle]})).await?;
        stage.create("first", "/web", json!({"federates_with": ["other.test"]})).await?;
        stage.create("other", "/other", json!({})).await?;
        stage.stream_with(&["/web", "/other"]).await.map(drop)
    }
}

/// A proxy on an agent's socket.
struct Proxy {
    connection: Connection,
}

fn proxy(stage: &Stage) -> Proxy {
    Proxy { connection: Connection::local(stage.plane.word("asock")) }
}

impl Proxy {
    async fn open(&self, names: &[&str]) -> Result<Stream, Refusal> {
        let (requests, said) = mpsc::channel(8);
        let first = DiscoveryRequest { nonce: String::new(), ..request(names) };
        requests.send(first.encode_to_vec().into()).await.expect("room for a request");
        let opened = timeout(REACH, self.connection.converse(STREAM, ReceiverStream::new(said), &[])).await;
        let opened = opened.map_err(|_| refusal("CONNECTION", "no stream"))?;
        Ok(Stream { requests, responses: opened.map_err(|status| refused(&status))? })
    }

    async fn fetch(&self, names: &[&str]) -> Result<DiscoveryResponse, Refusal> {
        self.call(FETCH, &request(names)).await
    }

    async fn call(&self, method: &str, request: &DiscoveryRequest) -> Result<DiscoveryResponse, Refusal> {
        let request = vec![Bytes::from(request.encode_to_vec())];
        let exchanged = self.connection.exchange(method, request, &[]).await;
        let (answers, status) = exchanged.map_err(|why| refusal("CONNECTION", &why))?;
        match answers.into_iter().next() {
            Some(answer) if status.code() == tonic::Code::Ok => {
                DiscoveryResponse::decode(answer).map_err(|why| refusal("CONNECTION", &why.to_string()))
            }
            _ => Err(refused(&status)),
        }
    }

    /// The form of a bundle, or how it is refused.
    async fn form(&self, name: &str, node: Option<Node>) -> Result<String, String> {
        match self.call(FETCH, &DiscoveryRequest { node, ..request(&[name]) }).await {
            Ok(response) => {
                let described = describe(&secrets(&response)?);
                let only = described[0].as_str().unwrap_or_default();
                Ok(only.strip_prefix(&format!("{name}: ")).unwrap_or(only).to_owned())
            }
            Err((code, text)) => Ok(format!("{code} {text}")),
        }
    }
}

/// An open stream.
struct Stream {
    requests: mpsc::Sender<Bytes>,
    responses: Streaming<Bytes>,
}

impl Stream {
    async fn say(&self, request: DiscoveryRequest) {
        self.requests.send(request.encode_to_vec().into()).await.expect("an open stream");
    }

    /// Takes `response`, and asks for these from now on.
    async fn accept(&self, response: &DiscoveryResponse, names: &[&str]) {
        self.say(answer(response, names)).await;
    }

    async fn next(&mut self) -> Result<DiscoveryResponse, Refusal> {
        let next = timeout(REACH, self.responses.message()).await;
        let next = next.map_err(|_| refusal("CONNECTION", "nothing comes"))?;
        let next = next.map_err(|status| refused(&status))?;
        let next = next.ok_or_else(|| refusal("OK", "the stream ends"))?;
        DiscoveryResponse::decode(next).map_err(|why| refusal("CONNECTION", &why.to_string()))
    }

    /// How the stream ends, whatever comes before.
    async fn refusal(&mut self) -> Result<Refusal, String> {
        let deadline = Instant::now() + REACH;
        while Instant::now() < deadline {
            if let Err(why) = self.next().await {
                return Ok(why);
            }
        }
        Err("the stream does not end".to_owned())
    }
}

fn request(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        names: names.iter().map(ToString::to_string).collect(),
        kind: KIND.to_owned(),
        ..DiscoveryRequest::default()
    }
}

fn answer(response: &DiscoveryResponse, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest { version: response.version.clone(), nonce: response.nonce.clone(), ..request(names) }
}

fn node(off: Option<Kind>, version: Option<(u32, u32)>) -> Option<Node> {
    let fields = off.map(|kind| ("disable_spiffe_cert_validation".to_owned(), Field { kind: Some(kind) }));
    Some(Node {
        metadata: Some(Struct { fields: fields.into_iter().collect() }),
        build: version.map(|(major, minor)| Build { version: Some(Version { major, minor }) }),
    })
}

/// Makes a recorded call again and compares what it comes to.
async fn again(proxy: &Proxy, call: &Value) -> Result<(), String> {
    let bytes = |at: usize, side: &str| {
        let text = call["messages"][at][side].as_str().unwrap_or_default();
        STANDARD.decode(text).map_err(|why| why.to_string())
    };
    let decode = |bytes: Vec<u8>| DiscoveryRequest::decode(bytes.as_slice()).map_err(|why| why.to_string());
    let request = decode(bytes(0, "request")?)?;
    let recorded =
        DiscoveryResponse::decode(bytes(1, "response")?.as_slice()).map_err(|why| why.to_string())?;
    let response = if call["method"] == FETCH {
        proxy.call(FETCH, &request).await.map_err(told)?
    } else {
        let names: Vec<&str> = request.names.iter().map(String::as_str).collect();
        proxy.open(&names).await.map_err(told)?.next().await.map_err(told)?
    };
    is("the version", &response.version, &recorded.version)?;
    is("the type", &response.kind, &recorded.kind)?;
    is("the length of the nonce", &response.nonce.len(), &recorded.nonce.len())?;
    is("the secrets", &describe(&secrets(&response)?), &describe(&secrets(&recorded)?))
}

fn secrets(response: &DiscoveryResponse) -> Result<Vec<Secret>, String> {
    let one = |any: &Any| {
        is("the type of a secret", &any.type_url, &KIND.to_owned())?;
        Secret::decode(any.value.as_slice()).map_err(|why| why.to_string())
    };
    response.resources.iter().map(one).collect()
}

fn names(response: &DiscoveryResponse) -> Result<Value, String> {
    Ok(secrets(response)?.into_iter().map(|secret| json!(secret.name)).collect())
}

/// Secrets in words.
fn describe(secrets: &[Secret]) -> Value {
    let count = |source: &Option<Source>, label: &str| {
        let text = source.as_ref().map(|source| String::from_utf8_lossy(&source.inline).into_owned());
        let text = text.unwrap_or_default();
        let is_pem = text.ends_with(&format!("-----END {label}-----\n"));
        if is_pem { text.matches(&format!("-----BEGIN {label}-----\n")).count() } else { 0 }
    };
    let one = |secret: &Secret| {
        let name = &secret.name;
        match (&secret.certificate, &secret.context) {
            (Some(one), None)
                if count(&one.chain, "CERTIFICATE") > 0 && count(&one.key, "PRIVATE KEY") == 1 =>
            {
                json!(format!("{name}: certificate and key"))
            }
            (None, Some(Context { trusted: Some(source), extension: None })) => {
                json!(format!("{name}: plain: {}", count(&Some(source.clone()), "CERTIFICATE")))
            }
            (None, Some(Context { trusted: None, extension: Some(Extension { name: kind, settings }) }))
                if kind == "envoy.tls.cert_validator.spiffe" =>
            {
                let settings = settings.clone().unwrap_or_default();
                let url =
                    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
                if settings.type_url != url {
                    return json!(format!("{name}: settings of type {}", settings.type_url));
                }
                let settings = Settings::decode(settings.value.as_slice()).unwrap_or_default();
                let domains = settings.trust_domains.iter();
                let domains =
                    domains.map(|one| format!("{} {}", one.name, count(&one.bundle, "CERTIFICATE")));
                json!(format!("{name}: extension: {}", domains.collect::<Vec<_>>().join(", ")))
            }
            other => json!(format!("{name}: {} and {}", other.0.is_some(), other.1.is_some())),
        }
    };
    secrets.iter().map(one).collect()
}

fn is<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?} instead of {wanted:?}")) }
}

fn refused(status: &Status) -> Refusal {
    refusal(code_of(status), status.message())
}

fn refusal(code: &str, text: &str) -> Refusal {
    (code.to_owned(), text.to_owned())
}

fn unauthorized(names: &str) -> Refusal {
    refusal("INVALID_ARGUMENT", &format!("workload is not authorized for the requested identities [{names}]"))
}

fn told((code, text): Refusal) -> String {
    format!("{code} {text}")
}
