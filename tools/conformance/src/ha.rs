//! Two servers at one database: what is done on one holds on the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::pki::{Authority, Key};
use crate::plane::{Plane, PlaneConfig, Product};
use crate::wire::{Caller, Messages, Reply, Shown};

/// A method of the server's API.
macro_rules! method {
    ($package:literal, $method:literal) => {
        concat!("/spire.api.server.", $package, ".v1.", $method)
    };
}

const CREATE_TOKEN: &str = method!("agent", "Agent/CreateJoinToken");
const ATTEST: &str = method!("agent", "Agent/AttestAgent");
const RENEW: &str = method!("agent", "Agent/RenewAgent");
const BAN: &str = method!("agent", "Agent/BanAgent");
const DELETE_AGENT: &str = method!("agent", "Agent/DeleteAgent");
const CREATE: &str = method!("entry", "Entry/BatchCreateEntry");
const UPDATE: &str = method!("entry", "Entry/BatchUpdateEntry");
const DELETE: &str = method!("entry", "Entry/BatchDeleteEntry");
const GET: &str = method!("entry", "Entry/GetEntry");
const AUTHORIZED: &str = method!("entry", "Entry/GetAuthorizedEntries");
const SIGN: &str = method!("svid", "SVID/BatchNewX509SVID");
const BUNDLE: &str = method!("bundle", "Bundle/GetBundle");
const SET_BUNDLE: &str = method!("bundle", "Bundle/BatchSetFederatedBundle");
const GET_BUNDLE: &str = method!("bundle", "Bundle/GetFederatedBundle");
const DELETE_BUNDLE: &str = method!("bundle", "Bundle/BatchDeleteFederatedBundle");
const PREPARE: &str = method!("localauthority", "LocalAuthority/PrepareX509Authority");
const ACTIVATE: &str = method!("localauthority", "LocalAuthority/ActivateX509Authority");

/// How long news may take from SPIRE's server or to it: its cache is rebuilt every five seconds.
const SPIRE: Duration = Duration::from_secs(20);
/// The same between servers of Finial, who look every second; with room for a machine that is busy.
const FINIAL: Duration = Duration::from_secs(5);

/// Two servers of one trust domain, at one database, each with keys of its own.
#[derive(Debug)]
pub struct Pair {
    runtime: Runtime,
    messages: Messages,
    first: Plane,
    second: Plane,
    /// How long news may take.
    reach: Duration,
    /// Whether a ban and the like must hold on the other server with the very next signature.
    at_once: bool,
}

impl Pair {
    /// Starts two servers, one after the other, with `datastore` as the settings of their datastore.
    ///
    /// # Panics
    /// If one does not start.
    #[must_use]
    pub fn start(recorded: &Path, products: [&Product; 2], datastore: &str, is_finial: bool) -> Self {
        let config = PlaneConfig {
            datastore: datastore.to_owned(),
            server_extra: "ratelimit { attestation = false }".to_owned(),
            ..PlaneConfig::default()
        };
        let [first, second] = products.map(|product| Plane::start(product, &config, &BTreeMap::new()));
        Self {
            runtime: Runtime::new().expect("a runtime"),
            messages: Messages::load(&recorded.join("api/api.fds")),
            first,
            second,
            reach: if is_finial { FINIAL } else { SPIRE },
            at_once: is_finial,
        }
    }

    /// Both ways: entries that one server makes, changes and deletes are what the other shows, and what
    /// it authorises agents for.
    ///
    /// # Errors
    /// Says what differs.
    pub fn entries(&self) -> Result<(), String> {
        self.both_ways(&async |here, there, name| {
            let agent = there.agent(name).await?;
            let (id, path) = (format!("entry-{name}"), format!("/entry/{name}"));
            let entry = json!({
                "id": id,
                "parent_id": agent.id,
                "spiffe_id": here.id(&path),
                "selectors": [{"type": "unix", "value": "uid:1"}],
            });
            here.create(&entry).await?;
            let seen = there.local.ask(GET, json!({"id": id})).await;
            seen.map_err(|why| format!("{id} is not there at once: {why}"))?;
            self.reaches(&format!("{id} is authorised"), async || {
                Ok(agent.entries().await?.contains_key(&id))
            })
            .await?;

            let update = json!({"entries": [{"id": id, "hint": "changed"}], "input_mask": {"hint": true}});
            here.local.ask(UPDATE, update).await?;
            let hint = async || {
                let entries = agent.entries().await?;
                Ok(entries.get(&id).is_some_and(|entry| entry["hint"] == "changed"))
            };
            self.reaches(&format!("{id} has its hint"), hint).await?;

            here.local.ask(DELETE, json!({"ids": [id]})).await?;
            self.reaches(&format!("{id} is gone"), async || Ok(!agent.entries().await?.contains_key(&id)))
                .await
        })
    }

