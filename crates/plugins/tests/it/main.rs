//! Every built-in plugin through the catalog, and one contract suite per trait over all of its
//! implementations.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

extern crate finial_plugins as plugins;

mod catalog;
mod composer;
mod keymanager;
mod unix;
mod upstream;
mod x509pop;

use plugin::catalog::{Data, Declaration};
use spiffe::TrustDomain;

/// A plugin block.
fn block(kind: &str, name: &str, data: &str) -> Declaration {
    Declaration {
        kind: kind.to_owned(),
        name: name.to_owned(),
        command: String::new(),
        enabled: true,
        data: if data.is_empty() { Data::Absent } else { Data::Inline(data.to_owned()) },
    }
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}
