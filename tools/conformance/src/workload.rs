//! The Workload API, as a workload calls it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use prost_types::value::Kind;
use serde_json::{Map, Value, json};
use tonic::{Status, Streaming};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::der;
use crate::wire::{Connection, code_of};

const VALIDATE: &str = "/SpiffeWorkloadAPI/ValidateJWTSVID";

const X509_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
const JWT_SVID: &str = "/SpiffeWorkloadAPI/FetchJWTSVID";
const JWT_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchJWTBundles";
const X509_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchX509Bundles";
const WIT_SVID: &str = "/SpiffeWorkloadAPI/FetchWITSVID";
const WIT_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchWITBundles";

#[derive(Clone, PartialEq, Message)]
struct X509Response {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<X509Svid>,
    #[prost(btree_map = "string, bytes", tag = "3")]
    federated: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct X509Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    chain: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct JwtRequest {
    #[prost(string, repeated, tag = "1")]
    audience: Vec<String>,
    #[prost(string, tag = "2")]
    spiffe_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct JwtResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<JwtSvid>,
}

#[derive(Clone, PartialEq, Message)]
struct JwtSvid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(string, tag = "2")]
    token: String,
}

#[derive(Clone, PartialEq, Message)]
struct BundlesResponse {
    #[prost(btree_map = "string, bytes", tag = "1")]
    bundles: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct X509BundlesResponse {
    #[prost(btree_map = "string, bytes", tag = "2")]
    bundles: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct ValidateRequest {
    #[prost(string, tag = "1")]
    audience: String,
    #[prost(string, tag = "2")]
    svid: String,
}

#[derive(Clone, PartialEq, Message)]
struct ValidateResponse {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(message, optional, tag = "2")]
    claims: Option<prost_types::Struct>,
}

/// A token that was found valid.
#[derive(Debug)]
pub(crate) struct Validated {
    /// Whose it is.
    pub(crate) spiffe_id: String,
    /// What it claims; all numbers are floating.
    pub(crate) claims: Value,
}

/// An X.509-SVID as a workload holds it.
#[derive(Clone, Debug)]
pub(crate) struct Svid {
    /// Whose it is.
    pub(crate) id: String,
    /// DER of its certificates, leaf first.
    pub(crate) chain: Vec<Vec<u8>>,
    /// Its private key, PKCS #8.
    pub(crate) key: Vec<u8>,
    /// DER of the authorities of its trust domain.
    pub(crate) bundle: Vec<Vec<u8>>,
    /// The same of the trust domains that some entry of the workload federates with.
    pub(crate) federated: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Svid {
    /// Whether it is valid now by the authorities `bundle`.
    pub(crate) fn verify(&self, bundle: &[Vec<u8>]) -> Result<(), String> {
        let parse = |der| X509Certificate::from_der(der).map(|(_, parsed)| parsed);
        let chain = self.chain.iter().map(|der| parse(der)).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| format!("cannot read the chain of {}: {error}", self.id))?;
        let roots = bundle.iter().map(|der| parse(der)).collect::<Result<Vec<_>, _>>();
        let roots = roots.map_err(|error| format!("cannot read the bundle: {error}"))?;
        if let Some(stale) = chain.iter().find(|certificate| !certificate.validity().is_valid()) {
            return Err(format!("{} is valid {:?}", self.id, stale.validity()));
        }
        let mut subject = chain.first().ok_or("there is no certificate")?;
        for issuer in chain.iter().skip(1) {
            subject
                .verify_signature(Some(issuer.public_key()))
                .map_err(|error| format!("the chain of {} is broken: {error}", self.id))?;
            subject = issuer;
        }
        let is_anchored = roots.iter().any(|root| {
            root.subject() == subject.issuer()
                && root.validity().is_valid()
                && subject.verify_signature(Some(root.public_key())).is_ok()
        });
        if is_anchored { Ok(()) } else { Err(format!("no authority has issued the SVID of {}", self.id)) }
    }

    /// Whether its time has not run out.
    pub(crate) fn is_fresh(&self) -> bool {
        self.leaf(|leaf| leaf.validity().is_valid())
    }

    /// The serial number of the leaf.
    pub(crate) fn serial(&self) -> String {
        self.leaf(|leaf| leaf.raw_serial_as_string())
    }

    /// The issuer of the leaf.
    pub(crate) fn issuer(&self) -> String {
        self.leaf(|leaf| leaf.issuer().to_string())
    }

