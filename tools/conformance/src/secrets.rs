//! Secrets planted at every door, and looked for in all that server and agent tell: logs at the level
//! debug, what they print, and metrics, in every encoding that one of them might have taken.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::http::await_ok;
use crate::metrics::Measured;
use crate::plane::Product;
use crate::wire::{Caller, Connection, Messages};
use crate::workload::Workload;

/// What was planted, and where it must not come up.
#[derive(Debug)]
pub struct Secrets {
    /// Each under the name of what it is.
    planted: Vec<(String, Vec<u8>)>,
    measured: Measured,
}

impl Secrets {
    /// Starts server and agent of `product` and uses them with secrets that can be told again.
    ///
    /// # Panics
    /// If what must succeed does not.
    #[must_use]
    pub fn plant(product: &Product, recorded: &Path) -> Self {
        let measured = Measured::start(product, recorded, "InMem {}");
        let runtime = Runtime::new().expect("a runtime");
        let mut planted = Vec::new();
        runtime.block_on(plant(&measured, recorded, &mut planted));
        let mut secrets = Self { planted, measured };
        secrets.add_stored_keys();
        for program in ["server", "agent"] {
            let running = if program == "server" {
                secrets.measured.plane.server()
            } else {
                secrets.measured.plane.agent()
            };
            running.expect("a running program").signal("USR1");
        }
        // The signal is dealt with after the second that is under way.
        std::thread::park_timeout(std::time::Duration::from_secs(2));
        secrets
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.planted.len()
    }

    /// The private keys of server and agent, as their key managers store them, whole and in parts.
    fn add_stored_keys(&mut self) {
        for (name, path) in [("server key", "server-data/keys.json"), ("agent key", "agent-data/keys.json")] {
            let text = fs::read_to_string(self.measured.plane.dir().join(path)).expect("a key file");
            let keys: Value = serde_json::from_str(&text).expect("JSON");
            for key in keys["keys"].as_object().expect("keys").values() {
                let pkcs8 = BASE64_STANDARD.decode(key.as_str().expect("a key")).expect("base64");
                self.planted.push((format!("{name}'s number"), private_number(&pkcs8).to_vec()));
                self.planted.push((name.to_owned(), pkcs8));
            }
        }
    }

    /// Where secrets came up: what, in which encoding, where.
    ///
    /// # Panics
    /// If a log cannot be read.
    #[must_use]
    pub fn found_in_what_is_told(&self) -> Vec<String> {
        let plane = &self.measured.plane;
        let mut told = BTreeMap::new();
        for program in ["server", "agent"] {
            let log = fs::read(plane.dir().join(format!("{program}.log"))).expect("a log");
            assert!(log.len() > 1000, "the {program} logs next to nothing");
            told.insert(format!("log of the {program}"), log);
            let port = plane.word(if program == "server" { "p1" } else { "p2" });
            told.insert(format!("metrics of the {program}"), await_ok(port, "/metrics").into_bytes());
        }
        found_in(&told, self.planted.iter())
    }

    /// The same in the datastore, which must know join tokens and selectors, and nothing else.
    ///
    /// # Panics
    /// If the datastore cannot be read.
    #[must_use]
    pub fn found_in_the_datastore(&self) -> Vec<String> {
        let file =
            |ending: &str| self.measured.plane.dir().join(format!("server-data/datastore.sqlite3{ending}"));
        let stored = fs::read(file("")).expect("a datastore");
        let log = fs::read(file("-wal")).unwrap_or_default();
        assert!(stored.len() + log.len() > 10_000, "next to nothing is stored");
        let stored = BTreeMap::from([("datastore".to_owned(), [stored, log].concat())]);
        let belongs = |name: &str| name.starts_with("join token") || name == "value of a selector";
        found_in(&stored, self.planted.iter().filter(|(name, _)| !belongs(name)))
    }
}

/// Which secrets come up in which encoding where.
fn found_in<'a>(
    places: &BTreeMap<String, Vec<u8>>,
    secrets: impl Iterator<Item = &'a (String, Vec<u8>)>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (name, secret) in secrets {
        for (encoding, needle) in encodings(secret) {
            for (place, text) in places {
                if text.windows(needle.len()).any(|window| window == needle) {
                    found.push(format!("{name}, {encoding}, in the {place}"));
                }
            }
        }
    }
    found
}

