//! Five trust domains that one server knows, and what each can say about the others: nothing.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use tokio::runtime::Runtime;

use crate::pki::{Authority, Key, pem};
use crate::plane::{Plane, PlaneConfig, Product};
use crate::wire::{Caller, Messages, Shown};

const NAMES: [&str; 5] = ["a.test", "b.test", "c.test", "d.test", "e.test"];
const COUNT: &str = "/spire.api.server.bundle.v1.Bundle/CountBundles";

/// A server with the bundles of five trust domains, each of which has an administrator here.
pub struct Crowd {
    plane: Plane,
    messages: Messages,
    authorities: BTreeMap<&'static str, Authority>,
}

impl Crowd {
    /// Starts the server and hands it the bundles. `recorded` has the descriptors of the API.
    #[must_use]
    pub fn start(product: &Product, recorded: &Path) -> Self {
        let admins = NAMES.map(|name| format!("\"spiffe://{name}/admin\"")).join(", ");
        let config =
            PlaneConfig { server_extra: format!("admin_ids = [{admins}]"), ..PlaneConfig::default() };
        let plane = Plane::start(product, &config, &BTreeMap::new());
        let authorities = NAMES.map(|name| (name, Authority::of(name)));
        for (name, authority) in &authorities {
            plane.write("{dir}/bundle.pem", &pem("CERTIFICATE", &authority.certificate));
            let set = ["bundle", "set", "-id", name, "-path", "{dir}/bundle.pem", "-socketPath", "{sock}"];
            let _set = plane.ok("server", &set);
        }
        let messages = Messages::load(&recorded.join("api/api.fds"));
        Self { plane, messages, authorities: authorities.into() }
    }

    /// An administrator whose certificate is of its own trust domain's authority is let in; the same id
    /// under the authority of any other is refused, and so is the own trust domain's under any of them.
    ///
    /// # Errors
    /// Says who was let in, or kept out.
    pub fn speak_for_each_other(&self) -> Result<(), String> {
        let runtime = Runtime::new().map_err(|error| error.to_string())?;
        let (mut admitted, mut refused) = (0, 0);
        for (of, authority) in &self.authorities {
            for name in NAMES.into_iter().chain(["example.org"]) {
                let key = Key::generate();
                let chain = vec![authority.certify(&key, &format!("spiffe://{name}/admin"))];
                let shown = Shown { chain, key: key.pkcs8() };
                let reply = runtime.block_on(async {
                    let caller = Caller::tls(&self.messages, self.plane.word("port"), Some(&shown));
                    caller.call(COUNT, &[json!({})], &[]).await
                })?;
                match reply.code.as_str() {
                    "OK" if name == *of => admitted += 1,
                    "CONNECTION" if name != *of => refused += 1,
                    other => {
                        return Err(format!("{name} under the authority of {of}: {other} {}", reply.message));
                    }
                }
            }
        }
        if (admitted, refused) == (5, 25) { Ok(()) } else { Err(format!("{admitted} and {refused}")) }
    }
}
