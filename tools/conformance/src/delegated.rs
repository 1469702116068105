//! The Delegated Identity API on an agent's admin socket: this process is the delegate.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use prost::Message;
use serde_json::json;
use tokio::time::timeout;
use tonic::Status;

use crate::live::{REACH, Stage};
use crate::plane::{PlaneConfig, Product};
use crate::typed::Typed;
use crate::wire::{Connection, Messages, code_of};

const SVIDS: &str = "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToX509SVIDs";
const BUNDLES: &str = "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToX509Bundles";
const TOKENS: &str = "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/FetchJWTSVIDs";
const KEYS: &str = "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToJWTBundles";
const DELETE: &str = "/spire.api.server.entry.v1.Entry/BatchDeleteEntry";

/// What the agent's configuration says of delegates.
const CONFIGURED: &str = "authorized_delegates = [\"spiffe://example.org/delegate\"]";

#[derive(Clone, PartialEq, Message)]
struct SvidsRequest {
    #[prost(message, repeated, tag = "1")]
    selectors: Vec<Selector>,
    #[prost(int32, tag = "2")]
    pid: i32,
}

#[derive(Clone, PartialEq, Message)]
struct TokensRequest {
    #[prost(string, repeated, tag = "1")]
    audience: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    selectors: Vec<Selector>,
    #[prost(int32, tag = "3")]
    pid: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Selector {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct SvidsResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<SvidWithKey>,
    #[prost(string, repeated, tag = "2")]
    federates_with: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct SvidWithKey {
    #[prost(message, optional, tag = "1")]
    svid: Option<Svid>,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Svid {
    #[prost(bytes = "vec", repeated, tag = "1")]
    chain: Vec<Vec<u8>>,
    #[prost(message, optional, tag = "2")]
    id: Option<Id>,
    #[prost(int64, tag = "3")]
    expires_at: i64,
    #[prost(string, tag = "4")]
    hint: String,
}

#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    trust_domain: String,
    #[prost(string, tag = "2")]
    path: String,
}

#[derive(Clone, PartialEq, Message)]
struct TokensResponse {
    #[prost(message, repeated, tag = "1")]
    tokens: Vec<Token>,
}

#[derive(Clone, PartialEq, Message)]
struct Token {
    #[prost(string, tag = "1")]
    token: String,
    #[prost(message, optional, tag = "2")]
    id: Option<Id>,
    #[prost(int64, tag = "3")]
    expires_at: i64,
    #[prost(int64, tag = "4")]
    issued_at: i64,
    #[prost(string, tag = "5")]
    hint: String,
}

#[derive(Clone, PartialEq, Message)]
struct BundlesResponse {
    #[prost(btree_map = "string, bytes", tag = "1")]
    bundles: BTreeMap<String, Vec<u8>>,
}

/// Code and message of a refusal.
type Refusal = (String, String);

/// A delegate and those for whom it asks.
#[derive(Debug)]
pub struct Delegates {
    messages: Messages,
}

impl Delegates {
    /// Knows the server's API by the descriptors below `recorded`.
    #[must_use]
    pub fn load(recorded: &Path) -> Self {
        Self { messages: Messages::load(&recorded.join("api/api.fds")) }
    }

    /// Who is no delegate is refused, and so is each request that is wrong in itself.
    ///
    /// # Errors
    /// Says what came instead.
    pub fn refusals(&self, product: &Product) -> Result<(), String> {
        let stage = self.stage(product)?;
        stage.run(async {
            let admin = Connection::local(stage.plane.word("admin"));
            is(
                "nobody",
                &all_refused(&admin).await?,
                &[denied("no identity issued"), denied("no identity issued")],
            )?;
            stage.create("web", "/web", json!({})).await?;
            drop(stage.stream_with(&["/web"]).await?);
            let other = denied("caller not configured as an authorized delegate");
            is("no delegate", &all_refused(&admin).await?, &[other.clone(), other])?;

            stage.create("delegate", "/delegate", json!({})).await?;
            drop(stage.stream_with(&["/delegate", "/web"]).await?);
            let invalid = |text: &str| Some(("INVALID_ARGUMENT".to_owned(), text.to_owned()));
            let either = "must provide either selectors or non-zero PID, but not both";
            let both = SvidsRequest { pid: 1, ..of(&["uid:7"]) };
            is("both", &call(&admin, SVIDS, &both).await.err(), &invalid(either))?;
            is("neither", &call(&admin, SVIDS, &of(&[])).await.err(), &invalid(either))?;
            let parsed = call(&admin, SVIDS, &of(&[""])).await.err();
            is("an empty selector", &parsed, &invalid("could not parse provided selectors"))?;
            let token = TokensRequest::default();
            is(
                "no audience",
                &call(&admin, TOKENS, &token).await.err(),
                &invalid("audience must be specified"),
            )?;
            let neither = TokensRequest { audience: vec!["a".to_owned()], ..token };
            is("neither", &call(&admin, TOKENS, &neither).await.err(), &invalid(either))?;
            let nobody = TokensRequest { selectors: selectors(&["uid:7"]), ..neither };
            is(
                "no identity",
                &call(&admin, TOKENS, &nobody).await.err(),
                &Some(denied("no identity issued")),
            )?;
            let gone =
                call(&admin, SVIDS, &SvidsRequest { selectors: Vec::new(), pid: i32::MAX }).await.err();
            is("a process that is gone", &gone, &Some(unattested()))?;

            // Who may open the public socket only is told nothing of it.
            let public = Connection::local(stage.plane.word("asock"));
            let unknown = "unknown service spire.api.agent.delegatedidentity.v1.DelegatedIdentity";
            let refused = call(&public, SVIDS, &of(&["uid:7"])).await.err();
            is("the public socket", &refused, &Some(("UNIMPLEMENTED".to_owned(), unknown.to_owned())))
        })
    }

    /// A delegate is shown the identities of others, and each change of them, until it is none.
    ///
    /// # Errors
    /// Says what came instead.
    pub fn subscriptions(&self, product: &Product) -> Result<(), String> {
        let stage = self.stage(product)?;
        stage.run(async {
            let admin = Connection::local(stage.plane.word("admin"));
            stage.create("delegate", "/delegate", json!({})).await?;
            let selector = |value: &str| json!([{"type": "unix", "value": value}]);
            let admin_entry = json!({"selectors": selector("uid:7"), "admin": true});
            stage.create("admin", "/admin", admin_entry).await?;
            let below = json!({"selectors": selector("uid:7"), "downstream": true});
            stage.create("below", "/below", below).await?;
            drop(stage.stream_with(&["/delegate"]).await?);

            let mut stream = Typed::<SvidsResponse>::open(&admin, SVIDS, &of(&["uid:7"]), &[]).await?;
            is("at first", &stream.next().await?, &SvidsResponse::default())?;
            let web = json!({"selectors": selector("uid:7"), "x509_svid_ttl": 20, "hint": "w"});
            stage.create("web", "/web", web).await?;
            let mut seen = Vec::new();
            while seen.len() < 3 {
                let SvidsResponse { svids, federates_with } = stream.next().await?;
                let Some(one) = svids.first() else { continue };
                let svid = one.svid.clone().unwrap_or_default();
                let id = Id { trust_domain: "example.org".to_owned(), path: "/web".to_owned() };
                is("whose it is", &svid.id, &Some(id))?;
                is("its hint", &svid.hint, &"w".to_owned())?;
                is("how many", &(svids.len(), federates_with.len()), &(1, 0))?;
                if svid.chain.is_empty() || one.key.is_empty() || svid.expires_at == 0 {
                    return Err(format!("something is missing: {svid:?}"));
                }
                // SPIRE sends some updates twice.
                if !seen.contains(&svid) {
                    seen.push(svid);
                }
            }
            let request = TokensRequest {
                audience: vec!["delegated".to_owned()],
                selectors: selectors(&["uid:7"]),
                pid: 0,
            };
            let tokens = call(&admin, TOKENS, &request).await.map_err(told)?;
            let tokens = TokensResponse::decode(tokens).map_err(|why| why.to_string())?.tokens;
            let shown: Vec<_> = tokens.iter().map(|one| one.id.clone().unwrap_or_default().path).collect();
            is("tokens", &shown, &vec!["/web".to_owned()])?;
            if tokens[0].token.split('.').count() != 3 || tokens[0].expires_at <= tokens[0].issued_at {
                return Err(format!("the token is {:?}", tokens[0]));
            }

            let mut x509 = Typed::<BundlesResponse>::open(&admin, BUNDLES, &Nothing {}, &[]).await?;
            let mut jwt = Typed::<BundlesResponse>::open(&admin, KEYS, &Nothing {}, &[]).await?;
            for stream in [&mut x509, &mut jwt] {
                let bundles = stream.next().await?.bundles;
                is("bundles", &bundles.keys().collect::<Vec<_>>(), &vec!["spiffe://example.org"])?;
            }
            stage.local.ask(DELETE, json!({"ids": ["delegate", "web"]})).await?;
            is("svids of no delegate", &refused(&stream.refusal().await?), &denied("no identity issued"))
        })
    }

    /// A delegate names a process, which is attested as if it had asked.
    ///
    /// # Errors
    /// Says what came instead.
    pub fn processes(&self, product: &Product) -> Result<(), String> {
        let config = PlaneConfig {
            agent_extra: CONFIGURED.to_owned(),
            workload_attestor: "discover_workload_path = true".to_owned(),
            ..PlaneConfig::default()
        };
        let stage = Stage::with(product, &self.messages, config)?;
        let mut child = Asleep::start();
        stage.run(async {
            let admin = Connection::local(stage.plane.word("admin"));
            stage.create("delegate", "/delegate", json!({})).await?;
            let path =
                std::fs::read_link(format!("/proc/{}/exe", child.pid())).map_err(|why| why.to_string())?;
            let selector = json!([{"type": "unix", "value": format!("path:{}", path.display())}]);
            stage.create("asleep", "/asleep", json!({"selectors": selector, "x509_svid_ttl": 20})).await?;
            drop(stage.stream_with(&["/delegate"]).await?);

            let request = SvidsRequest { selectors: Vec::new(), pid: child.pid() };
            let mut stream = Typed::<SvidsResponse>::open(&admin, SVIDS, &request, &[]).await?;
            loop {
                let svids = stream.next().await?.svids;
                let paths: Vec<_> = svids.into_iter().filter_map(|one| Some(one.svid?.id?.path)).collect();
                if paths.iter().any(|path| path == "/asleep") && paths.iter().any(|path| path == "/delegate")
                {
                    break;
                }
            }
            Ok(())
        })?;
        child.end();
        stage.run(async {
            let admin = Connection::local(stage.plane.word("admin"));
            let request = SvidsRequest { selectors: Vec::new(), pid: child.pid() };
            is("an ended process", &call(&admin, SVIDS, &request).await.err(), &Some(unattested()))
        })
    }

    fn stage(&self, product: &Product) -> Result<Stage, String> {
        let config = PlaneConfig { agent_extra: CONFIGURED.to_owned(), ..PlaneConfig::default() };
        Stage::with(product, &self.messages, config)
    }
}

/// Whether the delegate that this process is is shown an identity with this selector.
pub(crate) async fn has_svid(admin: &str, selector: &str) -> Result<(), Refusal> {
    let answer = call(&Connection::local(admin), SVIDS, &of(&[selector])).await?;
    let answer = SvidsResponse::decode(answer).unwrap_or_default();
    if answer.svids.is_empty() { Err(("OK".to_owned(), "no SVID".to_owned())) } else { Ok(()) }
}

/// A process that does nothing.
struct Asleep(Child);

impl Asleep {
    fn start() -> Self {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn();
        Self(child.expect("a process can be started"))
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }

    fn end(&mut self) {
        self.0.kill().expect("a child can be killed");
        self.0.wait().expect("a killed child can be waited for");
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// How an X.509 subscription and a bundle subscription are refused.
async fn all_refused(admin: &Connection) -> Result<[Refusal; 2], String> {
    let mut refusals = Vec::new();
    for (method, request) in [(SVIDS, of(&["uid:7"])), (BUNDLES, of(&[]))] {
        match call(admin, method, &request).await {
            Ok(_) => return Err(format!("{method} is answered")),
            Err(refused) => refusals.push(refused),
        }
    }
    refusals.try_into().map_err(|_| "two methods".to_owned())
}

/// The first answer.
async fn call(connection: &Connection, method: &str, request: &impl Message) -> Result<Bytes, Refusal> {
    let first = async {
        let mut stream = connection.open(method, vec![request.encode_to_vec().into()], &[]).await?;
        stream.message().await
    };
    match timeout(REACH, first).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(("OK".to_owned(), "no answer".to_owned())),
        Ok(Err(status)) => Err(refused(&status)),
        Err(_) => Err(("CONNECTION".to_owned(), "nothing comes".to_owned())),
    }
}

fn of(values: &[&str]) -> SvidsRequest {
    SvidsRequest { selectors: selectors(values), pid: 0 }
}

fn selectors(values: &[&str]) -> Vec<Selector> {
    let one = |value: &&str| Selector { kind: "unix".to_owned(), value: (*value).to_owned() };
    values.iter().map(one).collect()
}

fn denied(text: &str) -> Refusal {
    ("PERMISSION_DENIED".to_owned(), text.to_owned())
}

fn unattested() -> Refusal {
    ("UNAVAILABLE".to_owned(), "workload attestation failed".to_owned())
}

fn refused(status: &Status) -> Refusal {
    (code_of(status).to_owned(), status.message().to_owned())
}

fn told((code, text): Refusal) -> String {
    format!("{code} {text}")
}

fn is<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug + ?Sized>(
    what: &str,
    found: &T,
    wanted: &U,
) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?} instead of {wanted:?}")) }
}
