//! SPIFFE IDs as SPIRE judged them, in its words.

use std::fs;
use std::path::Path;

use finial_spiffe::SpiffeId;
use serde_json::Value;

/// What SPIRE puts before the reason.
const DOOR: &str = "failed to convert federation relationship: failed to parse endpoint SPIFFE ID: ";

#[test]
fn x01_ids_are_judged_as_recorded() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/documents/id.jsonl");
    let cases = fs::read_to_string(path).unwrap();
    let (mut run, mut passed, mut wrong) = (0, 0, Vec::new());

    for case in cases.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        run += 1;
        let text = case["doc"].as_str().unwrap();
        let judged = SpiffeId::parse(text);
        let fits = match &judged {
            Ok(id) => case["expect"]["code"] == 0 && id.as_str() == text,
            Err(why) => {
                case["expect"]["message"] == format!("{DOOR}{why}") || case["stricter_allowed"].is_string()
            }
        };
        if fits { passed += 1 } else { wrong.push(format!("{}: {judged:?}", case["id"])) }
    }

    println!("id.jsonl: {run} cases run, {passed} passed, {} open", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(run >= 275, "cases were lost");
}
