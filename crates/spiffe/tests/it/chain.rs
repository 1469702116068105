//! Certificate chains presented to the server's port: who gets through, and as whom.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use finial_spiffe::UnixSecs;
use finial_spiffe::x509::{Certificate, leaf_id, pem_blocks, verify_svid};
use serde_json::Value;

fn documents(name: &str) -> String {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/documents");
    fs::read_to_string(home.join(name)).unwrap()
}

/// The anchors of each trust domain of the recorded world.
fn world() -> BTreeMap<String, Vec<Certificate>> {
    let world: Value = serde_json::from_str(&documents("world.json")).unwrap();
    let anchors = |bundle: &Value| -> Vec<Certificate> {
        let authorities = bundle["x509_authorities"].as_array().cloned().unwrap_or_default();
        authorities
            .iter()
            .filter_map(|authority| {
                let der = STANDARD.decode(authority["asn1"].as_str().unwrap()).unwrap();
                Certificate::parse(&der).ok()
            })
            .collect()
    };
    let mut world_anchors = BTreeMap::from([("example.org".to_owned(), anchors(&world["own"]))]);
    for bundle in world["federated"].as_array().unwrap() {
        world_anchors.insert(bundle["trust_domain"].as_str().unwrap().to_owned(), anchors(bundle));
    }
    world_anchors
}

#[test]
fn x02_chains_are_judged_as_recorded() {
    let anchors = world();
    // The day of recording: some of the certificates have a fixed end.
    let now = UnixSecs(1_795_500_000);
    let (mut run, mut passed, mut wrong) = (0, 0, Vec::new());

    for line in documents("chain.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        run += 1;
        let pem = case["doc"]["chain"].as_str().unwrap();
        let judged = pem_blocks(pem.as_bytes(), "CERTIFICATE")
            .iter()
            .map(|der| Certificate::parse(der).map_err(|e| e.to_string()))
            .collect::<Result<Vec<_>, _>>()
            .and_then(|chain| {
                let id = chain.first().ok_or("empty")?;
                let id = leaf_id(id).map_err(|why| why.to_string())?;
                let known = anchors.get(id.trust_domain_name()).ok_or("no bundle")?;
                let is_admin = id.as_str() == "spiffe://foreign.test/admin";
                if id.trust_domain_name() != "example.org" && !is_admin {
                    return Err("not a member".to_owned());
                }
                verify_svid(&chain, known, now).map_err(|why| why.to_string())
            });
        let accepted = case["expect"]["code"] != "CONNECTION";
        let stricter = case["stricter_allowed"].is_string();
        let fits = judged.is_ok() == accepted || (judged.is_err() && stricter);
        if fits { passed += 1 } else { wrong.push(format!("{}: {judged:?}", case["id"])) }
    }

    println!("chain.jsonl: {run} cases run, {passed} passed, {} open", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(run >= 99, "cases were lost");
}
