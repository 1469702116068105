//! The SPIFFE Broker API, as brokers call it: with X.509-SVIDs of their own, over the socket and over TCP.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message;
use prost_types::Any;
use serde_json::json;
use tokio::time::timeout;
use tonic::Status;

use crate::http::await_ok;
use crate::live::{REACH, Stage};
use crate::pki::Key;
use crate::plane::{PlaneConfig, Product};
use crate::typed::Typed;
use crate::wire::{Connection, Messages, Shown, code_of};

const SVID: &str = "/spiffe.broker.API/SubscribeToX509SVID";
const BUNDLES: &str = "/spiffe.broker.API/SubscribeToX509Bundles";
const TOKEN: &str = "/spiffe.broker.API/FetchJWTSVID";
const KEYS: &str = "/spiffe.broker.API/SubscribeToJWTBundles";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const MINT: &str = "/spire.api.server.svid.v1.SVID/MintX509SVID";
const DELETE: &str = "/spire.api.server.entry.v1.Entry/BatchDeleteEntry";
const PID: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";
const OBJECT: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";

/// What the agent's configuration says of brokers.
const CONFIGURED: &str = r#"experimental { broker {
    socket_path = "{dir}/broker/api.sock"
    bind_address = "127.0.0.1:{p3}"
    brokers = [
      { id = "spiffe://example.org/local" allowed_reference_types = [
        { type_url = "type.googleapis.com/spiffe.broker.WorkloadPIDReference" } ] },
      { id = "spiffe://example.org/remote" allowed_reference_types = [
        { type_url = "*" allow_over_tcp = true } ] },
      { id = "spiffe://example.org/objects" allowed_reference_types = [
        { type_url = "type.googleapis.com/spiffe.broker.KubernetesObjectReference" allow_over_tcp = true } ] }
    ]
  } }"#;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, optional, tag = "1")]
    reference: Option<Reference>,
    /// Of a request for a token.
    #[prost(string, repeated, tag = "2")]
    audience: Vec<String>,
    #[prost(string, tag = "3")]
    spiffe_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Reference {
    #[prost(message, optional, tag = "1")]
    reference: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct PidReference {
    #[prost(int32, tag = "1")]
    pid: i32,
}

#[derive(Clone, PartialEq, Message)]
struct SvidResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
    #[prost(btree_map = "string, bytes", tag = "3")]
    federated: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Svid {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bytes = "vec", tag = "2")]
    chain: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    hint: String,
}

#[derive(Clone, PartialEq, Message)]
struct TokenResponse {
    #[prost(message, repeated, tag = "1")]
    tokens: Vec<Token>,
}

#[derive(Clone, PartialEq, Message)]
struct Token {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    token: String,
}

