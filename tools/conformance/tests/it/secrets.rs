//! Nothing secret stands in a log, a metric or the datastore, whatever is asked and at whatever level.

use std::path::{Path, PathBuf};

use finial_conformance::{Product, Secrets};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

#[test]
fn g01_s01_no_secret_is_logged_measured_or_stored() {
    let secrets = Secrets::plant(&Product::under_test(), &recorded());

    let found = secrets.found_in_what_is_told();

    assert!(secrets.count() >= 20, "only {} secrets were planted", secrets.count());
    assert!(found.is_empty(), "{found:#?}");
    let stored = secrets.found_in_the_datastore();
    assert!(stored.is_empty(), "{stored:#?}");
}
