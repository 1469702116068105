//! The Workload API, as a workload calls it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use prost_types::value::Kind;
use serde_json::{Map, Value, json};
use tonic::Status;

use crate::wire::{Connection, code_of};

const VALIDATE: &str = "/SpiffeWorkloadAPI/ValidateJWTSVID";

const JWT_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchJWTBundles";

#[derive(Clone, PartialEq, Message)]
struct BundlesResponse {
    #[prost(btree_map = "string, bytes", tag = "1")]
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

/// A workload on an agent's socket.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    connection: Connection,
}

impl Workload {
    /// The workload that this process is, at the agent on `socket`.
    pub(crate) fn at(socket: &str) -> Self {
        Self { connection: Connection::local(socket) }
    }

    /// Has a token validated; a refusal is its code and message.
    pub(crate) async fn validate(&self, audience: &str, token: &str) -> Result<Validated, (String, String)> {
        let request = ValidateRequest { audience: audience.to_owned(), svid: token.to_owned() };
        let answer = self.call(VALIDATE, &request).await?;
        let answer = ValidateResponse::decode(answer).map_err(|error| local(&error.to_string()))?;
        let claims = answer.claims.map(|claims| object(claims.fields)).unwrap_or_default();
        Ok(Validated { spiffe_id: answer.spiffe_id, claims })
    }

    /// The trust domains whose JWT bundles the workload gets.
    pub(crate) async fn jwt_bundles(&self) -> Result<Vec<String>, (String, String)> {
        let opened = self.connection.open(JWT_BUNDLES, vec![Bytes::new()], &header()).await;
        let answer = opened.map_err(|status| refusal(&status))?.message().await;
        let answer = answer.map_err(|status| refusal(&status))?.unwrap_or_default();
        let answer = BundlesResponse::decode(answer).map_err(|error| local(&error.to_string()))?;
        Ok(answer.bundles.into_keys().collect())
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
    (code_of(status).to_owned(), status.message().to_owned())
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
