//! The server's API: every recorded call, played on a server process.
//!
//! `conformance/api/floor.tsv` holds, per file, the number of cases and the most that may be open.

use std::path::Path;

use finial_conformance::{ApiGroup, Product};

fn check(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/api");

    let outcome = ApiGroup::load(&folder, name).play(&Product::under_test());

    outcome.hold(&folder, name);
}

macro_rules! groups {
    ($($test:ident: $file:literal,)*) => {
        $(#[test] fn $test() { check($file); })*
    };
}

groups! {
    api_agent: "agent",
    api_authority: "authority",
    api_authz: "authz",
    api_authz_expired: "authz-expired",
    api_bundle: "bundle",
    api_entry: "entry",
    api_entrylist: "entrylist",
    api_federation: "federation",
    api_issue: "issue",
    api_mint: "mint",
    api_ownbundle: "ownbundle",
    api_server: "server",
    api_sync: "sync",
    api_wire: "wire",
}