    /// The DNS names of the leaf.
    pub(crate) fn dns_names(&self) -> Vec<String> {
        self.leaf(|leaf| {
            let names = leaf.subject_alternative_name().ok().flatten();
            let names = names.into_iter().flat_map(|names| names.value.general_names.iter());
            let dns = |name: &GeneralName<'_>| {
                if let GeneralName::DNSName(name) = name { Some((*name).to_owned()) } else { None }
            };
            names.filter_map(dns).collect()
        })
    }

    fn leaf<T>(&self, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
        let der = self.chain.first().expect("an SVID has a certificate");
        let (_, leaf) = X509Certificate::from_der(der).expect("a leaf that was verified");
        look(&leaf)
    }
}

/// A stream of a workload's X.509-SVIDs.
#[derive(Debug)]
pub struct Svids {
    stream: Streaming<Bytes>,
}

impl Svids {
    /// The next update, every SVID of which is valid by the bundle that came with it; a refusal is its
    /// code and message, the end of the stream is `OK`.
    pub(crate) async fn next(&mut self) -> Result<Vec<Svid>, (String, String)> {
        let answer = self.stream.message().await.map_err(|status| refusal(&status))?;
        let answer = answer.ok_or_else(|| ("OK".to_owned(), String::new()))?;
        let answer = X509Response::decode(answer).map_err(|error| local(&error.to_string()))?;
        let split = |mut der: &[u8]| {
            let mut parts = Vec::new();
            while let Some(element) = der::read(der) {
                let (part, rest) = der.split_at(der.len() - element.rest.len());
                parts.push(part.to_vec());
                der = rest;
            }
            parts
        };
        let federated = answer.federated.into_iter().map(|(name, der)| (name, split(&der)));
        let federated: BTreeMap<_, _> = federated.collect();
        let svids = answer.svids.into_iter().map(|svid| Svid {
            id: svid.spiffe_id,
            chain: split(&svid.chain),
            key: svid.key,
            bundle: split(&svid.bundle),
            federated: federated.clone(),
        });
        let svids: Vec<Svid> = svids.collect();
        for svid in &svids {
            svid.verify(&svid.bundle).map_err(|why| local(&why))?;
        }
        Ok(svids)
    }
}

/// A workload on an agent's socket.
#[derive(Clone, Debug)]
pub struct Workload {
    connection: Connection,
}

impl Workload {
    /// The workload that this process is, at the agent on `socket`.
    #[must_use]
    pub fn at(socket: &str) -> Self {
        Self { connection: Connection::local(socket) }
    }

    /// Who connected `stream`, whoever holds it now.
    #[must_use]
    pub fn over(stream: tokio::net::UnixStream) -> Self {
        Self { connection: Connection::over(stream) }
    }

    /// Opens a stream of its X.509-SVIDs and follows it to its end: `see` is told the ids and first serial
    /// number of each update. The end is its code and message.
    pub async fn follow(&self, mut see: impl FnMut(Vec<String>, String)) -> (String, String) {
        let mut stream = match self.svids().await {
            Ok(stream) => stream,
            Err(refusal) => return refusal,
        };
        loop {
            match stream.next().await {
                Ok(svids) => {
                    let serial = svids.first().map(Svid::serial).unwrap_or_default();
                    see(svids.into_iter().map(|svid| svid.id).collect(), serial);
                }
                Err(end) => return end,
            }
        }
    }

    /// The ids of its X.509-SVIDs, in order.
    ///
    /// # Errors
    /// A refusal is its code and message.
    pub async fn ids(&self) -> Result<Vec<String>, (String, String)> {
        let mut ids: Vec<String> =
            self.svids().await?.next().await?.into_iter().map(|svid| svid.id).collect();
        ids.sort();
        Ok(ids)
    }

    /// A stream of its X.509-SVIDs whose first answer has come.
    ///
    /// # Errors
    /// A refusal is its code and message.
    pub async fn held(&self) -> Result<Svids, (String, String)> {
        let mut stream = self.svids().await?;
        stream.next().await?;
        Ok(stream)
    }

