//! Certificates of every shape, linted.

use std::path::Path;

use finial_conformance::{Issued, Product};

#[test]
fn lint_issued_certificates() {
    // `cargo xtask soak` asks for more.
    let count = std::env::var("FINIAL_LINT_COUNT").map_or(200, |count| count.parse().unwrap());
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance");
    let mut issued = Issued::default();

    for ca_key in ["ec-p256", "ec-p384", "rsa-2048", "rsa-4096"] {
        issued.extend(Issued::by(&Product::under_test(), &recorded, ca_key, count / 4).unwrap());
    }

    let (own, foreign) = (issued.findings(), issued.foreign_findings());
    println!("{} certificates: own findings {}, foreign {foreign:?}", issued.len(), own.len());
    assert!(own.is_empty(), "{own:?}");
    assert!(foreign.is_none_or(|findings| findings.is_empty()));
}