    /// Both ways: a token made on one server attests one agent, on the other.
    ///
    /// # Errors
    /// Says what differs.
    pub fn tokens(&self) -> Result<(), String> {
        self.both_ways(&async |here, there, name| {
            let token = format!("crossing-{name}");
            here.local.ask(CREATE_TOKEN, json!({"ttl": 600, "token": token})).await?;
            there.attest(&token).await?;
            match here.attest(&token).await {
                Ok(_) => Err(format!("{token} attests twice")),
                Err(why) if why.contains("does not exist or has already been used") => Ok(()),
                Err(why) => Err(why),
            }
        })
    }

    /// Both ways: an agent that is banned or evicted on one server gets nothing on the other; one that
    /// renews on one calls the other with its new SVID, and its old one is worth nothing on either.
    ///
    /// # Errors
    /// Says what differs.
    pub fn agents(&self) -> Result<(), String> {
        self.both_ways(&async |here, there, name| {
            for (method, reason) in [(BAN, "AGENT_BANNED"), (DELETE_AGENT, "AGENT_NOT_ATTESTED")] {
                let agent = there.agent(&format!("{name}-{}", reason.to_lowercase())).await?;
                agent.signs().await?;
                here.local.ask(method, json!({"id": agent.id})).await?;
                self.refused(&agent, reason).await?;
            }
            let old = there.agent(&format!("{name}-renews")).await?;
            old.signs().await?;
            let at_both = old.moved(here).renew(there).await?;
            at_both.signs().await.map_err(|why| format!("the renewed SVID is refused: {why}"))?;
            self.refused(&old, "AGENT_NOT_ACTIVE").await?;
            self.refused(&old.moved(here), "AGENT_NOT_ACTIVE").await
        })
    }

    /// Both ways: bundles of other trust domains that one server sets and deletes; an entry that
    /// federates with a bundle which is dissociated does not any more.
    ///
    /// # Errors
    /// Says what differs.
    pub fn bundles(&self) -> Result<(), String> {
        self.both_ways(&async |here, there, name| {
            let agent = there.agent(&format!("federated-{name}")).await?;
            let far = format!("{name}.far.test");
            // A new authority each time.
            let bundle = || {
                let asn1 = STANDARD.encode(Authority::of(&far).certificate);
                json!({"bundle": [{"trust_domain": far, "x509_authorities": [{"asn1": asn1}]}]})
            };
            let shown = async || there.local.ask(GET_BUNDLE, json!({"trust_domain": far})).await;
            here.local.ask(SET_BUNDLE, bundle()).await?;
            self.reaches(&format!("the bundle of {far}"), async || Ok(shown().await.is_ok())).await?;
            let entry = json!({
                "id": format!("federates-{name}"),
                "parent_id": agent.id,
                "spiffe_id": here.id(&format!("/federates/{name}")),
                "selectors": [{"type": "unix", "value": "uid:2"}],
                "federates_with": [far],
            });
            here.create(&entry).await?;
            let id = format!("federates-{name}");
            let federates = async || {
                let entries = agent.entries().await?;
                let entry = entries.get(&id).ok_or("no such entry")?;
                Ok::<_, String>(!entry["federates_with"].is_null())
            };
            self.reaches("it federates", async || federates().await).await?;

            // Twice within a second: the second is the one that counts.
            here.local.ask(SET_BUNDLE, bundle()).await?;
            let second = bundle();
            let wanted = second["bundle"][0]["x509_authorities"][0]["asn1"].clone();
            here.local.ask(SET_BUNDLE, second).await?;
            let is_last = async || Ok(shown().await?["x509_authorities"][0]["asn1"] == wanted);
            self.reaches("the second of two changes", is_last).await?;

            let request = json!({"trust_domains": [far], "mode": "DISSOCIATE"});
            here.local.ask(DELETE_BUNDLE, request).await?;
            self.reaches("the bundle is gone", async || Ok(shown().await.is_err())).await?;
            // Nobody tells SPIRE's server unless Finial does; its own cache is rebuilt anyway.
            self.reaches("it federates no more", async || Ok(!federates().await?)).await
        })
    }