    /// Has a token validated; a refusal is its code and message.
    pub(crate) async fn validate(&self, audience: &str, token: &str) -> Result<Validated, (String, String)> {
        let request = ValidateRequest { audience: audience.to_owned(), svid: token.to_owned() };
        let answer = self.call(VALIDATE, &request).await?;
        let answer = ValidateResponse::decode(answer).map_err(|error| local(&error.to_string()))?;
        let claims = answer.claims.map(|claims| object(claims.fields)).unwrap_or_default();
        Ok(Validated { spiffe_id: answer.spiffe_id, claims })
    }

    /// Opens a stream of its X.509-SVIDs.
    pub(crate) async fn svids(&self) -> Result<Svids, (String, String)> {
        let opened = self.connection.open(X509_SVID, vec![Bytes::new()], &header()).await;
        Ok(Svids { stream: opened.map_err(|status| refusal(&status))? })
    }

    /// A token for `audience`.
    ///
    /// # Errors
    /// A refusal is its code and message.
    pub async fn token(&self, audience: &str) -> Result<String, (String, String)> {
        let request = JwtRequest { audience: vec![audience.to_owned()], spiffe_id: String::new() };
        let answer = self.call(JWT_SVID, &request).await?;
        let answer = JwtResponse::decode(answer).map_err(|error| local(&error.to_string()))?;
        let first = answer.svids.into_iter().next();
        first.map(|svid| svid.token).ok_or_else(|| local("the answer holds no token"))
    }

    /// The trust domains whose JWT bundles the workload gets.
    pub(crate) async fn jwt_bundles(&self) -> Result<Vec<String>, (String, String)> {
        let opened = self.connection.open(JWT_BUNDLES, vec![Bytes::new()], &header()).await;
        let answer = opened.map_err(|status| refusal(&status))?.message().await;
        let answer = answer.map_err(|status| refusal(&status))?.unwrap_or_default();
        let answer = BundlesResponse::decode(answer).map_err(|error| local(&error.to_string()))?;
        Ok(answer.bundles.into_keys().collect())
    }

    /// The X.509 bundles that the workload gets: DER of the authorities by trust domain.
    pub(crate) async fn x509_bundles(&self) -> Result<BTreeMap<String, Vec<u8>>, (String, String)> {
        let opened = self.connection.open(X509_BUNDLES, vec![Bytes::new()], &header()).await;
        let answer = opened.map_err(|status| refusal(&status))?.message().await;
        let answer = answer.map_err(|status| refusal(&status))?.unwrap_or_default();
        let answer = X509BundlesResponse::decode(answer).map_err(|error| local(&error.to_string()))?;
        Ok(answer.bundles)
    }

    /// How the two calls for WIT-SVIDs are refused: codes.
    pub(crate) async fn wit_refusals(&self) -> [Option<String>; 2] {
        let code = async |method| {
            let opened = self.connection.open(method, vec![Bytes::new()], &header()).await;
            let outcome = match opened {
                Ok(mut stream) => stream.message().await.map(drop),
                Err(status) => Err(status),
            };
            outcome.err().map(|status| code_of(&status).to_owned())
        };
        [code(WIT_SVID).await, code(WIT_BUNDLES).await]
    }

    async fn call(&self, method: &str, request: &impl Message) -> Result<Bytes, (String, String)> {
        let request = vec![Bytes::from(request.encode_to_vec())];
        let exchanged = self.connection.exchange(method, request, &header()).await;
        let (answers, status) = exchanged.map_err(|why| local(&why))?;
        match answers.into_iter().next() {
            Some(answer) if status.code() == tonic::Code::Ok => Ok(answer),
            _ => Err(refusal(&status)),
        }
    }
}

/// The header that every call of the Workload API must carry.
fn header() -> [(String, String); 1] {
    [("workload.spiffe.io".to_owned(), "true".to_owned())]
}

fn refusal(status: &Status) -> (String, String) {
    let mut message = status.message().to_owned();
    let mut cause = std::error::Error::source(status).and_then(std::error::Error::source);
    while let Some(error) = cause {
        message.push_str(&format!(": {error}"));
        cause = error.source();
    }
    (code_of(status).to_owned(), message)
}

fn local(why: &str) -> (String, String) {
    ("CONNECTION".to_owned(), why.to_owned())
}

fn object(fields: impl IntoIterator<Item = (String, prost_types::Value)>) -> Value {
    Value::Object(fields.into_iter().map(|(name, value)| (name, plain(value))).collect::<Map<_, _>>())
}

fn plain(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::BoolValue(truth)) => Value::Bool(truth),
        Some(Kind::StructValue(value)) => object(value.fields),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(plain).collect()),
    }
}
