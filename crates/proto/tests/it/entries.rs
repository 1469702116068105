//! The entries of recorded requests: taken or refused as SPIRE did, in its words.

use std::fs;

use prost_reflect::{DescriptorPool, DynamicMessage};
use proto::convert::entry::requested;
use proto::spire::server::entry::{BatchCreateEntryRequest, BatchUpdateEntryRequest};
use proto::spire::types;
use serde_json::Value;
use spiffe::TrustDomain;

/// What SPIRE puts before the reason.
const DOOR: &str = "failed to convert entry: ";

/// A request in protobuf JSON.
fn read<M: prost::Message + Default>(pool: &DescriptorPool, name: &str, json: &Value) -> Option<M> {
    let descriptor = pool.get_message_by_name(name).expect("a message");
    DynamicMessage::deserialize(descriptor, json.clone()).ok()?.transcode_to().ok()
}

#[test]
fn entries_are_taken_or_refused_as_recorded() {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).expect("descriptors");
    let path = crate::conformance("api/entry.jsonl");
    let cases = fs::read_to_string(path).expect("recorded calls");
    let own = TrustDomain::parse("example.org").expect("a name");
    let (mut taken, mut refused, mut wrong) = (0, 0, Vec::new());

    for case in cases.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")) {
        for call in case["calls"].as_array().into_iter().flatten() {
            let method = call["method"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default();
            let (entries, mask): (Vec<types::Entry>, Option<types::EntryMask>) = match method {
                "BatchCreateEntry" => {
                    let name = "spire.api.server.entry.v1.BatchCreateEntryRequest";
                    let Some(request) = read::<BatchCreateEntryRequest>(&pool, name, &call["req"]) else {
                        continue;
                    };
                    (request.entries, None)
                }
                "BatchUpdateEntry" => {
                    let name = "spire.api.server.entry.v1.BatchUpdateEntryRequest";
                    let Some(request) = read::<BatchUpdateEntryRequest>(&pool, name, &call["req"]) else {
                        continue;
                    };
                    (request.entries, request.input_mask)
                }
                _ => continue,
            };
            let results = call["expect"]["answers"][0]["results"].as_array();
            for (entry, result) in entries.iter().zip(results.into_iter().flatten()) {
                let exact = result["status"]["message"].as_str();
                let start = result["status"]["message_starts"].as_str();
                let expected = exact.or(start).unwrap_or_default();
                let fits = match requested(&own, Some(entry), mask.as_ref()) {
                    Ok(_) => {
                        taken += 1;
                        !expected.starts_with(DOOR)
                    }
                    Err(why) => {
                        refused += 1;
                        let said = format!("{DOOR}{why}");
                        exact == Some(said.as_str())
                            || start.is_some_and(|start| said.starts_with(start))
                            || case["stricter_allowed"].is_string()
                    }
                };
                if !fits {
                    wrong.push(format!("{}: {expected}", case["id"]));
                }
            }
        }
    }

    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(taken >= 150 && refused >= 60, "{taken} taken, {refused} refused: cases were lost");
}
