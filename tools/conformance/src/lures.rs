//! A workload that names places of its choice wherever a request has room for a text.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::task::JoinSet;

use crate::wire::{Connection, code_of};

/// The methods of all services on an agent's public socket.
const METHODS: [&str; 14] = [
    "/SpiffeWorkloadAPI/FetchX509SVID",
    "/SpiffeWorkloadAPI/FetchX509Bundles",
    "/SpiffeWorkloadAPI/FetchJWTSVID",
    "/SpiffeWorkloadAPI/FetchJWTBundles",
    "/SpiffeWorkloadAPI/ValidateJWTSVID",
    "/SpiffeWorkloadAPI/FetchWITSVID",
    "/SpiffeWorkloadAPI/FetchWITBundles",
    "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
    "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets",
    "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/FetchJWTSVIDs",
];

/// How long a stream that stays open is listened to.
const MOMENT: std::time::Duration = std::time::Duration::from_millis(200);

/// Calls everything on the public socket with each of `places` as every text of the request, of its
/// messages and of its headers, and has tokens validated that name them as where their key is. How the
/// calls were answered, by code; a stream that stays open counts as answered.
pub async fn lure(socket: &str, places: &[String]) -> std::collections::BTreeMap<String, usize> {
    let connection = Connection::local(socket);
    let mut codes = std::collections::BTreeMap::new();
    for place in places {
        for method in METHODS {
            // All at once: a stream that stays open costs its moment.
            let mut calls = JoinSet::new();
            for message in messages(place) {
                let names = ["x-forwarded-for", "forwarded", "referer", "traceparent"];
                let headers = names.map(|name| (name, place.as_str()));
                let headers = [("workload.spiffe.io", "true")].into_iter().chain(headers);
                let headers: Vec<(String, String)> =
                    headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
                let connection = connection.clone();
                calls.spawn(async move {
                    let call = connection.exchange(method, vec![message], &headers);
                    match tokio::time::timeout(MOMENT, call).await {
                        Ok(Ok((_, status))) => code_of(&status).to_owned(),
                        Ok(Err(why)) => why,
                        Err(_) => "OK".to_owned(),
                    }
                });
            }
            for code in calls.join_all().await {
                *codes.entry(code).or_insert(0) += 1;
            }
        }
    }
    codes
}

/// Requests that hold `place`: as each of the first fields, alone and in messages inside, and tokens.
fn messages(place: &str) -> Vec<Bytes> {
    let text = |number, text: &[u8]| {
        let mut message = Vec::new();
        encode_key(number, WireType::LengthDelimited, &mut message);
        encode_varint(text.len() as u64, &mut message);
        message.extend_from_slice(text);
        message
    };
    let all: Vec<u8> = (1..=8).flat_map(|number| text(number, place.as_bytes())).collect();
    let mut messages = vec![all.clone()];
    for number in 1..=8 {
        messages.push(text(number, place.as_bytes()));
        messages.push(text(number, &all));
    }
    let id = format!("spiffe://example.org/{}", place.trim_start_matches('/'));
    messages.push([text(1, place.as_bytes()), text(2, id.as_bytes())].concat());
    for name in ["jku", "x5u", "kid", "jwk", "x5c"] {
        let header = serde_json::json!({"alg": "ES256", "typ": "JWT", "kid": "key", name: place});
        for subject in [&id, place] {
            let claims = serde_json::json!({"sub": subject, "iss": place, "aud": [place], "exp": u32::MAX});
            let parts = [header.to_string(), claims.to_string(), "signature".to_owned()];
            let token = parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
            messages.push([text(1, place.as_bytes()), text(2, token.as_bytes())].concat());
        }
    }
    messages.into_iter().map(Bytes::from).collect()
}
