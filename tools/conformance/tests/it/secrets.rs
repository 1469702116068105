//! Nothing secret stands in a log or a metric, whatever is asked and at whatever level.

use std::path::{Path, PathBuf};

use finial_conformance::{Product, Secrets};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

#[test]
fn g01_no_secret_is_logged_or_measured() {
    let secrets = Secrets::plant(&Product::under_test(), &recorded());

    let found = secrets.found_in_what_is_told();

    assert!(secrets.count() >= 20, "only {} secrets were planted", secrets.count());
    assert!(found.is_empty(), "{found:#?}");
}