    /// Both ways: the trust bundle is one, with the authorities of both servers; a new authority of one
    /// is known on the other, which takes agents whose SVIDs it signed.
    ///
    /// # Errors
    /// Says what differs.
    pub fn authorities(&self) -> Result<(), String> {
        self.both_ways(&async |here, there, name| {
            let count = async |side: &Side| {
                let bundle = side.local.ask(BUNDLE, json!({})).await?;
                Ok::<_, String>(bundle["x509_authorities"].as_array().map_or(0, Vec::len))
            };
            let before = count(here).await?;
            let prepared = here.local.ask(PREPARE, json!({})).await?;
            let id = prepared["prepared_authority"]["authority_id"].clone();
            here.local.ask(ACTIVATE, json!({"authority_id": id})).await?;
            self.reaches("the bundle has the new authority", async || {
                Ok(count(there).await? == before + 1 && count(here).await? == before + 1)
            })
            .await?;
            let agent = here.agent(&format!("new-authority-{name}")).await?;
            agent.signs().await?;
            let elsewhere = agent.moved(there);
            self.reaches("the other server takes and signs for its agent", async || {
                elsewhere.signs().await.map(|()| true)
            })
            .await
        })
    }

    /// Takes agents along that do nothing but stay connected.
    ///
    /// # Panics
    /// If they do not start.
    pub fn join_agents(&mut self) {
        for plane in [&mut self.first, &mut self.second] {
            plane.join_agent(&PlaneConfig::default());
        }
    }

