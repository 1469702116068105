//! A server that asks a policy of the operator's who may call.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::plane::{Plane, PlaneConfig, Product};
use crate::wire::{Caller, Messages};

const SETTINGS: &str = "experimental { auth_opa_policy_engine { local { rego_path = \"{dir}/policy.rego\" \
                        policy_data_path = \"{dir}/policy.json\" } } }";

/// A trust domain with an agent, whose server asks a policy.
#[derive(Debug)]
pub struct Judged {
    /// The plane.
    pub plane: Plane,
    messages: Messages,
    runtime: Runtime,
}

impl Judged {
    /// Starts server and agent of `product` with this policy and its data.
    ///
    /// # Panics
    /// If they do not start.
    #[must_use]
    pub fn start(product: &Product, recorded: &Path, rego: &str, data: &Value) -> Self {
        let config = PlaneConfig { server_extra: SETTINGS.to_owned(), agent: true, ..PlaneConfig::default() };
        let files = BTreeMap::from([
            ("{dir}/policy.rego".to_owned(), rego.to_owned()),
            ("{dir}/policy.json".to_owned(), data.to_string()),
        ]);
        Self {
            plane: Plane::start(product, &config, &files),
            messages: Messages::load(&recorded.join("api/api.fds")),
            runtime: Runtime::new().expect("a runtime"),
        }
    }

    /// Code and message of a call on the server's socket, or over TLS without a certificate.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn call(&self, is_local: bool, method: &str, request: Value) -> (String, String) {
        self.runtime.block_on(async {
            let caller = if is_local {
                Caller::local(&self.messages, self.plane.word("sock"))
            } else {
                Caller::tls(&self.messages, self.plane.word("port"), None)
            };
            let reply = caller.call(method, &[request], &[]).await.expect("an answer");
            (reply.code, reply.message)
        })
    }

    /// An entry below the agent for the workload that this process is.
    #[must_use]
    pub fn entry(&self, path: &str) -> Value {
        let id = |path: &str| json!({"trust_domain": self.plane.word("td"), "path": path});
        json!({"entries": [{
            "parent_id": id("/node"), "spiffe_id": id(path),
            "selectors": [{"type": "unix", "value": format!("uid:{}", self.plane.word("uid"))}],
        }]})
    }
}

/// What a server of `product` with this policy and these data ends with instead of starting: whether it
/// failed, and all that it said.
///
/// # Panics
/// If it cannot be run.
#[must_use]
pub fn refused_policy(product: &Product, rego: &str, data: &str) -> (bool, String) {
    let config = PlaneConfig { server: false, server_extra: SETTINGS.to_owned(), ..PlaneConfig::default() };
    let files = BTreeMap::from([
        ("{dir}/policy.rego".to_owned(), rego.to_owned()),
        ("{dir}/policy.json".to_owned(), data.to_owned()),
    ]);
    let plane = Plane::start(product, &config, &files);
    plane.configure_server(&config);
    let (code, stdout, stderr) = plane.run("server", &["run", "-config", "{dir}/server.conf"]);
    let log = std::fs::read_to_string(plane.dir().join("server.log")).unwrap_or_default();
    (code != 0, format!("{stdout}{stderr}{log}"))
}
