//! What happens to server and agent in a longer life, once each: SVIDs run out, authorities are tainted,
//! entries change and go, agents are evicted, servers below and beside this one call.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{DELEGATES, Measured};
use crate::api::Callers;
use crate::pki::Key;
use crate::plane::{Plane, PlaneConfig, Product, pause};
use crate::wire::{Caller, Connection};
use crate::workload::Workload;

const FAR: &str = "far.test";
const AGENTS_PAGE: &str = "Prometheus { host = \"127.0.0.1\" port = {p2} }";
const AUTHORITIES: &str = "/spire.api.server.localauthority.v1.LocalAuthority";

/// An agent's SVID is replaced at half of this.
const SETTINGS: &str = "agent_ttl = \"30s\" experimental { feature_flags = [\"wit-svid\"] }";

impl Measured {
    /// Starts server and agent of `product` with a page each from the first moment on. The agent attests
    /// by a certificate, and its SVIDs last half a minute.
    ///
    /// # Panics
    /// If they do not start.
    #[must_use]
    pub fn start_whole(product: &Product, recorded: &Path) -> Self {
        let keys = recorded.join("keys").canonicalize().expect("the recorded keys");
        let keys = keys.display();
        let config = PlaneConfig {
            log: "DEBUG".to_owned(),
            server_extra: SETTINGS.to_owned(),
            server_plugins: format!(
                "NodeAttestor \"x509pop\" {{ plugin_data {{ ca_bundle_path = \"{keys}/x509pop-ca.pem\" }} }}"
            ),
            agent_attestor: format!(
                "NodeAttestor \"x509pop\" {{ plugin_data {{ private_key_path = \"{keys}/x509pop-node-1.key\" \
                 certificate_path = \"{keys}/x509pop-node-1.pem\" }} }}"
            ),
            agent_extra: format!("{DELEGATES}\n  experimental {{ ratelimit {{ fetch_jwt_bundles = 1 }} }}"),
            server: false,
            ..PlaneConfig::default()
        };
        let plane = Plane::start(product, &config, &BTreeMap::new());
        let mut measured = Self::of(plane, recorded);
        measured.plane.configure_server(&config);
        measured.configure("server", "Prometheus { host = \"127.0.0.1\" port = {p1} }");
        let plane = &mut measured.plane;
        plane.start_server_again();
        let node = ["-node", "-spiffeID", "spiffe://{td}/node", "-selector", "x509pop:subject:cn:node-1"];
        let _alias = plane.ok("server", &[&["entry", "create", "-socketPath", "{sock}"][..], &node].concat());
        let bundle = plane.ok("server", &["bundle", "show", "-socketPath", "{sock}"]);
        plane.write("{dir}/bootstrap.pem", &bundle);
        plane.configure_agent(&config, "");
        measured.configure("agent", AGENTS_PAGE);
        measured.plane.start_agent_again();
        measured
    }

    /// Lives through all of it, besides what [`Self::exercise`] does.
    ///
    /// # Panics
    /// If something fails that must not, or does not come to pass.
    pub fn live(&self, product: &Product) {
        self.runtime.block_on(async {
            self.call_every_method().await;
            self.watch_health().await;
            self.operate().await;
            self.work().await;
            self.taint().await;
            self.other_callers().await;
            self.ask_too_often().await;
        });
        self.federate(product);
        let change =
            json!({"entries": [{"id": "measured", "hint": "changed"}], "input_mask": {"hint": true}});
        self.done("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", change);
        self.await_series("agent", "spire_agent_lru_cache_entry_update");
        let gone = json!({"ids": ["measured"]});
        self.done("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", gone);
        self.await_series("agent", "spire_agent_lru_cache_entry_remove");
        self.await_series("agent", "spire_agent_node_attest");
    }

    /// Puts an agent that renews its SVID, as one with a join token does, in the place of the one that
    /// attests anew, and waits until it has.
    ///
    /// # Panics
    /// If it does not.
    pub fn renew(&mut self) {
        let running = self.plane.agent().expect("an agent");
        running.signal("TERM");
        running.wait(Duration::from_secs(30));
        std::fs::remove_dir_all(self.plane.dir().join("agent-data")).expect("the agent's data");
        let plane = &self.plane;
        let token = plane.ok("server", &["token", "generate", "-socketPath", "{sock}"]);
        let token = token.lines().find_map(|line| line.strip_prefix("Token: ")).expect("a token");
        plane.write("{dir}/bootstrap.pem", &plane.ok("server", &["bundle", "show", "-socketPath", "{sock}"]));
        plane.configure_agent(&PlaneConfig::default(), token);
        self.configure("agent", AGENTS_PAGE);
        self.plane.start_agent_again();
        self.await_series("agent", "spire_agent_agent_svid_rotate");
    }