    /// Waits until the other server shows it.
    async fn reaches(
        &self,
        what: &str,
        mut holds: impl AsyncFnMut() -> Result<bool, String>,
    ) -> Result<(), String> {
        let deadline = Instant::now() + self.reach;
        loop {
            match holds().await {
                Ok(true) => return Ok(()),
                last if Instant::now() > deadline => {
                    return Err(format!("after {:?} not yet: {what} ({last:?})", self.reach));
                }
                Ok(false) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// The agent's next signature is refused for this reason.
    async fn refused(&self, agent: &Agent, reason: &str) -> Result<(), String> {
        let is_refused = |reply: &Reply| {
            reply.code == "PERMISSION_DENIED" && reply.details.iter().any(|detail| detail["reason"] == reason)
        };
        let reply = agent.ask_to_sign().await?;
        if is_refused(&reply) {
            return Ok(());
        }
        if self.at_once {
            return Err(format!("not {reason} at once, but {reply:?}"));
        }
        self.reaches(reason, async || Ok(is_refused(&agent.ask_to_sign().await?))).await
    }

    fn both_ways(
        &self,
        check: &impl AsyncFn(&Side, &Side, &str) -> Result<(), String>,
    ) -> Result<(), String> {
        self.runtime.block_on(async {
            let [first, second] = [&self.first, &self.second].map(|plane| Side::of(plane, &self.messages));
            check(&first, &second, "there").await.map_err(|why| format!("from first to second: {why}"))?;
            check(&second, &first, "back").await.map_err(|why| format!("from second to first: {why}"))
        })
    }
}

/// One of the servers.
struct Side {
    messages: Messages,
    trust_domain: String,
    port: String,
    local: Caller,
}

/// An agent as one of the servers knows it.
struct Agent {
    trust_domain: String,
    id: Value,
    chain: Vec<Vec<u8>>,
    key: Vec<u8>,
    caller: Caller,
}

impl Side {
    fn of(plane: &Plane, messages: &Messages) -> Self {
        Self {
            messages: messages.clone(),
            trust_domain: plane.word("td").to_owned(),
            port: plane.word("port").to_owned(),
            local: Caller::local(messages, plane.word("sock")),
        }
    }

    fn id(&self, path: &str) -> Value {
        json!({"trust_domain": self.trust_domain, "path": path})
    }

    async fn create(&self, entry: &Value) -> Result<(), String> {
        let created = self.local.ask(CREATE, json!({"entries": [entry]})).await?;
        let status = &created["results"][0]["status"];
        if status["code"].is_null() { Ok(()) } else { Err(format!("an entry is refused: {status}")) }
    }

    /// An agent that attests here, with an entry to be signed for.
    async fn agent(&self, name: &str) -> Result<Agent, String> {
        let token = format!("agent-{name}");
        self.local.ask(CREATE_TOKEN, json!({"ttl": 600, "token": token})).await?;
        let agent = self.attest(&token).await?;
        let entry = json!({
            "id": agent.own_entry(),
            "parent_id": agent.id,
            "spiffe_id": self.id(&format!("/of/{token}")),
            "selectors": [{"type": "unix", "value": "uid:0"}],
        });
        self.create(&entry).await?;
        let deadline = Instant::now() + SPIRE;
        while !agent.entries().await?.contains_key(&agent.own_entry()) {
            if Instant::now() > deadline {
                return Err(format!("{token} is never authorised for its own entry"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(agent)
    }

    async fn attest(&self, token: &str) -> Result<Agent, String> {
        let key = Key::generate();
        let id = self.id(&format!("/spire/agent/join_token/{token}"));
        let csr = STANDARD.encode(key.request(&format!("spiffe://{}/agent", self.trust_domain)));
        let request = json!({"params": {
            "data": {"type": "join_token", "payload": STANDARD.encode(token)},
            "params": {"csr": csr},
        }});
        let anonymous = Caller::tls(&self.messages, &self.port, None);
        let answer = anonymous.ask(ATTEST, request).await?;
        Ok(Agent::of(self, id, chain_of(&answer["result"]["svid"])?, key.pkcs8()))
    }
}

impl Agent {
    fn of(side: &Side, id: Value, chain: Vec<Vec<u8>>, key: Vec<u8>) -> Self {
        let shown = Shown { chain: chain.clone(), key: key.clone() };
        let caller = Caller::tls(&side.messages, &side.port, Some(&shown));
        Self { trust_domain: side.trust_domain.clone(), id, chain, key, caller }
    }

    /// The same agent at another server.
    fn moved(&self, side: &Side) -> Self {
        Self::of(side, self.id.clone(), self.chain.clone(), self.key.clone())
    }

    /// Renews here, and shows what it got at `there`.
    async fn renew(&self, there: &Side) -> Result<Self, String> {
        let key = Key::generate();
        let csr = STANDARD.encode(key.request(&format!("spiffe://{}/agent", self.trust_domain)));
        let answer = self.caller.ask(RENEW, json!({"params": {"csr": csr}})).await?;
        Ok(Self::of(there, self.id.clone(), chain_of(&answer["svid"])?, key.pkcs8()))
    }

    /// The entries that it is authorised for, by id.
    async fn entries(&self) -> Result<BTreeMap<String, Value>, String> {
        let answer = self.caller.ask(AUTHORIZED, json!({})).await?;
        let entries = answer["entries"].as_array().cloned().unwrap_or_default();
        let id = |entry: &Value| entry["id"].as_str().unwrap_or_default().to_owned();
        Ok(entries.into_iter().map(|entry| (id(&entry), entry)).collect())
    }

    async fn signs(&self) -> Result<(), String> {
        let reply = self.ask_to_sign().await?;
        let signed = reply.answers.first().map(|answer| &answer["results"][0]["svid"]);
        if signed.is_some_and(|svid| !svid.is_null()) { Ok(()) } else { Err(format!("{reply:?}")) }
    }

    async fn ask_to_sign(&self) -> Result<Reply, String> {
        let csr = STANDARD.encode(Key::generate().request(&format!("spiffe://{}/x", self.trust_domain)));
        let request = json!({"params": [{"entry_id": self.own_entry(), "csr": csr}]});
        self.caller.call(SIGN, &[request], &[]).await
    }

    fn own_entry(&self) -> String {
        let path = self.id["path"].as_str().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default().to_owned()
    }
}

fn chain_of(svid: &Value) -> Result<Vec<Vec<u8>>, String> {
    let chain = svid["cert_chain"].as_array().ok_or_else(|| format!("no certificates in {svid}"))?;
    let one =
        |der: &Value| STANDARD.decode(der.as_str().unwrap_or_default()).map_err(|error| error.to_string());
    chain.iter().map(one).collect()
}
