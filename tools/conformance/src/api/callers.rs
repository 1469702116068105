//! Those who call: agents in every state, holders of minted identities, strangers.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::pki::{Authority, Key};
use crate::plane::Plane;
use crate::wire::{Caller, Messages, Shown};

/// A method of the server's API: `Agent/BanAgent` and so on.
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
const AUTHORIZED: &str = method!("entry", "Entry/GetAuthorizedEntries");
const CREATE_ENTRY: &str = method!("entry", "Entry/BatchCreateEntry");
const MINT: &str = method!("svid", "SVID/MintX509SVID");
const SET_BUNDLE: &str = method!("bundle", "Bundle/BatchSetFederatedBundle");

/// The callers of one server by name; `local` and `anonymous` are always there.
#[derive(Debug)]
pub(crate) struct Callers {
    all: BTreeMap<String, Caller>,
}

impl Callers {
    /// Prepares the callers `names`.
    pub(crate) async fn prepare(
        messages: &Messages,
        plane: &Plane,
        names: &[String],
    ) -> Result<Self, String> {
        let port = plane.word("port").to_owned();
        let mut all = BTreeMap::new();
        all.insert("local".to_owned(), Caller::local(messages, plane.word("sock")));
        all.insert("anonymous".to_owned(), Caller::tls(messages, &port, None));
        let mut world = World { messages, port, all };
        for name in names {
            let caller = world
                .caller(name, plane.word("td"))
                .await
                .map_err(|why| format!("cannot prepare caller {name}: {why}"))?;
            world.all.insert(name.clone(), caller);
        }
        Ok(Self { all: world.all })
    }

    /// An agent that attests with the join token `token`, which is made for it.
    pub(crate) async fn attest(
        &self,
        messages: &Messages,
        plane: &Plane,
        token: &str,
    ) -> Result<Caller, String> {
        let world = World { messages, port: plane.word("port").to_owned(), all: self.all.clone() };
        world.attest(token, plane.word("td")).await
    }

    /// The caller `name`.
    pub(crate) fn get(&self, name: &str) -> Result<&Caller, String> {
        self.all.get(name).ok_or_else(|| format!("there is no caller {name}"))
    }

    /// The one on the local socket.
    pub(crate) fn local(&self) -> &Caller {
        self.all.get("local").expect("local is always there")
    }
}

struct World<'a> {
    messages: &'a Messages,
    port: String,
    all: BTreeMap<String, Caller>,
}

impl World<'_> {
    async fn caller(&self, name: &str, trust_domain: &str) -> Result<Caller, String> {
        match name {
            "agent" | "banned" | "evicted" | "stale" | "expired" => self.agent(name, trust_domain).await,
            "admin" | "downstream" | "workload" => self.minted(name, trust_domain).await,
            "foreign" => self.stranger("spiffe://foreign.test/caller", Bundle::Known).await,
            "foreign-admin" => self.stranger("spiffe://partner.test/admin", Bundle::Known).await,
            "unknown" => self.stranger("spiffe://nobody.test/caller", Bundle::Unknown).await,
            "impostor" => self.stranger(&format!("spiffe://{trust_domain}/caller"), Bundle::Unknown).await,
            other => Err(format!("nobody is called {other}")),
        }
    }

    async fn attest(&self, token: &str, trust_domain: &str) -> Result<Caller, String> {
        self.local().ask(CREATE_TOKEN, json!({"ttl": 600, "token": token})).await?;
        let key = Key::generate();
        let csr = STANDARD.encode(key.request(&format!("spiffe://{trust_domain}/agent")));
        let request = json!({"params": {
            "data": {"type": "join_token", "payload": STANDARD.encode(token)},
            "params": {"csr": csr},
        }});
        let answer = self.anonymous().ask(ATTEST, request).await?;
        Ok(self.tls(chain_of(&answer["result"]["svid"])?, &key))
    }

    async fn agent(&self, name: &str, trust_domain: &str) -> Result<Caller, String> {
        let token = format!("world-{name}");
        let path = format!("/spire/agent/join_token/{token}");
        let id = json!({"id": {"trust_domain": trust_domain, "path": path}});
        let caller = self.attest(&token, trust_domain).await?;
        // The connection stands before the state changes.
        caller.call(AUTHORIZED, &[json!({})], &[]).await?;
        match name {
            "banned" => drop(self.local().ask(BAN, id).await?),
            "evicted" => drop(self.local().ask(DELETE_AGENT, id).await?),
            "stale" => {
                let key = Key::generate();
                let csr = STANDARD.encode(key.request(&format!("spiffe://{trust_domain}{path}")));
                let answer = caller.ask(RENEW, json!({"params": {"csr": csr}})).await?;
                let renewed = self.tls(chain_of(&answer["svid"])?, &key);
                renewed.ask(AUTHORIZED, json!({})).await?;
            }
            _ => {}
        }
        Ok(caller)
    }

    async fn minted(&self, name: &str, trust_domain: &str) -> Result<Caller, String> {
        let path = format!("/world/{name}");
        let entry = json!({
            "id": format!("world-{name}"),
            "parent_id": {"trust_domain": trust_domain, "path": "/world"},
            "spiffe_id": {"trust_domain": trust_domain, "path": path},
            "selectors": [{"type": "world", "value": format!("world-{name}")}],
            "admin": name == "admin",
            "downstream": name == "downstream",
        });
        let created = self.local().ask(CREATE_ENTRY, json!({"entries": [entry]})).await?;
        if created["results"][0]["entry"].is_null() {
            return Err(format!("its entry is refused: {created}"));
        }
        let key = Key::generate();
        let csr = STANDARD.encode(key.request(&format!("spiffe://{trust_domain}{path}")));
        let answer = self.local().ask(MINT, json!({"csr": csr})).await?;
        Ok(self.tls(chain_of(&answer["svid"])?, &key))
    }

    async fn stranger(&self, id: &str, bundle: Bundle) -> Result<Caller, String> {
        let trust_domain = id.trim_start_matches("spiffe://").split('/').next().unwrap_or_default();
        let authority = Authority::of(trust_domain);
        if bundle == Bundle::Known {
            let asn1 = STANDARD.encode(&authority.certificate);
            let bundle = json!({"trust_domain": trust_domain, "x509_authorities": [{"asn1": asn1}]});
            self.local().ask(SET_BUNDLE, json!({"bundle": [bundle]})).await?;
        }
        let key = Key::generate();
        Ok(self.tls(vec![authority.certify(&key, id)], &key))
    }

    fn local(&self) -> &Caller {
        self.all.get("local").expect("local is always there")
    }

    fn anonymous(&self) -> &Caller {
        self.all.get("anonymous").expect("anonymous is always there")
    }

    fn tls(&self, chain: Vec<Vec<u8>>, key: &Key) -> Caller {
        Caller::tls(self.messages, &self.port, Some(&Shown { chain, key: key.pkcs8() }))
    }
}

#[derive(PartialEq, Eq)]
enum Bundle {
    Known,
    Unknown,
}

fn chain_of(svid: &Value) -> Result<Vec<Vec<u8>>, String> {
    let chain = svid["cert_chain"].as_array().ok_or_else(|| format!("no certificates in {svid}"))?;
    let one =
        |der: &Value| STANDARD.decode(der.as_str().unwrap_or_default()).map_err(|error| error.to_string());
    chain.iter().map(one).collect()
}