async fn plant(measured: &Measured, recorded: &Path, planted: &mut Vec<(String, Vec<u8>)>) {
    let plane = &measured.plane;
    let messages = Messages::load(&recorded.join("api/api.fds"));
    let local = Caller::local(&messages, plane.word("sock"));
    let trust_domain = plane.word("td");
    let marker = |name: &str| format!("geheim-{name}-7c41d09b52ef");
    let mut note = |name: &str, secret: &[u8]| planted.push((name.to_owned(), secret.to_vec()));

    // Join tokens: one given, one made, one used up for nothing, one that is unknown.
    const TOKEN: &str = "/spire.api.server.agent.v1.Agent/CreateJoinToken";
    for name in ["token", "spare"] {
        let token = marker(name);
        local.ask(TOKEN, json!({"ttl": 600, "token": token})).await.expect("a token");
        note("join token", token.as_bytes());
    }
    let made = local.ask(TOKEN, json!({"ttl": 600})).await.expect("a token");
    note("join token of the server's making", made["value"].as_str().unwrap_or_default().as_bytes());
    let remote = Caller::tls(&messages, plane.word("port"), None);
    for name in ["token", "unknown"] {
        let payload = BASE64_STANDARD.encode(marker(name));
        let request = json!({"params": {
            "data": {"type": "join_token", "payload": payload},
            "params": {"csr": BASE64_STANDARD.encode(marker("csr"))},
        }});
        remote
            .call("/spire.api.server.agent.v1.Agent/AttestAgent", &[request], &[])
            .await
            .expect("an answer");
        note("join token that was tried", marker(name).as_bytes());
    }

    // Selectors whose values are secrets, in an entry that an agent gets, one that is refused, and a filter.
    let id = |path: &str| json!({"trust_domain": trust_domain, "path": path});
    let secret = marker("selector");
    let uid = format!("uid:{}", plane.word("uid"));
    let entry = |name: &str, selectors: Value| json!({"id": name, "parent_id": id("/node"), "spiffe_id": id(&format!("/{name}")), "selectors": selectors});
    let own = json!([{"type": "unix", "value": uid}]);
    let hidden = json!([{"type": "unix", "value": secret}, {"type": "unix", "value": uid}]);
    let nameless = json!([{"type": "", "value": secret}]);
    let entries =
        json!({"entries": [entry("kept", own), entry("hidden", hidden.clone()), entry("bad", nameless)]});
    const CREATE: &str = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
    local.ask(CREATE, entries.clone()).await.expect("entries");
    local.ask(CREATE, entries).await.expect("an answer");
    let filter = json!({"filter": {"by_selectors": {"selectors": hidden, "match": 0}}});
    local.ask("/spire.api.server.entry.v1.Entry/ListEntries", filter).await.expect("a list");
    note("value of a selector", secret.as_bytes());

    // Tokens and keys of a workload, and tokens that are refused.
    plane.await_identities(&["spiffe://{td}/kept"]);
    let workload = Workload::at(plane.word("asock"));
    let token = workload.token("secrets").await.expect("a token");
    note("JWT-SVID", token.as_bytes());
    note("signature of a JWT-SVID", token.rsplit('.').next().unwrap_or_default().as_bytes());
    workload.validate("secrets", &token).await.expect("a valid token");
    workload.validate("others", &token).await.expect_err("another audience");
    let broken = format!("{}{}", token, marker("jwt"));
    workload.validate("secrets", &broken).await.expect_err("another signature");
    note("JWT-SVID that is refused", marker("jwt").as_bytes());
    let minted = local
        .ask("/spire.api.server.svid.v1.SVID/MintJWTSVID", json!({"id": id("/minted"), "audience": ["x"]}))
        .await
        .expect("a token");
    let minted = minted["svid"]["token"].as_str().unwrap_or_default().to_owned();
    note("JWT-SVID that was minted", minted.as_bytes());
    note("signature of a minted JWT-SVID", minted.rsplit('.').next().unwrap_or_default().as_bytes());
    for key in workload_keys(plane.word("asock")).await {
        note("number of a workload's key", private_number(&key));
        note("key of a workload", &key);
    }

    // Bytes that are no messages.
    let raw = Bytes::from(marker("bytes"));
    for method in [TOKEN, CREATE, "/spire.api.server.svid.v1.SVID/MintX509SVID"] {
        local.exchange(method, vec![raw.clone()]).await.expect("an answer");
    }
    note("bytes that are no message", &raw);
}

/// The private keys that the Workload API hands out, as they are on the wire.
async fn workload_keys(socket: &str) -> Vec<Vec<u8>> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Answer {
        #[prost(message, repeated, tag = "1")]
        svids: Vec<Svid>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Svid {
        #[prost(bytes = "vec", tag = "3")]
        key: Vec<u8>,
    }
    let header = [("workload.spiffe.io".to_owned(), "true".to_owned())];
    let connection = Connection::local(socket);
    let mut stream = connection
        .open("/SpiffeWorkloadAPI/FetchX509SVID", vec![Bytes::new()], &header)
        .await
        .expect("a stream of SVIDs");
    let first = stream.message().await.expect("an answer").expect("an answer");
    let answer: Answer = prost::Message::decode(first).expect("SVIDs");
    answer.svids.into_iter().map(|svid| svid.key).collect()
}

/// The private number of a key on a curve of NIST, as PKCS #8 holds it (RFC 5915).
pub(crate) fn private_number(pkcs8: &[u8]) -> &[u8] {
    let marks: [&[u8]; 2] = [&[0x02, 0x01, 0x01, 0x04, 0x20], &[0x02, 0x01, 0x01, 0x04, 0x30]];
    let found = marks.iter().find_map(|mark| {
        let at = pkcs8.windows(mark.len()).position(|window| window == *mark)? + mark.len();
        pkcs8.get(at..at + usize::from(mark[4]))
    });
    found.expect("a key on P-256 or P-384")
}

/// A secret as it is, and as somebody may have written it.
pub(crate) fn encodings(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let colons = secret.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    let list = |separator: &str| secret.iter().map(u8::to_string).collect::<Vec<_>>().join(separator);
    let escaped: String =
        secret.iter().flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect();
    let texts = [
        ("base64", BASE64_STANDARD.encode(secret)),
        ("base64 without padding", BASE64_STANDARD_NO_PAD.encode(secret)),
        ("base64url", BASE64_URL_SAFE.encode(secret)),
        ("base64url without padding", BASE64_URL_SAFE_NO_PAD.encode(secret)),
        ("upper hexadecimal", hex.to_uppercase()),
        ("hexadecimal", hex),
        ("hexadecimal with colons", colons),
        ("a list of numbers", list(", ")),
        ("a list of numbers as Go has it", list(" ")),
        ("escaped", escaped),
        ("reversed", String::from_utf8_lossy(&secret.iter().rev().copied().collect::<Vec<_>>()).into_owned()),
    ];
    let mut all = vec![("as it is", secret.to_vec())];
    all.extend(texts.into_iter().map(|(name, text)| (name, text.into_bytes())));
    all
}
