//! Who calls the server's API over TLS with an SVID that an operator had it mint.

use std::path::Path;

use serde_json::json;
use tokio::runtime::Runtime;

use crate::plane::Plane;
use crate::wire::{Caller, Messages};

/// The caller.
#[derive(Debug)]
pub struct Minted {
    caller: Caller,
    runtime: Runtime,
}

impl Minted {
    /// With an SVID of `id`, from the server of `plane`.
    ///
    /// # Panics
    /// If the server mints none.
    #[must_use]
    pub fn of(plane: &Plane, recorded: &Path, id: &str) -> Self {
        let messages = Messages::load(&recorded.join("api/api.fds"));
        let runtime = Runtime::new().expect("a runtime");
        let caller = runtime.block_on(async {
            let shown = Caller::local(&messages, plane.word("sock")).mint(id).await.expect("an SVID");
            Caller::tls(&messages, plane.word("port"), Some(&shown))
        });
        Self { caller, runtime }
    }

    /// Calls `method` with an empty message: code, message, and the reasons among the details.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn call(&self, method: &str) -> (String, String, Vec<String>) {
        let reply = self.runtime.block_on(self.caller.call(method, &[json!({})], &[])).expect("an answer");
        let reasons = reply.details.iter().filter_map(|detail| detail["reason"].as_str());
        (reply.code, reply.message, reasons.map(str::to_owned).collect())
    }
}