    fn local(&self) -> Caller {
        Caller::local(&self.messages, self.plane.word("sock"))
    }

    fn done(&self, method: &str, request: Value) {
        let answered = self.runtime.block_on(async { self.local().ask(method, request).await });
        answered.unwrap_or_else(|why| panic!("{method}: {why}"));
    }

    /// Nobody is told of changes, but asking counts.
    async fn watch_health(&self) {
        for socket in ["sock", "asock"] {
            let connection = Connection::local(self.plane.word(socket));
            let opened = connection.open("/grpc.health.v1.Health/Watch", vec![Bytes::new()], &[]).await;
            let Ok(mut stream) = opened else { continue };
            drop(stream.message().await);
        }
    }

    /// Every authority is replaced and tainted, and withdrawn once the agent has drawn its conclusions.
    async fn taint(&self) {
        let local = self.local();
        for (family, svids) in [("X509", "x509"), ("JWT", "jwt")] {
            let ask = async |verb: &str, request: Value| {
                let method = format!("{AUTHORITIES}/{verb}");
                local.ask(&method, request).await.unwrap_or_else(|why| panic!("{method}: {why}"))
            };
            let state = ask(&format!("Get{family}AuthorityState"), json!({})).await;
            let old = state["active"]["authority_id"].clone();
            let prepared = ask(&format!("Prepare{family}Authority"), json!({})).await;
            let new = prepared["prepared_authority"]["authority_id"].clone();
            ask(&format!("Activate{family}Authority"), json!({"authority_id": new})).await;
            ask(&format!("Taint{family}Authority"), json!({"authority_id": old})).await;
            let replaced = format!("spire_agent_cache_manager_workload_process_tainted_{svids}_svids");
            self.await_series("agent", &replaced);
            ask(&format!("Revoke{family}Authority"), json!({"authority_id": old})).await;
        }
    }

    /// Agents that come, renew and are evicted, and a server below this one.
    async fn other_callers(&self) {
        let names = ["agent", "evicted", "stale", "downstream"].map(str::to_owned);
        let callers = Callers::prepare(&self.messages, &self.plane, &names).await.expect("callers");
        let unknown =
            callers.local().ask("/spire.api.server.entry.v1.Entry/GetEntry", json!({"id": "nobody"}));
        unknown.await.expect_err("there is no such entry");
        let below = callers.get("downstream").expect("a server below");
        let csr = Key::generate().request(&format!("spiffe://{}", self.plane.word("td")));
        let request = json!({"csr": BASE64_STANDARD.encode(csr)});
        let signed = below.ask("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", request).await;
        signed.expect("a CA for the server below");
    }

    async fn ask_too_often(&self) {
        let workload = Workload::at(self.plane.word("asock"));
        let deadline = Instant::now() + Duration::from_secs(30);
        while !matches!(workload.jwt_bundles().await, Err((code, _)) if code == "RESOURCE_EXHAUSTED" || code == "UNAVAILABLE")
        {
            assert!(Instant::now() < deadline, "no call is too many");
        }
    }

    /// The bundle of another trust domain is fetched, and again once it is another.
    fn federate(&self, product: &Product) {
        let config = PlaneConfig {
            trust_domain: FAR.to_owned(),
            server_extra:
                "federation { bundle_endpoint { address = \"127.0.0.1\" port = {p1} refresh_hint = \
                           \"10s\" profile \"https_spiffe\" {} } }"
                    .to_owned(),
            ..PlaneConfig::default()
        };
        let (near, far) = (&self.plane, Plane::start(product, &config, &BTreeMap::new()));
        let bundle = far.ok("server", &["bundle", "show", "-format", "spiffe", "-socketPath", "{sock}"]);
        near.write("{dir}/far.json", &bundle);
        let url = format!("https://127.0.0.1:{}", far.word("p1"));
        let endpoint = format!("spiffe://{FAR}/spire/server");
        let create = ["federation", "create", "-socketPath", "{sock}", "-trustDomain", FAR];
        let profile = ["-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID", &endpoint];
        let known = ["-trustDomainBundlePath", "{dir}/far.json", "-trustDomainBundleFormat", "spiffe"];
        let create = [&create[..], &["-bundleEndpointURL", &url], &profile, &known].concat();
        let _created = near.ok("server", &create);
        let _prepared = far.ok("server", &["localauthority", "x509", "prepare", "-socketPath", "{sock}"]);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.page("server").contains_key("spire_server_bundle_manager_update_federated_bundle") {
            assert!(Instant::now() < deadline, "the bundle of {FAR} is not refreshed");
            let refresh = ["federation", "refresh", "-socketPath", "{sock}", "-id", FAR];
            let (_code, _, _) = near.run("server", &refresh);
            pause();
        }
    }
}