#[derive(Clone, PartialEq, Message)]
struct X509Bundles {
    #[prost(btree_map = "string, bytes", tag = "2")]
    bundles: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct JwtBundles {
    #[prost(btree_map = "string, bytes", tag = "1")]
    bundles: BTreeMap<String, Vec<u8>>,
}

/// Code, message and the reason among the details.
type Refusal = (String, String, Option<&'static str>);

/// Brokers and the workloads that they name.
#[derive(Debug)]
pub struct Brokers {
    messages: Messages,
    /// SPIRE gives no reasons, and is laxer.
    is_spire: bool,
}

impl Brokers {
    /// Knows the server's API by the descriptors below `recorded`.
    #[must_use]
    pub fn load(recorded: &Path) -> Self {
        let messages = Messages::load(&recorded.join("api/api.fds"));
        Self { messages, is_spire: std::env::var_os("SPIRE_BIN").is_some() }
    }

    /// Who is no broker gets no connection, and each broker what is in its scope.
    ///
    /// # Errors
    /// Says what came instead.
    pub fn scopes(&self, product: &Product) -> Result<(), String> {
        let stage = self.stage(product)?;
        let own = i32::try_from(std::process::id()).map_err(|why| why.to_string())?;
        stage.run(async {
            stage.create("web", "/web", json!({})).await?;
            drop(stage.stream_with(&["/web"]).await?);
            let [local, remote, objects, stranger] = ["/local", "/remote", "/objects", "/stranger"];
            for nobody in [None, Some(mint(&stage, stranger).await?)] {
                for connection in [over_socket(&stage, nobody.as_ref()), over_tcp(&stage, nobody.as_ref())] {
                    let refused = call(&connection, SVID, &of(own)).await.err().map(|why| why.0);
                    is("a stranger", &refused, &Some("CONNECTION".to_owned()))?;
                }
            }
            let plain = Connection::local(&socket(&stage));
            let refused = call(&plain, SVID, &of(own)).await.err().map(|why| why.0);
            is("a caller without TLS", &refused, &Some("CONNECTION".to_owned()))?;

            let local = mint(&stage, local).await?;
            let connection = over_socket(&stage, Some(&local));
            for header in [vec![], vec!["True"], vec!["true", "true"]] {
                let header = header.into_iter().map(|value| (HEADER.to_owned(), value.to_owned()));
                let header: Vec<_> = header.collect();
                for method in [SVID, REFLECTION] {
                    let refused = called(&connection, method, &of(own), &header).await.err();
                    let missing = "security header missing from request";
                    is("no header", &refused, &Some(invalid(missing, None)))?;
                }
            }
            call(&connection, SVID, &of(own)).await.map_err(told)?;
            let refused = call(&over_tcp(&stage, Some(&local)), SVID, &of(own)).await.err();
            let text = format!(
                "reference type {PID:?} is not allowed over TCP for broker \"spiffe://example.org/local\""
            );
            is("by TCP", &refused, &Some(denied(&text)))?;
            let object = reference(Any { type_url: OBJECT.to_owned(), value: Vec::new() });
            let text = format!(
                "broker \"spiffe://example.org/local\" is not allowed to use reference type {OBJECT:?}"
            );
            is("another type", &call(&connection, KEYS, &object).await.err(), &Some(denied(&text)))?;

            let objects = over_tcp(&stage, Some(&mint(&stage, objects).await?));
            let text = format!(
                "broker \"spiffe://example.org/objects\" is not allowed to use reference type {PID:?}"
            );
            is("objects alone", &call(&objects, BUNDLES, &of(own)).await.err(), &Some(denied(&text)))?;
            let remote = over_tcp(&stage, Some(&mint(&stage, remote).await?));
            call(&remote, SVID, &of(own)).await.map_err(told)?;
            let only = "server reflection is only available over Unix sockets";
            is("reflection", &call(&remote, REFLECTION, &of(own)).await.err(), &Some(denied(only)))?;
            self.references(&stage, &remote).await
        })
    }

    /// What refers to no workload is refused.
    async fn references(&self, stage: &Stage, remote: &Connection) -> Result<(), String> {
        let reason = |reason| if self.is_spire { None } else { Some(reason) };
        let nothing = "workload reference must be provided";
        for empty in [Request::default(), reference(Any::default())] {
            let refused = call(remote, SVID, &empty).await.err();
            is("no reference", &refused, &Some(invalid(nothing, reason("WORKLOAD_REFERENCE_INVALID"))))?;
        }
        let denied = call(remote, TOKEN, &of(1)).await.err();
        is("no audience", &denied, &Some(invalid("audience must be specified", None)))?;
        if self.is_spire {
            return Ok(());
        }
        let bad = reason("WORKLOAD_REFERENCE_INVALID");
        let unknown = "no workload attestor handled reference";
        for kind in [OBJECT, "type.googleapis.com/google.protobuf.Empty", "x"] {
            let other = reference(Any { type_url: kind.to_owned(), value: Vec::new() });
            is(kind, &call(remote, SVID, &other).await.err(), &Some(invalid(unknown, bad)))?;
        }
        for pid in [0, -1] {
            let refused = call(remote, SVID, &of(pid)).await.err();
            is("no pid", &refused, &Some(invalid("workload reference has no process id", bad)))?;
        }
        let gone = ("NOT_FOUND".to_owned(), "workload not found".to_owned(), Some("WORKLOAD_NOT_FOUND"));
        is("a pid that is gone", &call(remote, SVID, &of(i32::MAX)).await.err(), &Some(gone))?;

        let own = i32::try_from(std::process::id()).map_err(|why| why.to_string())?;
        let named =
            |id: &str| Request { audience: vec!["a".to_owned()], spiffe_id: id.to_owned(), ..of(own) };
        let other = call(remote, TOKEN, &named("spiffe://example.org/other")).await.err();
        is("the token of another id", &other, &Some(nobody()))?;
        let told = call(remote, TOKEN, &named("x")).await.err().map(|why| why.0);
        is("a bad id", &told, &Some("INVALID_ARGUMENT".to_owned()))?;
        stage.local.ask(DELETE, json!({"ids": ["web"]})).await?;
        let mut stream = open::<SvidResponse>(remote, SVID, &of(own)).await?;
        is("an identity that goes", &refused(&stream.refusal().await?), &nobody())?;
        for method in [SVID, BUNDLES, KEYS] {
            is("no identity", &call(remote, method, &of(own)).await.err(), &Some(nobody()))?;
        }
        Ok(())
    }

    /// A broker is sent what its workload would be sent, until that ends.
    ///
    /// # Errors
    /// Says what came instead.
    pub fn subscriptions(&self, product: &Product) -> Result<(), String> {
        let stage = self.stage(product)?;
        let mut child = Asleep(
            Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().map_err(|why| why.to_string())?,
        );
        let pid = i32::try_from(child.0.id()).map_err(|why| why.to_string())?;
        let mut stream = stage.run(async {
            let path = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(|why| why.to_string())?;
            let selectors = json!([{"type": "unix", "value": format!("path:{}", path.display())}]);
            let short = json!({"selectors": selectors, "x509_svid_ttl": 20, "hint": "h"});
            stage.create("asleep", "/asleep", short).await?;
            stage.create("admin", "/admin", json!({"selectors": selectors, "admin": true})).await?;
            let local = mint(&stage, "/local").await?;
            let broker = over_socket(&stage, Some(&local));
            let mut stream = loop {
                // Until the agent knows the entry.
                let mut stream = open::<SvidResponse>(&broker, SVID, &of(pid)).await?;
                match stream.next().await {
                    Ok(answer) if !answer.svids.is_empty() => break stream,
                    _ => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
                }
            };
            let svids = stream.next().await?.svids;
            let shown: Vec<_> = svids.iter().map(|svid| (svid.id.as_str(), svid.hint.as_str())).collect();
            is("what is sent", &shown, &vec![("spiffe://example.org/asleep", "h")])?;
            if svids.iter().any(|svid| svid.chain.is_empty() || svid.key.is_empty() || svid.bundle.is_empty())
            {
                return Err("something is missing".to_owned());
            }
            let token = Request { audience: vec!["a".to_owned()], ..of(pid) };
            let answer = call(&broker, TOKEN, &token).await.map_err(told)?;
            let tokens = TokenResponse::decode(answer).map_err(|why| why.to_string())?.tokens;
            let asleep = tokens.iter().find(|token| token.id == "spiffe://example.org/asleep");
            if asleep.is_none_or(|token| token.token.split('.').count() != 3) {
                return Err(format!("tokens: {tokens:?}"));
            }
            let x509 = open::<X509Bundles>(&broker, BUNDLES, &of(pid)).await?.next().await?.bundles;
            let jwt = open::<JwtBundles>(&broker, KEYS, &of(pid)).await?.next().await?.bundles;
            for bundles in [x509, jwt] {
                is("bundles", &bundles.keys().collect::<Vec<_>>(), &vec!["spiffe://example.org"])?;
            }
            Ok(stream)
        })?;
        if self.is_spire {
            return Ok(());
        }
        child.end();
        let gone = ("NOT_FOUND".to_owned(), "the workload has ended".to_owned(), Some("WORKLOAD_NOT_FOUND"));
        stage.run(async { is("an ended process", &refused(&stream.refusal().await?), &gone) })
    }

    /// Calls of brokers are measured by the names of their methods.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn metrics(&self, product: &Product) -> Result<(), String> {
        let mut stage = self.stage(product)?;
        let path = stage.plane.dir().join("agent.conf");
        let text = std::fs::read_to_string(&path).map_err(|why| why.to_string())?;
        let page = "telemetry { Prometheus { host = \"127.0.0.1\" port = {p2} } }\n";
        std::fs::write(&path, text + &stage.plane.fill(page)).map_err(|why| why.to_string())?;
        let agent = stage.plane.agent().ok_or("no agent")?;
        agent.signal("TERM");
        agent.wait(std::time::Duration::from_secs(30));
        stage.plane.start_agent_again();
        stage.run(async {
            let broker = over_socket(&stage, Some(&mint(&stage, "/local").await?));
            for method in [SVID, BUNDLES, TOKEN, KEYS] {
                // What is refused counts too.
                drop(call(&broker, method, &Request::default()).await);
            }
            Ok(())
        })?;
        let page = await_ok(stage.plane.word("p2"), "/metrics");
        for method in [
            "subscribe_to_x509svid",
            "subscribe_to_x509_bundles",
            "fetch_jwtsvid",
            "subscribe_to_jwt_bundles",
        ] {
            let name = format!("spire_agent_rpc_spiffe_broker_api_{method}");
            if !page.lines().any(|line| line.starts_with(&format!("{name}{{"))) {
                let rpc: Vec<&str> = page.lines().filter(|line| line.contains("broker")).collect();
                return Err(format!("no {name}: {rpc:#?}"));
            }
        }
        Ok(())
    }

    /// The sockets of administrators and brokers are there if they are configured, for the agent's user
    /// and group, and never beside the socket that is for everybody.
    ///
    /// # Errors
    /// Says what is otherwise.
    pub fn sockets(&self, product: &Product) -> Result<(), String> {
        let mut stage = self.stage(product)?;
        let mode = |path: &str| std::fs::metadata(path).map(|file| file.permissions().mode() & 0o777).ok();
        let (admin, broker) = (stage.plane.word("admin").to_owned(), socket(&stage));
        is("the modes", &(mode(&admin), mode(&broker)), &(Some(0o770), Some(0o770)))?;

        let path = stage.plane.dir().join("agent.conf");
        let text = std::fs::read_to_string(&path).map_err(|why| why.to_string())?;
        let beside = Path::new(stage.plane.word("asock")).with_file_name("sub/other.sock");
        for (socket, name) in [(&admin, "admin"), (&broker, "broker")] {
            let text = text.replace(socket.as_str(), &beside.display().to_string());
            std::fs::write(stage.plane.dir().join("beside.conf"), text).map_err(|why| why.to_string())?;
            let (code, stdout, stderr) =
                stage.plane.run("agent", &["validate", "-config", "{dir}/beside.conf"]);
            let refused = format!(
                "{name} socket cannot be in the same directory or a subdirectory as that containing the \
                 Workload API socket"
            );
            if code == 0 || !(stdout.contains(&refused) || stderr.contains(&refused)) {
                return Err(format!("beside the public socket: {code} {stdout}{stderr}"));
            }
        }

        let bare = text.replace(&stage.plane.fill(CONFIGURED), "");
        let bare: Vec<&str> = bare.lines().filter(|line| !line.contains("admin_socket_path")).collect();
        std::fs::write(&path, bare.join("\n")).map_err(|why| why.to_string())?;
        let agent = stage.plane.agent().ok_or("no agent")?;
        agent.signal("TERM");
        agent.wait(std::time::Duration::from_secs(30));
        for socket in [&admin, &broker] {
            std::fs::remove_file(socket).ok();
        }
        stage.plane.start_agent_again();
        is("without configuration", &(mode(&admin), mode(&broker)), &(None, None))
    }

    fn stage(&self, product: &Product) -> Result<Stage, String> {
        let config = PlaneConfig {
            agent_extra: CONFIGURED.to_owned(),
            workload_attestor: "discover_workload_path = true".to_owned(),
            ..PlaneConfig::default()
        };
        Stage::with(product, &self.messages, config)
    }
}

/// A process that does nothing.
struct Asleep(Child);

impl Asleep {
    fn end(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        self.end();
    }
}

const HEADER: &str = "broker.spiffe.io";

fn socket(stage: &Stage) -> String {
    stage.plane.fill("{dir}/broker/api.sock")
}

fn over_socket(stage: &Stage, shown: Option<&Shown>) -> Connection {
    Connection::local_tls(&socket(stage), shown)
}

fn over_tcp(stage: &Stage, shown: Option<&Shown>) -> Connection {
    Connection::tls(stage.plane.word("p3"), shown)
}

/// An X.509-SVID with this path.
async fn mint(stage: &Stage, path: &str) -> Result<Shown, String> {
    let key = Key::generate();
    let csr = STANDARD.encode(key.request(&format!("spiffe://example.org{path}")));
    let answer = stage.local.ask(MINT, json!({"csr": csr})).await?;
    let chain = answer["svid"]["cert_chain"].as_array().ok_or("no chain")?.iter();
    let chain = chain.map(|der| STANDARD.decode(der.as_str().unwrap_or_default()));
    Ok(Shown { chain: chain.collect::<Result<_, _>>().map_err(|why| why.to_string())?, key: key.pkcs8() })
}

fn of(pid: i32) -> Request {
    reference(Any { type_url: PID.to_owned(), value: PidReference { pid }.encode_to_vec() })
}

fn reference(reference: Any) -> Request {
    Request { reference: Some(Reference { reference: Some(reference) }), ..Request::default() }
}

/// Opens a stream as brokers do.
async fn open<T: Message + Default>(
    connection: &Connection,
    method: &str,
    request: &Request,
) -> Result<Typed<T>, String> {
    Typed::open(connection, method, request, &[(HEADER.to_owned(), "true".to_owned())]).await
}

/// The first answer.
async fn call(connection: &Connection, method: &str, request: &Request) -> Result<Bytes, Refusal> {
    called(connection, method, request, &[(HEADER.to_owned(), "true".to_owned())]).await
}

async fn called(
    connection: &Connection,
    method: &str,
    request: &Request,
    header: &[(String, String)],
) -> Result<Bytes, Refusal> {
    let first = async {
        let mut stream = connection.open(method, vec![request.encode_to_vec().into()], header).await?;
        stream.message().await
    };
    match timeout(REACH, first).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(("OK".to_owned(), "no answer".to_owned(), None)),
        Ok(Err(status)) => Err(refused(&status)),
        Err(_) => Err(("TIMEOUT".to_owned(), "nothing comes".to_owned(), None)),
    }
}

fn invalid(text: &str, reason: Option<&'static str>) -> Refusal {
    ("INVALID_ARGUMENT".to_owned(), text.to_owned(), reason)
}

fn denied(text: &str) -> Refusal {
    ("PERMISSION_DENIED".to_owned(), text.to_owned(), None)
}

fn nobody() -> Refusal {
    ("PERMISSION_DENIED".to_owned(), "no identity issued".to_owned(), Some("WORKLOAD_NOT_ENTITLED"))
}

fn refused(status: &Status) -> Refusal {
    let details = String::from_utf8_lossy(status.details()).into_owned();
    let reasons = ["WORKLOAD_REFERENCE_INVALID", "WORKLOAD_NOT_FOUND", "WORKLOAD_NOT_ENTITLED"];
    let reason = reasons.into_iter().find(|reason| details.contains(reason) && details.contains("spiffe.io"));
    (code_of(status).to_owned(), status.message().to_owned(), reason)
}

fn told((code, text, _): Refusal) -> String {
    format!("{code} {text}")
}

fn is<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug + ?Sized>(
    what: &str,
    found: &T,
    wanted: &U,
) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?} instead of {wanted:?}")) }
}
